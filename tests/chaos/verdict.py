"""The verdict of a trial: what is left is compared with what must be left."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from tests.chaos.agent_model import DEAD_LETTER, FAULTY, Effect, Sent
from tests.chaos.load import MAX_ATTEMPTS
from tests.chaos.observations import HEAD_BYTES, Fact, Observations

LOST: Final = "lost"
DUPLICATED: Final = "duplicated"
REORDERED: Final = "reordered"
STALE: Final = "stale_writes"
WRONG: Final = "wrong"
LEFT_OVER: Final = "left_over"
KINDS_OF_VIOLATION: Final = (LOST, DUPLICATED, REORDERED, STALE, WRONG, LEFT_OVER)

_ENDED: Final = frozenset({"succeeded", "failed", "expired", "cancelled", "dead"})
"""The final statuses of a command."""
_BEGUN: Final = frozenset({"command_scheduled", "command_waiting", "command_queued"})
_UNPREDICTABLE: Final = frozenset({"agent_first_seen", "command_delivered", "dead_letter_added", "messages_released"})
"""Events whose cause depends on timing. Dead letters are counted by themselves."""


class Violation(NamedTuple):
    """One violation. `subject` is the id of a message, a request, a commit or an agent."""

    kind: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.what}"


def violations_of(observed: Observations) -> list[Violation]:
    """Return everything that is wrong."""
    laws = (_responses, _order, _states, _measurements, _inboxes, _publications, _commits, _commands, _requests)
    return [
        *(violation for law in laws for violation in law(observed)),
        *(Violation(LEFT_OVER, where, f"{count} are left") for where, count in observed.left.items() if count),
        *(Violation(WRONG, "engine", complaint) for complaint in observed.complaints),
    ]


def _count(subject: str, what: str, times: int, least: int = 1, most: int = 1) -> Iterator[Violation]:
    """What happened too seldom is lost, and what happened too often is duplicated."""
    if not least <= times <= most:
        yield Violation(LOST if times < least else DUPLICATED, subject, f"{what} {times} times, not {least} to {most}")


def _repeated(subject: str, what: str, found: Sequence[Any]) -> Iterator[Violation]:
    for each, times in Counter(found).items():
        yield from _count(f"{subject} {each}".strip(), what, times)


def _sorted(subject: str, what: str, found: Sequence[int]) -> Iterator[Violation]:
    if list(found) != sorted(found):
        yield Violation(REORDERED, subject, f"{what} in the order {found}")


def _responses(observed: Observations) -> Iterator[Violation]:
    """Each response has exactly its expected effects, or is dead-lettered: once, or as often as it was pushed."""
    effects: dict[str, list[Effect]] = defaultdict(list)
    for fact in observed.facts:
        if fact.by == "agent" and fact.cause and fact.event not in _UNPREDICTABLE:
            effects[fact.cause].append(_effect(fact))
    dead_letters = Counter(observed.dead_letters)
    for agent in observed.agents:
        for message in agent.messages:
            if message.expected is None:
                continue
            times = dead_letters[message.raw[:HEAD_BYTES], len(message.raw)]
            if agent.kind in FAULTY:
                yield from _count(message.id, "it was dead-lettered", times, message.pushes, message.attempts)
            elif DEAD_LETTER in message.expected:
                yield from _count(message.id, f"{message.kind} was dead-lettered", times)
            elif times:
                yield Violation(WRONG, message.id, f"{message.kind} was dead-lettered")
            expected = [effect for effect in message.expected if effect != DEAD_LETTER]
            if (found := effects[message.id]) != expected:
                is_repeated = expected and Counter(found) == Counter(expected * (len(found) // len(expected)))
                kind = LOST if not found else DUPLICATED if is_repeated else WRONG
                yield Violation(kind, message.id, f"{message.kind} had the effects {found}, expected {expected}")


def _effect(fact: Fact) -> Effect:
    """Return a fact as the model writes it: with its command, or the state that it names."""
    if fact.event.startswith("command_"):
        return Effect(fact.event, fact.command_id)
    return Effect(fact.event.replace("message_waiting", "message_delivered"), fact.new_state)


def _order(observed: Observations) -> Iterator[Violation]:
    """The audit has the messages of an agent in the order in which they were sent."""
    causes = [fact.cause for fact in observed.facts if fact.by == "agent" and fact.cause]
    positions = {cause: position for position, cause in reversed([*enumerate(causes)])}
    for agent in observed.agents:
        found = [positions[message.id] for message in agent.messages if message.id in positions]
        yield from _sorted(agent.agent_id, "its messages were applied", found)


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
        if agent.kind in FAULTY or not (agent.messages or observed.records[agent_id]):
            continue
        expected = at.get(agent_id, "") if agent.kind == "publisher" else agent.state
        actual = (observed.records[agent_id].get("state", ""), observed.states[agent_id], at.get(agent_id, ""))
        if set(actual) != {expected}:
            yield Violation(WRONG, agent_id, f"record, key and audit say {actual}, expected {expected}")
        yield from _count(agent_id, "it was seen for the first time", seen[agent_id])


def _measurements(observed: Observations) -> Iterator[Violation]:
    """Each name is kept, with its last value."""
    for agent in (agent for agent in observed.agents if agent.kind not in FAULTY):
        stored = observed.measurements[agent.agent_id]
        for number in range(1, agent.measurements + 1):
            yield from _count(f"{agent.agent_id} m{number}", "it was kept", int(f"m{number}" in stored))
        if stored.get("last", 0) != agent.measurements:
            what = f"its last measurement is {stored.get('last')}, not {agent.measurements}"
            yield Violation(WRONG, agent.agent_id, what)


def _inboxes(observed: Observations) -> Iterator[Violation]:
    """What the audit calls delivered or waiting is in an inbox, or waits for it, once; each sender's in order."""
    stored = Counter(message_id for inbox in observed.inboxes.values() for message_id in inbox)
    delivered = Counter(fact.cause for fact in observed.facts if fact.event in {"message_delivered", "message_waiting"})
    for message_id in stored | delivered:
        times = delivered[message_id]
        yield from _count(message_id, "inboxes hold it", stored[message_id], times, times)
    for agent_id, inbox in observed.inboxes.items():
        by_sender: dict[str, list[int]] = defaultdict(list)
        for sender, _, number in (message_id.rpartition("-") for message_id in inbox):
            by_sender[sender].append(int(number))
        for sender, numbers in by_sender.items():
            yield from _sorted(agent_id, f"its inbox has the messages of {sender}", numbers)


