"""Commands on a real server: each reaches its agent, or its sender learns why it did not."""

import asyncio
import itertools
import json
from collections.abc import Set as AbstractSet
from functools import partial

import pytest

from aism_engine.clock import ROUNDING_S, from_iso
from aism_engine.domain.commands.deadlines import KeyKind, decide_deadline
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.services import timekeeper
from aism_engine.services.reconciler import Reconciler
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.store import Store
from tests.support.engine import eventually, plain_client
from tests.support.server import OwnServer
from tests.support.workers import SOON_S, WORKER, Workers, open_workers


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


async def test_deadline_whose_decision_raises_does_not_delay_others(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands expire, no service restarts, and the command expires once the bug is mended."""
    for each in ("raises", "plain"):
        await workers.register(f"w-{each}")

    def decide(
        draft: Draft, rules: Policy, member: str, at: float, **wrong_type_keys: AbstractSet[KeyKind]
    ) -> Decision:
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
        now = int(await workers.now())
        for at in (now - 7200, now - 3601, now - 3000):
            await workers.call("XADD", workers.keys.dead_letters, f"{at}000-0", "code", "old")
        await eventually(lambda: workers.metric("aism_dead_letters_trimmed_total") == 2)
        assert await workers.call("XLEN", workers.keys.dead_letters) == 1


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


async def test_a_command_that_lost_its_deadline_brings_back_its_group(
    server: EmbeddedServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group counts its last command, although the scan has not come to the group when the command ends."""
    scan = Store.scan_without_deadline

    async def scan_without_groups(store: Store, cursor: int, chunk: int) -> tuple[int, set[str], set[str]]:
        cursor, commands, _ = await scan(store, cursor, chunk)
        return cursor, commands, set()

    monkeypatch.setattr(Reconciler, "wait", lambda _: asyncio.sleep(0.02))
    monkeypatch.setattr(Store, "scan_without_deadline", scan_without_groups)
    async with open_workers(server, prefix) as workers:
        await workers.register(WORKER)
        await workers.request("all", "send", select="type=worker", command={"type": "work"}, options={"ttl": 1.5})
        await eventually(partial(workers.audit, "command_queued"))
    async with plain_client(server) as client:
        await client.delete(Keys(prefix).deadlines)
    async with open_workers(server, prefix) as workers:
        await eventually(partial(workers.call, "HGET", workers.keys.group("all"), "ended_at"))
        assert await workers.call("HGET", workers.keys.group("all"), "expired") == b"1"


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
