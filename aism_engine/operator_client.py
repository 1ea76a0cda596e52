"""Client of an operator in Python, for planners: send commands, wait for their outcomes, select agents.

    async with Operator() as operator:
        for agent in await operator.select("type=reviewer,state=inbox"):
            command_id = await operator.send(agent.id, "review", {"branch": "main"}, ttl=60)
            outcome = await operator.wait(command_id)

All methods but `problem` raise `ServerUnavailableError` if Redis is not available when they are called.
"""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Literal, Self, TypedDict, Unpack

import msgspec
from msgspec import Struct, field

from aism_engine.agent.arguments import default_server
from aism_engine.domain.commands.group import OUTCOMES
from aism_engine.domain.commands.selector import Selector
from aism_engine.errors import AismError, RefusalError
from aism_engine.ops.admin_client import AdminClient
from aism_engine.settings import RedisSettings


class Options(TypedDict, total=False):
    """Options of a command, as in docs/protocol.md. Durations are in seconds."""

    ttl: float
    ack_timeout: float
    timeout: float
    max_attempts: int
    priority: Literal["high", "normal", "low"]
    on_lost: Literal["hold", "fail"]
    start_at: str
    start_in: float


class AgentInfo(Struct, frozen=True, kw_only=True):
    """An agent, as the engine has recorded it."""

    id: str
    type: str
    state: str
    liveness: str
    labels: Mapping[str, str]
    capabilities: tuple[str, ...]
    measurements: Mapping[str, float]
    open_commands: int


class Outcome(Struct, frozen=True, kw_only=True):
    """How a command has ended, or how a request to many agents was decided."""

    id: str
    status: str
    result: Mapping[str, Any] | None = None
    """Of a command that succeeded; None if the result was too large to be kept."""
    code: str = ""
    """Why a command did not succeed."""
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of a request to many agents: the number of commands by outcome, as far as they have ended."""

    @property
    def ok(self) -> bool:
        """Whether it has succeeded."""
        return self.status == "succeeded"


class Operator:
    """Operator of one fleet.

    `url` defaults to AISM_REDIS__URL, then AISM_REDIS_URL, then localhost. `prefix` defaults to AISM_REDIS__PREFIX,
    then `aism`.
    """

    def __init__(self, *, url: str | None = None, prefix: str | None = None, reply_timeout_s: float = 30.0) -> None:
        default_url, default_prefix = default_server()
        self._server = RedisSettings(url=url or default_url, prefix=prefix or default_prefix)
        self._reply_timeout_s = reply_timeout_s
        self._stack = AsyncExitStack()
        self._client: AdminClient | None = None

    async def __aenter__(self) -> Self:
        self._client = await self._stack.enter_async_context(AdminClient.connect(self._server))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client = None
        await self._stack.aclose()

    async def send(
        self,
        agent_id: str,
        type: str,  # noqa: A002  as in the protocol
        payload: Mapping[str, Any] | None = None,
        *,
        command_id: str | None = None,
        **options: Unpack[Options],
    ) -> str:
        """Send a command to an agent, and return the id of the command when the engine has accepted it.

        With a `command_id` of your own, sending again has no second effect. Raises RefusalError, and TimeoutError if
        the engine does not reply: the command may still be accepted. If no engine leads, the TimeoutError says so.
        """
        return await self._send({"agent_id": agent_id}, type, payload, command_id, options)

    async def send_any(
        self,
        select: str,
        type: str,  # noqa: A002
        payload: Mapping[str, Any] | None = None,
        *,
        command_id: str | None = None,
        **options: Unpack[Options],
    ) -> str:
        """Send a command to the least busy agent that a selector matches.

        The returned id, the effect of `command_id` and the errors are those of `send`.
        """
        return await self._send({"select": select, "any": True}, type, payload, command_id, options)

    async def send_all(
        self,
        select: str,
        type: str,  # noqa: A002
        payload: Mapping[str, Any] | None = None,
        *,
        quorum: str | int | None = None,
        group_id: str | None = None,
        **options: Unpack[Options],
    ) -> str:
        """Send a command to all agents that a selector matches, and return the id of the group.

        `quorum` is how many have to succeed, such as 3 or "80%"; by default all. With a `group_id` of your own, sending
        again has no second effect. The errors are those of `send`.
        """
        given = {**options} if quorum is None else {**options, "quorum": str(quorum)}
        return await self._send({"select": select}, type, payload, group_id, given)

    async def wait(self, id: str, *, timeout_s: float | None = None) -> Outcome:  # noqa: A002
        """Wait until a command has ended, or a group is decided.

        Raises TimeoutError after `timeout_s`. Without `timeout_s`, it raises TimeoutError only if the command has
        expired and no engine can record that. An outage of Redis that begins during the wait does not end the wait. If
        no engine leads or Redis is not available at the timeout, the TimeoutError says so.
        """
        return _outcome(id, await self._connected().wait(id, timeout_s=timeout_s))

    async def problem(self) -> str:
        """Return why no engine can act now; empty if one leads.

        While none leads, the other methods return what the last leader wrote. If Redis is not available, this method
        returns that as the reason: it does not raise `ServerUnavailableError`.
        """
        return await self._connected().problem()

    async def select(self, selector: str) -> list[AgentInfo]:
        """Return the agents that a selector matches, sorted by id. Raises ValueError for an invalid selector.

        Lost agents and agents that have left match only if the selector names `liveness`.
        """
        parsed = Selector.parse(selector)
        return [
            AgentInfo(
                id=view.agent.agent_id,
                type=view.agent.type,
                state=view.agent.state,
                liveness=view.liveness.value,
                labels=view.agent.labels,
                capabilities=view.agent.capabilities,
                measurements=view.measurements,
                open_commands=len(view.commands),
            )
            for view in await self._connected().agents()
            if parsed.selects(view.agent)
        ]

    async def _send(
        self,
        target: Mapping[str, Any],
        kind: str,
        payload: Mapping[str, Any] | None,
        request_id: str | None,
        options: Mapping[str, Any],
    ) -> str:
        request = {**target, "command": {"type": kind, "payload": payload or {}}, "options": options}
        client = self._connected()
        reply = await client.request("send", request, request_id=request_id, timeout_s=self._reply_timeout_s)
        if not reply["ok"]:
            raise RefusalError(reply["error"])
        return str(reply.get("command_id") or reply["group_id"])

    def _connected(self) -> AdminClient:
        if self._client is None:
            raise AismError("the operator is not connected: use it inside `async with Operator() as operator`")
        return self._client


def _outcome(record_id: str, record: Mapping[str, str]) -> Outcome:
    if "agent_id" not in record:
        counts = {name: int(record.get(name) or 0) for name in OUTCOMES}
        return Outcome(id=record_id, status=record["status"], counts=counts)
    result = msgspec.json.decode(record["result"]) if record.get("result") else None
    code, reason = record.get("code", ""), record.get("reason", "")
    return Outcome(id=record_id, status=record["status"], result=result, code=code, reason=reason)
