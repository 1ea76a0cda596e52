"""The same law at every step: an engine that ends between any two steps of any service loses nothing and doubles
nothing.

Exhaustive, not random: for each service that commits, each of its reads, and the five steps of each kind of commit that
it makes. Each case runs the same small world from beginning to end, so that the crash of one service meets the work of
all.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any, Final, get_args

import pytest
from redis.exceptions import RedisError

from aism_engine.domain.protocol import messages as m
from aism_engine.engine import Engine
from aism_engine.services.base import Service
from aism_engine.settings import Settings
from aism_engine.store.embedded import EmbeddedServer
from tests.crash.engine import COMMIT_STEPS, CRASHED, READS, Point, run
from tests.crash.world import MOST_BYTES, World, verdict
from tests.support.engine import eventually, plain_client

KINDS: Final = {
    "response_consumer": (
        *("register", "heartbeat", "goodbye", "ack", "progress", "result", "error", "state_transition", "message"),
        *("measurement", "malformed", "oversized"),
    ),
    "request_consumer": (
        *("send", "cancel", "pause", "drain", "resume", "replay", "purge", "forget", "confirm_losses"),
        *("malformed", "oversized"),
    ),
    "fanout": ("fanout_target",),
    "dispatcher": ("dispatch", "delivery"),
    "timekeeper": ("deadline",),
    "reaper": ("lost", "returned", "silent"),
    "registrar": ("first_heartbeat", "snapshot", "state_repair"),
    "divergence_checker": ("divergence",),
    "reconciler": ("orphan",),
    "janitor": ("expired_agent",),
}
"""What each service commits, by the kinds of its decisions."""
POINTS: Final = [
    *(
        Point(service, step, kind)
        for service, kinds in KINDS.items()
        for step, kind in (
            *((step, "") for step in dict.fromkeys(READS[service].values())),
            *((step, kind) for kind in kinds for step in COMMIT_STEPS),
        )
    ),
    *(Point("elector", step, kind) for kind in ("take", "renew") for step in ("asked", "sent", "answered")),
    *(Point("listener", step) for step in ("heard", "sent", "pushed")),
]
_SIDE_BY_SIDE: Final = 8
"""Worlds at a time, an arbitrary number: each waits for clocks most of the time."""
_WITHIN_S: Final = 20.0

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.crash.engine"])


def _has_ended(process: BaseProcess) -> bool:
    return not process.is_alive()


class Phoenix:
    """An engine that is started again whenever it has ended at its point."""

    def __init__(self, url: str, prefix: str, point: Point) -> None:
        self.crashes: list[int] = []
        self._overrides = {
            "redis.url": url,
            "redis.prefix": prefix,
            "http.enabled": False,
            "protocol.max_message_bytes": MOST_BYTES,
            "lease.ttl": 0.5,
            "lease.renew_interval": 0.1,
            "response_consumer.poll_interval": 0.02,
            "request_consumer.poll_interval": 0.02,
            "fanout.poll_interval": 0.02,
            "dispatcher.poll_interval": 0.05,
            "commands.backoff_initial": 0.1,
            "timekeeper.poll_interval": 0.05,
            "timekeeper.grace": 0.1,
            "liveness.silent_after": 0.4,
            "liveness.lost_after": 1.2,
            "liveness.scan_interval": 0.1,
            "retention.absent_agent_ttl": 1.0,
            "retention.trim_interval": 0.2,
            "registrar.metadata_interval": 0.2,
            "divergence.poll_interval": 0.1,
            "divergence.forbidden_evidence_after": 0.2,
            "supervisor.restarts": 0,
        }
        self._point = point

    async def run(self) -> None:
        process = self._start(self._point)
        try:
            while True:
                await eventually(partial(_has_ended, process), within_s=60)
                self.crashes.append(process.exitcode)
                process = self._start(None)
        finally:
            process.kill()
            process.join()

    def _start(self, point: Point | None) -> Any:  # noqa: ANN401 - a process of the fork server has no public type
        process = _FORKS.Process(target=run, args=(self._overrides, point))
        process.start()
        return process


@pytest.mark.parametrize("service", [*KINDS, "elector", "listener"])
@pytest.mark.timeout(180)
async def test_a_crash_at_any_step_loses_and_doubles_nothing(server: EmbeddedServer, service: str, prefix: str) -> None:
    """What was committed is there once, what was not is done by the next engine; each point is reached."""
    slots = asyncio.Semaphore(_SIDE_BY_SIDE)
    points = [point for point in POINTS if point.service == service]

    async def case(number: int, point: Point) -> list[str]:
        async with slots:
            return [f"{point}: {problem}" for problem in await problems_of(server, f"{prefix}-{number}", point)]

    found = await asyncio.gather(*(case(number, point) for number, point in enumerate(points)))
    wrong = [problem for problems in found for problem in problems]
    assert not wrong, "\n".join(wrong)


def test_no_service_that_commits_is_left_out() -> None:
    """Every service that leads, except the listener and the elector, has its points here."""
    engine = Engine(Settings(), environ={})
    services = {part.name for part in engine.components if isinstance(part, Service) and part.leads_only}
    assert services - {"listener"} == set(KINDS) == set(READS)


def test_no_kind_of_message_is_left_out() -> None:
    """What the consumer and the dispatcher decide on is what can be said and asked, and what cannot be read."""
    for service, types in (("response_consumer", m.Response), ("request_consumer", m.Request)):
        tags = {member.__struct_config__.tag for member in get_args(types)}
        assert set(KINDS[service]) == tags | {"malformed", "oversized"}


async def problems_of(server: EmbeddedServer, prefix: str, point: Point) -> list[str]:
    """Run one world through with a crash at this point, and compare what is left with what should be."""
    phoenix, ended = Phoenix(server.url, prefix, point), asyncio.Event()
    async with plain_client(server) as client:
        world = World(client, prefix)
        await world.prepare()
        async with burning(phoenix), asyncio.TaskGroup() as group:
            group.create_task(world.beat(ended))
            try:
                await world.live()
                await eventually(lambda: phoenix.crashes, _WITHIN_S)
                await eventually(world.is_drained, _WITHIN_S)
            except (AssertionError, RedisError) as error:
                return [f"{error}; crashes: {phoenix.crashes}"]
            finally:
                ended.set()
        return [*await verdict(world), *([] if phoenix.crashes == [CRASHED] else [f"crashes: {phoenix.crashes}"])]


@asynccontextmanager
async def burning(phoenix: Phoenix) -> AsyncIterator[None]:
    running = asyncio.create_task(phoenix.run())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
