"""The wire's tricks on a commit: its reply is lost, its request is late, it is taken back, its epoch is not its own.

Whatever the trick, every response is applied exactly once in the end, and none is in the dead dead_letters.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.scripts import READ_SNAPSHOTS, CommitCode
from tests.support.engine import Client, Running, eventually, launched, running_engine
from tests.support.faults import IS_COMMIT, IS_LEASE, Load, calls
from tests.support.proxy import Direction, FaultProxy, Rule
from tests.support.server import test_server_binary

HASTY: dict[str, object] = {"redis__socket_timeout": 0.8, "registrar__metadata_interval": 60.0}
"""Settings of an engine that soon gives up waiting, and commits nothing but responses."""
PATIENT: dict[str, object] = {"redis__socket_timeout": 30.0, "registrar__metadata_interval": 60.0, "lease__ttl": 60.0}
"""Settings of an engine that gives nothing up, and keeps its lease, in the time of a test."""


@pytest.fixture
async def proxy(server: EmbeddedServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that keeps all it has accepted, in a folder that a test can put back."""
    with EmbeddedServer(test_server_binary(), data_dir=tmp_path / "data", append_fsync="always") as server:
        yield server


async def test_a_naive_client_does_it_twice(proxy: FaultProxy, redis_client: Client, prefix: str) -> None:
    """Why no client of ours retries by itself: redis-py, as it comes, replays a script whose reply was lost."""
    script = "return redis.call('INCR', KEYS[1])"
    rule = proxy.drop_reply(lambda request: request[0] == b"EVAL", cut=True)
    async with Redis(port=proxy.port) as naive:
        assert await naive.eval(script, 1, prefix) == 2
    assert rule.replies == [1]
    assert await redis_client.get(prefix) == b"2"


@pytest.mark.parametrize("cut", [True, False])
async def test_a_commit_whose_reply_is_lost_is_applied_once(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str, *, cut: bool
) -> None:
    """It is sent again as it was, and the ledger tells that it was written: the same trick, and no second effect."""
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
    """When the engine gives up it does not know what was written: it loads the fleet again, and finds out."""
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


async def test_a_commit_that_comes_late_changes_nothing(server: EmbeddedServer, proxy: FaultProxy, prefix: str) -> None:
    """Its request is under way while the engine gives up, loads the fleet, decides again and commits: all of its copies
    come out of step, whether the ledger has gone on by one commit or by many.
    """
    async with running_engine(server, prefix, redis__url=proxy.url, **HASTY) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        rule = proxy.hold_request(IS_COMMIT, times=3)
        await load.say(engine, 20)
        await rule.wait_matched(3)
        await load.wait_applied_once(engine)  # decided again, while three copies of the first decision are under way
        before = await engine.dump()
        rule.release()
        assert [reply[0] for reply in await rule.wait_answered(3)] == [CommitCode.OUT_OF_STEP] * 3
        assert _without_leadership(engine, await engine.dump()) == _without_leadership(engine, before)
        await load.say(engine, 3)
        await load.wait_applied_once(engine)


