"""Commands on a real server: each reaches its agent, or its sender learns why it did not."""

import asyncio
import itertools
import json
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
from tests.support.daemon import EngineProcess
from tests.support.engine import Reader, Running, eventually, plain_client, running_engine
from tests.support.server import OwnServer

WORKER: Final = "w-0"
QUICK: Final[dict[str, object]] = {
    "dispatcher__poll_interval": 0.02,
    "commands__backoff_initial": 0.02,
    "commands__backoff_max": 0.02,
}
SOON_S: Final = 0.15
"""A timeout that a test lets run out."""


class Workers(Running):
    """A running engine, and methods that act as its workers and as its operator."""

    responses = 0

    async def register(self, *agents: str, capabilities: tuple[str, ...] = ("ack",)) -> None:
        for agent_id in agents:
            await self.respond("register", agent_id, payload={"type": "worker", "capabilities": capabilities})
        await eventually(partial(self.record, agents[-1]))

    async def respond(self, kind: str, agent_id: str = WORKER, **fields: Any) -> None:  # noqa: ANN401 - fields of a message
        self.responses += 1
        await self.say({"id": f"response-{self.responses}-{id(self)}", "type": kind, "agent_id": agent_id, **fields})

    async def send(
        self, request_id: str, agent_id: str = WORKER, kind: str = "work", **options: object
    ) -> dict[str, Any]:
        payload = {"agent_id": agent_id, "command": {"type": kind}, "options": options}
        return await self.request(request_id, "send", **payload)

    async def request(self, request_id: str, kind: str, **payload: object) -> dict[str, Any]:
        await self.ask({"id": request_id, "type": kind, "payload": payload})
        return await self.replied(request_id)

    async def listed(self, agent_id: str = WORKER) -> list[str]:
        """Return the ids of the commands in an agent's list, in the order in which the agent pops them."""
        bodies = await self.call("LRANGE", self.keys.commands(agent_id), 0, -1)
        return [json.loads(body)["id"] for body in reversed(bodies)]

    async def pop(self, agent_id: str = WORKER) -> dict[str, Any]:
        """Pop the next command, as the agent does."""
        body = await self.call("BRPOP", self.keys.commands(agent_id), 300)
        assert body is not None, "no command was delivered"
        found: dict[str, Any] = json.loads(body[1])
        return found

    async def wait_status(self, command_id: str, status: str) -> dict[str, str]:
        """Wait until the command has a status that it keeps, and return its record."""

        async def record() -> dict[str, str] | None:
            found = await self.command(command_id)
            return found if found.get("status") == status else None

        found = await eventually(record)
        assert found is not None
        return found

    async def only_expiry_is_due(self, command_id: str) -> bool:
        """Return whether the expiry is the only deadline of the command."""
        record = await self.command(command_id)
        due_at = await self.call("ZSCORE", self.keys.deadlines, f"command:{command_id}")
        return not record.get("step_at") and abs(float(due_at) - from_iso(record["expires_at"])) <= ROUNDING_S

    async def wait_dispatched(self, command_id: str) -> None:
        """Send a command to another agent and wait until it is in the list: the dispatcher is past all earlier ones."""
        other = f"agent-of-{command_id}"
        await self.register(other)
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
async def open_workers(server: EmbeddedServer, prefix: str, **overrides: object) -> AsyncIterator[Workers]:
    async with running_engine(server, prefix, **(QUICK | overrides)) as running:
        yield Workers(running.engine, running.client)


@pytest.fixture
async def workers(server: EmbeddedServer, prefix: str) -> AsyncIterator[Workers]:
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        yield workers


# --- steps and outcome ------------------------------------------------------------------------------------------------


