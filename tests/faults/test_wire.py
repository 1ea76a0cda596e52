"""A commit whose reply is lost, whose request is late, that a failover takes back, or whose epoch is not unique.

In the end every response is applied exactly once, and none is dead-lettered.
"""

import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from aism_engine.clock import ROUNDING_S, from_iso
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.scripts import READ_SNAPSHOTS, CommitCode
from tests.support.engine import Client, Running, eventually, launched, running_engine
from tests.support.faults import IS_COMMIT, Load, calls
from tests.support.proxy import FaultProxy
from tests.support.proxy_rules import Rule
from tests.support.server import OwnServer

PATIENT: dict[str, object] = {
    "redis__socket_timeout": 300.0,
    "registrar__metadata_interval": 3600.0,
    "lease__ttl": 600.0,
    "lease__renew_interval": 200.0,
}
"""Settings of an engine that waits for every reply, trusts its lease without renewing it, and commits nothing but
responses."""
HASTY: dict[str, object] = PATIENT | {"redis__socket_timeout": 1.5}
"""Settings of an engine that gives up waiting for a reply. On a slow machine it also sends some commits twice."""


async def test_a_default_redis_client_runs_a_script_twice(proxy: FaultProxy, redis_client: Client, prefix: str) -> None:
    """Therefore the clients of the engine do not retry: redis-py repeats a script whose reply was lost."""
    script = "return redis.call('INCR', KEYS[1])"
    rule = proxy.drop_reply(lambda request: request[0] == b"EVAL", cut=True)
    async with Redis(port=proxy.port, socket_timeout=300) as client:
        assert await client.eval(script, 1, prefix) == 2
    assert rule.replies == [1]
    assert await redis_client.get(prefix) == b"2"


@pytest.mark.parametrize("cut", [True, False])
async def test_a_commit_whose_reply_is_lost_is_applied_once(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str, *, cut: bool
) -> None:
    """The engine sends it again unchanged, and the ledger shows that it was written."""
    async with running_engine(server, prefix, redis__url=proxy.url, **HASTY) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        rule = proxy.drop_reply(IS_COMMIT, cut=cut)
        await load.say(engine, 20)
        await rule.wait_matched()
        await load.wait_applied_once(engine)
        assert [code for code, *_ in rule.replies] == [CommitCode.APPLIED]
        await eventually(lambda: engine.metric("aism_commits_total", code="replayed") >= 1)
        await load.say(engine, 3)
        await load.wait_applied_once(engine)


