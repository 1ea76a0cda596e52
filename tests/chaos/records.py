"""What the load records while it runs: what was sent, how often, and what must come of it."""

from dataclasses import dataclass, field

from tests.chaos.agent_model import AgentModel, Effect


@dataclass
class Message:
    """A message of an agent. It was pushed between `pushes` and `attempts` times."""

    message_id: str
    kind: str
    raw: bytes
    expected: tuple[Effect, ...]
    attempts: int = 0
    pushes: int = 0


@dataclass
class Request:
    """A request of an operator. It was pushed between `pushes` and `attempts` times."""

    request_id: str
    kind: str
    raw: bytes
    expected: str = ""
    """`command_queued` or `request_refused`; empty where either may happen."""
    expires: bool = False
    is_group: bool = False
    attempts: int = 0
    pushes: int = 0


@dataclass
class AgentRecord:
    """What one agent has done."""

    agent_id: str
    model: AgentModel
    messages: list[Message] = field(default_factory=list)
    received: dict[str, int] = field(default_factory=dict)
    """How often each command reached the agent."""
    measurements: int = 0
    publications: int = 0
