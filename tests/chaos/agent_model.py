"""What the load has sent, and the effects that the engine must give it, in plain Python.

This module imports nothing from the engine. It repeats the journey, so that a wrong rule of the engine is noticed.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

JOURNEY: Final = {
    "offline": {"bootstrap"},
    "bootstrap": {"inbox", "direct_io"},
    "inbox": {"deep_work", "distill", "idle", "logout", "direct_io"},
    "distill": {"inbox", "deep_work", "idle", "logout", "direct_io"},
    "deep_work": {"inbox", "distill", "direct_io"},
    "idle": {"inbox", "logout", "direct_io"},
    "logout": {"offline", "direct_io"},
    "direct_io": {"bootstrap", "inbox", "distill", "deep_work", "idle", "logout"},
}

REGISTERED: Final = frozenset({"journey", "recipient", "worker"})
"""The kinds of agents that register before the load begins, and so follow the journey."""
FAULTY: Final = frozenset({"wrong-type", "invalid"})
"""The kinds of agents whose every message is dead-lettered."""


class Effect(NamedTuple):
    """An expected fact in the audit: the event, and the new state or the command that it names."""

    event: str
    subject: str = ""


DEAD_LETTER: Final = Effect("dead_letter_added")


@dataclass
class Sent:
    """A message or a request. It was pushed between `pushes` and `attempts` times."""

    id: str
    kind: str
    raw: bytes
    expected: tuple[Effect, ...] | None = None
    """The effects of a message; None where they depend on timing."""
    outcome: str = ""
    """Of a request for a command: `done`, `expired` or `refused`; empty where it depends on timing."""
    is_group: bool = False
    attempts: int = 0
    pushes: int = 0


@dataclass
class AgentModel:
    """What an agent has sent, and its state if each of its messages is applied once and in order."""

    agent_id: str
    state: str = "unknown"
    commands: dict[str, str] = field(default_factory=dict)
    """The status of each command that has reached the agent."""
    messages: list[Sent] = field(default_factory=list)
    measurements: int = 0
    publications: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    """How often the agent took each command."""
    succeeded: set[str] = field(default_factory=set)
    """Commands for which the agent has sent a result."""

    @property
    def kind(self) -> str:
        return self.agent_id.rpartition("-")[0]

    def apply(self, kind: str, subject: str, command_id: str | None = None) -> tuple[Effect, ...]:
        """Apply a response, and return its effects. `subject` is the target of a transition or the recipient."""
        match kind:
            case "register":
                return (Effect("agent_registered"), *self._go("bootstrap"))
            case "state_transition":
                return self._declare(subject)
            case "ack" | "result" | "error" if command_id is not None:
                return self._report(kind, command_id)
            case "error":
                return (Effect("agent_error"),)
            case "message":
                return (Effect("message_delivered"),) if subject else (DEAD_LETTER,)
            case "measurement":
                return ()
        raise ValueError(kind)

    def _go(self, state: str) -> tuple[Effect, ...]:
        if state == self.state:
            return ()
        self.state = state
        return (Effect("state_changed", state),)

    def _declare(self, target: str) -> tuple[Effect, ...]:
        if self.kind in REGISTERED and target != self.state and target not in JOURNEY[self.state]:
            return (Effect("transition_refused", target),)
        return self._go(target)

    def _report(self, kind: str, command_id: str) -> tuple[Effect, ...]:
        status = self.commands.get(command_id)
        if status is None:
            return (DEAD_LETTER,)
        if status not in {"queued", "acked"}:
            return ()  # the outcome is recorded already
        if kind == "ack":
            self.commands[command_id] = "acked"
            return (Effect("command_acked", command_id),) if status == "queued" else ()
        self.commands[command_id] = "failed" if kind == "error" else "succeeded"
        return (Effect(f"command_{self.commands[command_id]}", command_id),)
