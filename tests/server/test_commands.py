"""The laws of commands on a real server: each reaches its agent, or its sender learns why not."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import pytest

from aism_engine.clock import ROUNDING_S, from_iso
from aism_engine.domain.commands.deadlines import decide_deadline
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.services import timekeeper
from aism_engine.services.reconciler import Reconciler
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.chaos.engines import EngineProcess
from tests.support.engine import Reader, Running, eventually, plain_client, running_engine
from tests.support.server import test_server_binary

WORKER: Final = "w-0"
QUICK: Final[dict[str, object]] = {
    "dispatcher__poll_interval": 0.02,
    "commands__backoff_initial": 0.02,
    "commands__backoff_max": 0.02,
}
SOON_S: Final = 0.15
"""A timeout that a test lets run out."""


class Shop(Running):
    """An engine, and the hands of its workers."""

    said = 0

    async def hire(self, *agents: str, capabilities: tuple[str, ...] = ("ack",)) -> None:
        for agent_id in agents:
            await self.tell("register", agent_id, payload={"type": "worker", "capabilities": capabilities})
        await eventually(partial(self.record, agents[-1]))

    async def tell(self, kind: str, agent_id: str = WORKER, **fields: Any) -> None:  # noqa: ANN401 - fields of a message
        self.said += 1
        await self.say({"id": f"said-{self.said}-{id(self)}", "type": kind, "agent_id": agent_id, **fields})

    async def send(
        self, request_id: str, agent_id: str = WORKER, kind: str = "work", **options: object
    ) -> dict[str, Any]:
        payload = {"agent_id": agent_id, "command": {"type": kind}, "options": options}
        return await self.request(request_id, "send", **payload)

    async def request(self, request_id: str, kind: str, **payload: object) -> dict[str, Any]:
        await self.ask({"id": request_id, "type": kind, "payload": payload})
        return await self.replied(request_id)

    async def listed(self, agent_id: str = WORKER) -> list[str]:
        """Read the ids of what lies in an agent's list, in the order in which it would pop them."""
        bodies = await self.call("LRANGE", self.keys.commands(agent_id), 0, -1)
        return [json.loads(body)["id"] for body in reversed(bodies)]

    async def pop(self, agent_id: str = WORKER) -> dict[str, Any]:
        """Take the oldest command, waiting for one."""
        body = await self.call("BRPOP", self.keys.commands(agent_id), 5)
        assert body is not None, "no command has come"
        found: dict[str, Any] = json.loads(body[1])
        return found

    async def becomes(self, command_id: str, status: str) -> dict[str, str]:
        """Wait for a status, and give the record."""

        async def record() -> dict[str, str] | None:
            found = await self.command(command_id)
            return found if found.get("status") == status else None

        found = await eventually(record)
        assert found is not None
        return found

    async def only_expiry_is_due(self, command_id: str) -> bool:
        """Return whether the time to live is the only clock of the command that runs."""
        record = await self.command(command_id)
        due_at = await self.call("ZSCORE", self.keys.deadlines, f"command:{command_id}")
        return not record.get("step_at") and abs(float(due_at) - from_iso(record["expires_at"])) <= ROUNDING_S

    async def wait_dispatched(self, command_id: str) -> None:
        """Wait until a later command to another agent is in its list: the dispatcher has passed all earlier ones."""
        other = f"agent-of-{command_id}"
        await self.hire(other)
        await self.send(command_id, other)
        await eventually(partial(self.listed, other))

    async def status_changes(self, command_id: str) -> list[str]:
        facts = await self.audit()
        return [
            fact["event"].removeprefix("command_")
            for fact in facts
            if fact.get("command_id") == command_id and fact["event"].startswith("command_")
        ]


@asynccontextmanager
async def open_shop(server: EmbeddedServer, prefix: str, **overrides: object) -> AsyncIterator[Shop]:
    async with running_engine(server, prefix, **(QUICK | overrides)) as running:
        yield Shop(running.engine, running.client)


@pytest.fixture
async def shop(server: EmbeddedServer, prefix: str) -> AsyncIterator[Shop]:
    async with open_shop(server, prefix) as shop:
        await shop.hire(WORKER)
        yield shop


# --- its life ---------------------------------------------------------------------------------------------------------


