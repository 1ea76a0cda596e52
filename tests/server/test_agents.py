"""Agents without a library: what they write themselves, how they join and leave, and what outlives an engine."""

import json
from functools import partial

import pytest

from aism_engine.clock import ROUNDING_S, from_iso
from aism_engine.domain.fleet import Fleet
from aism_engine.errors import ServerUnavailableError
from aism_engine.services.registrar import Registrar
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.support.engine import Running, eventually, running_engine
from tests.support.plain_agent import LOST_AFTER_S, QUICK, Agent, send, text


async def _is(engine: Running, agent_id: str, liveness: str) -> bool:
    return (await engine.record(agent_id)).get("liveness") == liveness


async def test_metadata_is_read_at_first_sight_and_periodically(engine: Running, agent: Agent) -> None:
    """Type and labels, which the agent may change at any time."""
    key = engine.keys.metadata("a")
    await agent("HSET", key, "type", "architect", "labels", '{"team": "x"}')
    await engine.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(lambda: engine.record("a"))
    record = await engine.record("a")
    assert (record["type"], record["labels"], record["registered"]) == ("architect", {"team": "x"}, False)
    await agent("HSET", key, "type", "emperor", "labels", '{"team": "y"}')
    await eventually(lambda: engine.audit("metadata_changed"))
    record = await engine.record("a")
    assert (record["type"], record["labels"]) == ("emperor", {"team": "y"})


@pytest.mark.parametrize("labels", ["not json", "[]", '{"team": 7}', '{"team": null}', "\xff", "[" * 5000])
async def test_invalid_metadata_is_ignored(engine: Running, agent: Agent, labels: str) -> None:
    await agent("HSET", engine.keys.metadata("a"), "type", "two words", "labels", labels)
    await engine.say({"type": "heartbeat", "agent_id": "a"})
    await eventually(lambda: engine.record("a"))
    record = await engine.record("a")
    assert (record["type"], record["labels"]) == ("unknown", {})


@pytest.mark.parametrize("what", ["record", "index", "metadata"])
async def test_what_the_engine_wrote_about_an_agent_is_restored_when_somebody_deletes_it(
    server: EmbeddedServer, prefix: str, agent: Agent, what: str
) -> None:
    """So the next leader knows the agent, with its labels."""
    register = {"type": "register", "agent_id": "a", "payload": {"type": "scribe", "labels": {"team": "x"}}}
    async with running_engine(server, prefix, registrar__metadata_interval=0.05) as engine:
        keys = engine.keys
        await engine.say(register)
        await eventually(lambda: engine.record("a"))
        deleted = {"record": keys.agent("a"), "index": keys.index, "metadata": keys.metadata("a")}[what]
        assert await agent("DEL", deleted) == 1

        async def is_restored() -> bool:
            return bool(await agent("EXISTS", deleted))

        await eventually(is_restored)
        reported = [fact["agent_id"] for fact in await engine.audit("agent_repaired")]
        assert reported == ([] if what == "metadata" else ["a"])
    async with running_engine(server, prefix) as engine:
        found = (await engine.engine.writer.loaded()).agents["a"]
        assert (found.type, found.labels, found.registered) == ("scribe", {"team": "x"}, True)


async def test_state_key_that_exists_at_first_sight_is_kept(engine: Running, agent: Agent) -> None:
    await agent("SET", engine.keys.state("a"), "thinking")
    await agent.beat(engine.keys, "a")
    await eventually(lambda: engine.record("a"))
    assert ((await engine.record("a"))["state"], await engine.state("a")) == ("thinking", "thinking")


