"""Reconstructs one agent at an instant from the recorded facts about it.

A fact can name two states of the agent: `new_state` holds from this fact until the next one, and `old_state` from the
previous fact until this one.

Facts may be missing: those older than the oldest entry that is kept, and those in a gap. The `basis` of an answer is
`recorded` if no missing fact can change it, `inferred` if a missing fact can change it, and `unknown` if nothing is
recorded.
"""

from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct, field

from aism_engine.clock import from_iso, iso
from aism_engine.domain.commands.command import OPEN, Status
from aism_engine.domain.effects import Fact
from aism_engine.ops.audit_log import AuditLine, entry_order, entry_time
from aism_engine.ops.views import AgentView

Basis: TypeAlias = Literal["recorded", "inferred", "unknown"]
Presence: TypeAlias = Literal["present", "lost", "left", "not_in_fleet"]

_STATUS: Final = {f"command_{status}": status for status in Status} | {"command_retried": Status.WAITING}
"""The status of a command after a fact, by the event of the fact."""
_ACCEPTED: Final = frozenset({"command_scheduled", "command_waiting", "command_queued"})
_PRESENCE: Final[dict[str, Presence]] = {
    "agent_first_seen": "present",
    "agent_registered": "present",
    "agent_returned": "present",
    "agent_lost": "lost",
    "agent_left": "left",
    "agent_forgotten": "not_in_fleet",
}
_WITH_OLD_STATE: Final = frozenset({"state_changed", "agent_lost", "agent_forgotten", "transition_refused"})
"""Facts whose `old_state` is the state that the agent was in."""
_WITH_TYPE: Final = frozenset({"agent_first_seen", "agent_registered", "metadata_changed"})


class OpenCommand(Struct, frozen=True):
    """A command that had not ended. `status` is None if it is not recorded.

    `since` is when the status began, None if that is not recorded. If all facts about the command are missing, `since`
    is when the command was accepted.
    """

    command_id: str
    type: str | None
    status: str | None
    since: str | None
    basis: Basis


class AgentAtInstant(Struct, frozen=True, kw_only=True):
    """An agent as it was at `at`. `since` is when the state began; None if that is not recorded."""

    agent_id: str
    at: str
    recorded_since: str | None
    """When the oldest entry that is kept was written."""
    state: str | None = None
    since: str | None = None
    basis: Basis = "unknown"
    type: str | None = None
    presence: Presence | None = None
    open_commands: list[OpenCommand] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _DatedFact(NamedTuple):
    """A fact, its instant, and the order of the entry that contains it."""

    at: float
    fact: Fact
    entry: tuple[int, int]


class Timeline:
    """Collects audit lines in their order, and reconstructs one agent from them."""

    def __init__(self, agent_id: str) -> None:
        self._agent_id = agent_id
        self._facts: list[_DatedFact] = []
        self._gaps: list[tuple[str, str]] = []

    def add(self, line: AuditLine) -> None:
        if line.gap is not None:
            self._gaps.append((line.gap.after, line.gap.before))
        if line.rollback is not None:  # the server lost the later facts, so their changes are undone
            last = entry_order(line.rollback.after)
            self._facts = [each for each in self._facts if each.entry <= last]
        for fact in facts_of(line):
            if fact.agent_id == self._agent_id:
                self._facts.append(_DatedFact(from_iso(fact.at), fact, entry_order(line.id)))

    def reconstruct(self, at: float, first: str, now: AgentView | None = None) -> AgentAtInstant:
        """Reconstruct the agent. `first` is the id of the oldest entry that is kept, empty if none is kept."""
        begins_at = self._begin_of(first) if first else float("inf")
        gaps = [(float("-inf"), begins_at)]
        gaps += ((entry_time(after), self._begin_of(before)) for after, before in self._gaps)
        past = [each for each in self._facts if each.at <= at]
        future = [each for each in self._facts if each.at > at]
        evidence = _Evidence(at, past, future, gaps, now)
        found = evidence.state()
        events = (each.fact.event for each in reversed(past))
        presence = next((_PRESENCE[event] for event in events if event in _PRESENCE), None)
        types = (each.fact.type for each in reversed(past) if each.fact.event in _WITH_TYPE)
        return AgentAtInstant(
            agent_id=self._agent_id,
            at=iso(at),
            recorded_since=iso(begins_at) if first else None,
            state=found.state or None,
            since=None if found.since is None else iso(found.since),
            basis=found.basis,
            type=next(types, None) or (now.agent.type if now and not future else None),
            presence="not_in_fleet" if found.state == "" else presence,
            open_commands=list(evidence.open_commands()),
            notes=[found.note] if found.note else [],
        )

    def _begin_of(self, entry_id: str) -> float:
        """Return the instant of an entry's first fact: facts happen a moment before their entry is written."""
        entry = entry_order(entry_id)
        return min([entry_time(entry_id), *(each.at for each in self._facts if each.entry == entry)])


