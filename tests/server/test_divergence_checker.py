"""The divergence checker on a real server, across a takeover."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import pytest

from aism_engine.domain.agents.divergence import RULES
from aism_engine.services.divergence_checker import DivergenceChecker
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine

QUICK: Final[dict[str, object]] = {
    "divergence__poll_interval": 0.05,
    "divergence__idle_evidence_after": 0.3,
    "divergence__heartbeat_evidence_after": 0.2,
    "divergence__forbidden_evidence_after": 0.1,
    "divergence__context_evidence_after": 0.1,
    "divergence__switch_window": 5.0,
    "commands__ack_timeout": 0.05,
    "commands__backoff_initial": 0.01,
    "commands__timeout": 0.05,
    "dispatcher__poll_interval": 0.01,
    "commands__max_attempts": 100,
}


async def respond(engine: Running, kind: str, payload: dict[str, Any], **fields: Any) -> None:  # noqa: ANN401
    await engine.say({"type": kind, "agent_id": "a", "payload": payload, **fields})


async def enter(engine: Running, *states: str) -> None:
    for state in states:
        await respond(engine, "state_transition", {"target": state})


async def send_heartbeats(engine: Running, over: asyncio.Event) -> None:
    at = 1_800_000_000.0
    while not over.is_set():
        at += 0.01
        await engine.call("ZADD", engine.keys.heartbeats, at, "a")
        await asyncio.sleep(0.06)


async def alternate_instances(engine: Running, over: asyncio.Event) -> None:
    """Respond as two processes under one agent id, alternately."""
    while not over.is_set():
        for instance in ("first", "second"):
            await engine.say({"type": "heartbeat", "agent_id": "a", "instance": instance})
        await asyncio.sleep(0.06)


async def take_commands(engine: Running, over: asyncio.Event, *, ack: bool) -> None:
    """Take commands, acknowledge them if `ack`, and finish none."""
    number = 0
    while not over.is_set():
        if (await engine.command(f"c{number}")).get("status", "failed") == "failed":
            number += 1
            command = {"agent_id": "a", "command": {"type": "work"}}
            await engine.ask({"type": "send", "id": f"c{number}", "payload": command})
            await eventually(partial(engine.command, f"c{number}"))
        popped = await engine.call("RPOP", engine.keys.commands("a"))
        if popped is not None and ack:
            await engine.say({"type": "ack", "agent_id": "a", "command_id": json.loads(popped)["id"]})
        await asyncio.sleep(0.01)


async def diverge(engine: Running, rule: str, over: asyncio.Event) -> None:
    """Do what the rule looks for, until `over` is set."""
    match rule:
        case "idle_at_work":
            await enter(engine, "inbox", "deep_work")
        case "heartbeat_while_absent":
            await enter(engine, "inbox", "logout", "offline")
            await send_heartbeats(engine, over)
        case "forbidden_state":
            await enter(engine, "inbox")
            await eventually(partial(engine.state, "a"))
            await engine.call("PUBLISH", engine.keys.state_changes, '{"agent_id":"a","new_state":"nirvana"}')
        case "never_acks" | "never_finishes":
            await take_commands(engine, over, ack=rule == "never_finishes")
        case "duplicate_instance":
            await alternate_instances(engine, over)
        case "context_too_large":
            await respond(engine, "measurement", {"context_tokens": 1_000_000})


@asynccontextmanager
async def diverging(engine: Running, rule: str) -> AsyncIterator[None]:
    over = asyncio.Event()
    task = asyncio.create_task(diverge(engine, rule, over))
    try:
        yield
    finally:
        over.set()
        await task


@pytest.mark.parametrize("rule", RULES)
async def test_a_divergence_opens_survives_a_takeover_and_closes(
    server: EmbeddedServer, prefix: str, rule: str
) -> None:
    """In the audit, the record and the metric."""

    async def opened() -> list[dict[str, Any]]:
        return await engine.audit("divergence_opened")

    async def closed() -> list[dict[str, Any]]:
        return await engine.audit("divergence_closed")

    settings = QUICK | {f"divergence__{each}": each == rule for each in RULES}
    async with running_engine(server, prefix, **settings) as engine:
        await respond(engine, "register", {"type": "scribe", "capabilities": ["ack"]})
        await eventually(partial(engine.record, "a"))
        async with diverging(engine, rule):
            facts = await eventually(opened)
        assert [(fact["agent_id"], fact["type"], fact["code"]) for fact in facts] == [("a", "scribe", rule)]
        await eventually(lambda: engine.metric("aism_divergences_open", rule=rule, type="scribe") == 1)
    async with running_engine(server, prefix, **settings) as engine:
        await eventually(lambda: engine.metric("aism_divergences_open", rule=rule, type="scribe") == 1)
        assert rule in (await engine.record("a"))["divergences"]
        await respond(engine, "goodbye", {})
        await eventually(closed)
        assert (await engine.record("a"))["divergences"] == {}
        await eventually(lambda: engine.metric("aism_divergences_open", rule=rule, type="scribe") == 0)
        assert [fact["code"] for fact in await opened()] == [rule]


async def test_evidence_counts_from_the_end_of_a_blind_spell(server: EmbeddedServer, prefix: str) -> None:
    after_s = 0.3
    async with running_engine(
        server, prefix, divergence__poll_interval=1000.0, divergence__idle_evidence_after=after_s
    ) as engine:
        store = engine.engine.store
        checker = next(part for part in engine.engine.components if isinstance(part, DivergenceChecker))

        async def check_after(seconds: float) -> list[dict[str, Any]]:
            began = store.now
            await eventually(lambda: store.now >= began + seconds)
            await checker.run_once()
            return await engine.audit("divergence_opened")

        await respond(engine, "register", {"type": "scribe"})
        await enter(engine, "inbox", "deep_work")
        await eventually(lambda: engine.audit("state_changed", agent_id="a"))
        assert await check_after(0.0) == []
        checker._checked_at = float("-inf")
        assert await check_after(2 * after_s) == []
        (found,) = await check_after(2 * after_s)
        assert found["code"] == "idle_at_work"
