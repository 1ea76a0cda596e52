"""The verdict: what is left after a trial, against what should be."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from tests.chaos.charges import DUPLICATED, ENDED, LEFT_OVER, LOST, REORDERED, STALE, WRONG, Violation
from tests.chaos.evidence import Evidence, Fact
from tests.chaos.fates import fates
from tests.chaos.journal import Asked, Said
from tests.chaos.law import LETTER, Effect

_ASIDE: Final = frozenset({"agent_first_seen", "command_delivered", "dead_letter_added", "messages_released"})
"""Facts beside the point: who met an agent first, whether it was seen to take a command before it said so, and which
messages were waiting when its state changed is a matter of time; letters are counted as letters.
"""


def judge(evidence: Evidence) -> list[Violation]:
    """Compare everything with everything."""
    return [
        *_responses(evidence),
        *_order(evidence),
        *_states(evidence),
        *_measurements(evidence),
        *_inboxes(evidence),
        *_garbage(evidence),
        *_requests(evidence),
        *_voices(evidence),
        *_commits(evidence),
        *fates(evidence),
        *(Violation(LEFT_OVER, where, f"{count} are left") for where, count in evidence.left.items() if count),
        *(Violation(WRONG, "engine", complaint) for complaint in evidence.complaints),
    ]


def _responses(evidence: Evidence) -> Iterator[Violation]:
    """Each response has exactly the effects that it should have, or lies in the dead letters once."""
    found: dict[str, list[Effect]] = defaultdict(list)
    for fact in evidence.facts:
        if fact.by == "agent" and fact.cause and fact.event not in _ASIDE:
            found[fact.cause].append(_effect(fact))
    letters = Counter(letter.raw for letter in evidence.letters)
    for journal in evidence.journals:
        for said in journal.said:
            most = said.attempts if journal.agent_id in evidence.wrong_type_keys else 1
            yield from _response(said, tuple(found[said.message_id]), letters[said.raw], most)


def _response(said: Said, found: tuple[Effect, ...], letters: int, most: int) -> Iterator[Violation]:
    is_buried = LETTER in said.expected
    expected = tuple(effect for effect in said.expected if effect != LETTER)
    if letters and not is_buried:
        yield Violation(WRONG, said.message_id, f"{said.kind} was buried, but should come to {_told(expected)}")
    elif is_buried and not letters:
        yield Violation(LOST, said.message_id, f"{said.kind} is not among the dead letters")
    elif letters > most:
        yield Violation(DUPLICATED, said.message_id, f"{said.kind} was buried {letters} times")
    elif expected and not found:
        yield Violation(LOST, said.message_id, f"{said.kind} left no trace of {_told(expected)}")
    elif found == expected:
        return
    elif expected and Counter(found) == Counter(expected * (len(found) // len(expected))):
        yield Violation(DUPLICATED, said.message_id, f"{said.kind} came to {_told(found)}")
    else:
        yield Violation(WRONG, said.message_id, f"{said.kind} came to {_told(found)}, and should to {_told(expected)}")


def _effect(fact: Fact) -> Effect:
    """Read a fact as the law writes it: a command by its id, anything else by the state that it names."""
    if fact.event.startswith("command_"):
        return Effect(fact.event, fact.command_id)
    return Effect(fact.event.replace("message_waiting", "message_delivered"), fact.new_state)


def _order(evidence: Evidence) -> Iterator[Violation]:
    """What an agent has said stands in the audit in the order in which it said it."""
    places: dict[str, int] = {}
    for fact in evidence.facts:
        if fact.by == "agent" and fact.cause:
            places.setdefault(fact.cause, fact.place)
    for journal in evidence.journals:
        last, before = -1, ""
        for said in journal.said:
            place = places.get(said.message_id, last)
            if place < last:
                yield Violation(REORDERED, said.message_id, f"it was applied before {before}")
            last, before = max(last, place), said.message_id


def _states(evidence: Evidence) -> Iterator[Violation]:  # noqa: C901 - one law after the other
    """Each change begins where the one before it has ended, and the last one is what record and key say."""
    met = Counter(fact.agent_id for fact in evidence.facts if fact.event == "agent_first_seen")
    at: dict[str, str] = {}
    for fact in evidence.facts:
        if fact.event == "agent_lost":
            yield Violation(WRONG, fact.agent_id, "it was called lost, and never was silent")
        if fact.event == "agent_first_seen":
            at[fact.agent_id] = fact.new_state
        if fact.event == "state_changed":
            if fact.old_state != at.get(fact.agent_id):
                yield Violation(
                    WRONG,
                    fact.agent_id,
                    f"{fact.cause}: it came from {fact.old_state}, and was {at.get(fact.agent_id)}",
                )
            at[fact.agent_id] = fact.new_state
    for journal in evidence.journals:
        agent_id = journal.agent_id
        if agent_id in evidence.wrong_type_keys:
            continue
        wanted = at.get(agent_id, "") if agent_id in evidence.voices else journal.mind.state
        held = (evidence.records[agent_id].get("state", ""), evidence.states[agent_id], at.get(agent_id, ""))
        if not journal.said and not held[0]:
            continue
        if set(held) != {wanted}:
            yield Violation(WRONG, agent_id, f"record, key and audit say {held}; it should be {wanted}")
        if met[agent_id] != 1:
            yield Violation(WRONG, agent_id, f"it was met {met[agent_id]} times")


def _measurements(evidence: Evidence) -> Iterator[Violation]:
    """Each was written once, in order, and the last one stands."""
    written: dict[str, list[int]] = defaultdict(list)
    for commit in evidence.commits:
        for agent_id, number in commit.measured:
            written[agent_id].append(number)
    for journal in evidence.journals:
        if journal.agent_id in evidence.wrong_type_keys:
            continue
        wanted, found = list(range(1, journal.measured + 1)), written[journal.agent_id]
        for number, count in Counter(found).items():
            if count > 1:
                yield Violation(DUPLICATED, f"{journal.agent_id} m{number}", f"it was measured {count} times")
        kept = {number for number in wanted if f"m{number}" in evidence.measurements[journal.agent_id]}
        applied = kept & {*found} if evidence.from_the_start else kept
        yield from (
            Violation(LOST, f"{journal.agent_id} m{number}", "it was never measured")
            for number in sorted({*wanted} - applied)
        )
        if list(dict.fromkeys(found)) != sorted(set(found)):
            yield Violation(REORDERED, journal.agent_id, f"it was measured in the order {found}")
        last = evidence.measurements[journal.agent_id].get("last", 0)
        if last != journal.measured:
            yield Violation(WRONG, journal.agent_id, f"its last measurement is {last}, not {journal.measured}")


def _inboxes(evidence: Evidence) -> Iterator[Violation]:
    """Whatever the audit calls delivered or waiting lies in an inbox, or waits for it, once; a sender's in order."""
    lie = [message_id for inbox in evidence.inboxes.values() for message_id in inbox]
    told = Counter(fact.cause for fact in evidence.facts if fact.event in {"message_delivered", "message_waiting"})
    for message_id, count in (Counter(lie) - told).items():
        yield Violation(DUPLICATED, message_id, f"{count} more copies lie in inboxes than were delivered")
    for message_id in told - Counter(lie):
        yield Violation(LOST, message_id, "it was delivered, and lies in no inbox")
    for inbox in evidence.inboxes.values():
        last: dict[str, int] = {}
        for message_id in inbox:
            sender, _, number = message_id.rpartition("-")
            if int(number) < last.get(sender, -1):
                yield Violation(REORDERED, message_id, "it lies in the inbox after a later one")
            last[sender] = int(number)


