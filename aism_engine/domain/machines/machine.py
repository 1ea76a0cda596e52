"""State machines: which state may follow which, when, by whose doing, and why not.

A machine is read from TOML and checked as a whole (loader.py): every state can be reached, and left unless it is final.
From then on `Machine.check` is the only judge of a transition, whoever asks for it: agent, operator or
engine. It is pure: what it has to know of the agent and the fleet comes in as a `Case`.

The entries `on_register`, `on_lost`, `on_return` and `on_goodbye` are moves that the engine makes on its own account.
They are no transitions, and `check` is not asked about them: an agent can be lost from any state.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct, field
from msgspec.structs import force_setattr

from aism_engine.domain.effects import Actor
from aism_engine.errors import ConfigError

PREVIOUS: Final = "previous"  # the value of `on_return` that is a word, and so the one name that no state can have
ANY: Final = "*"
ACTORS: Final[tuple[Actor, ...]] = ("agent", "operator", "engine")

STATE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
NAME_RULE: Final = "a letter, then at most 63 letters, digits, `_`, `.` or `-`"
_LONGEST: Final = 64

Kind: TypeAlias = Literal["string", "number", "integer", "boolean", "array", "object"]
"""What a value of the context may have to be: the types of JSON Schema."""
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class Transition(Struct, frozen=True):
    """What a transition requires: keys of the context, and who may cause it."""

    requires: dict[str, Kind] = field(default_factory=dict)
    by: tuple[Actor, ...] = ACTORS


class State(Struct, frozen=True):
    """One state, as it is written. `to` may be `("*",)`, any state but this one. Durations in seconds."""

    description: str = ""
    to: tuple[str, ...] = ()
    final: bool = False
    """It may be without a way out."""
    accepts_messages: bool | Literal["later"] = True
    """Whether agents in it get messages of others; `later`: they wait until it is left."""
    waits_for: Literal["human", "agent", ""] = ""
    """Who has to act, so that waiting is told apart from idleness."""
    min_stay: float = 0.0
    max_stay: float = 0.0
    """0: for as long as it likes."""
    after_max_stay: str = ""
    """Where the engine then moves it; empty: it is only told of."""
    cooldown: float = 0.0
    """How long after leaving it may not be entered again."""
    max_agents: int = 0
    """How many of the fleet may be in it at once; 0: any number."""
    transitions: dict[str, Transition] = field(default_factory=dict)
    """What single transitions ask for, by their targets."""


class TransitionCase(Struct, frozen=True):
    """What a transition is judged by, beside the machine itself. Where nothing is said, nothing stands in the way."""

    by: Actor
    stayed_s: float = float("inf")
    context: Mapping[str, Any] | None = None
    """None: not known yet, and so not judged."""
    cooling_s: Callable[[str], float] = lambda _state: 0.0
    """For how much longer a state may not be entered again."""
    occupants: Callable[[str], int] = lambda _state: 0


Code: TypeAlias = Literal[
    "unknown_state", "not_allowed", "wrong_party", "context_missing", "too_soon", "cooling_down", "state_full"
]


class Refusal(Struct, frozen=True):
    """Why a transition is not allowed, and what would be. `requested` is cut if it is too long to be a name."""

    code: Code
    message: str
    current: str
    requested: str
    allowed: tuple[str, ...]
    suggestions: tuple[str, ...] = ()
    missing: dict[str, Kind] = field(default_factory=dict)
    retry_after_s: float | None = None
    """When it may be tried again, where that is a matter of time."""


class Machine(Struct, frozen=True, kw_only=True, dict=True):
    """The states of one kind of agent, and the transitions between them.

    `on_register`, `on_lost` and `on_goodbye` are the states the engine moves an agent to; None: it stays where it is.
    `on_unknown` takes in an agent whose state this machine does not know. An `open` machine allows any name at all.
    """

    name: str
    version: int = 1
    extends: str = ""
    initial: str
    open: bool = False
    on_register: str | None = None
    on_lost: str | None = None
    on_return: str = PREVIOUS
    on_goodbye: str | None = None
    on_unknown: str = ""  # as `initial`
    states: dict[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.on_unknown:
            force_setattr(self, "on_unknown", self.initial)

    def check(
        self, current: str, target: str, case: TransitionCase | Callable[[], TransitionCase] | None = None
    ) -> Refusal | None:
        """Say why an agent in `current` may not go to `target`; None if it may, or if it is there already.

        Staying is no transition: it is for the caller to see that nothing changes. Without a case only `to` is checked;
        a callable case is called only if the transition has conditions.
        """
        if target == current:
            return None
        if target in self._transitions.get(current, self._rescue):
            if case is None or (current, target) in self._free:
                return None
            return self._judge(current, target, case() if callable(case) else case)
        if self.open and STATE_NAME.fullmatch(target):
            return None
        return self._refuse(current, target, (case() if callable(case) else case))

    def allowed(self, current: str, by: Actor | None = None) -> tuple[str, ...]:
        """Where `current` leads, whoever or this party alone; in the order of the file; `("*",)`, anywhere, in an open
        machine.

        From a state that this machine does not know, the one way leads to `on_unknown`.
        """
        ways = (ANY,) if self.open else self._ways.get(current, (self.on_unknown,))
        transitions = self.state(current).transitions
        return ways if by is None else tuple(way for way in ways if by in transitions.get(way, _PLAIN).by)

    def knows(self, state: str) -> bool:
        return self.open or state in self.states

    def state(self, name: str) -> State:
        """Give what is written of a state; of one that is not written, nothing is."""
        return self.states.get(name, _UNWRITTEN)

    @cached_property
    def _ways(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(targets(name, state.to, self.states)) for name, state in self.states.items()}

    @cached_property
    def _transitions(self) -> dict[str, frozenset[str]]:
        return {name: frozenset(ways) for name, ways in self._ways.items()}

    @cached_property
    def _free(self) -> frozenset[tuple[str, str]]:
        """The transitions that ask for nothing: most of them."""
        return frozenset(
            (name, target)
            for name, ways in self._ways.items()
            for target in ways
            if not (self.states[name].min_stay or self.states[target].cooldown or self.states[target].max_agents)
            and self.states[name].transitions.get(target, _PLAIN) == _PLAIN
        )

    @cached_property
    def _rescue(self) -> frozenset[str]:
        return frozenset((self.on_unknown,))

    def _judge(self, current: str, target: str, case: TransitionCase) -> Refusal | None:
        """Judge a transition that is there by what it, and the states at both its ends, ask for."""
        start, goal = self.state(current), self.state(target)
        transition = start.transitions.get(target, _PLAIN)

        def refuse(code: Code, message: str, **more: Any) -> Refusal:  # noqa: ANN401 - fields of a refusal
            return Refusal(code, message, current, target, self.allowed(current, case.by), **more)

        if case.by not in transition.by:
            return refuse(
                "wrong_party", f"{current} leads to {target} only by {' or '.join(transition.by)}, not {case.by}"
            )
        if case.context is not None and (missing := _missing(transition.requires, case.context)):
            needed = ", ".join(f"{key} ({kind})" for key, kind in missing.items())
            return refuse(
                "context_missing", f"{current} leads to {target} with a context that has {needed}", missing=missing
            )
        if case.stayed_s < start.min_stay:
            left_s = start.min_stay - case.stayed_s
            message = f"{current} is not left before {start.min_stay:g} s have passed: {left_s:.1f} s to go"
            return refuse("too_soon", message, retry_after_s=left_s)
        if goal.cooldown and (left_s := case.cooling_s(target)) > 0:
            message = f"{target} is not entered again before {goal.cooldown:g} s have passed: {left_s:.1f} s to go"
            return refuse("cooling_down", message, retry_after_s=left_s)
        if goal.max_agents and case.occupants(target) >= goal.max_agents:
            return refuse(
                "state_full", f"there are {goal.max_agents} agents in {target} already: max_agents is reached"
            )
        return None

    def _refuse(self, current: str, target: str, case: TransitionCase | None) -> Refusal:
        """Say why there is no such transition."""
        by = None if case is None else case.by
        allowed = self.allowed(current, by)
        if not STATE_NAME.fullmatch(target):
            requested = target if len(target) <= _LONGEST else f"{target[:_LONGEST]}…"
            message = f"{requested!r} cannot be the name of a state: {NAME_RULE}"
            return Refusal("unknown_state", message, current, requested, allowed)
        if target not in self.states:
            message = f'machine {self.name} has no state "{target}"; its states are: {", ".join(self.states)}'
            suggestions = tuple(f"did you mean {name}" for name in guess(target, self.states))
            return Refusal("unknown_state", message, current, target, allowed, suggestions)
        path = self._path(current, target, by)
        leads = f"it leads to: {', '.join(allowed)}" if allowed else "it leads nowhere that is open to you"
        if not self.allowed(current):
            leads = "it is final"
        message = f"{current} does not lead to {target}; {leads}"
        return Refusal("not_allowed", message, current, target, allowed, (", then ".join(path),) if path else ())

    def _path(self, current: str, target: str, by: Actor | None) -> tuple[str, ...]:
        """Find a shortest way from `current` to `target` that is open to this party, without `current` itself; empty if
        there is none.
        """
        came_from = {current: current}
        queue = [current]
        for state in queue:  # which grows as we go
            new = [follower for follower in self.allowed(state, by) if follower not in came_from]
            came_from.update(dict.fromkeys(new, state))
            queue += new
        path: list[str] = []
        while target in came_from and target != current:
            path.insert(0, target)
            target = came_from[target]
        return tuple(path)


_PLAIN: Final = Transition()
_UNWRITTEN: Final = State()


class Machines(Struct, frozen=True):
    """The machines in use, and which one an agent lives by. One that exists is whole: it names no machine in vain."""

    machines: Mapping[str, Machine]
    default: str
    unregistered: str
    by_type: Mapping[str, str]

    def __post_init__(self) -> None:
        named = {"default": self.default, "unregistered": self.unregistered}
        named |= {f"by_type.{agent_type}": name for agent_type, name in self.by_type.items()}
        problems = [
            f'machines.{key}: no machine "{name}"{hint(name, self.machines)}'
            for key, name in named.items()
            if name not in self.machines
        ]
        if problems:
            raise ConfigError(problems)

    def for_type(self, agent_type: str | None) -> Machine:
        """Give the machine of a type of agent; None is the type of one that never registered."""
        name = self.unregistered if agent_type is None else self.by_type.get(agent_type, self.default)
        return self.machines[name]

    def versions(self) -> dict[str, int]:
        """Give the versions of those that somebody lives by, by name."""
        used = {self.default, self.unregistered, *self.by_type.values()}
        return {name: self.machines[name].version for name in sorted(used)}


def _missing(requires: Mapping[str, Kind], context: Mapping[str, Any]) -> dict[str, Kind]:
    """Give what is required and is not there, or of another kind. To JSON a boolean is no number."""
    return {
        key: kind
        for key, kind in requires.items()
        if not isinstance(value := context.get(key), _KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")
    }


def targets(name: str, to: Iterable[str], states: Iterable[str]) -> list[str]:
    """Give the states that `to` means, in order; `*` is every state but `name`."""
    return [state for state in (states if ANY in to else to) if state != name]


def guess(name: str, names: Iterable[str]) -> list[str]:
    """Find which of `names` may have been meant."""
    folded = {each.casefold(): each for each in names}
    return [folded[match] for match in get_close_matches(name.casefold(), folded)]


def hint(name: str, names: Iterable[str]) -> str:
    return "".join(f' (did you mean "{found}"?)' for found in guess(name, names)[:1])
