"""Laws of what an engine at work exports, whatever others say to it."""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from aism_engine.services.base import Service
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine


def series(running: Running) -> set[tuple[str, ...]]:
    """Give each series that is exported: its name and its labels."""
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
        for metric in running.engine.metrics.registry.collect()
        for sample in metric.samples
    }


def inventions(first: int, last: int) -> Iterator[dict[str, Any]]:
    """Say something new in every field that an agent may choose."""
    for n in range(first, last):
        yield {"type": "register", "agent_id": f"a{n}", "payload": {"type": f"type-{n}", "labels": {f"l{n}": f"v{n}"}}}
        yield {"type": "state_transition", "agent_id": f"u{n}", "payload": {"target": f"s{n}"}}
        yield {"type": f"kind-{n}", "agent_id": f"a{n}"}
        yield {"type": "error", "agent_id": f"a{n}", "payload": {"type": f"e{n}", "code": f"c{n}"}}
        yield {"type": "message", "agent_id": f"a{n}", "payload": {"to": f"a{n}", "content": 1, "type": f"m{n}"}}
        yield {"type": "goodbye", "agent_id": f"a{n}", "payload": {"reason": f"r{n}"}}


async def invent(running: Running, first: int, last: int) -> None:
    """Be an agent, and an operator, who never says the same twice; wait until all of it has been decided on."""
    await running.say(*inventions(first, last))
    await eventually(running.is_drained)  # a command to an agent that is not known is refused
    for n in range(first, last):
        command = {"type": f"work-{n}", "payload": {"type": f"p{n}"}}
        await running.ask(
            {"id": f"c{n}", "type": "send", "payload": {"agent_id": f"u{n}", "command": command}},
            {"id": f"q{n}", "type": f"request-{n}", "payload": {}},
        )
        change = {"agent_id": f"u{n}", "old_state": f"x{n}", "new_state": f"y{n}"}
        await running.call("PUBLISH", running.keys.state_changes, json.dumps(change))
    await running.ask({"id": f"last-{last}", "type": "resume", "payload": {"all": True}, "reply": True})
    await running.replied(f"last-{last}")
    await eventually(running.is_drained)
    await eventually(lambda: running.metric("aism_commands_open") == last)


async def test_no_invention_is_a_series(server: EmbeddedServer, prefix: str) -> None:
    """Whatever agents and operators make up, there are as many series after twice as much of it."""
    async with running_engine(server, prefix, sampler__label_values=5) as running:
        await invent(running, 0, 60)
        before = series(running)
        await invent(running, 60, 120)
        assert series(running) - before == set()
        assert running.metric("aism_agents_in_state", type="other", state="other") > 0
        assert running.metric("aism_command_steps_total", type="other", status="queued") == 115


async def test_what_can_be_counted_is_there_before_it_happens(server: EmbeddedServer, prefix: str) -> None:
    """A counter that begins at 1 has not grown, to whoever watches it: the first outage would be no outage."""
    async with running_engine(server, prefix) as running:
        shown = series(running)
    for name, label, value in (
        ("aism_redis_outages_total", "outage", "refused"),
        ("aism_commits_total", "code", "fenced"),
        ("aism_machine_reloads_total", "outcome", "refused"),
        ("aism_service_failures_total", "service", "response_consumer"),
        ("aism_service_restarts_total", "service", "response_consumer"),
    ):
        assert (name, f"{label}={value}") in shown
    assert [name for name, *_ in shown if name.endswith("_created")] == []


async def test_a_command_that_nobody_takes_grows_old(server: EmbeddedServer, prefix: str) -> None:
    """Whether it lies in a list or waits for the end of a pause; one that is taken, or not due yet, does not."""
    async with running_engine(server, prefix) as running:

        async def send(command_id: str, agent_id: str, **options: object) -> None:
            payload = {"agent_id": agent_id, "command": {"type": "work"}, "options": options}
            await running.ask({"id": command_id, "type": "send", "payload": payload, "reply": True})
            assert (await running.replied(command_id))["ok"]

        def age_s() -> float:
            return running.metric("aism_oldest_undelivered_command_seconds")

        for agent_id in ("lists", "waits"):
            await running.say({"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}})
        await eventually(lambda: running.metric("aism_agents", liveness="unknown") == 2)
        await send("later", "lists", start_in=3600)
        await eventually(lambda: running.metric("aism_commands_open") == 1)
        assert age_s() == 0
        await send("listed", "lists")
        await eventually(lambda: age_s() > 0.05)
        await running.call("RPOP", running.keys.commands("lists"))
        await eventually(lambda: age_s() == 0)
        await running.ask({"id": "p", "type": "pause", "payload": {"agent_id": "waits"}, "reply": True})
        await running.replied("p")
        await send("waiting", "waits")
        await eventually(lambda: age_s() > 0.05)


async def test_every_service_says_when_it_last_worked_and_how_long_it_takes(
    server: EmbeddedServer, prefix: str
) -> None:
    """With nothing to do at all: who stands still is told from who has nothing to do."""
    async with running_engine(server, prefix) as running:
        services = [each for each in running.engine.components if isinstance(each, Service)]

        def last_at(service: Service) -> float:
            return running.metric("aism_last_success_timestamp_seconds", service=service.name)

        for service in services:
            await eventually(partial(last_at, service))
            if not service.polls:
                assert running.metric("aism_run_seconds_count", service=service.name) > 0, service.name
            else:
                assert running.metric("aism_run_seconds_count", service=service.name) == 0, service.name
        before = time.time()
        often = [each for each in services if each.name in {"response_consumer", "elector", "listener", "sampler"}]
        await eventually(lambda: min(map(last_at, often)) > before)
