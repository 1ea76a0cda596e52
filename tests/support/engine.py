"""An engine in the event loop of the test, and short ways to read what it wrote."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar, overload

from msgspec.structs import asdict
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from aism_engine.config import load_settings
from aism_engine.domain.agents.agent import decode_agent
from aism_engine.domain.responses import ResponseHandler
from aism_engine.engine import Engine
from aism_engine.errors import NotLeadingError, ServerUnavailableError
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys

T = TypeVar("T")
Client: TypeAlias = Any
"""A `redis.asyncio.Redis`, whose annotations also describe the synchronous client."""

_FAST: Final[dict[str, object]] = {
    "http.enabled": False,
    "response_consumer.poll_interval": 0.01,
    "request_consumer.poll_interval": 0.01,
    "timekeeper.poll_interval": 0.02,
    "timekeeper.grace": 0.05,
    "liveness.scan_interval": 0.05,
    "registrar.metadata_interval": 0.1,
    "sampler.poll_interval": 0.05,
    "redis.retry_backoff_max": 0.2,
    "supervisor.restarts": 0,  # a component that fails also fails the test
}


@overload
async def eventually(condition: Callable[[], Awaitable[T]], within_s: float = ...) -> T: ...
@overload
async def eventually(condition: Callable[[], T], within_s: float = ...) -> T: ...
async def eventually(condition: Callable[[], Any], within_s: float = 300.0) -> Any:
    """Wait until `condition` returns something true, and return that. `within_s` only guards against hanging."""
    loop = asyncio.get_running_loop()
    deadline, pause_s = loop.time() + within_s, 0.001
    while True:
        found = condition()
        value = await found if inspect.isawaitable(found) else found
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"not within {within_s} s; the last was {value!r:.2000}")
        await asyncio.sleep(pause_s)
        pause_s = min(0.02, 1.5 * pause_s)


def plain_client(server: EmbeddedServer) -> Client:
    """Return a client without retries that returns bytes."""
    retry = Retry(NoBackoff(), retries=0)
    return Redis.from_url(server.url, protocol=2, decode_responses=False, retry=retry, socket_timeout=300)


class Reader:
    """Reads the data of a fleet with a plain client."""

    def __init__(self, client: Client, prefix: str) -> None:
        self.client = client
        self.keys = Keys(prefix)

    async def call(self, *words: str | bytes | float) -> Any:  # noqa: ANN401 - a reply is what the command makes it
        return await self.client.execute_command(*words)

    async def now(self) -> float:
        """Return the time of the server."""
        seconds, microseconds = await self.call("TIME")
        return int(seconds) + int(microseconds) / 1e6

    async def audit(self, *events: str, agent_id: str | None = None) -> list[dict[str, Any]]:
        """Return the facts in the audit, oldest first, filtered by event and agent."""
        entries = await self.call("XRANGE", self.keys.audit, "-", "+")
        facts = [fact for _, fields in entries for fact in json.loads(_table(fields)["facts"])]
        return [
            fact
            for fact in facts
            if (not events or fact["event"] in events) and (agent_id is None or fact.get("agent_id") == agent_id)
        ]

    async def dead_letters(self) -> list[dict[str, bytes]]:
        """Return the dead letters, oldest first."""
        return [_table(fields) for _, fields in await self.call("XRANGE", self.keys.dead_letters, "-", "+")]

    async def dead_lettered(self) -> list[tuple[str, bytes]]:
        """Return the code and the original bytes of each dead letter, oldest first."""
        return [(letter["code"].decode(), letter["raw"]) for letter in await self.dead_letters()]

    async def record(self, agent_id: str) -> dict[str, Any]:
        """Return the engine's record of an agent; empty if there is none."""
        found = await self.call("GET", self.keys.agent(agent_id))
        return asdict(decode_agent(agent_id, found)) if found else {}

    async def command(self, command_id: str) -> dict[str, str]:
        """Return the record of a command; empty if there is none."""
        return await self._texts(self.keys.command(command_id))

    async def group(self, group_id: str) -> dict[str, str]:
        """Return the record of a group; empty if there is none."""
        return await self._texts(self.keys.group(group_id))

    async def state(self, agent_id: str) -> str | None:
        value = await self.call("GET", self.keys.state(agent_id))
        return None if value is None else str(value.decode())

    async def state_is(self, agent_id: str, state: str) -> bool:
        return await self.state(agent_id) == state

    async def is_drained(self) -> bool:
        """Return whether both queues are empty."""
        lengths = [await self.call("LLEN", queue) for queue in (self.keys.response_queue, self.keys.request_queue)]
        return not any(lengths)

    async def dump(self) -> dict[bytes, bytes]:
        """Return all keys of the fleet with their serialized values, to detect any change."""
        names = [name async for name in self.client.scan_iter(match=f"{_escaped(self.keys.prefix)}:*", count=1000)]
        return {name: await self.call("DUMP", name) for name in sorted(names)}

    async def say(self, *messages: bytes | dict[str, Any]) -> None:
        """Push responses as agents do, in order."""
        await self.call("LPUSH", self.keys.response_queue, *map(_body, messages))

    async def ask(self, *requests: bytes | dict[str, Any]) -> None:
        """Push requests as operators do, in order."""
        await self.call("LPUSH", self.keys.request_queue, *map(_body, requests))

    async def replied(self, request_id: str, within_s: float = 300.0) -> dict[str, Any]:
        """Wait for the reply to a request, and return it."""
        reply = await self.call("BRPOP", self.keys.request_reply(request_id), within_s)
        assert reply is not None, f"no reply to {request_id} within {within_s} s"
        found: dict[str, Any] = json.loads(reply[1])
        return found

    async def _texts(self, key: str) -> dict[str, str]:
        found = _table(await self.call("HGETALL", key))
        return {name: value.decode(errors="replace") for name, value in found.items()}


