"""What is shown of silence, and what it costs to show it: on a real server, by an engine in the loop of the test."""

from functools import partial
from typing import Final

from aism_engine.domain.agents.agent import ShownLiveness
from aism_engine.ops.inspector import Inspector
from aism_engine.services.reaper import Reaper
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.support.engine import Running, eventually, launched, running_engine

HASTY: Final[dict[str, object]] = {"liveness__silent_after": 0.3, "liveness__lost_after": 3600.0}


async def beat(running: Running, *agent_ids: str) -> float:
    seconds, microseconds = await running.call("TIME")
    now = int(seconds) + int(microseconds) / 1_000_000
    for agent_id in agent_ids:
        await running.call("ZADD", running.keys.heartbeats, repr(now), agent_id)
    return now


async def shown(running: Running, agent_id: str) -> str | None:
    seen = await Inspector(running.client, Keys(running.keys.prefix)).agent(agent_id)
    return None if seen is None else seen.liveness.value


async def is_shown(running: Running, agent_id: str, liveness: str) -> bool:
    return await shown(running, agent_id) == liveness


async def wait_shown(running: Running, agent_id: str, liveness: str) -> None:
    await eventually(partial(is_shown, running, agent_id, liveness))


async def test_who_is_silent_is_shown_as_such_until_it_beats_again(server: EmbeddedServer, prefix: str) -> None:
    """With the instant since when, by the server's clock; its record says fresh all the while."""
    async with running_engine(server, prefix, **HASTY) as running:
        beaten_at = await beat(running, "a")
        await wait_shown(running, "a", "fresh")
        await wait_shown(running, "a", "silent")
        seen = await Inspector(running.client, running.keys).agent("a")
        assert seen is not None
        assert seen.silent_since is not None
        assert abs(seen.silent_since - beaten_at) < 1
        assert (await running.record("a"))["liveness"] == "fresh"
        await beat(running, "a")
        await wait_shown(running, "a", "fresh")
        assert await running.call("EXISTS", running.keys.silent) == 0


async def test_to_be_silent_costs_one_write_and_no_line_of_the_audit(server: EmbeddedServer, prefix: str) -> None:
    """However many scans go by."""
    async with running_engine(server, prefix, **HASTY) as running:
        await beat(running, "a", "b")
        await wait_shown(running, "a", "silent")
        await wait_shown(running, "b", "silent")
        ledger, length = await running.call("GET", running.keys.ledger), await running.call("XLEN", running.keys.audit)
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        await eventually(partial(_has_scanned, reaper, 10, set()))
        assert await running.call("GET", running.keys.ledger) == ledger
        assert await running.call("XLEN", running.keys.audit) == length


def _has_scanned(reaper: Reaper, times: int, scans: set[float]) -> bool:
    scans.add(reaper.step_started_at)
    return len(scans) > times


async def test_who_is_lost_or_has_left_or_is_forgotten_is_not_silent(server: EmbeddedServer, prefix: str) -> None:
    """Liveness is one word; the sorted set holds no one whose record says another."""
    lost = HASTY | {"liveness__lost_after": 1.0}
    async with running_engine(server, prefix, **lost) as running:
        await beat(running, "a", "b", "c")
        for agent_id in "abc":
            await wait_shown(running, agent_id, "silent")
        await running.say({"type": "goodbye", "agent_id": "b"})
        await running.ask({"type": "forget", "id": "f", "payload": {"agent_id": "c"}})
        await wait_shown(running, "b", "left")
        await wait_shown(running, "a", "lost")
        await eventually(partial(_is_gone, running))
        assert await shown(running, "c") is None


async def _is_gone(running: Running) -> bool:
    return bool(await running.call("EXISTS", running.keys.silent) == 0)


async def test_a_key_that_is_in_the_way_hides_silence_and_nothing_else(server: EmbeddedServer, prefix: str) -> None:
    """Nobody is shown as silent; who is lost is lost, and no outage is told of."""
    await_lost = HASTY | {"liveness__lost_after": 1.0}
    async with launched(server, prefix, **await_lost) as running:
        await running.call("SET", running.keys.silent, "mine")
        await running.wait_serving()
        await beat(running, "a")
        await wait_shown(running, "a", "fresh")
        await wait_shown(running, "a", "lost")
        assert running.outage is None
        assert await running.call("GET", running.keys.silent) == b"mine"


