"""An engine that was suspended (SIGSTOP, a frozen container) marks no agent as lost for that time."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Final

import pytest

from aism_engine.clock import SystemClock, from_iso
from aism_engine.services.reaper import Reaper
from aism_engine.store.embedded import EmbeddedServer
from tests.support.daemon import daemon
from tests.support.engine import Reader, eventually, running_engine
from tests.support.proxy import FaultProxy
from tests.support.proxy_rules import Request

LOST_AFTER_S: Final = 4.0
SHORT: Final[dict[str, object]] = {
    "liveness__silent_after": 0.5,
    "liveness__lost_after": LOST_AFTER_S,
    "liveness__scan_interval": 0.1,
}
BEATING: Final = {"sane": (0.0, 1), "in-ms": (0.0, 1000), "ahead": (7200.0, 1), "behind": (-7200.0, 1000)}
"""The agents that send heartbeats: by how much their clock is off, and how many of its units make a second."""


class _Beats:
    """Agents that send ten heartbeats a second."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.sent_at: list[float] = []

    async def beat(self, *others: str) -> None:
        now = await self._reader.now()
        scores = {agent_id: (now + skew_s) * unit for agent_id, (skew_s, unit) in BEATING.items()}
        for agent_id, score in (scores | dict.fromkeys(others, now)).items():
            await self._reader.call("ZADD", self._reader.keys.heartbeats, repr(score), agent_id)
        self.sent_at.append(now)

    async def wait_more(self, seconds: float) -> None:
        """Wait until all have continued to send heartbeats for `seconds`."""
        until = self.sent_at[-1] + seconds
        await eventually(lambda: self.sent_at[-1] > until)

    def were_late(self) -> bool:
        """Tell whether a slow machine has delayed heartbeats for so long that the agents had to be lost."""
        return max(later - earlier for earlier, later in pairwise(self.sent_at)) >= LOST_AFTER_S / 2


@asynccontextmanager
async def _beating(reader: Reader) -> AsyncIterator[_Beats]:
    beats = _Beats(reader)

    async def go_on() -> None:
        while True:
            await beats.beat()
            await asyncio.sleep(0.1)

    await beats.beat("gone", "later")
    task = asyncio.create_task(go_on())
    try:
        yield beats
    finally:
        task.cancel()


@pytest.mark.parametrize("lease_ttl", [60.0, 1.5], ids=["leading", "having-lost-its-lease"])
async def test_suspended_engine_marks_only_agents_without_heartbeats_as_lost(
    server: EmbeddedServer, reader: Reader, prefix: str, lease_ttl: float
) -> None:
    """However long and often it was suspended, with or without its lease, and whatever the clock of the agent.

    An agent that has stopped is lost once the engine has observed its silence for the whole of `lost_after`.
    """
    async with (
        _beating(reader) as beats,
        daemon(server.url, prefix, **SHORT, lease__ttl=lease_ttl, lease__renew_interval=0.3) as engine,
    ):
        observed_from = [await reader.now()]
        await eventually(lambda: reader.call("ZSCORE", reader.keys.silent, "gone"))
        for _ in range(2):
            resets = engine.count("observations_reset", component="reaper")
            engine.signal(signal.SIGSTOP)
            await beats.wait_more(LOST_AFTER_S + 1)
            observed_from.append(await reader.now())
            engine.signal(signal.SIGCONT)
            await engine.wait_event("observations_reset", component="reaper", times=resets + 1)
        await eventually(partial(_are_lost, reader, {"gone", "later"}))
        lost = await reader.audit("agent_lost")
        assert {fact["agent_id"] for fact in lost} == {"gone", "later"} or beats.were_late()
        for fact in lost:
            lost_at = from_iso(fact["at"])
            assert lost_at - max(each for each in observed_from if each <= lost_at) >= LOST_AFTER_S - 0.01


async def _are_lost(reader: Reader, agent_ids: set[str]) -> bool:
    return agent_ids <= {fact["agent_id"] for fact in await reader.audit("agent_lost")}


async def test_slow_scan_is_followed_by_a_short_rest(server: EmbeddedServer, prefix: str) -> None:
    """The reaper rests in proportion to the duration of a scan, but at most a tenth of `lost_after`.

    The scan may have been slow because the engine or the server was suspended.
    """
    async with (
        FaultProxy(server.port) as proxy,
        running_engine(server, prefix, redis__url=proxy.url, **SHORT) as engine,
    ):
        reaper = next(part for part in engine.engine.components if isinstance(part, Reaper))
        rule = proxy.hold_reply(_is_scan)
        await rule.wait_answered()
        held_at, clock = reaper.step_started_at, SystemClock()
        await eventually(lambda: clock.monotonic() > held_at + 1)
        rule.release()
        await eventually(lambda: reaper.step_started_at > held_at)
        assert reaper._rest_s <= LOST_AFTER_S / 10


async def test_scan_reads_no_agent_with_heartbeats_and_a_correct_clock(server: EmbeddedServer, prefix: str) -> None:
    """In seconds or in milliseconds: the reply of the server is empty."""
    async with (
        FaultProxy(server.port) as proxy,
        running_engine(
            server, prefix, redis__url=proxy.url, liveness__silent_after=3000.0, liveness__lost_after=6000.0
        ) as engine,
    ):
        for number in range(100):
            score = (await engine.now() - 1) * (1000 if number % 2 else 1)
            await engine.call("ZADD", engine.keys.heartbeats, repr(score), f"a{number}")
        await eventually(lambda: engine.metric("aism_agents", liveness="fresh") == 100)
        scans = proxy.watch(_is_scan)
        await scans.wait_answered(40)
        assert all(reply == [] for reply in scans.replies)


def _is_scan(request: Request) -> bool:
    return request[0] == b"ZRANGEBYSCORE" and request[1].endswith(b":agents:heartbeats")
