"""The verdict of a trial: what is left is compared with what must be left."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from tests.chaos.agent_model import DEAD_LETTER, Effect
from tests.chaos.command_verdict import ENDED, command_violations
from tests.chaos.observations import Fact, Observations
from tests.chaos.records import Message, Request
from tests.chaos.violations import DUPLICATED, LEFT_OVER, LOST, REORDERED, STALE, WRONG, Violation

_UNPREDICTABLE: Final = frozenset({"agent_first_seen", "command_delivered", "dead_letter_added", "messages_released"})
"""Events whose cause depends on timing. Dead letters are counted by themselves."""


def violations_of(observed: Observations) -> list[Violation]:
    """Return everything that is wrong."""
    return [
        *_responses(observed),
        *_order(observed),
        *_states(observed),
        *_measurements(observed),
        *_inboxes(observed),
        *_invalid(observed),
        *_requests(observed),
        *_publications(observed),
        *_commits(observed),
        *command_violations(observed),
        *(Violation(LEFT_OVER, where, f"{count} are left") for where, count in observed.left.items() if count),
        *(Violation(WRONG, "engine", complaint) for complaint in observed.complaints),
    ]


def _responses(observed: Observations) -> Iterator[Violation]:
    """Each response has exactly its expected effects, or is dead-lettered once."""
    found: dict[str, list[Effect]] = defaultdict(list)
    for fact in observed.facts:
        if fact.by == "agent" and fact.cause and fact.event not in _UNPREDICTABLE:
            found[fact.cause].append(_effect(fact))
    dead_letters = Counter(dead_letter.raw for dead_letter in observed.dead_letters)
    for agent in observed.agents:
        for message in agent.messages:
            most = message.attempts if agent.agent_id in observed.wrong_type else 1
            yield from _response(message, tuple(found[message.message_id]), dead_letters[message.raw], most)


def _response(message: Message, found: tuple[Effect, ...], dead_letters: int, most: int) -> Iterator[Violation]:
    is_refused = DEAD_LETTER in message.expected
    expected = tuple(effect for effect in message.expected if effect != DEAD_LETTER)
    if dead_letters and not is_refused:
        yield Violation(WRONG, message.message_id, f"{message.kind} was dead-lettered, expected {_text(expected)}")
    elif is_refused and not dead_letters:
        yield Violation(LOST, message.message_id, f"{message.kind} is not among the dead letters")
    elif dead_letters > most:
        yield Violation(DUPLICATED, message.message_id, f"{message.kind} was dead-lettered {dead_letters} times")
    elif expected and not found:
        yield Violation(LOST, message.message_id, f"{message.kind} left no trace of {_text(expected)}")
    elif found == expected:
        return
    elif expected and Counter(found) == Counter(expected * (len(found) // len(expected))):
        yield Violation(DUPLICATED, message.message_id, f"{message.kind} had the effects {_text(found)}")
    else:
        what = f"{message.kind} had the effects {_text(found)}, expected {_text(expected)}"
        yield Violation(WRONG, message.message_id, what)


def _effect(fact: Fact) -> Effect:
    """Return a fact as the model writes it: with its command, or the state that it names."""
    if fact.event.startswith("command_"):
        return Effect(fact.event, fact.command_id)
    return Effect(fact.event.replace("message_waiting", "message_delivered"), fact.new_state)


def _order(observed: Observations) -> Iterator[Violation]:
    """The audit has the messages of an agent in the order in which they were sent."""
    positions: dict[str, int] = {}
    for fact in observed.facts:
        if fact.by == "agent" and fact.cause:
            positions.setdefault(fact.cause, fact.position)
    for agent in observed.agents:
        last, before = -1, ""
        for message in agent.messages:
            position = positions.get(message.message_id, last)
            if position < last:
                yield Violation(REORDERED, message.message_id, f"it was applied before {before}")
            last, before = max(last, position), message.message_id


def _states(observed: Observations) -> Iterator[Violation]:
    """Each change begins in the state in which the last one ended; record, key and audit agree on the last state."""
    seen = Counter(fact.agent_id for fact in observed.facts if fact.event == "agent_first_seen")
    at: dict[str, str] = {}
    for fact in observed.facts:
        if fact.event == "agent_lost":
            yield Violation(WRONG, fact.agent_id, "it was marked as lost, and was never silent")
        if fact.event == "state_changed" and fact.old_state != at.get(fact.agent_id):
            what = f"{fact.cause}: it changed from {fact.old_state}, and was {at.get(fact.agent_id)}"
            yield Violation(WRONG, fact.agent_id, what)
        if fact.event in {"state_changed", "agent_first_seen"}:
            at[fact.agent_id] = fact.new_state
    for agent in observed.agents:
        agent_id = agent.agent_id
        if agent_id in observed.wrong_type:
            continue
        expected = at.get(agent_id, "") if agent_id in observed.publishers else agent.model.state
        actual = (observed.records[agent_id].get("state", ""), observed.states[agent_id], at.get(agent_id, ""))
        if not agent.messages and not actual[0]:
            continue
        if set(actual) != {expected}:
            yield Violation(WRONG, agent_id, f"record, key and audit say {actual}, expected {expected}")
        if seen[agent_id] != 1:
            yield Violation(WRONG, agent_id, f"it was seen for the first time {seen[agent_id]} times")


def _measurements(observed: Observations) -> Iterator[Violation]:
    """Each was written once and in order, and the last one is kept."""
    written: dict[str, list[int]] = defaultdict(list)
    for commit in observed.commits:
        for agent_id, number in commit.measured:
            written[agent_id].append(number)
    for agent in observed.agents:
        agent_id = agent.agent_id
        if agent_id in observed.wrong_type:
            continue
        found, stored = written[agent_id], observed.measurements[agent_id]
        for number, count in (Counter(found) - Counter(set(found))).items():
            yield Violation(DUPLICATED, f"{agent_id} m{number}", f"it was written {count + 1} times")
        kept = {number for number in range(1, agent.measurements + 1) if f"m{number}" in stored}
        applied = kept & {*found} if observed.has_all_commits else kept
        for number in sorted({*range(1, agent.measurements + 1)} - applied):
            yield Violation(LOST, f"{agent_id} m{number}", "it was not written")
        if list(dict.fromkeys(found)) != sorted(set(found)):
            yield Violation(REORDERED, agent_id, f"its measurements were written in the order {found}")
        if stored.get("last", 0) != agent.measurements:
            yield Violation(WRONG, agent_id, f"its last measurement is {stored.get('last')}, not {agent.measurements}")


def _inboxes(observed: Observations) -> Iterator[Violation]:
    """What the audit calls delivered or waiting is in an inbox, or waits for it, once; each sender's in order."""
    stored = Counter(message_id for inbox in observed.inboxes.values() for message_id in inbox)
    delivered = Counter(fact.cause for fact in observed.facts if fact.event in {"message_delivered", "message_waiting"})
    for message_id, count in (stored - delivered).items():
        yield Violation(DUPLICATED, message_id, f"inboxes hold {count} more copies than were delivered")
    for message_id in delivered - stored:
        yield Violation(LOST, message_id, "it was delivered, and no inbox holds it")
    for inbox in observed.inboxes.values():
        last: dict[str, int] = {}
        for message_id in inbox:
            sender, _, number = message_id.rpartition("-")
            if int(number) < last.get(sender, -1):
                yield Violation(REORDERED, message_id, "it is in the inbox after a later one")
            last[sender] = int(number)


