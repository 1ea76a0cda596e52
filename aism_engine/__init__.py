"""The Agent Intent State Machine: agents declare, one engine measures, decides and records.

    from aism_engine import Agent, Operator

Importing the package imports nothing else: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aism_engine.agent.agent import Agent
    from aism_engine.agent.inbox import Message
    from aism_engine.agent.task import CommandFailedError, Task
    from aism_engine.domain.protocol.codec import MalformedError
    from aism_engine.errors import AismError, RefusalError, ServerUnavailableError
    from aism_engine.operator_client import AgentInfo, Operator, Outcome

    __version__: str

_MODULES: Final = {
    "Agent": "agent.agent",
    "AgentInfo": "operator_client",
    "AismError": "errors",
    "CommandFailedError": "agent.task",
    "MalformedError": "domain.protocol.codec",
    "Message": "agent.inbox",
    "Operator": "operator_client",
    "Outcome": "operator_client",
    "RefusalError": "errors",
    "ServerUnavailableError": "errors",
    "Task": "agent.task",
}
__all__ = [
    "Agent",
    "AgentInfo",
    "AismError",
    "CommandFailedError",
    "MalformedError",
    "Message",
    "Operator",
    "Outcome",
    "RefusalError",
    "ServerUnavailableError",
    "Task",
]


if not TYPE_CHECKING:  # otherwise type checkers accept any name

    def __getattr__(name: str) -> object:
        """Import a name when it is first used: `import aism_engine` must be fast."""
        if name in _MODULES:
            value = getattr(import_module(f"aism_engine.{_MODULES[name]}"), name)
            globals()[name] = value
            return value
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module("importlib.metadata").version("aism-engine")
