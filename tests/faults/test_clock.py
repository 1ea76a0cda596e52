"""Clock jumps and outages: no command ends before its time, and none stays open for ever."""

from collections.abc import Awaitable
from functools import partial

from aism_engine.services.timekeeper import Timekeeper
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, plain_client, running_engine
from tests.support.server import OwnServer

HOUR_S = 3600.0


async def test_a_jump_of_the_server_clock_expires_no_command_early(server: EmbeddedServer, prefix: str) -> None:
    """A command with half an hour left outlives a jump of an hour; a new one expires by its own time to live."""
    async with running_engine(server, prefix) as running:
        await send(running, "before", ttl=HOUR_S / 2)
        time = running.engine.store.time
        observe = time.observe
        time.observe = lambda server_now, asked_at: observe(server_now + HOUR_S, asked_at)  # type: ignore[method-assign]
        await eventually(lambda: running.metric("aism_redis_clock_jump_seconds") > HOUR_S / 2)
        await send(running, "after", ttl=0.3)
        await eventually(partial(has_status, running, "after", "expired"))
        assert not await has_status(running, "before", "expired")
        time.observe = observe  # type: ignore[method-assign]
        await eventually(lambda: running.metric("aism_redis_clock_jump_seconds") == 0)


async def test_after_an_outage_agents_have_a_grace_period_to_report(own: OwnServer, prefix: str) -> None:
    """A command that fell due during the outage still succeeds if its agent reports within the grace period."""
    async with running_engine(own, prefix, timekeeper__grace=600.0) as running:
        timekeeper = next(part for part in running.engine.components if isinstance(part, Timekeeper))
        await send(running, "c1", timeout=0.5)
        await running.call("RPOP", running.keys.commands("a"))
        await eventually(partial(has_status, running, "c1", "delivered"))
        own.kill()
        await eventually(lambda: running.engine.store.now > running.engine.writer.fleet.commands["c1"].due_at + 1)
        own.start()
        async with plain_client(own) as client:
            running.client = client
            await eventually(lambda: running.outage is None)
            await running.say({"type": "result", "agent_id": "a", "command_id": "c1"})
            await eventually(partial(has_status, running, "c1", "succeeded"))
            await send(running, "c2", ttl=0.1)
            await eventually(lambda: expires_without_grace(running, timekeeper, "c2"))


def expires_without_grace(running: Running, timekeeper: Timekeeper, command_id: str) -> Awaitable[bool]:
    """End the grace period, which begins again whenever the machine pauses the timekeeper."""
    timekeeper._acts_from = float("-inf")
    return has_status(running, command_id, "expired")


async def send(running: Running, command_id: str, **options: float) -> None:
    await running.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(partial(running.record, "a"))
    payload = {"agent_id": "a", "command": {"type": "work"}, "options": options}
    await running.ask({"id": command_id, "type": "send", "reply": True, "payload": payload})
    assert (await running.replied(command_id))["ok"]


async def has_status(running: Running, command_id: str, status: str) -> bool:
    return (await running.command(command_id))["status"] == status