async def test_the_next_leader_takes_over_who_was_silent_and_judges_anew(server: EmbeddedServer, prefix: str) -> None:
    """It has watched nobody yet: who beat meanwhile is not shown as silent, who did not is, after its own watch."""
    async with running_engine(server, prefix, **HASTY) as running:
        await beat(running, "a", "b")
        await wait_shown(running, "a", "silent")
        await wait_shown(running, "b", "silent")
    async with running_engine(server, prefix, **HASTY) as running:
        assert running.engine.writer.fleet.silent.keys() <= {"a", "b"}
        await beat(running, "b")
        await wait_shown(running, "b", "fresh")
        await wait_shown(running, "a", "silent")


async def test_all_who_fall_silent_at_once_are_shown_and_counted(server: EmbeddedServer, prefix: str) -> None:
    """In as many commits as it takes, within one scan; every count of liveness says the same, and they add up."""
    ids = [f"a{number}" for number in range(25)]
    async with running_engine(server, prefix, **HASTY, liveness__batch=10) as running:
        await beat(running, *ids)
        await running.say({"type": "state_transition", "agent_id": "mute", "payload": {"target": "idle"}})
        await eventually(partial(_is_counted, running, "silent", 25))
        await eventually(lambda: running.metric("aism_agents_silent") == 25)
        await eventually(lambda: running.metric("aism_agents", liveness="unknown") == 1)
        counts = {each.value: running.metric("aism_agents", liveness=each.value) for each in ShownLiveness}
        assert counts == {"unknown": 1, "fresh": 0, "silent": 25, "lost": 0, "left": 0}
        overview = await Inspector(running.client, running.keys).overview()
        assert overview.by_liveness == {"silent": 25, "unknown": 1}

        async def are_back() -> bool:
            await beat(running, *ids[5:])
            return _is_counted(running, "fresh", 20)

        await eventually(are_back)
        assert running.metric("aism_agents", liveness="silent") == 5


def _is_counted(running: Running, liveness: str, count: int) -> bool:
    return running.metric("aism_agents", liveness=liveness) == count


async def test_who_is_lost_stays_so_through_a_restart_and_comes_back_with_its_next_beat(
    server: EmbeddedServer, prefix: str
) -> None:
    """The long dead do not come back to life with a new engine, nor are they lost a second time."""
    hasty = {"liveness__silent_after": 0.2, "liveness__lost_after": 0.6}
    async with running_engine(server, prefix, **hasty) as running:
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "at-work"}})
        await beat(running, "a")
        await wait_shown(running, "a", "lost")
    async with running_engine(server, prefix, **hasty) as running:
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        await eventually(partial(_has_scanned, reaper, 20, set()))
        assert await shown(running, "a") == "lost"
        assert len(await running.audit("agent_lost")) == 1
        await beat(running, "a")
        await wait_shown(running, "a", "fresh")
        assert await running.state("a") == "at-work"


async def test_who_has_never_beaten_is_not_watched(server: EmbeddedServer, prefix: str) -> None:
    """Its liveness is unknown, however long it says nothing; with its first beat the watch begins."""
    async with running_engine(server, prefix, liveness__silent_after=0.1, liveness__lost_after=0.3) as running:
        await running.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await wait_shown(running, "a", "unknown")
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        await eventually(partial(_has_scanned, reaper, 20, set()))
        assert await shown(running, "a") == "unknown"
        await beat(running, "a")
        await wait_shown(running, "a", "lost")


async def test_an_operators_word_ends_the_doubt_about_those_who_are_silent_now(
    server: EmbeddedServer, prefix: str
) -> None:
    """In full nobody is lost, until an operator says that it is true: then all of them are at once, and it is over."""
    gone = [f"a{number}" for number in range(30)]
    settings = HASTY | {"liveness__lost_after": 0.9}
    async with running_engine(server, prefix, **settings) as running:
        await beat(running, *gone)
        await eventually(lambda: running.metric("aism_fleet_mode", mode="full"))
        reaper = next(part for part in running.engine.components if isinstance(part, Reaper))
        judged_at, scans = running.engine.store.now + 1.5, set[float]()
        await eventually(lambda: running.engine.store.now > judged_at and _has_scanned(reaper, 2, scans))
        assert await running.audit("agent_lost") == []
        await running.ask({"type": "confirm_losses", "id": "ask", "payload": {"reason": "the rack is off"}})
        assert (await running.replied("ask"))["silent"] == len(gone)
        await eventually(partial(_are_lost, running, len(gone)))
        await eventually(lambda: running.metric("aism_fleet_mode", mode="normal"))
        (fact,) = await running.audit("losses_confirmed")
        assert (fact["by"], fact["reason"], fact["details"]) == ("operator", "the rack is off", {"silent": len(gone)})


async def _are_lost(running: Running, count: int) -> bool:
    return len(await running.audit("agent_lost")) == count