def facts_of(line: AuditLine) -> Iterator[Fact]:
    """Yield the facts of an entry. Items that are not facts are left out, since anyone can write to the audit."""
    for item in line.decoded_facts():
        try:
            fact = msgspec.convert(item, Fact)
            from_iso(fact.at)
        except ValueError:
            continue
        yield fact


# --- evidence ---------------------------------------------------------------------------------------------------------


class _State(NamedTuple):
    """A state, which is empty if the agent did not belong to the fleet, and None if it is unknown."""

    state: str | None
    since: float | None
    basis: Basis
    note: str = ""


class _Evidence(NamedTuple):
    """What is known about one agent around an instant."""

    at: float
    past: list[_DatedFact]
    """The facts until the instant."""
    future: list[_DatedFact]
    gaps: list[tuple[float, float]]
    """Periods in which facts may be missing."""
    now: AgentView | None
    """The engine's current records, which may go back further than the audit."""

    def state(self) -> _State:
        """Return the state by the best evidence: a fact before the instant, a fact after it, the current record."""
        at, now = self.at, self.now
        before = next((each for each in reversed(self.past) if _state_after(each.fact) is not None), None)
        after = next((each for each in self.future if _state_before(each.fact) is not None), None)
        if before is not None and self._basis(before.at, at) == "recorded":
            return _State(_state_after(before.fact), before.at, "recorded")
        if after is not None and self._basis(at, after.at) == "recorded":
            return _State(_state_before(after.fact), None, "recorded")
        if now is not None and now.agent.since <= at:
            return _State(now.agent.state, now.agent.since, "recorded")
        if after is not None:
            missing_until = max(until for begin, until in self.gaps if begin < after.at and until > at)
            left = f"this is the state that the agent left at {iso(after.at)}"
            note = f"facts before {iso(missing_until)} are missing; {left}"
            if before is not None and _state_after(before.fact) != _state_before(after.fact):
                note += f"; at {iso(before.at)} its state was {_state_after(before.fact) or 'unknown'}"
            return _State(_state_before(after.fact), None, "inferred", note)
        if before is not None:
            note = "facts between `since` and `at` are missing: the state may have changed"
            return _State(_state_after(before.fact), before.at, "inferred", note)
        return _State(None, None, "unknown", "the state at this instant is not recorded")

    def open_commands(self) -> Iterator[OpenCommand]:
        """Yield the commands that had not ended: first commands with facts, then commands that have only a record."""
        at = self.at
        earlier, later = _last_of_each_command(self.past), _last_of_each_command(reversed(self.future))
        for command_id in earlier | later:
            last, following = earlier.get(command_id), later.get(command_id)
            was_accepted = following is not None and following.fact.event not in _ACCEPTED
            if last is not None and (status := _STATUS[last.fact.event]) in OPEN:
                basis = "recorded" if was_accepted else self._basis(last.at, at)
                yield OpenCommand(command_id, last.fact.type, status, iso(last.at), basis)
            elif last is None and following is not None and was_accepted:  # the fact of its acceptance is missing
                yield OpenCommand(command_id, following.fact.type, None, None, self._basis(at, following.at))
        ids = {each.fact.command_id for each in (*self.past, *self.future)}
        for each in self.now.commands if self.now else ():
            # All facts about this command are missing. The record shows that it was accepted and is still open.
            if each.command_id not in ids and each.accepted_at <= at:
                known = each.status if self._basis(at, float("inf")) == "recorded" else None
                yield OpenCommand(each.command_id, each.type, known, iso(each.accepted_at), "recorded")

    def _basis(self, start: float, end: float) -> Basis:
        """Return `recorded` if no fact can be missing between two instants."""
        return "inferred" if any(begin < end and start < until for begin, until in self.gaps) else "recorded"


def _last_of_each_command(facts: Iterable[_DatedFact]) -> dict[str, _DatedFact]:
    """Return the last of the facts about each command's status."""
    return {each.fact.command_id: each for each in facts if each.fact.command_id and each.fact.event in _STATUS}


def _state_after(fact: Fact) -> str | None:
    """Return the state since this fact: empty if the agent was forgotten, None if the fact has no state."""
    if fact.event in {"agent_first_seen", "state_changed"}:
        return fact.new_state
    return "" if fact.event == "agent_forgotten" else None


def _state_before(fact: Fact) -> str | None:
    """Return the state until this fact, None if the fact has no old state."""
    if fact.event == "agent_first_seen":
        return ""
    return fact.old_state if fact.event in _WITH_OLD_STATE else None
