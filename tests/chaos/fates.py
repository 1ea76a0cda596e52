"""What became of the orders: each is answered, each command that was accepted has one end, with a reason."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from tests.chaos.charges import DUPLICATED, ENDED, LOST, WRONG, Violation
from tests.chaos.evidence import Evidence
from tests.chaos.journal import Order
from tests.chaos.workers import MOST_ATTEMPTS

_BEGUN: Final = frozenset({"command_scheduled", "command_waiting", "command_queued"})


def fates(evidence: Evidence) -> Iterator[Violation]:
    """Compare the orders with what the audit, the records and the workers tell of them."""
    events: dict[str, list[str]] = defaultdict(list)
    accepted = Counter[str]()
    for fact in evidence.facts:
        if fact.command_id.startswith("order-"):
            events[fact.command_id].append(fact.event)
            accepted[fact.command_id] += fact.event in _BEGUN and fact.by == "operator"
    for command_id, told in events.items():
        if accepted[command_id] != 1:
            charge = DUPLICATED if accepted[command_id] else WRONG
            yield Violation(charge, command_id, f"it was accepted {accepted[command_id]} times")
        yield from _fate(command_id, told, evidence)
    for order in evidence.orders:
        yield from _order(order, [*events], evidence)
    yield from _holds(evidence)


def _fate(command_id: str, events: Sequence[str], evidence: Evidence) -> Iterator[Violation]:
    """It has ended once, as its record says; it was taken, or there is a reason why not."""
    ends = [event.removeprefix("command_") for event in events if event.removeprefix("command_") in ENDED]
    record = evidence.commands[command_id]
    status, attempt = record.get("status", ""), int(record.get("attempt", 0))
    if len(ends) != 1:
        yield Violation(DUPLICATED if ends else LOST, command_id, f"it has ended by {ends}")
    elif ends[0] != status:
        yield Violation(WRONG, command_id, f"it ended by {ends[0]}, and its record says {status!r}")
    if attempt > MOST_ATTEMPTS:
        yield Violation(DUPLICATED, command_id, f"it was given {attempt} times")
    if status == "succeeded":
        if not evidence.taken[command_id] or command_id not in evidence.done:
            yield Violation(WRONG, command_id, "it has succeeded, and nobody did it")
    elif not record.get("code"):
        yield Violation(LOST, command_id, f"it is {status} without a reason")


def _order(order: Order, commands: Sequence[str], evidence: Evidence) -> Iterator[Violation]:
    """It was answered each time, and always the same; what it promised is there, whole."""
    request_id = order.request_id
    replies = evidence.replies[request_id]
    if not order.pushes <= len(replies) <= order.attempts:
        yield Violation(WRONG, request_id, f"{len(replies)} replies to {order.pushes} to {order.attempts} pushes")
    if any(reply != replies[0] for reply in replies):
        yield Violation(DUPLICATED, request_id, f"it has different answers: {replies}")
    if not replies or not replies[0]["ok"]:
        return
    if order.kind == "send" and not order.to_many and request_id not in commands:
        yield Violation(LOST, request_id, "it was accepted, and left no command")
    if order.to_many:
        group, total = evidence.groups[request_id], replies[0]["targets"]
        counts = {name: int(group.get(name, 0)) for name in (*ENDED, "refused")}
        if sum(counts.values()) != total or group.get("status") == "open":
            yield Violation(LOST, request_id, f"a group of {total} has {counts} and is {group.get('status')}")
        if order.kind == "send":
            of_group = [command_id for command_id in commands if command_id.startswith(f"{request_id}.")]
            ends = Counter(evidence.commands[command_id].get("status", "") for command_id in of_group)
            spared = counts["cancelled"] - ends["cancelled"]  # the group was cancelled before they were accepted
            missing = total - len(of_group) - counts["refused"] - spared
            if missing:
                charge = LOST if missing > 0 else DUPLICATED
                yield Violation(charge, request_id, f"a group of {total} has {len(of_group)} commands, {counts}")


def _holds(evidence: Evidence) -> Iterator[Violation]:
    """While an agent is held, no command goes into its list."""
    held: set[str] = set()
    for fact in evidence.facts:
        match fact.event:
            case "agent_held":
                held.add(fact.agent_id)
            case "agent_resumed":
                held.discard(fact.agent_id)
            case "command_queued" if fact.agent_id in held:
                yield Violation(WRONG, fact.command_id, f"it was given to {fact.agent_id}, which is held")