def _invalid(observed: Observations) -> Iterator[Violation]:
    """What cannot be decoded is dead-lettered as often as it was pushed."""
    dead_letters = Counter((each.raw[:4096], each.size) for each in observed.dead_letters)
    for message in observed.invalid:
        count = dead_letters[message.raw[:4096], len(message.raw)]
        if count < message.pushes:
            yield Violation(LOST, message.message_id, "it is not among the dead letters")
        if count > message.attempts:
            yield Violation(DUPLICATED, message.message_id, f"it was dead-lettered {count} times")


def _requests(observed: Observations) -> Iterator[Violation]:
    """Each is accepted or refused, and answered; each accepted command reaches its agent and ends once."""
    events: dict[str, list[str]] = defaultdict(list)
    for fact in observed.facts:
        if fact.command_id:
            events[fact.command_id].append(fact.event)
        elif fact.event == "request_refused":
            events[fact.cause].append(fact.event)
    received = {command_id: count for agent in observed.agents for command_id, count in agent.received.items()}
    for request in observed.requests:
        request_id = request.request_id
        yield from _request(request, events[request_id], observed, received.get(request_id, 0))


def _request(request: Request, events: Sequence[str], observed: Observations, received: int) -> Iterator[Violation]:
    request_id, count = request.request_id, events.count(request.expected)
    if count == 0:
        yield Violation(LOST, request_id, f"no {request.expected} in {events}")
    if count > (1 if request.expected == "command_queued" else request.attempts):
        yield Violation(DUPLICATED, request_id, f"{request.expected} {count} times")
    replies = len(observed.replies[request_id])
    if not request.pushes <= replies <= request.attempts:
        yield Violation(WRONG, request_id, f"{replies} replies to {request.pushes} to {request.attempts} pushes")
    if request.expected != "command_queued":
        return
    ends = [event for event in events if event.removeprefix("command_") in ENDED]
    status = observed.commands[request_id].get("status", "")
    if len(ends) != 1 or ends[0] != f"command_{status}":
        yield Violation(WRONG, request_id, f"it ended with {ends}, and its record says {status!r}")
    if request.expires != (status == "expired"):
        yield Violation(WRONG, request_id, f"its status is {status}")
    if received != (0 if request.expires else 1):
        yield Violation(LOST if not received else DUPLICATED, request_id, f"it reached its agent {received} times")


def _publications(observed: Observations) -> Iterator[Violation]:
    """What was only published may be lost; what was received is applied once and in order."""
    for agent_id in observed.publishers:
        found = [
            int(fact.new_state[1:])
            for fact in observed.facts
            if fact.agent_id == agent_id and fact.event == "state_changed"
        ]
        if found != sorted(found):
            yield Violation(REORDERED, agent_id, f"its publications were applied in the order {found}")
        for number, count in Counter(found).items():
            if count > 1:
                yield Violation(DUPLICATED, agent_id, f"s{number} was applied {count} times")


def _commits(observed: Observations) -> Iterator[Violation]:
    """No commit of an old epoch follows a newer one, and none is written twice."""
    newest = 0
    for position, epoch in enumerate(observed.epochs):
        if epoch < newest:
            yield Violation(STALE, f"audit entry {position}", f"epoch {epoch} after {newest}")
        newest = max(newest, epoch)
    for commit in observed.commits:
        if None not in {commit.claimed, commit.newest} and commit.claimed != commit.newest:
            yield Violation(STALE, commit.commit_id, f"written under epoch {commit.claimed} while {commit.newest} led")
    # The append-only file may begin late, and not every commit writes an audit entry.
    for commit_ids in ([commit.commit_id for commit in observed.commits], observed.entries):
        for commit_id, count in Counter(commit_ids).items():
            if count > 1:
                yield Violation(DUPLICATED, commit_id, f"the commit was written {count} times")


def _text(effects: Sequence[Effect]) -> str:
    return ", ".join(" ".join(effect).strip() for effect in effects) or "nothing"
