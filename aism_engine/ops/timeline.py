"""An agent as it stood at an instant, made out from the facts about it.

What a fact tells is so from its instant on, until another one; what it tells of before (`old_state`) was so until then,
from the fact before it. Facts may be missing: those that are older than anything that is kept, and those in a gap. An
answer that does not depend on any of them is `recorded`; one that holds only if none of them changed it is `inferred`,
and says so.
"""

from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct, field

from aism_engine.clock import from_iso, iso
from aism_engine.domain.effects import Fact
from aism_engine.ops.audit_log import Line, instant, order

Basis: TypeAlias = Literal["recorded", "inferred", "unknown"]
Presence: TypeAlias = Literal["here", "lost", "left", "absent"]

_STATUS: Final = {
    "command_scheduled": "scheduled",
    "command_waiting": "waiting",
    "command_queued": "queued",
    "command_delivered": "delivered",
    "command_acked": "acked",
    "command_retried": "waiting",
}
_OPENING: Final = frozenset({"command_scheduled", "command_waiting", "command_queued"})
_ENDS: Final = frozenset(
    {"command_succeeded", "command_failed", "command_expired", "command_cancelled", "command_dead"}
)
_PRESENCE: Final[dict[str, Presence]] = {
    "agent_first_seen": "here",
    "agent_registered": "here",
    "agent_returned": "here",
    "agent_lost": "lost",
    "agent_left": "left",
    "agent_forgotten": "absent",
}
_BEFORE: Final = frozenset({"state_changed", "agent_lost", "agent_forgotten", "transition_refused"})
"""Facts whose `old_state` is the state that the agent was in."""
_TYPED: Final = frozenset({"agent_first_seen", "agent_registered", "metadata_changed"})


class Open(Struct, frozen=True, kw_only=True):
    """A command that had not ended. `status` is None where nothing tells how far it was; `since`: from when on."""

    command_id: str
    type: str | None
    status: str | None
    since: str | None
    basis: Basis


class Standing(Struct, frozen=True, kw_only=True):
    """An agent at an instant. `since` is None where it was so from before anything that is kept."""

    agent_id: str
    at: str
    recorded_since: str | None
    """From when on the facts are kept."""
    state: str | None = None
    since: str | None = None
    basis: Basis = "unknown"
    type: str | None = None
    presence: Presence | None = None
    open_commands: list[Open] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Present(Struct, frozen=True, kw_only=True):
    """What the engine's records hold today: they reach back to when each thing began. Instants are unix seconds."""

    state: str
    since: float
    type: str
    commands: list[tuple[str, str, str, float]] = field(default_factory=list)
    """Those that are open: id, type, status, when it was accepted."""


class _Told(NamedTuple):
    """A fact, when it was so, and in which entry it stands."""

    at: float
    fact: Fact
    entry: tuple[int, int]


class Timeline:
    """Takes in what is kept, in its order, and tells how one agent stood."""

    def __init__(self, agent_id: str) -> None:
        self._agent_id = agent_id
        self._told: list[_Told] = []
        self._gaps: list[tuple[str, str]] = []

    def add(self, line: Line) -> None:
        if line.gap is not None:
            self._gaps.append((line.gap.after, line.gap.before))
        if line.rewound is not None:  # what came behind was undone, and the agent was again what it was
            last = order(line.rewound.after)
            self._told = [told for told in self._told if told.entry <= last]
        for fact in facts_of(line):
            if fact.agent_id == self._agent_id:
                self._told.append(_Told(from_iso(fact.at), fact, order(line.id)))

    def standing(self, at: float, first: str, present: Present | None = None) -> Standing:
        """Tell how the agent stood. `first` is the id of the oldest entry that is kept, empty where there is none."""
        begins = self._begins(first) if first else float("inf")
        holes = [(float("-inf"), begins), *((instant(after), self._begins(before)) for after, before in self._gaps)]
        past = [told for told in self._told if told.at <= at]
        future = [told for told in self._told if told.at > at]
        standing = Standing(
            agent_id=self._agent_id,
            at=iso(at),
            recorded_since=iso(begins) if first else None,
            type=_type(past, present if not future else None),
            presence=next(
                (_PRESENCE[told.fact.event] for told in reversed(past) if told.fact.event in _PRESENCE), None
            ),
            open_commands=list(_commands(at, past, future, holes, present)),
        )
        return _with_state(standing, at, past, future, holes, present)

    def _begins(self, entry_id: str) -> float:
        """Give when an entry begins to tell: its facts were so a moment before it was written."""
        entry = order(entry_id)
        return min([instant(entry_id), *(told.at for told in self._told if told.entry == entry)])


