"""Which commands are delivered when, and to whom: limits, holds, cancellation, selection and fan-out."""

import json
from collections import Counter
from functools import partial

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.support.daemon import EngineProcess
from tests.support.engine import Reader, eventually, plain_client
from tests.support.workers import SOON_S, WORKER, Workers, open_workers


async def test_commands_beyond_max_in_flight_wait_by_priority_and_order(server: EmbeddedServer, prefix: str) -> None:
    """At most `max_in_flight` commands are at the agent; when one ends, the next is delivered."""
    async with open_workers(server, prefix, commands__max_in_flight=2, commands__max_queued=6) as workers:
        await workers.register(WORKER)
        for name in ("first", "second", "low", "normal-1", "normal-2", "high"):
            priority = name.partition("-")[0]
            await workers.send(name, priority=priority if priority in {"low", "high"} else "normal")
        refused = await workers.send("too-many")
        assert refused["error"]["code"] == "queue_full"
        assert await workers.listed() == ["first", "second"]
        done = []
        for _ in range(6):
            done.append((await workers.pop())["id"])
            await workers.respond("result", command_id=done[-1])
            await workers.wait_status(done[-1], "succeeded")
            assert len(await workers.listed()) <= 2
        assert done == ["first", "second", "high", "normal-1", "normal-2", "low"]


async def test_pause_holds_on_every_path_and_outlives_the_engine(server: EmbeddedServer, prefix: str) -> None:
    """New, scheduled and redelivered commands all wait until the pause ends."""
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        await workers.send("again", ack_timeout=SOON_S)
        await workers.wait_status("again", "queued")
        assert (await workers.request("p", "pause", agent_id=WORKER))["hold"] == "pause"
        await workers.pop()
        await workers.send("new")
        await workers.send("later", start_in=SOON_S)
        for command_id in ("again", "later"):
            await workers.wait_status(command_id, "waiting")
        await workers.wait_dispatched("first")
        assert await workers.listed() == []
    async with open_workers(server, prefix) as workers:
        await workers.wait_dispatched("second")
        assert await workers.listed() == []
        await workers.request("r", "resume", agent_id=WORKER)
        await eventually(partial(_all_listed, workers, {"again", "new", "later"}))


async def test_pause_of_the_fleet_holds_for_agents_that_join_later(server: EmbeddedServer, prefix: str) -> None:
    """Also if the record of the hold is damaged otherwise: an engine that starts keeps the pause."""
    async with open_workers(server, prefix) as workers:
        await workers.request("p", "pause", all=True)
        await workers.call("HSET", workers.keys.holds, "held_at", "no time")
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        assert (await workers.send("c"))["status"] == "waiting"
        await workers.request("r", "resume", all=True)
        await eventually(partial(_all_listed, workers, {"c"}))


async def test_drain_refuses_new_commands_and_finishes_accepted_ones(server: EmbeddedServer, prefix: str) -> None:
    async with open_workers(server, prefix, commands__max_in_flight=1) as workers:
        await workers.register(WORKER)
        await workers.send("first")
        await workers.send("second")
        await workers.request("d", "drain", agent_id=WORKER)
        assert (await workers.send("third"))["error"]["code"] == "draining"
        for command_id in ("first", "second"):
            assert (await workers.pop())["id"] == command_id
            await workers.respond("result", command_id=command_id)
            await workers.wait_status(command_id, "succeeded")


async def test_cancelled_command_is_withdrawn_or_its_agent_is_notified(workers: Workers) -> None:
    """Withdrawn from the agent's list if it is still there; otherwise the agent gets a `cancel` command."""
    await workers.send("queued")
    await workers.send("taken")
    await workers.request("k-1", "cancel", command_id="queued")
    assert await workers.listed() == ["taken"]
    await workers.pop()
    await workers.wait_status("taken", "delivered")
    await workers.request("k-2", "cancel", command_id="taken")
    notice = await workers.pop()
    assert (notice["type"], notice["payload"]) == ("cancel", {"command_id": "taken", "code": "cancelled"})
    await workers.respond("result", command_id="taken")
    await eventually(workers.is_drained)
    assert [(await workers.command(each))["status"] for each in ("queued", "taken")] == ["cancelled", "cancelled"]
    again = await workers.request("k-3", "cancel", command_id="taken")
    assert again["error"]["code"] == "command_ended"


@pytest.mark.parametrize(("on_lost", "status"), [("hold", "queued"), ("fail", "failed")])
async def test_on_lost_holds_or_fails_the_commands_of_a_lost_agent(
    server: EmbeddedServer, prefix: str, on_lost: str, status: str
) -> None:
    async with open_workers(server, prefix, liveness__silent_after=0.3, liveness__lost_after=0.6) as workers:
        await workers.register(WORKER)
        seconds = await workers.now()
        await workers.call("ZADD", workers.keys.heartbeats, seconds, WORKER)
        await workers.send("c", on_lost=on_lost)
        await eventually(partial(workers.audit, "agent_lost"))
        record = await workers.wait_status("c", status)
        assert record.get("code", "") == ("agent_lost" if status == "failed" else "")


