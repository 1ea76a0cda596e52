"""A server whose clock jumps: nothing ends before its time, and nothing is kept for ever."""

import time
from functools import partial

from aism_engine.clock import SystemClock
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine

HOUR_S = 3600.0


class Behind(SystemClock):
    """Our own clocks, set back: to the engine it is as if the server's had jumped ahead."""

    def __init__(self) -> None:
        self.by_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() - self.by_s


async def test_a_server_whose_clock_jumps_expires_nothing_before_its_time(server: EmbeddedServer, prefix: str) -> None:
    """A command with a minute left outlives a jump of an hour, and one that is sent then has its time, no more."""
    clock = Behind()
    async with running_engine(server, prefix, clock=clock) as running:
        await send(running, "before", ttl_s=60)
        clock.by_s = HOUR_S
        await eventually(lambda: running.metric("aism_redis_clock_jump_seconds") > HOUR_S - 10)
        await send(running, "after", ttl_s=0.3)
        await eventually(partial(has_expired, running, "after"))
        assert not await has_expired(running, "before")
        clock.by_s = 0.0
        await eventually(lambda: running.metric("aism_redis_clock_jump_seconds") == 0)


async def send(running: Running, command_id: str, *, ttl_s: float) -> None:
    await running.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(partial(running.record, "a"))
    payload = {"agent_id": "a", "command": {"type": "work"}, "options": {"ttl": ttl_s}}
    await running.ask({"id": command_id, "type": "send", "reply": True, "payload": payload})
    assert (await running.replied(command_id))["ok"]


async def has_expired(running: Running, command_id: str) -> bool:
    return (await running.command(command_id))["status"] == "expired"