class Running(Reader):
    """A running engine, and the data of its fleet."""

    def __init__(self, engine: Engine, client: Client) -> None:
        super().__init__(client, engine.settings.redis.prefix)
        self.engine = engine

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric; 0 if it has none yet."""
        return self.engine.metrics.registry.get_sample_value(name, labels) or 0.0

    @property
    def outage(self) -> str | None:
        """The name of the current outage, as the engine reports it."""
        return self.engine.outages.current

    @property
    def refusal(self) -> str | None:
        """The name of the current outage, unless it is a timeout, which a busy machine may cause."""
        return None if self.outage == "timeout" else self.outage

    async def wait_serving(self) -> None:
        """Wait until the engine leads, has loaded the fleet, and is subscribed."""
        keys = self.keys
        await eventually(self._is_loaded)
        channels = (keys.responses, keys.requests, keys.state_changes, keys.measurements)

        async def is_subscribed() -> bool:
            counts = await self.call("PUBSUB", "NUMSUB", *channels)
            counts = [count for _, count in counts] if isinstance(counts[0], list | tuple) else counts[1::2]
            return all(counts)

        await eventually(is_subscribed)

    async def _is_loaded(self) -> bool:
        with suppress(NotLeadingError, ServerUnavailableError):  # a slow machine may delay a renewal or a reply
            await self.engine.writer.loaded()
            return True
        return False


@asynccontextmanager
async def launched(
    server: EmbeddedServer, prefix: str, handlers: Mapping[str, ResponseHandler] | None = None, /, **overrides: object
) -> AsyncIterator[Running]:
    """Start an engine without waiting for anything, and stop it cleanly at the end.

    An override of a setting is named `section__key`; `handlers` is passed to the engine. If the engine gives up, the
    test fails with the reason.
    """
    settings = load_settings(
        environ={},
        overrides=_FAST
        | {"redis.url": server.url, "redis.prefix": prefix}
        | {name.replace("__", "."): value for name, value in overrides.items()},
    ).settings
    engine = Engine(settings, environ={}, handlers=handlers)
    stopping = asyncio.Event()
    run = asyncio.create_task(engine.run(stopping))
    try:
        async with plain_client(server) as client:
            yield Running(engine, client)
    finally:
        stopping.set()
        async with asyncio.timeout(300):
            await run


@asynccontextmanager
async def running_engine(
    server: EmbeddedServer, prefix: str, handlers: Mapping[str, ResponseHandler] | None = None, /, **overrides: object
) -> AsyncIterator[Running]:
    """Run an engine that leads and is subscribed, and stop it cleanly at the end."""
    async with launched(server, prefix, handlers, **overrides) as running:
        await running.wait_serving()
        yield running


def _table(fields: Any) -> dict[str, bytes]:  # noqa: ANN401 - a reply is what the client makes of it
    if isinstance(fields, dict):
        return {name.decode(): value for name, value in fields.items()}
    return {name.decode(): value for name, value in zip(fields[::2], fields[1::2], strict=True)}


def _body(message: bytes | dict[str, Any]) -> bytes:
    return message if isinstance(message, bytes) else json.dumps(message).encode()


def _escaped(prefix: str) -> str:
    """Return a pattern that matches only this prefix."""
    return "".join(f"[{letter}]" if letter in "*?[]\\" else letter for letter in prefix)
