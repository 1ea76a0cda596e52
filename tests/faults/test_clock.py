"""Time that is not what it seems: nothing ends before its time, and nothing is kept for ever."""

from collections.abc import Iterator
from functools import partial

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, plain_client, running_engine
from tests.support.server import test_server_binary

HOUR_S = 3600.0


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that may be treated badly; what it has accepted is on disk."""
    with EmbeddedServer(test_server_binary(), append_fsync="always") as server:
        yield server


async def test_a_server_whose_clock_jumps_expires_nothing_before_its_time(server: EmbeddedServer, prefix: str) -> None:
    """A command with a minute left outlives a jump of an hour, and one that is sent then has its time, no more."""
    async with running_engine(server, prefix) as running:
        await send(running, "before", ttl=60)
        time = running.engine.store.time
        observe = time.observe
        time.observe = lambda server_now, asked_at: observe(server_now + HOUR_S, asked_at)  # type: ignore[method-assign]
        await eventually(lambda: running.metric("aism_redis_clock_jump_seconds") > HOUR_S - 10)
        await send(running, "after", ttl=0.3)
        await eventually(partial(is_, running, "after", "expired"))
        assert not await is_(running, "before", "expired")
        time.observe = observe  # type: ignore[method-assign]
        await eventually(lambda: running.metric("aism_redis_clock_jump_seconds") == 0)


async def test_after_an_outage_agents_speak_first(own: EmbeddedServer, prefix: str) -> None:
    """A command whose time has run out while nobody could say anything is done if its agent says so now."""
    async with running_engine(own, prefix, timekeeper__grace=2.0, redis__socket_timeout=0.5) as running:
        await send(running, "c1", timeout=0.5)
        await running.call("RPOP", running.keys.commands("a"))
        await eventually(partial(is_, running, "c1", "delivered"))
        own.kill()
        await eventually(lambda: running.engine.store.now > running.engine.writer.fleet.commands["c1"].due_at + 1)
        own.start()
        async with plain_client(own) as client:
            running.client = client
            await eventually(lambda: running.outage is None)
            await running.say({"type": "result", "agent_id": "a", "command_id": "c1"})
            await eventually(partial(is_, running, "c1", "succeeded"))
            await send(running, "c2", ttl=0.1)
            await eventually(partial(is_, running, "c2", "expired"))


async def send(running: Running, command_id: str, **options: float) -> None:
    await running.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(partial(running.record, "a"))
    payload = {"agent_id": "a", "command": {"type": "work"}, "options": options}
    await running.ask({"id": command_id, "type": "send", "reply": True, "payload": payload})
    assert (await running.replied(command_id))["ok"]


async def is_(running: Running, command_id: str, status: str) -> bool:
    return (await running.command(command_id))["status"] == status
