"""What each response should come to, in plain Python.

Nothing of the engine's is used here: the journey is written down once more, from docs/protocol.md and the drawing in
config/machines/journey.toml, so that a wrong rule of the engine cannot excuse itself.
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
    """A fact that the audit should hold: which event, and the state that it names (of a state), or the command."""

    event: str
    subject: str = ""


LETTER: Final = Effect("dead_letter_added")


@dataclass
class Mind:
    """Where an agent stands, if all that it has said was applied once and in order."""

    machine: str
    """`journey` for one that registers, `open` for one that never does."""
    state: str = "unknown"
    left: bool = False
    commands: dict[str, str] = field(default_factory=dict)
    """The status of each command it has had."""
    targets: dict[str, str] = field(default_factory=dict)
    """The state that a command asks for."""

    def have(self, command_id: str, target: str | None) -> None:
        """A command has reached the agent."""
        self.commands.setdefault(command_id, "queued")
        if target is not None:
            self.targets[command_id] = target

    def hear(self, kind: str, subject: str, command_id: str | None = None) -> tuple[Effect, ...]:
        """Give what a response of this kind comes to. `subject` is the target of a transition."""
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
                effects = self._send_reply(kind, command_id)
            case "error":
                effects = (Effect("agent_error"),)
            case "message":
                effects = (Effect("message_delivered"),) if subject else (LETTER,)
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

    def _send_reply(self, kind: str, command_id: str) -> tuple[Effect, ...]:
        status = self.commands.get(command_id)
        if status is None:
            return (LETTER,)
        if status not in {"queued", "acked"}:
            return ()  # late: its outcome is recorded
        if kind in {"ack", "progress"}:
            self.commands[command_id] = "acked"
            return (Effect("command_acked", command_id),) if status == "queued" else ()
        self.commands[command_id] = "failed" if kind == "error" else "succeeded"
        moved = self._go(self.targets[command_id]) if kind == "result" and command_id in self.targets else ()
        return (*moved, Effect(f"command_{self.commands[command_id]}", command_id))