async def test_a_list_of_the_wrong_type_does_not_protect_an_agent_from_its_loss(
    server: EmbeddedServer, prefix: str
) -> None:
    """Its command fails without a notice: there is no list to push it to."""
    async with open_workers(server, prefix, liveness__silent_after=0.3, liveness__lost_after=0.6) as workers:
        await workers.register(WORKER)
        await workers.send("c", on_lost="fail")
        await workers.pop()
        await workers.respond("ack", command_id="c")
        await workers.wait_status("c", "acked")
        await workers.call("SET", workers.keys.commands(WORKER), "mine")
        seconds = await workers.now()
        await workers.call("ZADD", workers.keys.heartbeats, seconds, WORKER)
        await eventually(partial(workers.audit, "agent_lost"))
        assert (await workers.wait_status("c", "failed"))["code"] == "agent_lost"


async def test_fanout_reaches_each_target_once_although_its_engine_is_killed(
    server: EmbeddedServer, prefix: str
) -> None:
    """The engine is killed three times during the fan-out; each agent still gets the command exactly once."""
    count = 3000
    environ = {"AISM_REDIS__PREFIX": prefix, "AISM_HTTP__ENABLED": "false", "AISM_LEASE__TTL": "600"}
    environ |= {"AISM_LOGS__FORMAT": "json"}
    engine = EngineProcess("engine", ["--redis", server.url], environ)
    async with plain_client(server) as client:
        fleet = Reader(client, prefix)
        keys = fleet.keys
        await engine.start()
        try:
            joining = ({"type": "register", "agent_id": f"w-{n}", "payload": {"type": "worker"}} for n in range(count))
            await fleet.say(*joining)
            await eventually(partial(_counts, fleet, "SCARD", keys.index, count))
            request = {"select": "type=worker", "command": {"type": "work"}, "options": {"quorum": "80%"}}
            await fleet.ask({"id": "all", "type": "send", "payload": request})
            for done in (0, 700, 1900):
                await eventually(partial(_has_at_most, fleet, keys.fanout, count - done))
                await engine.kill()
                await fleet.call("DEL", keys.lease)  # its holder is dead
                await engine.start()
                await eventually(partial(_leads, fleet))
            reply = await fleet.replied("all")
            assert reply["targets"] == count
            await eventually(partial(_counts, fleet, "LLEN", keys.fanout, 0))
            lists = [await fleet.call("LRANGE", keys.commands(f"w-{n}"), 0, -1) for n in range(count)]
            assert Counter(len(each) for each in lists) == {1: count}
            assert {json.loads(each[0])["id"] for each in lists} == {f"all.w-{n}" for n in range(count)}
            queued = Counter(fact["command_id"] for fact in await fleet.audit("command_queued"))
            assert (len(queued), set(queued.values())) == (count, {1})
        finally:
            await engine.terminate()
        assert engine.complaints() == []


async def test_any_selects_an_agent_that_can_take_the_command(workers: Workers) -> None:
    """Not a paused agent, and not one with more open commands."""
    await workers.register("w-1", "w-2")
    await workers.request("p", "pause", agent_id="w-1")
    await workers.send("c")
    reply = await workers.request("any", "send", select="type=worker", any=True, command={"type": "work"})
    assert (reply["agent_id"], await workers.listed("w-2")) == ("w-2", ["any"])


async def _all_listed(workers: Workers, expected: set[str]) -> bool:
    return sorted(await workers.listed()) == sorted(expected)


async def _counts(fleet: Reader, call: str, key: str, expected: int) -> bool:
    return bool(await fleet.call(call, key) == expected)


async def _has_at_most(fleet: Reader, queue: str, length: int) -> bool:
    """Whether the fan-out has begun, and has at most this number of targets left."""
    return bool(await fleet.call("EXISTS", fleet.keys.group("all")) and await fleet.call("LLEN", queue) <= length)


async def _leads(fleet: Reader) -> bool:
    return await fleet.call("GET", fleet.keys.lease) is not None


async def test_selector_matches_agents_that_registered_before_the_request(workers: Workers) -> None:
    """The `register` is in another queue than the request; the engine reads it before it refuses the request."""
    keys = workers.keys
    for number in range(20):
        kind = f"late-{number}"
        register = {"type": "register", "agent_id": kind, "payload": {"type": kind}}
        request = {"id": kind, "type": "send", "payload": {"select": f"type={kind}", "command": {"type": "x"}}}
        await workers.call("LPUSH", keys.response_queue, json.dumps(register))
        await workers.call("LPUSH", keys.request_queue, json.dumps(request))
        await workers.call("PUBLISH", keys.requests, "")
        assert (await workers.replied(kind))["ok"] is True