async def test_every_step_is_in_the_audit_and_in_the_record(workers: Workers) -> None:
    """Queued, delivered, acked, succeeded, each with its instant. The engine itself observes the delivery.

    The record has the result, and expires after the retention.
    """
    await workers.send("c")
    await workers.pop()
    delivered = await workers.wait_status("c", "delivered")
    await workers.respond("ack", command_id="c")
    await workers.wait_status("c", "acked")
    await workers.respond("progress", command_id="c", payload={"percent": 50})
    await workers.respond("result", command_id="c", payload={"lines": 3})
    record = await workers.wait_status("c", "succeeded")
    assert await workers.status_changes("c") == ["queued", "delivered", "acked", "succeeded"]
    instants = [
        record[name] for name in ("accepted_at", "queued_at", "delivered_at", "acked_at", "progress_at", "ended_at")
    ]
    assert instants == sorted(instants)
    assert delivered["delivered_at"] == record["delivered_at"]
    assert (json.loads(record["result"]), record["attempt"], record["percent"]) == ({"lines": 3}, "1", "50")
    assert 80_000_000 < await workers.call("PTTL", workers.keys.command("c")) <= 86_400_000
    assert await workers.call("ZCARD", workers.keys.deadlines) == 0
    (fact,) = await workers.audit("command_delivered")
    assert fact["by"] == "engine"


async def test_large_result_is_kept_as_its_digest(server: EmbeddedServer, prefix: str) -> None:
    async with open_workers(server, prefix, commands__max_result_bytes=100) as workers:
        await workers.register(WORKER)
        await workers.send("c")
        await workers.respond("result", command_id="c", payload={"text": "x" * 200})
        record = await workers.wait_status("c", "succeeded")
        assert (record.get("result", ""), record["result_size"]) == ("", "211")
        assert record["result_digest"]


async def test_only_the_first_outcome_from_the_right_agent_counts(workers: Workers) -> None:
    """A later outcome changes nothing; the outcome from another agent is dead-lettered."""
    await workers.register("w-1")
    await workers.send("c")
    await workers.respond("result", "w-1", command_id="c")
    await eventually(workers.dead_letters)
    assert [code for code, _ in await workers.dead_lettered()] == ["foreign_command"]
    assert (await workers.command("c"))["status"] == "queued"
    await workers.respond("result", command_id="c", payload={"n": 1})
    before = await workers.wait_status("c", "succeeded")
    for kind, payload in (("result", {"n": 2}), ("error", {"code": "oops"}), ("ack", {})):
        await workers.respond(kind, command_id="c", payload=payload)
    await eventually(workers.is_drained)
    assert await workers.command("c") == before
    assert (await workers.status_changes("c"))[-1] == "succeeded"


async def test_repeated_request_gets_the_first_reply_from_any_engine(server: EmbeddedServer, prefix: str) -> None:
    """Whether it was accepted or refused. Another request under the same id is refused."""
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        first, refused = await workers.send("c"), await workers.send("d", "nobody")
        assert await workers.send("c") == first
    async with open_workers(server, prefix) as workers:
        await workers.register("nobody")
        assert (await workers.send("c"), await workers.send("d", "nobody")) == (first, refused)
        assert (await workers.send("c", kind="other"))["error"]["code"] == "id_reused"
        assert await workers.listed() == ["c"]
        assert refused["error"]["code"] == "unknown_agent"


# --- deadlines --------------------------------------------------------------------------------------------------------


