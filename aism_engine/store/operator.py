"""What a person at the engine's side does: look at its records, ask for something, listen. Writes nothing but requests.

What somebody has damaged is left out. All methods raise `ServerUnavailableError` while the server cannot serve.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

import msgspec
import uuid_utils
from msgspec import Struct, field

from aism_engine.clock import SystemClock, iso
from aism_engine.model.commands import Command
from aism_engine.model.fleet import Agent
from aism_engine.store.client import Client, connect_url, naming_outages
from aism_engine.store.history import History
from aism_engine.store.keys import Keys
from aism_engine.store.store import Store
from aism_engine.store.subscription import Subscription

_CHUNK: Final = 1000
_SLICE_S: Final = 2.0
"""Of a blocking pop: less than the socket's timeout, or a long wait would look like an outage."""
_LOOK_EVERY_S: Final = 0.1
"""For what is new in the audit, while listening."""
_MILLISECONDS_FROM: Final = 1e11
"""Scores from here on are milliseconds: as seconds, that is the year 5138."""


class Seen(Struct, frozen=True, kw_only=True):
    """An agent as Redis shows it: the engine's record of it, and what lies around it."""

    agent: Agent
    heartbeat_age_s: float | None
    """Since its last heartbeat, by its own clock; None: it has never beaten."""
    queued: int | None
    """Commands in its list that it has not taken yet; None where its key is no list."""
    commands: list[Command] = field(default_factory=list)
    """Those that are open, the oldest first."""
    measurements: dict[str, float] = field(default_factory=dict)


