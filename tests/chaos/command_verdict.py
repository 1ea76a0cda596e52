"""The verdict on the commands of workers: each request is answered, each accepted command ends once with a reason."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from tests.chaos.observations import Observations
from tests.chaos.operators import MAX_ATTEMPTS, WorkOperator
from tests.chaos.records import Request
from tests.chaos.violations import DUPLICATED, LOST, WRONG, Violation

ENDED: Final = frozenset({"succeeded", "failed", "expired", "cancelled", "dead"})
"""The final statuses of a command."""
_BEGUN: Final = frozenset({"command_scheduled", "command_waiting", "command_queued"})


def command_violations(observed: Observations) -> Iterator[Violation]:
    """Compare the requests with the audit, the records and the reports of the workers."""
    events: dict[str, list[str]] = defaultdict(list)
    accepted = Counter[str]()
    for fact in observed.facts:
        if fact.command_id.startswith(f"{WorkOperator.name}-"):
            events[fact.command_id].append(fact.event)
            accepted[fact.command_id] += fact.event in _BEGUN and fact.by == "operator"
    for command_id, of_command in events.items():
        if accepted[command_id] != 1:
            kind = DUPLICATED if accepted[command_id] else WRONG
            yield Violation(kind, command_id, f"it was accepted {accepted[command_id]} times")
        yield from _command(command_id, of_command, observed)
    for request in observed.work_requests:
        yield from _request(request, [*events], observed)
    yield from _holds(observed)


def _command(command_id: str, events: Sequence[str], observed: Observations) -> Iterator[Violation]:
    """A command ends once, as its record says; a worker reported success, or there is a reason for the failure."""
    ends = [event.removeprefix("command_") for event in events if event.removeprefix("command_") in ENDED]
    record = observed.commands[command_id]
    status, attempt = record.get("status", ""), int(record.get("attempt", 0))
    if len(ends) != 1:
        yield Violation(DUPLICATED if ends else LOST, command_id, f"it ended with {ends}")
    elif ends[0] != status:
        yield Violation(WRONG, command_id, f"it ended with {ends[0]}, and its record says {status!r}")
    if attempt > MAX_ATTEMPTS:
        yield Violation(DUPLICATED, command_id, f"it was delivered {attempt} times")
    if status == "succeeded":
        if not observed.taken[command_id] or command_id not in observed.succeeded:
            yield Violation(WRONG, command_id, "it succeeded, and no worker reported that")
    elif not record.get("code"):
        yield Violation(LOST, command_id, f"it is {status} without a reason")


def _request(request: Request, commands: Sequence[str], observed: Observations) -> Iterator[Violation]:
    """A request is answered each time, always the same; all its commands are there."""
    request_id, replies = request.request_id, observed.replies[request.request_id]
    if not request.pushes <= len(replies) <= request.attempts:
        yield Violation(WRONG, request_id, f"{len(replies)} replies to {request.pushes} to {request.attempts} pushes")
    if any(reply != replies[0] for reply in replies):
        yield Violation(DUPLICATED, request_id, f"it has different answers: {replies}")
    if not replies or not replies[0]["ok"]:
        return
    if request.kind == "send" and not request.is_group and request_id not in commands:
        yield Violation(LOST, request_id, "it was accepted, and left no command")
    if request.is_group:
        group, total = observed.groups[request_id], replies[0]["targets"]
        counts = {name: int(group.get(name, 0)) for name in (*ENDED, "refused")}
        if sum(counts.values()) != total or group.get("status") == "open":
            yield Violation(LOST, request_id, f"a group of {total} has {counts} and is {group.get('status')}")
        if request.kind == "send":
            of_group = [command_id for command_id in commands if command_id.startswith(f"{request_id}.")]
            ends = Counter(observed.commands[command_id].get("status", "") for command_id in of_group)
            never_accepted = counts["cancelled"] - ends["cancelled"]  # the group was cancelled before
            missing = total - len(of_group) - counts["refused"] - never_accepted
            if missing:
                kind = LOST if missing > 0 else DUPLICATED
                yield Violation(kind, request_id, f"a group of {total} has {len(of_group)} commands, {counts}")


def _holds(observed: Observations) -> Iterator[Violation]:
    """No command is queued for an agent that is on hold."""
    on_hold: set[str] = set()
    for fact in observed.facts:
        match fact.event:
            case "agent_held":
                on_hold.add(fact.agent_id)
            case "agent_resumed":
                on_hold.discard(fact.agent_id)
            case "command_queued" if fact.agent_id in on_hold:
                yield Violation(WRONG, fact.command_id, f"it was queued for {fact.agent_id}, which is on hold")
