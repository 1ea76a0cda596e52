"""Measurements on a real server: pushed and published, summarised by type, and rate-limited."""

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


def summary_of(engine: Running, kind: str) -> list[float | None]:
    """Return the number of agents of a type that measured tokens, and the mean, minimum and maximum."""
    registry, labels = engine.engine.metrics.registry, {"type": kind, "name": "tokens"}
    return [registry.get_sample_value(f"aism_measurement_{what}", labels) for what in ("agents", "mean", "min", "max")]


async def test_published_measurements_are_kept_like_pushed_ones(server: EmbeddedServer, prefix: str) -> None:
    """The latest value of each name. Events of the engine itself are ignored."""
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


async def test_metrics_summarise_measurements_by_type_across_a_takeover(server: EmbeddedServer, prefix: str) -> None:
    """Agents that have left are not counted."""
    async with running_engine(server, prefix) as engine:
        for agent_id, tokens in (("a", 10), ("b", 30), ("c", 80)):
            await engine.say(
                {"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}},
                {"type": "measurement", "agent_id": agent_id, "payload": {"tokens": tokens}},
            )
        await publish(engine, measured("stranger", tokens=5))
        await eventually(lambda: summary_of(engine, "scribe") == [3, 40, 10, 80])
        await eventually(lambda: summary_of(engine, "unregistered") == [1, 5, 5, 5])
        await engine.say({"type": "goodbye", "agent_id": "c"})
        await eventually(lambda: summary_of(engine, "scribe") == [2, 20, 10, 30])
    async with running_engine(server, prefix) as engine:
        await eventually(lambda: summary_of(engine, "scribe") == [2, 20, 10, 30])


async def test_a_new_leader_reads_the_measurements_of_all_agents(server: EmbeddedServer, prefix: str) -> None:
    """In several steps."""
    expected = {f"a{number}": {"tokens": float(number)} for number in range(600)}
    async with running_engine(server, prefix) as engine:
        await engine.say(*({"type": "measurement", "agent_id": a, "payload": values} for a, values in expected.items()))
        await eventually(engine.is_drained)
    async with running_engine(server, prefix) as engine:
        fleet = await engine.engine.writer.loaded()
        await eventually(lambda: fleet.measurements == expected)
        assert not fleet.unloaded_measurements


async def test_damaged_measurements_do_not_stop_the_loading_of_others(server: EmbeddedServer, prefix: str) -> None:
    """Invalid names and values are skipped; so are keys of another type or with too many fields."""
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


async def test_measurements_beyond_max_names_are_refused(server: EmbeddedServer, prefix: str) -> None:
    """Known names are still updated, also under the next leader."""
    async with running_engine(server, prefix, measurements__max_names=3) as engine:
        for n in range(100):
            await engine.say({"type": "measurement", "agent_id": "a", "payload": {f"n{n}": n}})
        await eventually(partial(has, engine, "a", {"n0": 0, "n1": 1, "n2": 2}))
        await eventually(engine.is_drained)
    async with running_engine(server, prefix, measurements__max_names=3) as engine:
        said = {"id": "m", "type": "measurement", "agent_id": "a", "payload": {"n1": 10, "n7": 7}, "reply": True}
        await engine.say(said)
        _, answer = await engine.call("BRPOP", engine.keys.agent_reply("a", "m"), 300)
        error = json.loads(answer)["error"]
        assert (error["type"], error["code"]) == ("measurement_refused", "too_many_measurements")
        assert error["details"] == {"refused": ["n7"], "max_names": 3}
        assert await kept(engine, "a") == {"n0": 0, "n1": 10, "n2": 2}
        assert await engine.dead_letters() == []


async def is_calm(engine: Running, agent_id: str) -> bool:
    return await engine.state(agent_id) == "calm"


async def is_read_again(engine: Running) -> bool:
    await publish(engine, measured("late", n=1))
    return bool(await kept(engine, "late"))


async def test_published_measurements_are_rate_limited(server: EmbeddedServer, prefix: str) -> None:
    """Other channels are read meanwhile, and the limit ends with the flood."""
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
            await eventually(partial(is_read_again, engine))
            await eventually(lambda: any(entry["event"] == "measurements_rate_limit_ended" for entry in logs))
    told = [entry for entry in logs if entry["event"].startswith("measurements_")]
    assert [entry["event"] for entry in told] == ["measurements_rate_limited", "measurements_rate_limit_ended"]
    assert told[0]["noisiest_agent"] == "a"


async def test_the_rate_of_published_measurements_counts_bytes(server: EmbeddedServer, prefix: str) -> None:
    """Ten messages of 100 kB exceed a limit of 50 messages; at least one is always read."""
    async with running_engine(server, prefix, measurements__published_per_second=50) as engine:
        long = json.dumps({"agent_id": "a", "values": {"tokens": 1}, "more": "x" * 100_000})
        await publish(engine, *[long] * 10)
        await eventually(lambda: engine.metric("aism_publications_total", outcome="dropped"))
        await eventually(partial(has, engine, "a", {"tokens": 1.0}))


async def test_events_of_the_engine_itself_are_rate_limited_but_not_counted_as_dropped(
    server: EmbeddedServer, prefix: str
) -> None:
    with capture_logs() as logs:
        async with running_engine(server, prefix, measurements__published_per_second=10) as engine:
            await publish(engine, *[b'{"agent_id":"a","values":{"x":1},"source":"engine"}'] * 200)
            await eventually(lambda: any(entry["event"] == "measurements_rate_limited" for entry in logs))
            await eventually(partial(is_read_again, engine))
            assert engine.metric("aism_publications_total", outcome="dropped") == 0


async def test_published_measurements_are_read_again_after_floods_load_and_cut_connections(
    server: EmbeddedServer, prefix: str
) -> None:
    """In any order."""
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


async def test_malformed_published_measurements_are_dead_lettered_once_a_second(
    server: EmbeddedServer, prefix: str
) -> None:
    """The others are only counted."""
    async with running_engine(server, prefix) as engine:
        await publish(engine, *[measured("a", tokens="many")] * 400)
        await eventually(lambda: engine.metric("aism_publications_total", outcome="malformed") == 400)
        await publish(engine, measured("a", tokens=1))
        await eventually(partial(has, engine, "a", {"tokens": 1.0}))
        letters = await engine.dead_letters()
        assert 1 <= len(letters) <= 5
        assert letters[0]["code"] == b"invalid_message"
        assert b"payload.*: expected a number" in letters[0]["reason"]
