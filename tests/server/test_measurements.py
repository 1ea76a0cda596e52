"""What agents measure: the latest value of each name, whether pushed or only published, by type for Prometheus; floods
and nonsense are bounded.
"""

import json
import time
from functools import partial

from structlog.testing import capture_logs

from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine


def measured(agent_id: str, **values: object) -> str:
    return json.dumps({"agent_id": agent_id, "values": values})


async def publish(engine: Running, *published: str | bytes) -> None:
    pipeline = engine.client.pipeline(transaction=False)
    for each in published:
        pipeline.publish(engine.keys.measurements, each)
    await pipeline.execute()


async def kept(engine: Running, agent_id: str) -> dict[str, float]:
    found = await engine.client.hgetall(engine.keys.agent_measurements(agent_id))
    return {name.decode(): float(value) for name, value in found.items()}


async def has(engine: Running, agent_id: str, expected: dict[str, float]) -> bool:
    return await kept(engine, agent_id) == expected


def rolled_up(engine: Running, kind: str) -> list[float | None]:
    """Give of how many agents of a type the tokens are shown, and their mean, least and largest."""
    registry, labels = engine.engine.metrics.registry, {"type": kind, "name": "tokens"}
    return [registry.get_sample_value(f"aism_measurement_{what}", labels) for what in ("agents", "mean", "min", "max")]


async def test_what_is_published_is_kept_as_what_is_pushed(server: EmbeddedServer, prefix: str) -> None:
    """The latest value of each name; a stranger is met by it; the engine's own events are not heard as anybody's."""
    async with running_engine(server, prefix) as engine:
        await publish(engine, measured("a", tokens=1, cpu=0.5), measured("a", tokens=2))
        await eventually(partial(has, engine, "a", {"tokens": 2.0, "cpu": 0.5}))
        await engine.say({"type": "measurement", "agent_id": "a", "payload": {"tokens": 3}})
        await eventually(partial(has, engine, "a", {"tokens": 3.0, "cpu": 0.5}))
        await publish(engine, measured("b", tokens=7))
        await eventually(partial(has, engine, "b", {"tokens": 7.0}))
        heard = [engine.metric("aism_publications_total", outcome=each) for each in ("measurement", "merged")]
        assert sum(heard) == 3
        assert [fact["agent_id"] for fact in await engine.audit("agent_first_seen")] == ["a", "b"]


