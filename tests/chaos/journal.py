"""What those who make the load note down: what was said, what was asked, and what each of it should come to."""

from dataclasses import dataclass, field

from tests.chaos.law import Effect, Mind


@dataclass
class Said:
    """One message, how often it was pushed at most and at least, and what it should come to."""

    message_id: str
    kind: str
    raw: bytes
    expected: tuple[Effect, ...]
    attempts: int = 0
    pushes: int = 0


@dataclass
class Asked:
    """One request of an operator. `expected` is `command_queued` or `request_refused`."""

    request_id: str
    agent_id: str
    expected: str
    raw: bytes
    target: str | None = None
    expires: bool = False
    attempts: int = 0
    pushes: int = 0


@dataclass
class Order:
    """One request of the foreman. `to_many`: it comes to a group."""

    request_id: str
    kind: str
    raw: bytes
    to_many: bool = False
    attempts: int = 0
    pushes: int = 0


@dataclass
class Journal:
    """What one agent has done."""

    agent_id: str
    mind: Mind
    said: list[Said] = field(default_factory=list)
    popped: dict[str, int] = field(default_factory=dict)
    """The commands that reached it, and how often."""
    measured: int = 0
    published: int = 0