def _garbage(evidence: Evidence) -> Iterator[Violation]:
    """What is no message is buried, as often as it was pushed."""
    letters = Counter((letter.raw[:4096], letter.size) for letter in evidence.letters)
    for piece in evidence.garbage:
        count = letters[piece.raw[:4096], len(piece.raw)]
        if count < piece.pushes:
            yield Violation(LOST, piece.message_id, "it is not among the dead letters")
        if count > piece.attempts:
            yield Violation(DUPLICATED, piece.message_id, f"it was buried {count} times")


def _requests(evidence: Evidence) -> Iterator[Violation]:
    """Each is accepted or refused, answered, and what was accepted has reached its agent and ended once."""
    events: dict[str, list[str]] = defaultdict(list)
    for fact in evidence.facts:
        if fact.command_id:
            events[fact.command_id].append(fact.event)
        elif fact.event == "request_refused":
            events[fact.cause].append(fact.event)
    reached = {command_id: count for journal in evidence.journals for command_id, count in journal.popped.items()}
    for asked in evidence.asked:
        yield from _request(asked, events[asked.request_id], evidence, reached.get(asked.request_id, 0))


def _request(asked: Asked, events: Sequence[str], evidence: Evidence, reached: int) -> Iterator[Violation]:
    request_id, count = asked.request_id, events.count(asked.expected)
    if count == 0:
        yield Violation(LOST, request_id, f"no {asked.expected} in {events}")
    if count > (1 if asked.expected == "command_queued" else asked.attempts):
        yield Violation(DUPLICATED, request_id, f"{asked.expected} {count} times")
    replies = len(evidence.replies[request_id])
    if not asked.pushes <= replies <= asked.attempts:
        yield Violation(WRONG, request_id, f"{replies} replies to {asked.pushes} to {asked.attempts} pushes")
    if asked.expected != "command_queued":
        return
    ends = [event for event in events if event.removeprefix("command_") in ENDED]
    status = evidence.commands[request_id].get("status", "")
    if len(ends) != 1 or ends[0] != f"command_{status}":
        yield Violation(WRONG, request_id, f"it ended by {ends}, and its record says {status!r}")
    if asked.expires != (status == "expired"):
        yield Violation(WRONG, request_id, f"it has {status}")
    if reached != (0 if asked.expires else 1):
        yield Violation(LOST if not reached else DUPLICATED, request_id, f"it has reached its agent {reached} times")