async def test_prometheus_sees_them_by_type_also_of_the_next_leader(server: EmbeddedServer, prefix: str) -> None:
    """Of agents that are there: one that has left counts no more, and no engine has to hear them anew."""
    async with running_engine(server, prefix) as engine:
        for agent_id, tokens in (("a", 10), ("b", 30), ("c", 80)):
            await engine.say(
                {"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}},
                {"type": "measurement", "agent_id": agent_id, "payload": {"tokens": tokens}},
            )
        await publish(engine, measured("stranger", tokens=5))
        await eventually(lambda: rolled_up(engine, "scribe") == [3, 40, 10, 80])
        await eventually(lambda: rolled_up(engine, "unregistered") == [1, 5, 5, 5])
        await engine.say({"type": "goodbye", "agent_id": "c"})
        await eventually(lambda: rolled_up(engine, "scribe") == [2, 20, 10, 30])
    async with running_engine(server, prefix) as engine:
        await eventually(lambda: rolled_up(engine, "scribe") == [2, 20, 10, 30])


async def test_a_new_leader_reads_those_of_all_agents(server: EmbeddedServer, prefix: str) -> None:
    """However many there are: they are read some agents at a time."""
    expected = {f"a{number}": {"tokens": float(number)} for number in range(600)}
    async with running_engine(server, prefix) as engine:
        await engine.say(*({"type": "measurement", "agent_id": a, "payload": values} for a, values in expected.items()))
        await eventually(engine.is_drained)
    async with running_engine(server, prefix) as engine:
        fleet = await engine.engine.writer.loaded()
        await eventually(lambda: fleet.measurements == expected)
        assert not fleet.unloaded_measurements


async def test_what_anyone_wrote_there_keeps_no_engine_from_loading_the_rest(
    server: EmbeddedServer, prefix: str
) -> None:
    """Names and values that mean nothing are left out; a key of another type, or with more fields than any of ours has,
    is as good as none.
    """
    async with running_engine(server, prefix) as engine:
        for agent_id in "abcd":
            await engine.say({"type": "measurement", "agent_id": agent_id, "payload": {"tokens": 1}})
        await eventually(partial(has, engine, "d", {"tokens": 1.0}))
        await engine.call("HSET", engine.keys.agent_measurements("a"), "no name", "1", "cpu", "nan", "heat", "much")
        await engine.call("SET", engine.keys.agent_measurements("b"), "x")
        many = [text for number in range(10_001) for text in (f"n{number}", "1")]
        await engine.call("HSET", engine.keys.agent_measurements("d"), *many)
    async with running_engine(server, prefix) as engine:
        fleet = await engine.engine.writer.loaded()
        await eventually(lambda: not fleet.unloaded_measurements)
        assert fleet.measurements == {"a": {"tokens": 1.0}, "c": {"tokens": 1.0}}


async def test_an_agent_that_invents_names_keeps_those_it_has(server: EmbeddedServer, prefix: str) -> None:
    """So many are kept, also by the next engine; one that is known is kept up, whatever else is in its message."""
    async with running_engine(server, prefix, measurements__max_names=3) as engine:
        for n in range(100):
            await engine.say({"type": "measurement", "agent_id": "a", "payload": {f"n{n}": n}})
        await eventually(partial(has, engine, "a", {"n0": 0, "n1": 1, "n2": 2}))
        await eventually(engine.is_drained)
    async with running_engine(server, prefix, measurements__max_names=3) as engine:
        said = {"id": "m", "type": "measurement", "agent_id": "a", "payload": {"n1": 10, "n7": 7}, "reply": True}
        await engine.say(said)
        _, answer = await engine.call("BRPOP", engine.keys.agent_reply("a", "m"), 5)
        error = json.loads(answer)["error"]
        assert (error["type"], error["code"]) == ("measurement_refused", "too_many_measurements")
        assert error["details"] == {"refused": ["n7"], "max_names": 3}
        assert await kept(engine, "a") == {"n0": 0, "n1": 10, "n2": 2}
        assert await engine.dead_letters() == []


async def is_calm(engine: Running, agent_id: str) -> bool:
    return await engine.state(agent_id) == "calm"


async def is_heard_again(engine: Running) -> bool:
    await publish(engine, measured("late", n=1))
    return bool(await kept(engine, "late"))


async def test_a_flood_of_measurements_is_left_unheard_and_then_heard_again(
    server: EmbeddedServer, prefix: str
) -> None:
    """No more is heard in a second than may be, what is published elsewhere is heard meanwhile, and it ends."""
    limit = 50
    with capture_logs() as logs:
        async with running_engine(server, prefix, measurements__published_per_second=limit) as engine:
            began = time.monotonic()
            await publish(engine, *(measured("a", n=n) for n in range(5000)))
            await eventually(lambda: engine.metric("aism_publications_total", outcome="dropped"))
            change = json.dumps({"agent_id": "b", "new_state": "calm"})
            await engine.call("PUBLISH", engine.keys.state_changes, change)
            await eventually(partial(is_calm, engine, "b"))
            heard = sum(engine.metric("aism_publications_total", outcome=each) for each in ("measurement", "merged"))
            seconds = 1 + int(time.monotonic() - began)
            assert 0 < heard <= limit * (seconds + 1)
            await eventually(partial(is_heard_again, engine))
            await eventually(lambda: any(entry["event"] == "measurements_rate_limit_ended" for entry in logs))
    told = [entry for entry in logs if entry["event"].startswith("measurements_")]
    assert [entry["event"] for entry in told] == ["measurements_rate_limited", "measurements_rate_limit_ended"]
    assert told[0]["noisiest_agent"] == "a"


async def test_a_flood_is_measured_in_bytes_as_well(server: EmbeddedServer, prefix: str) -> None:
    """A few that are long are as good as many; one of them is always heard, however little may be."""
    async with running_engine(server, prefix, measurements__published_per_second=2) as engine:
        long = json.dumps({"agent_id": "a", "values": {"tokens": 1}, "more": "x" * 100_000})
        await publish(engine, *[long] * 10)
        await eventually(lambda: engine.metric("aism_publications_total", outcome="dropped"))
        await eventually(partial(has, engine, "a", {"tokens": 1.0}))
        dropped = engine.metric("aism_publications_total", outcome="dropped")
        accepted = [engine.metric("aism_publications_total", outcome=each) for each in ("measurement", "merged")]
        assert sum(accepted) < dropped


async def test_the_engines_own_events_are_no_ones_measurements_that_were_dropped(
    server: EmbeddedServer, prefix: str
) -> None:
    """To hear them costs as much, and so they count; but nothing is lost when they are not heard."""
    with capture_logs() as logs:
        async with running_engine(server, prefix, measurements__published_per_second=10) as engine:
            await publish(engine, *[b'{"agent_id":"a","values":{"x":1},"source":"engine"}'] * 200)
            await eventually(lambda: any(entry["event"] == "measurements_rate_limited" for entry in logs))
            await eventually(partial(is_heard_again, engine))
            assert engine.metric("aism_publications_total", outcome="dropped") == 0


async def test_measurements_are_heard_again_whatever_comes_at_once(server: EmbeddedServer, prefix: str) -> None:
    """Floods, a consumer that is busy and mutes the channels, connections that are cut: in any order."""
    limits = {"measurements__published_per_second": 20, "response_consumer__batch_messages": 4}
    async with running_engine(server, prefix, **limits) as engine:
        for turn in range(40):
            await publish(engine, *(measured(f"a{n % 7}", n=n) for n in range(30)))
            await engine.say(*({"type": "measurement", "agent_id": "b", "payload": {"n": n}} for n in range(turn + 1)))
            if turn % 5 == 4:
                await engine.call("CLIENT", "KILL", "TYPE", "pubsub")
        await eventually(engine.is_drained)
        for number in range(2):
            agent_id = f"late{number}"

            async def is_kept(agent_id: str = agent_id) -> bool:
                await publish(engine, measured(agent_id, n=1))
                return bool(await kept(engine, agent_id))

            await eventually(is_kept)


async def test_of_nonsense_one_a_second_is_buried(server: EmbeddedServer, prefix: str) -> None:
    """With its reason, for its sender to see; the rest is counted, and washes no other letter away."""
    async with running_engine(server, prefix) as engine:
        await publish(engine, *[measured("a", tokens="many")] * 400)
        await eventually(lambda: engine.metric("aism_publications_total", outcome="malformed") == 400)
        await publish(engine, measured("a", tokens=1))
        await eventually(partial(has, engine, "a", {"tokens": 1.0}))
        letters = await engine.dead_letters()
        assert 1 <= len(letters) <= 5
        assert letters[0]["code"] == b"invalid_message"
        assert b"$.payload" in letters[0]["reason"]