async def test_deadline_whose_decision_raises_does_not_delay_others(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands expire, no service restarts, and the command expires once the bug is mended."""
    for each in ("raises", "plain"):
        await workers.register(f"w-{each}")

    def decide(draft: Draft, rules: Policy, member: str, at: float, **wrong_type_keys: frozenset[str]) -> Decision:
        if member == "command:raises":
            raise ZeroDivisionError("a bug")
        return decide_deadline(draft, rules, member, at, **wrong_type_keys)

    monkeypatch.setattr(timekeeper, "decide_deadline", decide)
    for each in ("raises", "plain"):
        await workers.send(each, f"w-{each}", ttl=SOON_S)
    await eventually(lambda: workers.audit("command_expired"))
    assert [fact["command_id"] for fact in await workers.audit("command_expired")] == ["plain"]
    monkeypatch.undo()
    await eventually(partial(_has_expired, workers, "raises"))


async def _has_expired(workers: Workers, command_id: str) -> bool:
    return (await workers.command(command_id))["status"] == "expired"


async def test_unacked_command_is_redelivered_then_dead_lettered(workers: Workers) -> None:
    """Each delivery has the same id and the next attempt number. The dead letter holds the whole command."""
    await workers.send("c", ack_timeout=SOON_S, max_attempts=3)
    assert await workers.only_expiry_is_due("c")  # the ack timeout starts when the agent pops the command
    assert await workers.listed() == ["c"]
    bodies = [await workers.pop() for _ in range(3)]
    assert [(body["id"], body.get("attempt", 1)) for body in bodies] == [("c", 1), ("c", 2), ("c", 3)]
    record = await workers.wait_status("c", "dead")
    assert (record["code"], record["attempt"]) == ("attempts_exhausted", "3")
    (dead_letter,) = await workers.dead_letters()
    assert (dead_letter["source"], dead_letter["code"], json.loads(dead_letter["raw"])["id"]) == (
        b"commands",
        b"attempts_exhausted",
        "c",
    )


async def test_command_is_not_redelivered_to_an_agent_without_ack(workers: Workers) -> None:
    await workers.register("plain", capabilities=())
    await workers.send("c", "plain", ack_timeout=SOON_S)
    await workers.pop("plain")
    record = await workers.wait_status("c", "delivered")
    # The next deadline is the execution timeout: there is no ack timeout.
    running_s = from_iso(record["step_at"]) - from_iso(record["delivered_at"])
    assert abs(running_s - float(record["timeout"])) <= ROUNDING_S
    assert (await workers.status_changes("c"), await workers.listed("plain")) == (["queued", "delivered"], [])


async def test_command_that_exceeds_its_execution_timeout_fails(workers: Workers) -> None:
    await workers.send("c", timeout=SOON_S)
    await workers.respond("ack", command_id="c")
    assert (await workers.wait_status("c", "failed"))["code"] == "timeout"


async def test_progress_restarts_the_execution_timeout(workers: Workers) -> None:
    await workers.send("c", timeout=600)
    await workers.respond("ack", command_id="c")
    acked = await workers.wait_status("c", "acked")
    await workers.respond("progress", command_id="c")

    async def step_at_after_progress() -> str:
        record = await workers.command("c")
        return record["step_at"] if record.get("progress_at") else ""

    assert from_iso(await eventually(step_at_after_progress)) > from_iso(acked["step_at"])


@pytest.mark.parametrize(("retryable", "end"), [(True, "waiting"), (False, "failed")])
async def test_only_a_retryable_error_is_retried(workers: Workers, *, retryable: bool, end: str) -> None:
    await workers.send("c", max_attempts=5)
    await workers.pop()
    await workers.respond("error", command_id="c", payload={"code": "busy", "retryable": retryable})
    await eventually(workers.is_drained)
    if end == "failed":
        assert (await workers.wait_status("c", "failed"))["code"] == "busy"
    else:
        assert (await workers.pop())["id"] == "c"
        record = await workers.command("c")
        assert (record["attempt"], record["failures"]) == ("2", "1")


async def test_scheduled_command_is_queued_once_by_the_next_leader(server: EmbeddedServer, prefix: str) -> None:
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        assert (await workers.send("c", start_in=0.6))["status"] == "scheduled"
    async with open_workers(server, prefix) as workers:
        await workers.wait_status("c", "queued")
    async with open_workers(server, prefix) as workers:
        await workers.wait_dispatched("later")
        assert await workers.listed() == ["c"]
        assert await workers.status_changes("c") == ["scheduled", "waiting", "queued"]


async def test_dead_letters_are_bounded_in_age(server: EmbeddedServer, prefix: str) -> None:
    """The janitor trims those older than `dead_letter_ttl`, and keeps the rest."""
    async with open_workers(server, prefix, retention__dead_letter_ttl=3600, retention__trim_interval=0.05) as workers:
        now, _ = await workers.client.time()
        for at in (now - 7200, now - 3601, now - 3000):
            await workers.call("XADD", workers.keys.dead_letters, f"{at}000-0", "code", "old")
        await eventually(lambda: workers.metric("aism_dead_letters_trimmed_total") == 2)
        assert await workers.call("XLEN", workers.keys.dead_letters) == 1


# --- flow control -----------------------------------------------------------------------------------------------------


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
    async with open_workers(server, prefix) as workers:
        await workers.request("p", "pause", all=True)
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
        seconds, _ = await workers.client.time()
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
        seconds, _ = await workers.client.time()
        await workers.call("ZADD", workers.keys.heartbeats, seconds, WORKER)
        await eventually(partial(workers.audit, "agent_lost"))
        assert (await workers.wait_status("c", "failed"))["code"] == "agent_lost"


# --- selection and fan-out --------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("by", ["the same engine", "the next"])
async def test_command_that_lost_its_deadline_is_found_by_its_record(
    server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The command expires although the deadline index no longer has it, and its group ends too."""
    monkeypatch.setattr(Reconciler, "wait", lambda _: asyncio.sleep(0.02))
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        await workers.call("LPUSH", workers.keys.commands(WORKER), "{}")  # a shorter list would count as a delivery
        options = {"ttl": 1.5}
        await workers.request("all", "send", select="type=worker", command={"type": "work"}, options=options)
        await eventually(partial(workers.audit, "command_queued"))
        if by == "the same engine":
            await workers.call("DEL", workers.keys.deadlines)
            await workers.wait_status(f"all.{WORKER}", "expired")
    if by == "the next":
        async with plain_client(server) as client:
            await client.delete(Keys(prefix).deadlines)
        async with open_workers(server, prefix) as workers:
            await workers.wait_status(f"all.{WORKER}", "expired")
            await eventually(partial(workers.call, "HGET", workers.keys.group("all"), "ended_at"))


async def test_engine_works_on_a_server_without_scan(prefix: str) -> None:
    """Without SCAN the reconciler cannot find commands that lost their deadline; nothing else depends on it."""
    with OwnServer(extra=("--rename-command", "SCAN", "")) as server:
        async with open_workers(server, prefix) as workers:
            await workers.register(WORKER)
            assert (await workers.send("c1"))["ok"] is True


async def test_a_command_of_a_killed_process_is_given_to_the_next_one(workers: Workers) -> None:
    """Acknowledged or not, as soon as the next process registers."""
    await workers.respond("register", instance="p0", payload={"type": "worker", "capabilities": ["ack"]})
    await workers.send("acked", ack_timeout=1000)
    await workers.send("taken", ack_timeout=1000)
    assert [(await workers.pop())["id"] for _ in range(2)] == ["acked", "taken"]
    await workers.respond("ack", command_id="acked", instance="p0")
    await workers.wait_status("acked", "acked")
    await workers.wait_status("taken", "delivered")
    ids = itertools.count(1)

    async def are_listed() -> bool:
        """Register one more process: only a delivery from before its registration is taken from the one before."""
        instance = f"p{next(ids)}"
        await workers.respond("register", instance=instance, payload={"type": "worker", "capabilities": ["ack"]})
        return sorted(await workers.listed()) == ["acked", "taken"]

    await eventually(are_listed)
    assert {(await workers.pop())["attempt"] for _ in range(2)} == {2}
    records = [await workers.command(each) for each in ("acked", "taken")]
    assert [(record["failures"], record["restarts"]) for record in records] == [("0", "1"), ("0", "1")]