async def test_a_commit_that_comes_after_its_own_copy_changes_nothing(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """The copy that was sent again is applied; the first one, late, is known by its id, and out of step later on."""
    async with running_engine(server, prefix, redis__url=proxy.url, **HASTY) as engine:
        load = Load()
        await load.say(engine, 3)
        await load.wait_applied_once(engine)
        rule = proxy.hold_request(IS_COMMIT)
        await load.say(engine, 20)
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


async def test_a_look_at_an_agent_that_a_late_commit_overtakes_proves_nothing(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """The engine has given up a commit, and reads what agents have set by their own hand; then the commit arrives. The
    state that was read is the one from before it: no declaration of the agent's.
    """
    async with running_engine(
        server, prefix, redis__url=proxy.url, redis__socket_timeout=0.3, registrar__metadata_interval=0.02
    ) as engine:
        load = Load(agents=1)
        await load.say(engine, 1)
        await load.wait_applied_once(engine)
        rule = proxy.hold_request(IS_COMMIT, times=3)
        await load.say(engine, 1)
        await rule.wait_matched(3)
        look = proxy.hold_reply(calls(READ_SNAPSHOTS))
        await look.wait_answered()
        rule.release()
        await rule.wait_answered(3)
        look.release()
        await load.wait_applied_once(engine)
        await load.say(engine, 1)
        await load.wait_applied_once(engine)


async def test_a_commit_that_comes_late_under_an_older_lease_is_fenced(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """Its engine has stopped, another leads: the newest leader's token stands in the way of every older write."""
    load = Load()
    async with launched(server, prefix, redis__url=proxy.url, **PATIENT) as first:
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


async def test_a_commit_that_a_failover_takes_back_is_made_again(
    own: EmbeddedServer, tmp_path: Path, prefix: str
) -> None:
    """The engine remembers a commit that the server has forgotten, lease and token being the same: it finds the ledger
    out of step before it writes anything, loads the fleet, and decides again what lies in the queue again.
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


async def test_a_failover_during_a_commit_whose_reply_is_lost(own: EmbeddedServer, tmp_path: Path, prefix: str) -> None:
    """Both at once: the copy that is sent again meets a server that has never heard of it, and is applied there."""
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


async def test_a_fleet_that_is_loaded_again_takes_nobody_for_lost(server: EmbeddedServer, prefix: str) -> None:
    """Who spoke when is in memory alone. One that has beaten once, and has said something every now and then since, is
    not lost because the engine had to forget that: its silence counts from there.
    """
    async with running_engine(server, prefix, liveness__silent_after=1.0, liveness__lost_after=4.0) as engine:
        seconds, _ = await engine.call("TIME")
        await engine.call("ZADD", engine.keys.heartbeats, seconds, "a")
        await eventually(lambda: engine.audit("agent_first_seen"))
        loop = asyncio.get_running_loop()

        async def chat(agent_id: str, until: float) -> bool:
            await engine.say({"type": "heartbeat", "agent_id": agent_id})
            return loop.time() > until

        await eventually(partial(chat, "a", loop.time() + 4.5))
        await eventually(engine.is_drained)
        await engine.call("SET", engine.keys.ledger, "of another time")
        await engine.say({"type": "heartbeat", "agent_id": "b"})
        await eventually(lambda: engine.metric("aism_commits_total", code="out_of_step"))
        await eventually(engine.is_drained)
        assert await engine.audit("agent_lost") == []
        await eventually(lambda: engine.audit("agent_lost", agent_id="a"))


async def test_two_engines_with_the_same_epoch_number_are_told_apart(
    server: EmbeddedServer, proxy: FaultProxy, prefix: str
) -> None:
    """A failover takes back that the first one leads, and the second is given the same number. The first one believes
    in its lease, and in its commit that is under way: the random part of the token fences it, and it stands by.
    """
    load = Load()
    async with running_engine(server, prefix, redis__url=proxy.url, **PATIENT) as first:
        await load.say(first, 3)
        await load.wait_applied_once(first)
        rule, renewals = proxy.hold_request(IS_COMMIT), proxy.hold_request(IS_LEASE)
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
            renewals.release()
            await load.say(second, 20)
            await load.wait_applied_once(second)
            assert [first.engine.role(), second.engine.role()] == ["standby", "leader"]


async def test_a_lease_that_a_failover_has_taken_back_is_taken_anew(server: EmbeddedServer, prefix: str) -> None:
    """Alone, and with a token that is the older of two: it leads again under a new one, nothing twice."""
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
async def test_whatever_the_wire_does(server: EmbeddedServer, prefix: str, seed: int, protocol: int) -> None:
    """Many tricks in a row, in an order and at moments that the seed says, while responses go on coming."""
    async with (
        FaultProxy(server.port, seed=seed) as proxy,
        running_engine(server, prefix, redis__url=proxy.url, redis__protocol=protocol, **HASTY) as engine,
    ):
        load, chance = Load(agents=7), proxy.random
        tricks: list[Callable[[], object]] = [
            proxy.reset,
            lambda: proxy.half_close(chance.choice([Direction.TO_SERVER, Direction.TO_CLIENT])),
            lambda: proxy.cut_after(1, 20_000, chance.choice([Direction.TO_SERVER, Direction.TO_CLIENT])),
            lambda: proxy.drop_reply(IS_COMMIT, nth=chance.randint(1, 3), cut=chance.random() < 0.5),
            lambda: proxy.hold_request(IS_COMMIT, cut=chance.random() < 0.5),
            lambda: proxy.delay(0.0, 0.02),
            lambda: proxy.throttle(2_000_000),
            proxy.forget,
            proxy.heal,
        ]
        held: list[Rule] = []
        for _ in range(25):
            if isinstance(rule := chance.choice(tricks)(), Rule):
                held.append(rule)
            await load.say(engine, 100)
            facts = engine.metric("aism_audit_events_total", event="state_changed")
            with suppress(AssertionError):  # it may well have come to a stop
                await eventually(partial(_more_than, engine, facts), chance.choice([0.0, 0.02, 0.2]))
            if held and chance.random() < 0.5:
                held.pop(0).release()
        proxy.heal()
        for rule in held:
            rule.release()
        await load.wait_applied_once(engine)


def _more_than(engine: Running, facts: float) -> bool:
    return engine.metric("aism_audit_events_total", event="state_changed") > facts


def _without_leadership(engine: Running, dump: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """What was written by commits alone: the lease is renewed meanwhile, and its time to live is no part of a dump."""
    return {name: value for name, value in dump.items() if name != engine.keys.lease.encode()}


async def _go_back(engine: Running, server: EmbeddedServer, data: Path, copy: Path) -> None:
    """Let the server be again what it was when the copy was taken, at the same address: a failover, to its clients."""
    server.kill()
    shutil.rmtree(data)
    shutil.copytree(copy, data)
    server.start()
    await engine.client.connection_pool.disconnect()