async def test_every_step_is_in_the_audit_and_in_the_record(shop: Shop) -> None:
    """Queued, delivered (measured: nobody said so), acked, succeeded: each with its instant."""
    await shop.send("c")
    await shop.pop()
    delivered = await shop.becomes("c", "delivered")
    await shop.tell("ack", command_id="c")
    await shop.becomes("c", "acked")
    await shop.tell("result", command_id="c", payload={"lines": 3})
    record = await shop.becomes("c", "succeeded")
    assert await shop.status_changes("c") == ["queued", "delivered", "acked", "succeeded"]
    instants = [record[name] for name in ("accepted_at", "queued_at", "delivered_at", "acked_at", "ended_at")]
    assert instants == sorted(instants)
    assert delivered["delivered_at"] == record["delivered_at"]
    assert (json.loads(record["result"]), record["attempt"]) == ({"lines": 3}, "1")
    (fact,) = await shop.audit("command_delivered")
    assert fact["by"] == "engine"


async def test_a_large_result_is_kept_as_its_digest(server: EmbeddedServer, prefix: str) -> None:
    async with open_shop(server, prefix, commands__max_result_bytes=100) as shop:
        await shop.hire(WORKER)
        await shop.send("c")
        await shop.tell("result", command_id="c", payload={"text": "x" * 200})
        record = await shop.becomes("c", "succeeded")
        assert (record.get("result", ""), record["result_size"]) == ("", "211")
        assert record["result_digest"]


async def test_only_the_first_outcome_from_the_right_agent_counts(shop: Shop) -> None:
    """Late, double and contradictory ones change nothing; a stranger's is buried."""
    await shop.hire("w-1")
    await shop.send("c")
    await shop.tell("result", "w-1", command_id="c")
    await eventually(shop.dead_letters)
    assert [code for code, _ in await shop.dead_lettered()] == ["foreign_command"]
    assert (await shop.command("c"))["status"] == "queued"
    await shop.tell("result", command_id="c", payload={"n": 1})
    before = await shop.becomes("c", "succeeded")
    for kind, payload in (("result", {"n": 2}), ("error", {"code": "oops"}), ("ack", {})):
        await shop.tell(kind, command_id="c", payload=payload)
    await eventually(shop.is_drained)
    assert await shop.command("c") == before
    assert (await shop.status_changes("c"))[-1] == "succeeded"


async def test_a_repeated_request_gets_the_first_reply_from_any_engine(server: EmbeddedServer, prefix: str) -> None:
    """Whatever it says the second time: nothing is done twice, refused or not."""
    async with open_shop(server, prefix) as shop:
        await shop.hire(WORKER)
        first, refused = await shop.send("c"), await shop.send("d", "nobody")
        assert await shop.send("c", kind="other") == first
    async with open_shop(server, prefix) as shop:
        await shop.hire("nobody")
        assert (await shop.send("c"), await shop.send("d", "nobody")) == (first, refused)
        assert await shop.listed() == ["c"]
        assert refused["error"]["code"] == "unknown_agent"


# --- clocks -----------------------------------------------------------------------------------------------------------