async def test_state_key_that_an_agent_sets_later_is_a_declaration(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """The registrar reads it: an allowed state is applied, another one is overwritten."""
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        await agent("SET", engine.keys.state("a"), "inbox")
        await eventually(lambda: engine.audit("state_changed", agent_id="a"))
        await eventually(partial(_record_has, engine, "state", "inbox"))
        await agent("SET", engine.keys.state("a"), "bootstrap")
        await eventually(partial(engine.state_is, "a", "inbox"))
        assert (await engine.record("a"))["declared"] == "bootstrap"


async def _record_has(engine: Running, field: str, value: str) -> bool:
    return (await engine.record("a")).get(field) == value


async def test_lost_agent_returns_to_its_former_state(
    server: EmbeddedServer, prefix: str, agent: Agent, subscriber: Agent
) -> None:
    """Its commands are kept. The loss is published on the errors channel and as a state change."""
    async with running_engine(server, prefix, **QUICK) as engine:
        await subscriber("SUBSCRIBE", engine.keys.errors)
        await agent.beat(engine.keys, "a")
        for message in (
            {"type": "register", "payload": {"type": "scribe"}},
            {"type": "state_transition", "payload": {"target": "inbox"}},
        ):
            await engine.say({"agent_id": "a", **message})
        await engine.ask(send("c1"))
        await engine.replied("c1")
        event = await subscriber.next_event()
        assert (event["code"], event["agent_id"]) == ("agent_lost", "a")
        await eventually(partial(engine.state_is, "a", "offline"))
        assert (await engine.record("a"))["lost_from"] == "inbox"
        await engine.say({"type": "heartbeat", "agent_id": "a"})
        await eventually(partial(engine.state_is, "a", "inbox"))
        assert json.loads((await agent("BRPOP", engine.keys.commands("a"), 300))[1])["id"] == "c1"


async def test_agent_that_sends_responses_is_not_lost(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """A response counts as a heartbeat. Only on a slow machine may the pauses between two responses be long enough."""
    async with running_engine(server, prefix, **QUICK) as engine:
        await agent.beat(engine.keys, "quiet")
        await agent.beat(engine.keys, "responds")
        responded_at: list[float] = []

        async def respond_until_the_other_is_lost() -> bool:
            responded_at.append(await agent.server_time())
            await engine.say({"type": "heartbeat", "agent_id": "responds"})
            return await _is(engine, "quiet", "lost")

        await eventually(respond_until_the_other_is_lost)
        for fact in await engine.audit("agent_lost", agent_id="responds"):
            lost_at = from_iso(fact["at"]) + ROUNDING_S
            assert lost_at - max(at for at in responded_at if at <= lost_at) >= LOST_AFTER_S


async def test_agent_that_says_goodbye_is_not_lost(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """It goes to the state that its machine has for this, and the reaper no longer watches it."""
    keys = Keys(prefix)
    for agent_id in ("gone", "silent"):
        await agent.beat(keys, agent_id)
        register = {"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}}
        await agent("LPUSH", keys.response_queue, text(register))
    goodbye = {"type": "goodbye", "agent_id": "gone", "payload": {"reason": "maintenance"}}
    await agent("LPUSH", keys.response_queue, text(goodbye))
    async with running_engine(server, prefix, **QUICK) as engine:
        await eventually(lambda: engine.audit("agent_lost"))
        assert [fact["agent_id"] for fact in await engine.audit("agent_lost")] == ["silent"]
        assert ((await engine.record("gone"))["liveness"], await engine.state("gone")) == ("left", "offline")


async def test_without_auto_register_only_registered_agents_join(
    server: EmbeddedServer, prefix: str, agent: Agent
) -> None:
    """A heartbeat or a response of an unknown agent does not add it to the fleet."""
    async with running_engine(server, prefix, agents__auto_register=False) as engine:
        await agent.beat(engine.keys, "unknown")
        await engine.say({"type": "heartbeat", "agent_id": "unknown"})
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        assert [code for code, _ in await engine.dead_lettered()] == ["unknown_agent"]
        assert await agent("SMEMBERS", engine.keys.index) == [b"a"]


@pytest.mark.parametrize("value", [["heartbeat"], '["heartbeat"]'])
async def test_auto_register_may_be_limited_to_ways_in(
    server: EmbeddedServer, prefix: str, agent: Agent, value: object
) -> None:
    """A response adds no agent, unless it sends heartbeats too: a typing error in an id makes no agent."""
    async with running_engine(server, prefix, agents__auto_register=value) as engine:
        await agent.beat(engine.keys, "beats")
        for agent_id in ("beats", "mistyped"):
            await engine.say({"type": "state_transition", "agent_id": agent_id, "payload": {"target": "inbox"}})
        await eventually(engine.dead_lettered)
        assert [code for code, _ in await engine.dead_lettered()] == ["unknown_agent"]
        assert await agent("SMEMBERS", engine.keys.index) == [b"beats"]


async def test_forgotten_agent_leaves_no_key_behind(engine: Running, agent: Agent) -> None:
    """Only the records of its commands remain."""
    await agent.beat(engine.keys, "a")
    await engine.say(
        {"type": "register", "agent_id": "a", "payload": {"type": "scribe"}},
        {"type": "measurement", "agent_id": "a", "payload": {"x": 1}},
        {"type": "message", "agent_id": "a", "payload": {"to": "a", "content": 1}},
    )
    await eventually(lambda: engine.call("LLEN", engine.keys.inbox("a")))
    await engine.ask(send("c1"))
    await engine.ask({"type": "forget", "id": "f1", "payload": {"agent_id": "a"}})
    assert (await engine.replied("f1"))["ok"] is True
    assert [key for key in await engine.dump() if b":agent:a" in key] == []
    assert await agent("ZSCORE", engine.keys.heartbeats, "a") is None
    assert (await engine.command("c1"))["status"] == "cancelled"


async def test_next_engine_knows_what_the_last_one_knew(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """Agents, open commands and message ids: a message that is pushed again after a restart has no second effect."""
    move = {"type": "state_transition", "agent_id": "a", "id": "m2", "payload": {"target": "inbox"}}
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "id": "m1", "payload": {"type": "scribe"}}, move)
        await eventually(partial(engine.state_is, "a", "inbox"))
        await engine.ask(send("c1"))
        assert (await engine.replied("c1"))["status"] == "queued"
        await engine.say({"type": "state_transition", "agent_id": "a", "id": "m3", "payload": {"target": "idle"}})
        await eventually(partial(engine.state_is, "a", "idle"))
    async with running_engine(server, prefix) as engine:
        await engine.say(move, {"type": "result", "agent_id": "a", "id": "m4", "command_id": "c1"})
        await eventually(lambda: engine.audit("command_succeeded"))
        assert await engine.state("a") == "idle"
        duplicates = {"service": "response_consumer", "type": "state_transition", "outcome": "duplicate"}
        await eventually(lambda: engine.metric("aism_decisions_total", **duplicates) == 1)
        await engine.ask(send("c1"))
        assert (await engine.replied("c1"))["status"] == "queued"  # the first reply again
        assert await agent("LLEN", engine.keys.commands("a")) == 1


async def test_result_may_have_the_id_of_its_command(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    """Request ids and message ids are remembered apart, also after a restart."""
    async with running_engine(server, prefix) as engine:
        await agent.beat(engine.keys, "a")
        await engine.ask(send("c1"))
        await engine.replied("c1")
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "result", "agent_id": "a", "id": "c1", "command_id": "c1"})
        await eventually(engine.is_drained)
        assert (await engine.command("c1"))["status"] == "succeeded"


async def test_every_response_of_a_large_backlog_is_applied_once_and_in_order(
    engine: Running, agent: Agent, subscriber: Agent
) -> None:
    """Although the engine reads ahead, and unsubscribes while it is busy; afterwards it subscribes again."""
    await subscriber("SUBSCRIBE", engine.keys.state_changes)
    states = [f"s{number}" for number in range(3000)]
    move = {"type": "state_transition"}
    backlog = [
        text(move | {"agent_id": f"a{number % 7}", "id": f"m{number}", "payload": {"target": state}})
        for number, state in enumerate(states)
    ]
    for start in range(0, len(backlog), 500):
        await agent("LPUSH", engine.keys.response_queue, *backlog[start : start + 500])
    await eventually(lambda: _audited(engine, len(states)))
    assert [fact["new_state"] for fact in await engine.audit("state_changed")] == states
    assert [(await subscriber.next_event())["new_state"] for _ in states] == states
    await eventually(lambda: engine.call("PUBSUB", "NUMSUB", engine.keys.responses))
    await agent("PUBLISH", engine.keys.state_changes, text({"agent_id": "b", "new_state": "heard"}))
    await eventually(lambda: engine.state("b"))


async def _audited(engine: Running, count: int) -> bool:
    return len(await engine.audit("state_changed")) >= count


@pytest.mark.parametrize("prefix", ["{fleet-7}"])
async def test_prefix_in_braces_puts_the_fleet_into_one_slot(server: EmbeddedServer, prefix: str, agent: Agent) -> None:
    async with running_engine(server, prefix) as engine:
        await engine.say({"type": "register", "agent_id": "a", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.state("a"))
        assert await agent("GET", "{fleet-7}:agent:a:state") == b"bootstrap"


async def test_a_pass_over_the_heartbeats_that_an_outage_interrupts_is_made_again(
    server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an agent that only sends heartbeats would have to wait for the next full pass."""
    async with running_engine(server, prefix, registrar__metadata_interval=3600.0) as engine:
        registrar = next(part for part in engine.engine.components if isinstance(part, Registrar))
        await eventually(lambda: registrar._next_full_pass_at > float("-inf"))
        read, failures = registrar._read_heartbeats, ["timeout"]

        async def read_after_an_outage(fleet: Fleet) -> bool:
            if failures:
                raise ServerUnavailableError(failures.pop(), "interrupted")
            return await read(fleet)

        monkeypatch.setattr(registrar, "_read_heartbeats", read_after_an_outage)
        await engine.call("ZADD", engine.keys.heartbeats, await engine.now(), "b")
        await eventually(lambda: engine.record("b"))
        assert failures == []
