"""An engine that crashes between any two steps of any service loses nothing and applies nothing twice.

Exhaustive, not random: each read of each service that writes, and each kind of its commits before the commit is sent,
after it is sent, and after it is answered. A small fleet lives once from beginning to end for each of these phases; its
engine crashes at each point of the phase, and is restarted each time.
"""

import asyncio
from contextlib import suppress
from typing import Any, Final, get_args

import pytest

from aism_engine.domain.protocol import messages as m
from aism_engine.engine import Engine
from aism_engine.services.base import Service
from aism_engine.settings import Settings
from aism_engine.store.embedded import EmbeddedServer
from tests.crash.crash_points import CRASHED, READS, Point, run
from tests.crash.fleet import LARGEST_MESSAGE, SmallFleet, problems
from tests.support.daemon import FORK_SERVER
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
"""The kinds of decisions that each service commits."""


def commits(step: str) -> set[Point]:
    return {Point(service, step, kind) for service, kinds in KINDS.items() for kind in kinds}


def elections(step: str) -> set[Point]:
    return {Point("elector", step, kind) for kind in ("take", "renew")}


PHASES: Final = {
    "unsent": commits("built")
    | elections("asked")
    | {Point("listener", "received")}
    | {Point(service, step) for service, reads in READS.items() for step in (*reads.values(), "applied")},
    "sent": commits("sent") | elections("sent") | {Point("listener", "sent")},
    "answered": commits("answered") | elections("answered") | {Point("listener", "pushed")},
}
"""The points at which the engine of one fleet crashes. A commit can crash once after it is sent, and often before."""


class CrashingEngine:
    """An engine that crashes at each of its points once, and is restarted whenever it has crashed."""

    def __init__(self, url: str, fleet: SmallFleet, points: set[Point]) -> None:
        self.left = set(points)
        self.exits: list[int | None] = []
        """Exit codes of processes that ended otherwise than by a crash at a point."""
        self._fleet = fleet
        self._overrides = {
            "redis.url": url,
            "redis.prefix": fleet.keys.prefix,
            "http.enabled": False,
            "protocol.max_message_bytes": LARGEST_MESSAGE,
            "lease.ttl": 3.0,
            "lease.renew_interval": 0.1,
            "response_consumer.poll_interval": 0.02,
            "request_consumer.poll_interval": 0.02,
            "fanout.poll_interval": 0.02,
            "dispatcher.poll_interval": 0.05,
            "commands.backoff_initial": 0.1,
            "timekeeper.poll_interval": 0.05,
            "timekeeper.grace": 0.1,
            "liveness.silent_after": 200,
            "liveness.lost_after": 600,
            "liveness.by_type": {"mortal": {"silent_after": 0.4, "lost_after": 1.2}},
            "liveness.scan_interval": 0.1,
            "retention.absent_agent_ttl": 5.0,
            "retention.trim_interval": 0.2,
            "registrar.metadata_interval": 0.2,
            "divergence.poll_interval": 0.1,
            "divergence.forbidden_evidence_after": 0.2,
            "divergence.heartbeat_evidence_after": 3600,
            "supervisor.restarts": 0,
        }

    async def run(self) -> None:
        while not self._fleet.is_over:
            report, to_report = FORK_SERVER.Pipe(duplex=False)
            process = FORK_SERVER.Process(target=run, args=(self._overrides, self.left, to_report), daemon=True)
            process.start()
            to_report.close()
            try:
                await _wait_ended(process)
                if process.exitcode == CRASHED:
                    self.left -= set(report.recv())
                else:
                    self.exits.append(process.exitcode)
            finally:
                process.kill()
                process.join()
                report.close()
            await self._fleet.call("DEL", self._fleet.keys.lease)  # its holder is dead


async def _wait_ended(process: Any) -> None:  # noqa: ANN401 - the process of a fork server has no public type
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)


@pytest.mark.parametrize("phase", PHASES)
async def test_crash_at_any_point_loses_nothing_and_applies_nothing_twice(
    server: EmbeddedServer, phase: str, prefix: str
) -> None:
    """Each commit is applied once, and the next engine does the rest. Each point is reached."""
    async with plain_client(server) as client:
        fleet = SmallFleet(client, prefix)
        await fleet.prepare()
        engine = CrashingEngine(server.url, fleet, PHASES[phase])
        running = [asyncio.create_task(engine.run()), asyncio.create_task(fleet.send_heartbeats())]
        try:
            await fleet.live()
            await eventually(lambda: not engine.left)
            await eventually(fleet.is_drained)
        except AssertionError as error:
            raise AssertionError(f"{error}; points not reached: {sorted(engine.left)}; exits: {engine.exits}") from None
        finally:
            fleet.is_over = True
            for task in running:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        assert await problems(fleet) == []
        assert engine.exits == []


def test_every_service_that_commits_has_crash_points() -> None:
    """These are the services that only the leader runs, except the listener."""
    engine = Engine(Settings(), environ={})
    services = {part.name for part in engine.components if isinstance(part, Service) and part.leads_only}
    assert services - {"listener"} == set(KINDS) == set(READS)


def test_every_type_of_message_has_crash_points() -> None:
    """The consumers decide on each type of response and request, and on what cannot be decoded."""
    for service, types in (("response_consumer", m.Response), ("request_consumer", m.Request)):
        tags = {member.__struct_config__.tag for member in get_args(types)}
        assert set(KINDS[service]) == tags | {"malformed", "oversized"}
