"""Liveness on a real server: silent, lost and returning agents, and their expiry."""

import itertools
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

from aism_engine.domain.agents.agent import Liveness
from aism_engine.ops.admin_client import AdminClient
from aism_engine.ops.views import AgentView
from aism_engine.services.base import Service
from aism_engine.services.janitor import Janitor
from aism_engine.services.reaper import Reaper
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, launched, running_engine

QUICK: Final[dict[str, object]] = {"liveness__silent_after": 0.3, "liveness__lost_after": 3600.0}


async def send_heartbeats(running: Running, *agent_ids: str) -> None:
    """Send one heartbeat for each agent, all at once."""
    now = repr(await running.now())
    await running.call("ZADD", running.keys.heartbeats, *(part for agent_id in agent_ids for part in (now, agent_id)))


async def heartbeat_until_fresh(running: Running, agent_id: str) -> None:
    """Send heartbeats until the agent is shown as fresh. On a slow machine one may not be enough."""

    async def is_fresh() -> bool:
        await send_heartbeats(running, agent_id)
        return await is_shown(running, agent_id, "fresh")

    await eventually(is_fresh)


async def shown(running: Running, agent_id: str) -> str | None:
    seen = await view(running, agent_id)
    return None if seen is None else seen.liveness.value


async def view(running: Running, agent_id: str) -> AgentView | None:
    async with connect_admin(running) as admin:
        return await admin.agent(agent_id)


def connect_admin(running: Running) -> AbstractAsyncContextManager[AdminClient]:
    return AdminClient.connect(running.engine.settings.redis)


async def is_shown(running: Running, agent_id: str, liveness: str) -> bool:
    return await shown(running, agent_id) == liveness


async def wait_shown(running: Running, agent_id: str, liveness: str) -> None:
    await eventually(partial(is_shown, running, agent_id, liveness))


async def test_a_silent_agent_is_shown_as_silent_until_its_next_heartbeat(server: EmbeddedServer, prefix: str) -> None:
    """With the instant since when, by the server's clock. Its record stays fresh."""
    async with running_engine(server, prefix, **QUICK) as running:
        started_at = await running.now()
        await heartbeat_until_fresh(running, "a")
        await wait_shown(running, "a", "silent")
        seen = await view(running, "a")
        assert seen is not None
        assert seen.silent_since is not None
        assert started_at <= seen.silent_since <= await running.now()
        assert (await running.record("a"))["liveness"] == "fresh"

        async def is_back() -> bool:
            await send_heartbeats(running, "a")
            return await _is_gone(running) and await is_shown(running, "a", "fresh")

        await eventually(is_back)


async def test_silence_is_written_once_and_not_audited(server: EmbeddedServer, prefix: str) -> None:
    """However many scans follow."""
    async with running_engine(server, prefix, **QUICK) as running:
        await send_heartbeats(running, "a", "b")
        await wait_shown(running, "a", "silent")
        await wait_shown(running, "b", "silent")
        ledger, length = await running.call("GET", running.keys.ledger), await running.call("XLEN", running.keys.audit)
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        await eventually(partial(_has_scanned, reaper, 10, set()))
        assert await running.call("GET", running.keys.ledger) == ledger
        assert await running.call("XLEN", running.keys.audit) == length


def _has_scanned(service: Service, times: int, scans: set[float]) -> bool:
    scans.add(service.step_started_at)
    return len(scans) > times


async def test_an_agent_that_is_lost_left_or_forgotten_is_not_silent(server: EmbeddedServer, prefix: str) -> None:
    async with running_engine(server, prefix, **QUICK) as running:
        await send_heartbeats(running, "a", "b", "c")
        for agent_id in "abc":
            await wait_shown(running, agent_id, "silent")
        await running.say({"type": "goodbye", "agent_id": "b"})
        await running.ask({"type": "forget", "id": "f", "payload": {"agent_id": "c"}})
        await wait_shown(running, "b", "left")
    async with running_engine(server, prefix, **(QUICK | {"liveness__lost_after": 1.0})) as running:
        await wait_shown(running, "a", "lost")
        await eventually(partial(_is_gone, running))
        assert await shown(running, "c") is None


async def _is_gone(running: Running) -> bool:
    return bool(await running.call("EXISTS", running.keys.silent) == 0)


async def test_a_silent_key_of_the_wrong_type_hides_silence_only(server: EmbeddedServer, prefix: str) -> None:
    """Agents are still lost, and no outage is reported."""
    async with launched(server, prefix, **(QUICK | {"liveness__lost_after": 1.0})) as running:
        await running.call("SET", running.keys.silent, "mine")
        await running.wait_serving()
        await heartbeat_until_fresh(running, "a")
        await wait_shown(running, "a", "lost")
        assert running.refusal is None
        assert await running.call("GET", running.keys.silent) == b"mine"


async def test_the_next_leader_loads_the_silent_agents_and_observes_afresh(server: EmbeddedServer, prefix: str) -> None:
    async with running_engine(server, prefix, **QUICK) as running:
        await send_heartbeats(running, "a", "b")
        await wait_shown(running, "a", "silent")
        await wait_shown(running, "b", "silent")
    async with running_engine(server, prefix, **QUICK) as running:
        assert running.engine.writer.fleet.silent.keys() <= {"a", "b"}
        await heartbeat_until_fresh(running, "b")
        await wait_shown(running, "a", "silent")