async def test_a_commit_whose_every_reply_is_lost_is_applied_once(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """After the last attempt the engine does not know what was written, so it loads the fleet again."""
    async with running_engine(server, prefix, redis__url=proxy.url, **HASTY) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        rule = proxy.drop_reply(IS_COMMIT, times=3, cut=True)
        await load.say(engine, 20)
        assert [reply[0] for reply in await rule.wait_answered(3)] == [CommitCode.APPLIED, *[CommitCode.REPLAYED] * 2]
        await load.wait_applied_once(engine)
        await load.say(engine, 3)
        await load.wait_applied_once(engine)


async def test_a_late_commit_changes_nothing(server: EmbeddedServer, proxy: FaultProxy, prefix: str) -> None:
    """While its request is held, the engine gives up, loads the fleet, decides again and commits. The late copies are
    then out of step with the ledger.
    """
    async with running_engine(server, prefix, redis__url=proxy.url, **HASTY) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        rule = proxy.hold_request(IS_COMMIT, times=3)
        await load.say(engine, 20)
        await rule.wait_matched(3)
        await load.wait_applied_once(engine)  # decided again, while three copies of the first commit are held
        before = await engine.dump()
        rule.release()
        assert [reply[0] for reply in await rule.wait_answered(3)] == [CommitCode.OUT_OF_STEP] * 3
        assert _without_leadership(engine, await engine.dump()) == _without_leadership(engine, before)
        await load.say(engine, 3)
        await load.wait_applied_once(engine)


async def test_a_commit_that_arrives_after_its_copy_changes_nothing(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """The ledger recognizes it by its id while it is the last commit, and as out of step later."""
    async with running_engine(server, prefix, redis__url=proxy.url, **HASTY) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        rule = proxy.hold_request(IS_COMMIT)
        await load.say(engine, 1)  # several messages may need several commits
        await load.wait_applied_once(engine)
        rule.release()
        assert [reply[0] for reply in await rule.wait_answered()] == [CommitCode.REPLAYED]
        later = proxy.hold_request(IS_COMMIT)
        await load.say(engine, 20)
        await load.wait_applied_once(engine)
        await load.say(engine, 20)
        await load.wait_applied_once(engine)
        later.release()
        assert [reply[0] for reply in await later.wait_answered()] == [CommitCode.OUT_OF_STEP]
        await load.wait_applied_once(engine)


async def test_a_snapshot_that_a_late_commit_overtakes_is_no_declaration(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """The engine has given up a commit, and reads the keys that agents may set; then the commit arrives. The state that
    was read is older than the commit. It must not count as a declaration of the agent.
    """
    settings = HASTY | {"registrar__metadata_interval": 0.02}
    async with running_engine(server, prefix, redis__url=proxy.url, **settings) as engine:
        load = Load(agents=1)
        await load.say(engine, 1)
        await load.wait_applied_once(engine)
        rule = proxy.hold_request(IS_COMMIT, times=3)
        await load.say(engine, 1)
        await rule.wait_matched(3)
        snapshot = proxy.hold_reply(calls(READ_SNAPSHOTS))
        await snapshot.wait_answered()
        rule.release()
        await rule.wait_answered(3)
        snapshot.release()
        await load.wait_applied_once(engine)
        await load.say(engine, 1)
        await load.wait_applied_once(engine)


async def test_a_late_commit_under_an_older_lease_is_fenced(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """Another engine leads by then: the token of the newest leader refuses every older write."""
    load = Load()
    # The first engine asks for the lease only once, so that it cannot take the lease again before the second does.
    settings = PATIENT | {"lease__renew_interval": 299.0}
    async with launched(server, prefix, redis__url=proxy.url, **settings) as first:
        await first.wait_serving()
        await load.say(first, 3)
        await load.wait_applied_once(first)
        rule = proxy.hold_request(IS_COMMIT)
        await load.say(first, 20)
        await rule.wait_matched()
        await first.call("DEL", first.keys.lease)
        async with running_engine(server, prefix) as second:
            await load.wait_applied_once(second)
            rule.release()
            assert [reply[0] for reply in await rule.wait_answered()] == [CommitCode.FENCED]
            await eventually(lambda: first.engine.role() == "standby")
            await load.say(second, 3)
            await load.wait_applied_once(second)
            assert first.metric("aism_commits_total", code="fenced") == 1
            assert first.outage is None


async def test_a_commit_that_a_failover_takes_back_is_repeated(own: OwnServer, tmp_path: Path, prefix: str) -> None:
    """The engine knows a commit that the server has lost, under the same lease and token. It finds the ledger out of
    step before it writes anything, loads the fleet, and decides on the same messages again.
    """
    copy = tmp_path / "copy"
    async with FaultProxy(own.port) as proxy, running_engine(own, prefix, redis__url=proxy.url, **PATIENT) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        rule = proxy.hold_request(IS_COMMIT)
        await load.say(engine, 20)
        await rule.wait_matched()
        shutil.copytree(tmp_path / "data", copy)
        token = engine.engine.leadership.token
        rule.release()
        await load.wait_applied_once(engine)

        await _go_back(engine, own, tmp_path / "data", copy)
        await load.wait_applied_once(engine)
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        assert engine.engine.leadership.token == token
        assert engine.metric("aism_commits_total", code="out_of_step") >= 1


async def test_a_failover_during_a_commit_whose_reply_is_lost(own: OwnServer, tmp_path: Path, prefix: str) -> None:
    """The copy that is sent again reaches a server that does not know the first one, and is applied there."""
    copy = tmp_path / "copy"
    async with FaultProxy(own.port) as proxy, running_engine(own, prefix, redis__url=proxy.url, **PATIENT) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        held = proxy.hold_request(IS_COMMIT)
        lost = proxy.hold_reply(IS_COMMIT)
        await load.say(engine, 20)
        await held.wait_matched()
        shutil.copytree(tmp_path / "data", copy)
        held.release()
        await held.wait_answered()
        await eventually(lambda: lost.matched or held.replies)
        await _go_back(engine, own, tmp_path / "data", copy)
        lost.release()
        await load.wait_applied_once(engine)


async def test_no_agent_is_lost_because_the_fleet_is_loaded_again(server: EmbeddedServer, prefix: str) -> None:
    """An agent whose one heartbeat is older than `lost_after`, but not its last message: the engine forgets when that
    came, and observes the silence anew.
    """
    lost_after = 4.0
    async with running_engine(server, prefix, liveness__silent_after=1.0, liveness__lost_after=lost_after) as engine:
        began = last_message_at = await engine.now()
        await engine.call("ZADD", engine.keys.heartbeats, began, "a")
        await eventually(lambda: engine.audit("agent_first_seen"))
        while last_message_at < began + 1.1 * lost_after:
            last_message_at = await engine.now()
            await engine.say({"type": "heartbeat", "agent_id": "a"})
            await eventually(engine.is_drained)
        await engine.call("SET", engine.keys.ledger, "of another time")
        await engine.say({"type": "heartbeat", "agent_id": "b"})
        await eventually(lambda: engine.metric("aism_commits_total", code="out_of_step"))
        (fact, *_) = await eventually(lambda: engine.audit("agent_lost", agent_id="a"))
        assert from_iso(fact["at"]) - last_message_at >= lost_after - ROUNDING_S


async def test_two_engines_with_the_same_epoch_number_are_told_apart(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """A failover takes back that the first engine leads, and the second one gets the same epoch. The first one still
    trusts its lease while its commit is held. The random part of the token fences that commit, and it stands by.
    """
    load = Load()
    async with running_engine(server, prefix, redis__url=proxy.url, **PATIENT) as first:
        await load.say(first, 3)
        await load.wait_applied_once(first)
        rule = proxy.hold_request(IS_COMMIT)
        await load.say(first, 20)
        await rule.wait_matched()
        await first.call("DEL", first.keys.lease, first.keys.epoch)
        async with running_engine(server, prefix) as second:
            tokens = [each.engine.leadership.token for each in (first, second)]
            assert [str(token).partition(":")[0] for token in tokens] == ["1", "1"]
            assert tokens[0] != tokens[1]
            await load.wait_applied_once(second)
            rule.release()
            assert [reply[0] for reply in await rule.wait_answered()] == [CommitCode.FENCED]
            await eventually(lambda: first.engine.role() == "standby")
            await load.say(second, 20)
            await load.wait_applied_once(second)
            assert [first.engine.role(), second.engine.role()] == ["standby", "leader"]


async def test_a_lease_that_a_failover_has_taken_back_is_taken_again(server: EmbeddedServer, prefix: str) -> None:
    """Under a new token, and nothing is applied twice."""
    async with running_engine(server, prefix) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        epoch = await engine.call("GET", engine.keys.epoch)
        await engine.call("MSET", engine.keys.epoch, "7:another", engine.keys.lease, "7:another")
        await load.say(engine, 20)
        await eventually(lambda: engine.engine.role() == "standby")
        await engine.call("DEL", engine.keys.lease)
        await load.wait_applied_once(engine)
        token = await engine.call("GET", engine.keys.epoch)
        assert (epoch.partition(b":")[0], token.partition(b":")[0]) == (b"1", b"8")


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_faults_of_the_network_lose_and_repeat_nothing(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str, seed: int, protocol: int
) -> None:
    """Many faults in a row, in an order and at moments that follow from the seed, while responses arrive."""
    settings = HASTY | {"redis__protocol": protocol}
    async with running_engine(server, prefix, redis__url=proxy.url, **settings) as engine:
        load, rng = Load(agents=7), random.Random(seed)
        faults: list[Callable[[], object]] = [
            proxy.reset,
            lambda: proxy.cut_after(rng.randint(1, 20_000)),
            lambda: proxy.drop_reply(IS_COMMIT, cut=rng.random() < 0.5),
            lambda: proxy.hold_request(IS_COMMIT, cut=rng.random() < 0.5),
            lambda: proxy.delay(0.02),
            lambda: proxy.throttle(2_000_000),
            proxy.forget,
            proxy.heal,
        ]
        held: list[Rule] = []
        for _ in range(25):
            if isinstance(rule := rng.choice(faults)(), Rule):
                held.append(rule)
            await load.say(engine, 100)
            facts = engine.metric("aism_audit_events_total", event="state_changed")
            with suppress(AssertionError):  # a held request may stop the engine
                await eventually(partial(_more_than, engine, facts), rng.choice([0.0, 0.02, 0.2]))
            if held and rng.random() < 0.5:
                held.pop(0).release()
        proxy.heal()
        for rule in held:
            rule.release()
        await load.wait_applied_once(engine)


def _more_than(engine: Running, facts: float) -> bool:
    return engine.metric("aism_audit_events_total", event="state_changed") > facts


def _without_leadership(engine: Running, dump: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return everything but what a renewal of the lease changes."""
    renewed = {engine.keys.lease.encode(), engine.keys.led_at.encode()}
    return {name: value for name, value in dump.items() if name not in renewed}


async def _go_back(engine: Running, server: EmbeddedServer, data: Path, copy: Path) -> None:
    """Restart the server with the copied data, at the same address: to its clients this is a failover."""
    server.kill()
    shutil.rmtree(data)
    shutil.copytree(copy, data)
    server.start()
    await engine.client.connection_pool.disconnect()