def facts_of(line: Line) -> Iterator[Fact]:
    """Read the facts of an entry; what anyone else has written there is none."""
    for each in line.decoded():
        try:
            fact = msgspec.convert(each, Fact)
            from_iso(fact.at)
        except (msgspec.ValidationError, ValueError):
            continue
        yield fact


# --- the state --------------------------------------------------------------------------------------------------------


def _with_state(
    standing: Standing,
    at: float,
    past: list[_Told],
    future: list[_Told],
    holes: list[tuple[float, float]],
    present: Present | None,
) -> Standing:
    """Choose the best evidence: what was told before the instant, then what was told after it, then what is so now."""
    change = msgspec.structs.replace
    before = next((told for told in reversed(past) if _after(told.fact) is not None), None)
    after = next((told for told in future if _before(told.fact) is not None), None)
    if before is not None and not _hole(holes, before.at, at):
        return _told(standing, _after(before.fact), iso(before.at), "recorded")
    if after is not None and not _hole(holes, at, after.at):
        return _told(standing, _before(after.fact), None, "recorded")
    if present is not None and present.since <= at:
        return _told(standing, present.state, iso(present.since), "recorded")
    if after is not None:
        known = max(end for start, end in holes if start < after.at and end > at)
        note = f"facts from before {iso(known)} are missing; at {iso(after.at)} it came from this state"
        if before is not None and _after(before.fact) != _before(after.fact):
            note += f", while at {iso(before.at)} it had gone to {_after(before.fact) or 'where it is not known'}"
        return change(_told(standing, _before(after.fact), None, "inferred"), notes=[note])
    if before is not None:
        note = "facts between these two instants are missing: it may have changed meanwhile"
        return change(_told(standing, _after(before.fact), iso(before.at), "inferred"), notes=[note])
    return change(standing, notes=["nothing that is kept tells of its state then"])


def _told(standing: Standing, state: str | None, since: str | None, basis: Basis) -> Standing:
    """An empty state is that of one who does not belong to the fleet."""
    presence: Presence | None = "absent" if state == "" else standing.presence
    return msgspec.structs.replace(standing, state=state or None, since=since, basis=basis, presence=presence)


def _after(fact: Fact) -> str | None:
    """Give the state from this fact on: empty where the agent is gone, None where it tells nothing."""
    if fact.event in {"agent_first_seen", "state_changed"}:
        return fact.new_state
    if fact.event == "agent_forgotten":
        return ""
    return None


def _before(fact: Fact) -> str | None:
    """Give the state up to this fact."""
    if fact.event == "agent_first_seen":
        return ""
    return fact.old_state if fact.event in _BEFORE else None


def _type(past: list[_Told], present: Present | None) -> str | None:
    told = next((told.fact.type for told in reversed(past) if told.fact.event in _TYPED), None)
    return told or (present.type if present else None)


def _hole(holes: Iterable[tuple[float, float]], start: float, end: float) -> bool:
    """Tell whether facts may be missing between two instants."""
    return any(begins < end and start < ends for begins, ends in holes)


# --- its commands -----------------------------------------------------------------------------------------------------


def _commands(
    at: float,
    past: list[_Told],
    future: list[_Told],
    holes: list[tuple[float, float]],
    present: Present | None,
) -> Iterator[Open]:
    ids = dict.fromkeys(told.fact.command_id for told in (*past, *future) if told.fact.command_id)
    for command_id in ids:
        told = [each for each in past if each.fact.command_id == command_id and _tells(each.fact)]
        follows = next((each for each in future if each.fact.command_id == command_id and _tells(each.fact)), None)
        goes_on = follows is not None and follows.fact.event not in _OPENING
        if told:
            last = told[-1]
            if last.fact.event not in _ENDS:
                sure = goes_on or not _hole(holes, last.at, at)
                yield _open(command_id, last.fact, iso(last.at), "recorded" if sure else "inferred")
        elif follows is not None and goes_on:  # it was accepted in a hole, and ended after
            sure = not _hole(holes, at, follows.at)
            yield _open(command_id, follows.fact, None, "recorded" if sure else "inferred")
    for command_id, kind, status, accepted_at in present.commands if present else ():
        if command_id not in ids and accepted_at <= at:  # whatever was told of it is not kept any more
            known = None if _hole(holes, at, float("inf")) else status
            yield Open(command_id=command_id, type=kind, status=known, since=iso(accepted_at), basis="recorded")


def _tells(fact: Fact) -> bool:
    return fact.event in _STATUS or fact.event in _ENDS


def _open(command_id: str, fact: Fact, since: str | None, basis: Basis) -> Open:
    status = _STATUS.get(fact.event) if since is not None else None
    return Open(command_id=command_id, type=fact.type, status=status, since=since, basis=basis)