def _voices(evidence: Evidence) -> Iterator[Violation]:
    """What was only published may be lost; what was heard is applied once and in order."""
    for agent_id in evidence.voices:
        found = [
            int(fact.new_state[1:])
            for fact in evidence.facts
            if fact.agent_id == agent_id and fact.event == "state_changed"
        ]
        if found != sorted(found):
            yield Violation(REORDERED, agent_id, f"it published 1, 2, 3, …; applied was {found}")
        for number, count in Counter(found).items():
            if count > 1:
                yield Violation(DUPLICATED, agent_id, f"s{number} was applied {count} times")


def _commits(evidence: Evidence) -> Iterator[Violation]:
    """No write of an old epoch after a newer one; no commit twice."""
    newest = 0
    for place, epoch in enumerate(evidence.epochs):
        if epoch < newest:
            yield Violation(STALE, f"entry {place} of the audit", f"epoch {epoch} after {newest}")
        newest = max(newest, epoch)
    for commit in evidence.commits:
        if None not in {commit.claimed, commit.newest} and commit.claimed != commit.newest:
            yield Violation(STALE, commit.commit_id, f"written under epoch {commit.claimed} while {commit.newest} led")
    # Its first write is the ledger, its last an entry of the audit: the one in a file that may begin late, the other
    # not by all.
    for commit_ids in ([commit.commit_id for commit in evidence.commits], evidence.entries):
        for commit_id, count in Counter(commit_ids).items():
            if count > 1:
                yield Violation(DUPLICATED, commit_id, f"the commit was written {count} times")


def _told(effects: Sequence[Effect]) -> str:
    return ", ".join(" ".join(effect).strip() for effect in effects) or "nothing"