async def test_agents_that_fall_silent_at_once_are_all_counted(server: EmbeddedServer, prefix: str) -> None:
    """In several commits of one scan. All counts of liveness agree."""
    ids = [f"a{number}" for number in range(25)]
    async with running_engine(server, prefix, **QUICK, liveness__batch=10) as running:
        await send_heartbeats(running, *ids)
        await running.say({"type": "state_transition", "agent_id": "mute", "payload": {"target": "idle"}})
        await eventually(partial(_is_counted, running, "silent", 25))
        await eventually(lambda: running.metric("aism_agents_silent") == 25)
        await eventually(lambda: running.metric("aism_agents", liveness="unknown") == 1)
        counts = {each.value: running.metric("aism_agents", liveness=each.value) for each in Liveness}
        assert counts == {"unknown": 1, "fresh": 0, "silent": 25, "lost": 0, "left": 0}
        async with connect_admin(running) as admin:
            overview = await admin.overview()
        assert overview.counts["by_liveness"] == {"silent": 25, "unknown": 1}

        async def are_back() -> bool:
            await send_heartbeats(running, *ids[5:])
            return _is_counted(running, "fresh", 20) and _is_counted(running, "silent", 5)

        await eventually(are_back)


def _is_counted(running: Running, liveness: str, count: int) -> bool:
    return running.metric("aism_agents", liveness=liveness) == count


async def test_a_lost_agent_stays_lost_across_a_restart_until_its_next_heartbeat(
    server: EmbeddedServer, prefix: str
) -> None:
    """It is not lost a second time."""
    quick = {"liveness__silent_after": 0.2, "liveness__lost_after": 0.6}
    async with running_engine(server, prefix, **quick) as running:
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "at-work"}})
        await send_heartbeats(running, "a")
        await wait_shown(running, "a", "lost")
    async with running_engine(server, prefix, **quick) as running:
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        await eventually(partial(_has_scanned, reaper, 20, set()))
        assert await shown(running, "a") == "lost"
        assert len(await running.audit("agent_lost")) == 1

        async def is_back() -> bool:
            await send_heartbeats(running, "a")
            return await is_shown(running, "a", "fresh") and await running.state("a") == "at-work"

        await eventually(is_back)


async def test_an_agent_without_a_heartbeat_is_not_watched(server: EmbeddedServer, prefix: str) -> None:
    """Its liveness is unknown until its first heartbeat."""
    async with running_engine(server, prefix, liveness__silent_after=0.1, liveness__lost_after=0.3) as running:
        await running.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await wait_shown(running, "a", "unknown")
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        await eventually(partial(_has_scanned, reaper, 20, set()))
        assert await shown(running, "a") == "unknown"
        await send_heartbeats(running, "a")
        await wait_shown(running, "a", "lost")


async def test_confirm_losses_ends_the_mode_full(server: EmbeddedServer, prefix: str) -> None:
    """In mode full no agent is lost until an operator confirms the losses. Then all are."""
    gone = [f"a{number}" for number in range(30)]
    settings = QUICK | {"liveness__lost_after": 0.9}
    async with running_engine(server, prefix, **settings) as running:
        await send_heartbeats(running, *gone)
        await eventually(lambda: running.metric("aism_fleet_mode", mode="full"))
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        lost_by, scans = running.engine.store.now + 1.5, set[float]()
        await eventually(lambda: running.engine.store.now > lost_by and _has_scanned(reaper, 2, scans))
        assert await running.audit("agent_lost") == []
        ids = itertools.count()

        async def are_lost_when_confirmed() -> bool:
            """Confirm again if the engine has restarted its observation, as it does after a pause of the machine."""
            if running.metric("aism_fleet_mode", mode="full"):
                request_id = f"ask-{next(ids)}"
                await running.ask({"type": "confirm_losses", "id": request_id, "payload": {"reason": "power failure"}})
                assert (await running.replied(request_id))["ok"]
            return await has_lost(running, len(gone))

        await eventually(are_lost_when_confirmed)
        await eventually(lambda: running.metric("aism_fleet_mode", mode="normal"))
        facts = await running.audit("losses_confirmed")
        assert {(fact["by"], fact["reason"]) for fact in facts} == {("operator", "power failure")}
        assert {"silent": len(gone)} in [fact["details"] for fact in facts]


async def has_lost(running: Running, times: int) -> bool:
    return len(await running.audit("agent_lost")) == times


async def test_an_absent_agent_is_forgotten_after_its_ttl_but_not_one_with_a_new_heartbeat(
    server: EmbeddedServer, prefix: str
) -> None:
    """A heartbeat that no service has seen yet is a sign of life, too."""
    settings = {"retention__absent_agent_ttl": 0.2, "retention__trim_interval": 0.05}
    async with running_engine(server, prefix, **settings, registrar__poll_interval=1000.0) as running:
        await running.client.zadd(running.keys.heartbeats, {"b": 1.0})
        await running.say(*({"type": "heartbeat", "agent_id": agent_id} for agent_id in "ab"))
        await eventually(partial(running.audit, "agent_forgotten"))
        janitor = next(part for part in running.engine.components if isinstance(part, Janitor))
        await eventually(partial(_has_scanned, janitor, 10, set()))
        assert [fact["agent_id"] for fact in await running.audit("agent_forgotten")] == ["a"]


async def test_an_agent_that_registers_after_its_goodbye_is_watched_at_once(
    server: EmbeddedServer, prefix: str
) -> None:
    """Its old heartbeat is known: it is fresh without waiting for a full pass, and lost if it is dead."""
    settings = {"registrar__poll_interval": 0.02, "registrar__metadata_interval": 100_000.0}
    async with running_engine(
        server, prefix, **settings, liveness__silent_after=0.2, liveness__lost_after=1.0
    ) as running:
        register = {"type": "register", "agent_id": "a", "payload": {"type": "scribe"}}
        await running.say(register)
        await send_heartbeats(running, "a")
        await wait_shown(running, "a", "lost")
        await running.say({"type": "goodbye", "agent_id": "a"})
        await wait_shown(running, "a", "left")
        await running.say(register)
        await eventually(lambda: has_lost(running, 2))