class Operator:
    """Stands beside one fleet. `Operator.at` opens its connections, and closes them."""

    def __init__(self, client: Client, listening: Client, keys: Keys) -> None:
        self._client = client
        self._listening = listening
        self._keys = keys
        self._store = Store(client, keys, SystemClock())
        self.history = History(client, keys)

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str, prefix: str) -> AsyncIterator[Self]:
        client, listening = connect_url(url, "operator"), connect_url(url, "operator-pubsub")
        try:
            yield cls(client, listening, Keys(prefix))
        finally:
            await client.aclose()
            await listening.aclose()

    # --- looking ------------------------------------------------------------------------------------------------------

    async def agents(self) -> list[Seen]:
        """Look at all agents, in the order of their ids."""
        with naming_outages():
            ids = sorted(_text(member) for member in await self._client.smembers(self._keys.index))
        commands = await self._open_commands()
        return [seen for chunk in _chunks(ids) for seen in await self._look(chunk, commands)]

    async def agent(self, agent_id: str) -> Seen | None:
        return next(iter(await self._look([agent_id], await self._open_commands())), None)

    async def command(self, command_id: str) -> dict[str, str]:
        """Read the whole record of a command; empty where there is none."""
        with naming_outages():
            record = await self._client.hgetall(self._keys.command(command_id))
        return {_text(name): _text(value) for name, value in record.items()}

    async def _look(self, ids: Sequence[str], commands: Mapping[str, list[Command]]) -> list[Seen]:
        keys, pipeline = self._keys, self._client.pipeline(transaction=False)
        for agent_id in ids:
            pipeline.hgetall(keys.agent(agent_id))
            pipeline.llen(keys.commands(agent_id))
            pipeline.hgetall(keys.agent_measurements(agent_id))
        with naming_outages():
            replies = iter(await pipeline.execute(raise_on_error=False))
        now, scores, found = await self._store.read_time(), await self._store.scores(ids), []
        for agent_id in ids:
            record, queued, measurements = next(replies), next(replies), next(replies)
            if (agent := _agent(agent_id, record)) is not None:
                seen = Seen(
                    agent=agent,
                    heartbeat_age_s=_age_s(now, scores[agent_id]),
                    queued=queued if isinstance(queued, int) else None,
                    commands=commands.get(agent_id, []),
                    measurements=_numbers(measurements),
                )
                found.append(seen)
        return found

    async def _open_commands(self) -> dict[str, list[Command]]:
        """Find the open commands of all agents: each has a deadline, and nothing lists them by agent."""
        with naming_outages():
            deadlines = await self._client.zrange(self._keys.deadlines, 0, -1)
        ids = [_text(member).removeprefix("command:") for member in deadlines if member.startswith(b"command:")]
        found: dict[str, list[Command]] = {}
        for chunk in _chunks(ids):
            for command in (await self._store.commands(chunk)).values():
                if command.open:
                    found.setdefault(command.agent_id, []).append(command)
        for commands in found.values():
            commands.sort(key=lambda command: command.accepted_at)
        return found

    # --- asking -------------------------------------------------------------------------------------------------------

    async def request(
        self, kind: str, payload: Mapping[str, Any], *, request_id: str | None = None, timeout_s: float
    ) -> dict[str, Any]:
        """Ask the engine for something and give its reply. Raises TimeoutError, with its id, if none comes."""
        keys, request_id = self._keys, request_id or str(uuid_utils.uuid7())
        request = {"id": request_id, "type": kind, "payload": payload, "timestamp": iso(time.time()), "reply": True}
        body, ends_at = msgspec.json.encode(request), time.monotonic() + timeout_s
        with naming_outages():
            await self._client.lpush(keys.request_queue, body)
            await self._client.publish(keys.requests, body)
            while (left_s := ends_at - time.monotonic()) > 0:
                wait_s = max(0.01, min(left_s, _SLICE_S))  # 0 would be for ever
                popped = await self._client.brpop(keys.request_reply(request_id), timeout=wait_s)
                if popped:
                    reply: dict[str, Any] = msgspec.json.decode(popped[1])
                    return reply
        raise TimeoutError(request_id)

    # --- listening ----------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """Hear what happens from now on, for ever: the facts of the audit, and what is only published.

        The kind of each stands in `event`: that of a fact is its own; `error` and `measurement` are heard on their
        channels, and so is `state_declared`, an agent's own word on its state.
        """
        keys = self._keys
        names = {
            keys.state_changes.encode(): "state_declared",
            keys.errors.encode(): "error",
            keys.measurements.encode(): "measurement",
        }
        subscription = Subscription(self._listening, [keys.state_changes, keys.errors, keys.measurements])
        try:
            with naming_outages():
                newest = await self._client.xrevrange(keys.audit, count=1)
            last = newest[0][0] if newest else b"0-0"
            while True:
                for channel, data in await subscription.read(_CHUNK, timeout_s=_LOOK_EVERY_S):
                    event = _object(data) if channel is not None else None
                    if event is None or (channel == keys.state_changes.encode() and event.get("source") == "engine"):
                        continue  # of its own changes the engine tells in the audit as well
                    yield {"event": names[channel or b""], **event}
                with naming_outages():
                    entries = await self._client.xrange(keys.audit, min=b"(" + last, count=_CHUNK)
                for last, fields in entries:  # noqa: B007  where to go on
                    for fact in msgspec.json.decode(fields.get(b"facts", b"[]")):
                        yield fact
        finally:
            await subscription.close()


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _age_s(now: float, score: float | None) -> float | None:
    if score is None:
        return None
    return now - (score / 1000 if score >= _MILLISECONDS_FROM else score)


def _agent(agent_id: str, record: Any) -> Agent | None:  # noqa: ANN401  a reply is what the server makes of it
    if not isinstance(record, dict):
        return None
    try:
        return Agent.from_record(agent_id, {_text(name): _text(value) for name, value in record.items()})
    except (KeyError, ValueError, msgspec.DecodeError):
        return None


def _numbers(reply: Any) -> dict[str, float]:  # noqa: ANN401
    numbers: dict[str, float] = {}
    for name, value in reply.items() if isinstance(reply, dict) else ():
        with suppress(ValueError):
            numbers[_text(name)] = float(value)
    return numbers


def _object(data: bytes) -> dict[str, Any] | None:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = msgspec.json.decode(data)
        return value if isinstance(value, dict) else None
    return None