def _publications(observed: Observations) -> Iterator[Violation]:
    """What was only published may be lost; what was received is applied once and in order."""
    for agent_id in (agent.agent_id for agent in observed.agents if agent.kind == "publisher"):
        changes = (fact for fact in observed.facts if fact.agent_id == agent_id and fact.event == "state_changed")
        found = [int(fact.new_state[1:]) for fact in changes]
        yield from _sorted(agent_id, "its publications were applied", found)
        yield from _repeated(agent_id, "its publication was applied", found)


def _commits(observed: Observations) -> Iterator[Violation]:
    """No commit of an old epoch follows a newer one, and none is written twice."""
    newest = 0
    for commit_id, epoch in observed.entries:
        if epoch < newest:
            yield Violation(STALE, commit_id, f"its epoch {epoch} follows {newest} in the audit")
        newest = max(newest, epoch)
    for commit in observed.commits:
        if None not in {commit.claimed, commit.newest} and commit.claimed != commit.newest:
            yield Violation(STALE, commit.commit_id, f"written under epoch {commit.claimed} while {commit.newest} led")
    # The append-only file may begin late, and not every commit writes an audit entry.
    for commit_ids in ([commit.commit_id for commit in observed.commits], [name for name, _ in observed.entries]):
        yield from _repeated("", "the commit was written", commit_ids)


def _commands(observed: Observations) -> Iterator[Violation]:
    """Each command is accepted once, and ends once, as its record says: with a success that an agent has reported, or
    with a reason.
    """
    accepted, ends = Counter[str](), defaultdict[str, list[str]](list)
    for fact in observed.facts:
        accepted[fact.command_id] += fact.event in _BEGUN and fact.by == "operator"
        if (end := fact.event.removeprefix("command_")) in _ENDED:
            ends[fact.command_id].append(end)
    for command_id, record in observed.commands.items():
        if not command_id.startswith("request-"):
            continue
        yield from _count(command_id, "it was accepted", accepted[command_id])
        yield from _count(command_id, f"it ended with {ends[command_id]}", len(ends[command_id]))
        yield from _count(command_id, "it was sent", int(record.get("attempt", 0)), 0, MAX_ATTEMPTS)
        status = record.get("status", "")
        if ends[command_id][:1] not in ([], [status]):
            yield Violation(WRONG, command_id, f"it ended with {ends[command_id]}, and its record says {status!r}")
        if status != "succeeded":
            yield from _count(command_id, f"it is {status} with a reason", int("code" in record))
        elif not any(agent.taken[command_id] and command_id in agent.succeeded for agent in observed.agents):
            yield Violation(WRONG, command_id, "it succeeded, and no agent reported that")


def _requests(observed: Observations) -> Iterator[Violation]:
    """Each request is answered each time, always the same, and all its commands are there."""
    queued = Counter(fact.command_id for fact in observed.facts if fact.event == "command_queued")
    refused = Counter(fact.cause for fact in observed.facts if fact.event == "request_refused")
    for request in observed.requests:
        name, replies = request.id, observed.replies[request.id]
        if not request.pushes <= len(replies) <= request.attempts:
            yield Violation(WRONG, name, f"{len(replies)} replies to {request.pushes} to {request.attempts} pushes")
        if any(reply != replies[0] for reply in replies):
            yield Violation(DUPLICATED, name, f"it has different answers: {replies}")
        is_accepted = bool(replies) and replies[0]["ok"]
        if request.kind == "send" and not request.is_group and is_accepted and name not in observed.commands:
            yield Violation(LOST, name, "it was accepted, and left no command")
        if request.outcome == "refused":
            yield from _count(name, "it was refused", refused[name], 1, request.attempts)
        elif request.outcome:
            expires = request.outcome == "expired"
            status = observed.commands.get(name, {}).get("status")
            if expires != (status == "expired"):
                yield Violation(WRONG, name, f"its status is {status}")
            yield from _count(name, "it was queued", queued[name])
            taken = sum(agent.taken[name] for agent in observed.agents)
            yield from _count(name, "it reached its agent", taken, not expires, not expires)
        if request.is_group and is_accepted:
            yield from _group(request, replies[0]["targets"], observed)


def _group(request: Sent, total: int, observed: Observations) -> Iterator[Violation]:
    """A group counts each of its targets once."""
    group = observed.groups[request.id]
    counts = {name: int(group.get(name, 0)) for name in (*_ENDED, "refused")}
    if sum(counts.values()) != total or group.get("status") == "open":
        yield Violation(LOST, request.id, f"a group of {total} has {counts} and is {group.get('status')}")
    if request.kind == "send":
        found = [each.get("status") for name, each in observed.commands.items() if name.startswith(f"{request.id}.")]
        never_accepted = counts["cancelled"] - found.count("cancelled")  # the group was cancelled before
        expected = total - counts["refused"] - never_accepted
        yield from _count(request.id, f"of {total} targets with {counts} has commands", len(found), expected, expected)
