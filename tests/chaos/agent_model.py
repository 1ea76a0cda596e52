"""The expected effects of each response, in plain Python.

It imports nothing from the engine: the journey is repeated here, so that a wrong rule of the engine is noticed.
"""

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


class Effect(NamedTuple):
    """An expected fact in the audit: the event, and the new state or the command that it names."""

    event: str
    subject: str = ""


DEAD_LETTER: Final = Effect("dead_letter_added")


@dataclass
class AgentModel:
    """The state of an agent, if each of its messages is applied once and in order."""

    machine: str
    """`journey` for an agent that registers, else `open`."""
    state: str = "unknown"
    left: bool = False
    commands: dict[str, str] = field(default_factory=dict)
    """The status of each command that has reached the agent."""

    def apply(self, kind: str, subject: str, command_id: str | None = None) -> tuple[Effect, ...]:
        """Apply a response, and return its effects. `subject` is the target of a transition or the recipient."""
        returned: tuple[Effect, ...] = ()
        if self.left and kind not in {"register", "goodbye"}:
            self.left = False
            returned = (Effect("agent_returned"),)
        match kind:
            case "register":
                self.left = False
                effects = (Effect("agent_registered"), *self._go("bootstrap"))
            case "goodbye":
                self.left = True
                effects = (Effect("agent_left"), *self._go("offline"))
            case "state_transition":
                effects = self._declare(subject)
            case "ack" | "progress" | "result" | "error" if command_id is not None:
                effects = self._report(kind, command_id)
            case "error":
                effects = (Effect("agent_error"),)
            case "message":
                effects = (Effect("message_delivered"),) if subject else (DEAD_LETTER,)
            case "heartbeat" | "measurement":
                effects = ()
            case _:
                raise ValueError(kind)
        return (*returned, *effects)

    def _go(self, state: str) -> tuple[Effect, ...]:
        if state == self.state:
            return ()
        self.state = state
        return (Effect("state_changed", state),)

    def _declare(self, target: str) -> tuple[Effect, ...]:
        if self.machine == "journey" and target != self.state and target not in JOURNEY[self.state]:
            return (Effect("transition_refused", target),)
        return self._go(target)

    def _report(self, kind: str, command_id: str) -> tuple[Effect, ...]:
        status = self.commands.get(command_id)
        if status is None:
            return (DEAD_LETTER,)
        if status not in {"queued", "acked"}:
            return ()  # the outcome is recorded already
        if kind in {"ack", "progress"}:
            self.commands[command_id] = "acked"
            return (Effect("command_acked", command_id),) if status == "queued" else ()
        self.commands[command_id] = "failed" if kind == "error" else "succeeded"
        return (Effect(f"command_{self.commands[command_id]}", command_id),)
