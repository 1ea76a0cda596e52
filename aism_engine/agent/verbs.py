"""What an agent says by itself: its state, messages to other agents, measurements. The same on `Agent` and `Task`."""

from collections.abc import Awaitable, Mapping
from typing import Any

from aism_engine.agent.outbox import Outbox


class Verbs:
    """The verbs of an agent that runs. In a plain function, which has a thread of its own, they need no `await`.

    Messages leave in the order of the calls. While Redis is away they wait.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    @property
    def state(self) -> str | None:
        """The agent's state according to the engine, as of the last reply or heartbeat; None before it registered."""
        return self._outbox.state

    def transition(
        self, target: str, *, context: Mapping[str, Any] | None = None, reason: str | None = None
    ) -> Awaitable[str]:
        """Declare a new state, and return the state according to the engine.

        `context` holds the fields that the machine requires. Raises RefusalError if the transition is not allowed, and
        TimeoutError if the engine does not reply: the transition may still happen.
        """
        payload = {"target": target, "context": dict(context or {})} | ({"reason": reason} if reason else {})
        return self._outbox.from_any_thread(self._outbox.call("state_transition", payload))

    def message(self, to: str, content: object, *, thread_id: str | None = None) -> Awaitable[None]:
        """Send a message to another agent; its inbox handler gets it when its state accepts messages.

        Raises RefusalError, for example if the inbox is full, and TimeoutError if the engine does not reply.
        """
        payload = {"to": to, "content": content} | ({"thread_id": thread_id} if thread_id else {})
        return self._outbox.from_any_thread(self._tell(payload))

    async def _tell(self, payload: Mapping[str, Any]) -> None:
        await self._outbox.call("message", payload)

    def measure(self, values: Mapping[str, float] | None = None, /, **named: float) -> Awaitable[None]:
        """Report measurements: `measure(context_used=0.7)`. Does not wait for the engine."""
        return self._outbox.from_any_thread(self._outbox.send("measurement", {**(values or {}), **named}))
