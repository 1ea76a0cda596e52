"""State machines: which transitions are allowed, on which conditions, and why a transition is refused.

A machine is read from TOML and checked as a whole by loader.py. `Machine.check` then decides on every transition that
an agent, an operator or the engine requests. A `TransitionCase` holds everything else that the decision depends on.

The entries `on_register`, `on_lost`, `on_return`, `on_goodbye` and `on_unknown` are state changes by the engine itself.
They are not checked as transitions: an agent can be lost in any state.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct, field
from msgspec.structs import force_setattr

from aism_engine.domain.effects import Actor
from aism_engine.domain.protocol.names import MAX_STATE_NAME, is_cached_state_name, is_state_name
from aism_engine.domain.text import hint, similar
from aism_engine.durations import format_duration
from aism_engine.errors import ConfigError

PREVIOUS: Final = "previous"
"""The value of `on_return` that means the state before the loss. No state can have this name."""
ANY: Final = "*"
ACTORS: Final[tuple[Actor, ...]] = get_args(Actor)

NAME_RULE: Final = "a letter, then at most 63 letters, digits, `_`, `.` or `-`"
Kind: TypeAlias = Literal["string", "number", "integer", "boolean", "array", "object"]
"""Type that a value of the context must have: the types of JSON Schema."""
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
    """One state, as the file has it. Durations are seconds."""

    description: str = ""
    to: tuple[str, ...] = ()
    """States that may follow; `("*",)`: all others."""
    final: bool = False
    """Whether the state may have no targets."""
    accepts_messages: bool | Literal["later"] = True
    """Whether an agent in this state receives messages of other agents.

    `later`: messages wait until the agent enters a state that accepts them.
    """
    waits_for: Literal["human", "agent", ""] = ""
    """Who must act while an agent is in this state. An agent that waits for somebody is not idle."""
    min_stay: float = 0.0
    max_stay: float = 0.0
    """0: no limit."""
    after_max_stay: str = ""
    """State to which the engine moves the agent after `max_stay`; empty: the engine only reports the stay."""
    cooldown: float = 0.0
    """Time after leaving the state in which it may not be entered again."""
    max_agents: int = 0
    """Maximum number of agents in the state; 0: no limit."""
    transitions: dict[str, Transition] = field(default_factory=dict)
    """Requirements of single transitions, by target."""


class TransitionCase(Struct, frozen=True):
    """What a transition depends on besides the machine. The defaults satisfy every condition."""

    by: Actor
    stayed_s: float = float("inf")
    context: Mapping[str, Any] | None = None
    """None: not known yet, so `requires` is not checked."""
    cooldown_left_s: Callable[[str], float] = lambda _state: 0.0
    """Returns the remaining cooldown of a state."""
    occupants: Callable[[str], int] = lambda _state: 0
    """Returns the number of agents in a state."""


Code: TypeAlias = Literal[
    "unknown_state", "not_allowed", "wrong_actor", "context_missing", "too_soon", "cooling_down", "state_full"
]


class Refusal(Struct, frozen=True):
    """Why a transition is refused, and which are allowed. A `requested` that is too long for a name is truncated."""

    code: Code
    message: str
    current: str
    requested: str
    allowed: tuple[str, ...]
    suggestions: tuple[str, ...] = ()
    missing: dict[str, Kind] = field(default_factory=dict)
    retry_after_s: float | None = None
    """When to try again, if waiting is enough."""


class Machine(Struct, frozen=True, kw_only=True, dict=True):
    """The states of one kind of agent, and the transitions between them.

    The engine moves an agent to `on_register`, `on_lost`, `on_return` or `on_goodbye`; None: it stays in its state. An
    agent whose state the machine does not have is moved to `on_unknown`. An `open` machine allows any state.
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
    on_unknown: str = ""  # empty: the same as `initial`
    states: dict[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.on_unknown:
            force_setattr(self, "on_unknown", self.initial)

    def allows(self, current: str, target: str) -> bool:
        """Return whether a transition is allowed and has no conditions. If not, `check` decides."""
        has_conditions = self._targets.get(current, _NO_TARGETS).get(target)
        if has_conditions is None:
            return self.open and len(target) <= MAX_STATE_NAME and is_cached_state_name(target) is not None
        return not has_conditions

    def check(self, current: str, target: str, case: TransitionCase | None = None) -> Refusal | None:
        """Return why an agent in `current` may not change to `target`; None if it may, or if it is there already.

        Without a case only `to` is checked.
        """
        if target == current:
            return None
        has_conditions = self._targets.get(current, {self.on_unknown: False}).get(target)
        if has_conditions is None:
            is_name = is_state_name(target) is not None
            refuse = self._refusals if is_name else self._refuse  # only names are cached: other texts may be long
            return None if self.open and is_name else refuse(current, target, None if case is None else case.by)
        if case is None or not has_conditions:
            return None
        return self._check_conditions(current, target, case)

    def allowed(self, current: str, by: Actor | None = None) -> tuple[str, ...]:
        """Return the targets of `current` in the order of the file, for one actor or for any; `("*",)` if open.

        From a state that the machine does not have, the only target is `on_unknown`.
        """
        found = (ANY,) if self.open else self._targets.get(current, (self.on_unknown,))
        transitions = self.state(current).transitions
        return tuple(each for each in found if by is None or by in transitions.get(each, _PLAIN).by)

    def knows(self, state: str) -> bool:
        return self.open or state in self.states

    def state(self, name: str) -> State:
        """Return a state; the default state for a name that the machine does not have."""
        return self.states.get(name, _DEFAULT)

    @cached_property
    def _targets(self) -> dict[str, dict[str, bool]]:
        """Targets of each state in the order of the file, and whether the transition has conditions: few have."""
        return {
            name: {
                target: bool(state.min_stay or self.state(target).cooldown or self.state(target).max_agents)
                or state.transitions.get(target, _PLAIN) != _PLAIN
                for target in targets(name, state.to, self.states)
            }
            for name, state in self.states.items()
        }

    def _check_conditions(self, current: str, target: str, case: TransitionCase) -> Refusal | None:
        """Check the conditions of a transition and of its two states."""
        start, goal = self.state(current), self.state(target)
        transition = start.transitions.get(target, _PLAIN)

        def refuse(code: Code, message: str, **more: Any) -> Refusal:  # noqa: ANN401 - fields of a refusal
            return Refusal(code, message, current, target, self.allowed(current, case.by), **more)

        step = f"the transition from {current} to {target}"
        if case.by not in transition.by:
            return refuse("wrong_actor", f"{step} is allowed to {' and '.join(transition.by)}, not to {case.by}")
        if case.context is not None and (missing := _missing(transition.requires, case.context)):
            needed = ", ".join(f"{key} ({kind})" for key, kind in missing.items())
            return refuse("context_missing", f"{step} requires in its context: {needed}", missing=missing)
        if case.stayed_s < start.min_stay:
            left_s = start.min_stay - case.stayed_s
            left = format_duration(round(left_s, 1))
            message = f"the min_stay of {current} is {format_duration(start.min_stay)}; retry in {left}"
            return refuse("too_soon", message, retry_after_s=left_s)
        if goal.cooldown and (left_s := case.cooldown_left_s(target)) > 0:
            left = format_duration(round(left_s, 1))
            message = f"the cooldown of {target} is {format_duration(goal.cooldown)}; retry in {left}"
            return refuse("cooling_down", message, retry_after_s=left_s)
        if goal.max_agents and case.occupants(target) >= goal.max_agents:
            return refuse("state_full", f"{target} has reached max_agents = {goal.max_agents}")
        return None

    @cached_property
    def _refusals(self) -> Callable[[str, str, Actor | None], Refusal]:
        """`_refuse` with a cache, because agents repeat refused transitions, and the search for a path is slow."""
        return lru_cache(maxsize=1024)(self._refuse)

    def _refuse(self, current: str, target: str, by: Actor | None) -> Refusal:
        """Return why there is no such transition."""
        allowed = self.allowed(current, by)
        if not is_state_name(target):
            requested = target if len(target) <= MAX_STATE_NAME else f"{target[:MAX_STATE_NAME]}…"
            message = f"{requested!r} is not a state name: expected {NAME_RULE}"
            return Refusal("unknown_state", message, current, requested, allowed)
        if target not in self.states:
            message = f'machine {self.name} has no state "{target}"; its states are: {", ".join(self.states)}'
            suggestions = tuple(f"did you mean {name}" for name in similar(target, self.states))
            return Refusal("unknown_state", message, current, target, allowed, suggestions)
        path = self._path(current, target, by)
        reason = f"it leads to: {', '.join(allowed)}" if allowed else f"no transition from it is allowed to {by}"
        if not self.allowed(current):
            reason = "it is final"
        message = f"{current} does not lead to {target}; {reason}"
        return Refusal("not_allowed", message, current, target, allowed, (", then ".join(path),) if path else ())

    def _path(self, current: str, target: str, by: Actor | None) -> tuple[str, ...]:
        """Return a shortest path that the actor may take, without `current`; empty if there is none."""
        came_from = walk((current,), lambda state: self.allowed(state, by))
        path: list[str] = []
        while target in came_from and target != current:
            path.insert(0, target)
            target = came_from[target]
        return tuple(path)


_PLAIN: Final = Transition()
_NO_TARGETS: Final[Mapping[str, bool]] = {}
"""The targets of a state that is not in `states`. An open machine has no `states`."""
_DEFAULT: Final = State()


class Machines(Struct, frozen=True):
    """The machines in use, by agent type. Raises ConfigError if a type names a machine that does not exist."""

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
        """Return the machine of an agent type; None is the type of an agent that has not registered."""
        name = self.unregistered if agent_type is None else self.by_type.get(agent_type, self.default)
        return self.machines[name]

    def versions(self) -> dict[str, int]:
        """Return the versions of the machines that are in use, by name."""
        used = {self.default, self.unregistered, *self.by_type.values()}
        return {name: self.machines[name].version for name in sorted(used)}


def _missing(requires: Mapping[str, Kind], context: Mapping[str, Any]) -> dict[str, Kind]:
    """Return the required keys that are absent or have another type. In JSON a boolean is no number."""
    return {
        key: kind
        for key, kind in requires.items()
        if not isinstance(value := context.get(key), _KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")
    }


def targets(name: str, to: Iterable[str], states: Iterable[str]) -> list[str]:
    """Return the states that `to` names, in order; `*` names every state but `name`."""
    return [state for state in (states if ANY in to else to) if state != name]


def walk(starts: Iterable[str], targets_of: Callable[[str], Iterable[str]]) -> dict[str, str]:
    """Return the states that can be reached, nearest first, each with the state that it is reached from."""
    came_from = {start: start for start in starts}
    queue = list(came_from)
    for state in queue:  # the loop appends to it
        new = [target for target in targets_of(state) if target not in came_from]
        came_from |= dict.fromkeys(new, state)
        queue += new
    return came_from