async def test_a_deadline_whose_decision_raises_does_not_delay_others(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours, met by one command, is told of each time; others expire, and no service is started anew."""
    for each in ("cursed", "plain"):
        await shop.hire(f"w-{each}")

    def decide(draft: Draft, rules: Policy, member: str, at: float, **wrong_type_keys: frozenset[str]) -> Decision:
        if member == "command:cursed":
            raise ZeroDivisionError("oh")
        return decide_deadline(draft, rules, member, at, **wrong_type_keys)

    monkeypatch.setattr(timekeeper, "decide_deadline", decide)
    for each in ("cursed", "plain"):
        await shop.send(each, f"w-{each}", ttl=SOON_S)
    await eventually(lambda: shop.audit("command_expired"))
    assert [fact["command_id"] for fact in await shop.audit("command_expired")] == ["plain"]
    monkeypatch.undo()
    await eventually(partial(_has_expired, shop, "cursed"))


async def _has_expired(shop: Shop, command_id: str) -> bool:
    return (await shop.command(command_id))["status"] == "expired"


async def test_unacked_command_is_redelivered_then_dead_lettered(shop: Shop) -> None:
    """Under one id, numbered; in the end it is a dead letter, with all that was asked."""
    await shop.send("c", ack_timeout=SOON_S, max_attempts=3)
    assert await shop.only_expiry_is_due("c")  # the ack timeout starts when the agent pops the command
    assert await shop.listed() == ["c"]
    bodies = [await shop.pop() for _ in range(3)]
    assert [(body["id"], body.get("attempt", 1)) for body in bodies] == [("c", 1), ("c", 2), ("c", 3)]
    record = await shop.becomes("c", "dead")
    assert (record["code"], record["attempt"]) == ("attempts_exhausted", "3")
    (letter,) = await shop.dead_letters()
    assert (letter["source"], letter["code"], json.loads(letter["raw"])["id"]) == (
        b"commands",
        b"attempts_exhausted",
        "c",
    )


async def test_command_is_not_redelivered_to_an_agent_without_ack(shop: Shop) -> None:
    await shop.hire("plain", capabilities=())
    await shop.send("c", "plain", ack_timeout=SOON_S)
    await shop.pop("plain")
    record = await shop.becomes("c", "delivered")
    # The next clock is that of the execution: no ack timeout runs.
    running_s = from_iso(record["step_at"]) - from_iso(record["delivered_at"])
    assert abs(running_s - float(record["timeout"])) <= ROUNDING_S
    assert (await shop.status_changes("c"), await shop.listed("plain")) == (["queued", "delivered"], [])


async def test_command_that_exceeds_its_execution_timeout_fails(shop: Shop) -> None:
    await shop.send("c", timeout=SOON_S)
    await shop.tell("ack", command_id="c")
    assert (await shop.becomes("c", "failed"))["code"] == "timeout"


async def test_progress_restarts_the_execution_timeout(shop: Shop) -> None:
    await shop.send("c", timeout=600)
    await shop.tell("ack", command_id="c")
    acked = await shop.becomes("c", "acked")
    await shop.tell("progress", command_id="c")

    async def step_at_after_progress() -> str:
        record = await shop.command("c")
        return record["step_at"] if record.get("progress_at") else ""

    assert from_iso(await eventually(step_at_after_progress)) > from_iso(acked["step_at"])


@pytest.mark.parametrize(("retryable", "end"), [(True, "waiting"), (False, "failed")])
async def test_an_error_is_tried_again_only_where_it_says_so(shop: Shop, *, retryable: bool, end: str) -> None:
    await shop.send("c", max_attempts=5)
    await shop.pop()
    await shop.tell("error", command_id="c", payload={"code": "busy", "retryable": retryable})
    await eventually(shop.is_drained)
    if end == "failed":
        assert (await shop.becomes("c", "failed"))["code"] == "busy"
    else:
        assert (await shop.pop())["id"] == "c"
        record = await shop.command("c")
        assert (record["attempt"], record["failures"]) == ("2", "1")


async def test_a_scheduled_command_is_queued_once_by_the_next_leader(server: EmbeddedServer, prefix: str) -> None:
    async with open_shop(server, prefix) as shop:
        await shop.hire(WORKER)
        assert (await shop.send("c", start_in=0.6))["status"] == "scheduled"
    async with open_shop(server, prefix) as shop:
        await shop.becomes("c", "queued")
    async with open_shop(server, prefix) as shop:
        await shop.wait_dispatched("later")
        assert await shop.listed() == ["c"]
        assert await shop.status_changes("c") == ["scheduled", "waiting", "queued"]


async def test_dead_letters_are_bounded_in_age(server: EmbeddedServer, prefix: str) -> None:
    """What is too old goes by itself, and nothing that is younger."""
    async with open_shop(server, prefix, retention__dead_letter_ttl=3600, retention__trim_interval=0.05) as shop:
        now, _ = await shop.client.time()
        for at in (now - 7200, now - 3601, now - 3000):
            await shop.call("XADD", shop.keys.dead_letters, f"{at}000-0", "code", "old")
        await eventually(partial(_counts, shop, "XLEN", shop.keys.dead_letters, 1))
        assert shop.metric("aism_dead_letters_trimmed_total") == 2


# --- flow -------------------------------------------------------------------------------------------------------------


async def test_commands_beyond_max_in_flight_wait_by_priority_and_order(server: EmbeddedServer, prefix: str) -> None:
    """As much as was agreed is with the agent; as soon as one has ended the next one goes out."""
    async with open_shop(server, prefix, commands__max_in_flight=2, commands__max_queued=6) as shop:
        await shop.hire(WORKER)
        for name in ("first", "second", "low", "normal-1", "normal-2", "high"):
            priority = name.partition("-")[0]
            await shop.send(name, priority=priority if priority in {"low", "high"} else "normal")
        refused = await shop.send("too-many")
        assert refused["error"]["code"] == "queue_full"
        assert await shop.listed() == ["first", "second"]
        done = []
        for _ in range(6):
            done.append((await shop.pop())["id"])
            await shop.tell("result", command_id=done[-1])
            await shop.becomes(done[-1], "succeeded")
            assert len(await shop.listed()) <= 2
        assert done == ["first", "second", "high", "normal-1", "normal-2", "low"]


async def test_a_pause_holds_on_every_path_and_outlives_the_engine(server: EmbeddedServer, prefix: str) -> None:
    """A new command, one whose time comes, one that is due again: none is handed out until the pause ends."""
    async with open_shop(server, prefix) as shop:
        await shop.hire(WORKER)
        await shop.send("again", ack_timeout=SOON_S)
        await shop.pop()
        await shop.becomes("again", "delivered")
        assert (await shop.request("p", "pause", agent_id=WORKER))["hold"] == "pause"
        await shop.send("new")
        await shop.send("later", start_in=SOON_S)
        for command_id in ("again", "later"):
            await shop.becomes(command_id, "waiting")
        await shop.wait_dispatched("first")
        assert await shop.listed() == []
    async with open_shop(server, prefix) as shop:
        await shop.wait_dispatched("second")
        assert await shop.listed() == []
        await shop.request("r", "resume", agent_id=WORKER)
        await eventually(partial(_all_listed, shop, {"again", "new", "later"}))


async def test_a_pause_of_the_fleet_is_for_those_who_join_it_too(server: EmbeddedServer, prefix: str) -> None:
    async with open_shop(server, prefix) as shop:
        await shop.request("p", "pause", all=True)
    async with open_shop(server, prefix) as shop:
        await shop.hire(WORKER)
        assert (await shop.send("c"))["status"] == "waiting"
        await shop.request("r", "resume", all=True)
        await eventually(partial(_all_listed, shop, {"c"}))


async def test_a_drain_refuses_what_is_new_and_finishes_the_rest(server: EmbeddedServer, prefix: str) -> None:
    async with open_shop(server, prefix, commands__max_in_flight=1) as shop:
        await shop.hire(WORKER)
        await shop.send("first")
        await shop.send("second")
        await shop.request("d", "drain", agent_id=WORKER)
        assert (await shop.send("third"))["error"]["code"] == "draining"
        for command_id in ("first", "second"):
            assert (await shop.pop())["id"] == command_id
            await shop.tell("result", command_id=command_id)
            await shop.becomes(command_id, "succeeded")


async def test_a_cancelled_command_is_taken_out_of_the_list_or_called_off(shop: Shop) -> None:
    await shop.send("queued")
    await shop.send("taken")
    await shop.request("k-1", "cancel", command_id="queued")
    assert await shop.listed() == ["taken"]
    await shop.pop()
    await shop.becomes("taken", "delivered")
    await shop.request("k-2", "cancel", command_id="taken")
    notice = await shop.pop()
    assert (notice["type"], notice["payload"]) == ("cancel", {"command_id": "taken"})
    await shop.tell("result", command_id="taken")
    await eventually(shop.is_drained)
    assert [(await shop.command(each))["status"] for each in ("queued", "taken")] == ["cancelled", "cancelled"]
    again = await shop.request("k-3", "cancel", command_id="taken")
    assert again["error"]["code"] == "command_ended"


@pytest.mark.parametrize(("on_lost", "status"), [("hold", "queued"), ("fail", "failed")])
async def test_on_lost_holds_or_fails_the_commands_of_a_lost_agent(
    server: EmbeddedServer, prefix: str, on_lost: str, status: str
) -> None:
    async with open_shop(server, prefix, liveness__silent_after=0.3, liveness__lost_after=0.6) as shop:
        await shop.hire(WORKER)
        seconds, _ = await shop.client.time()
        await shop.call("ZADD", shop.keys.heartbeats, seconds, WORKER)
        await shop.send("c", on_lost=on_lost)
        await eventually(partial(shop.audit, "agent_lost"), 10.0)
        record = await shop.becomes("c", status)
        assert record.get("code", "") == ("agent_lost" if status == "failed" else "")


# --- many -------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
async def test_a_fanout_reaches_each_target_once_though_its_engine_is_killed(
    server: EmbeddedServer, prefix: str
) -> None:
    """Killed again and again while it is carried out: in the end each agent has it once."""
    count, rng = 3000, random.Random(7)
    environ = {"AISM_REDIS__PREFIX": prefix, "AISM_HTTP__ENABLED": "false", "AISM_LEASE__TTL": "1"}
    environ |= {"AISM_LEASE__RENEW_INTERVAL": "0.2", "AISM_LOGS__FORMAT": "json"}
    engine = EngineProcess("engine", ["--redis", server.url], environ)
    async with plain_client(server) as client:
        fleet = Reader(client, prefix)
        keys = fleet.keys
        await engine.start()
        try:
            joining = ({"type": "register", "agent_id": f"w-{n}", "payload": {"type": "worker"}} for n in range(count))
            await fleet.say(*joining)
            await eventually(partial(_counts, fleet, "SCARD", keys.index, count), 30.0)
            request = {"select": "type=worker", "command": {"type": "work"}, "options": {"quorum": "80%"}}
            await fleet.ask({"id": "all", "type": "send", "payload": request})
            for _ in range(3):
                await asyncio.sleep(rng.uniform(0.0, 0.15))
                await engine.kill()
                await engine.start()
                await eventually(partial(_leads, fleet), 20.0)
            reply = await fleet.replied("all", 20.0)
            assert reply["targets"] == count
            await eventually(partial(_counts, fleet, "LLEN", keys.fanout, 0), 30.0)
            lists = [await fleet.call("LRANGE", keys.commands(f"w-{n}"), 0, -1) for n in range(count)]
            assert Counter(len(each) for each in lists) == {1: count}
            assert {json.loads(each[0])["id"] for each in lists} == {f"all.w-{n}" for n in range(count)}
            queued = Counter(fact["command_id"] for fact in await fleet.audit("command_queued"))
            assert (len(queued), set(queued.values())) == (count, {1})
        finally:
            await engine.terminate()
        assert engine.complaints() == []


async def test_any_chooses_among_those_who_can_take_it(shop: Shop) -> None:
    """Not one who is paused or has more to do."""
    await shop.hire("w-1", "w-2")
    await shop.request("p", "pause", agent_id="w-1")
    await shop.send("c")
    reply = await shop.request("any", "send", select="type=worker", any=True, command={"type": "work"})
    assert (reply["agent_id"], await shop.listed("w-2")) == ("w-2", ["any"])


async def _all_listed(shop: Shop, expected: set[str]) -> bool:
    return sorted(await shop.listed()) == sorted(expected)


async def _counts(fleet: Reader, call: str, key: str, expected: int) -> bool:
    return bool(await fleet.call(call, key) == expected)


async def _leads(fleet: Reader) -> bool:
    return await fleet.call("GET", fleet.keys.lease) is not None


async def test_who_registered_before_a_selector_was_asked_for_is_meant_by_it(shop: Shop) -> None:
    """Its register lies in another queue than the request: that is heard out before anybody is said not to be there."""
    push, ask = shop.keys.response_queue, shop.keys.request_queue
    for number in range(20):
        kind = f"late-{number}"
        register = {"type": "register", "agent_id": kind, "payload": {"type": kind}}
        request = {"id": kind, "type": "send", "payload": {"select": f"type={kind}", "command": {"type": "x"}}}
        await shop.call("LPUSH", push, json.dumps(register))
        await shop.call("LPUSH", ask, json.dumps(request))
        await shop.call("PUBLISH", shop.keys.requests, "")
        assert (await shop.replied(kind))["ok"] is True


@pytest.mark.parametrize("by", ["the same engine", "the next"])
async def test_what_has_lost_its_deadline_is_found_by_its_record(
    server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """A command ends when its time is over though the index has lost it, and so does the group that it is of."""
    monkeypatch.setattr(Reconciler, "wait", lambda _: asyncio.sleep(0.02))
    async with open_shop(server, prefix) as shop:
        await shop.hire(WORKER)
        await shop.call("LPUSH", shop.keys.commands(WORKER), "{}")  # so that nothing of it is taken for delivered
        options = {"ttl": 1.5}
        await shop.request("all", "send", select="type=worker", command={"type": "work"}, options=options)
        await shop.becomes(f"all.{WORKER}", "queued")
        if by == "the same engine":
            await shop.call("DEL", shop.keys.deadlines)
            await shop.becomes(f"all.{WORKER}", "expired")
    if by == "the next":
        async with plain_client(server) as client:
            await client.delete(Keys(prefix).deadlines)
        async with open_shop(server, prefix) as shop:
            await shop.becomes(f"all.{WORKER}", "expired")
            group = await shop.call("HGET", shop.keys.group("all"), "ended_at")
            assert group


async def test_an_engine_without_the_right_to_walk_over_the_keys_works_all_the_same(prefix: str) -> None:
    """Some servers do not have SCAN: then what has lost its deadline is not found, and nothing else is missing."""
    with EmbeddedServer(test_server_binary(), extra=("--rename-command", "SCAN", "")) as server:
        async with open_shop(server, prefix) as shop:
            await shop.hire(WORKER)
            assert (await shop.send("c1"))["ok"] is True
