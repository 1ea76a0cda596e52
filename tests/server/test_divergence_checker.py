"""The laws of the witness: what is said and what is seen, compared on a real server, over a takeover."""

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


async def speak(engine: Running, kind: str, payload: dict[str, Any], **fields: Any) -> None:  # noqa: ANN401
    await engine.say({"type": kind, "agent_id": "a", "payload": payload, **fields})


async def enter(engine: Running, *states: str) -> None:
    for state in states:
        await speak(engine, "state_transition", {"target": state})


async def beat(engine: Running, over: asyncio.Event) -> None:
    at = 1_800_000_000.0
    while not over.is_set():
        at += 0.01
        await engine.call("ZADD", engine.keys.heartbeats, at, "a")
        await asyncio.sleep(0.06)


async def alternate_instances(engine: Running, over: asyncio.Event) -> None:
    """Speak as two processes under one id, in turns."""
    while not over.is_set():
        for instance in ("first", "second"):
            await engine.say({"type": "heartbeat", "agent_id": "a", "instance": instance})
        await asyncio.sleep(0.06)


async def take(engine: Running, over: asyncio.Event, *, ack: bool) -> None:
    """Take one command after the other, and confirm them or not; finish none."""
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


async def lie(engine: Running, rule: str, over: asyncio.Event) -> None:
    """Do what the rule is about, until it is over."""
    match rule:
        case "idle_at_work":
            await enter(engine, "inbox", "deep_work")
        case "heartbeat_while_absent":
            await enter(engine, "inbox", "logout", "offline")
            await beat(engine, over)
        case "forbidden_state":
            await enter(engine, "inbox")
            await eventually(partial(engine.state, "a"))
            await engine.call("PUBLISH", engine.keys.state_changes, '{"agent_id":"a","new_state":"nirvana"}')
        case "never_acks" | "never_finishes":
            await take(engine, over, ack=rule == "never_finishes")
        case "duplicate_instance":
            await alternate_instances(engine, over)
        case "context_too_large":
            await speak(engine, "measurement", {"context_tokens": 1_000_000})


@asynccontextmanager
async def lying(engine: Running, rule: str) -> AsyncIterator[None]:
    over = asyncio.Event()
    task = asyncio.create_task(lie(engine, rule, over))
    try:
        yield
    finally:
        over.set()
        await task


@pytest.mark.parametrize("rule", RULES)
async def test_a_divergence_is_told_of_outlives_its_engine_and_closes(
    server: EmbeddedServer, prefix: str, rule: str
) -> None:
    """In the audit, in the record and in the gauge; the engine that takes over knows of it, and closes it."""

    async def opened() -> list[dict[str, Any]]:
        return await engine.audit("divergence_opened")

    async def closed() -> list[dict[str, Any]]:
        return await engine.audit("divergence_closed")

    settings = QUICK | {f"divergence__{each}": each == rule for each in RULES}
    async with running_engine(server, prefix, **settings) as engine:
        await speak(engine, "register", {"type": "scribe", "capabilities": ["ack"]})
        await eventually(partial(engine.record, "a"))
        async with lying(engine, rule):
            facts = await eventually(opened, 10)
        assert [(fact["agent_id"], fact["type"], fact["code"]) for fact in facts] == [("a", "scribe", rule)]
        await eventually(lambda: engine.metric("aism_divergences_open", rule=rule, type="scribe") == 1)
    async with running_engine(server, prefix, **settings) as engine:
        await eventually(lambda: engine.metric("aism_divergences_open", rule=rule, type="scribe") == 1)
        assert rule in (await engine.record("a"))["divergences"]
        await speak(engine, "goodbye", {})
        await eventually(closed)
        assert (await engine.record("a"))["divergences"] == ""
        await eventually(lambda: engine.metric("aism_divergences_open", rule=rule, type="scribe") == 0)
        assert [fact["code"] for fact in await opened()] == [rule]


async def test_a_blind_spell_gives_everybody_the_full_grace_again(server: EmbeddedServer, prefix: str) -> None:
    """However long an agent was idle while we did not look: only what we saw since then counts."""
    after_s = 0.3
    async with running_engine(
        server, prefix, divergence__poll_interval=1000.0, divergence__idle_evidence_after=after_s
    ) as engine:
        store = engine.engine.store
        witness = next(part for part in engine.engine.components if isinstance(part, DivergenceChecker))

        async def looks_after(seconds: float) -> list[dict[str, Any]]:
            began = store.now
            await eventually(lambda: store.now >= began + seconds)
            await witness.run_once()
            return await engine.audit("divergence_opened")

        await speak(engine, "register", {"type": "scribe"})
        await enter(engine, "inbox", "deep_work")
        await eventually(lambda: engine.audit("state_changed", agent_id="a"))
        assert await looks_after(0.0) == []
        witness._checked_at = float("-inf")
        assert await looks_after(2 * after_s) == []
        (found,) = await looks_after(2 * after_s)
        assert found["code"] == "idle_at_work"
