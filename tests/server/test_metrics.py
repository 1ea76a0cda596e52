"""Metrics of a running engine have a bounded number of series, whatever agents and operators send."""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from aism_engine.services.base import Service
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine


def series(running: Running) -> set[tuple[str, ...]]:
    """Return name and labels of each exported series."""
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
        for metric in running.engine.metrics.registry.collect()
        for sample in metric.samples
    }


def label_values(running: Running) -> set[tuple[str, str]]:
    """Return each exported value of each label, with the name of the series."""
    return {(name, label) for name, *labels in series(running) for label in labels}


def in_state(running: Running) -> dict[tuple[str, str], float]:
    """Return the number of agents by type and state, as exported."""
    (gauge,) = (each for each in running.engine.metrics.registry.collect() if each.name == "aism_agents_in_state")
    return {(sample.labels["type"], sample.labels["state"]): sample.value for sample in gauge.samples}


def inventions(first: int, last: int) -> Iterator[dict[str, Any]]:
    """Yield messages with a new value in every field that an agent may choose."""
    for n in range(first, last):
        yield {"type": "register", "agent_id": f"a{n}", "payload": {"type": f"type-{n}", "labels": {f"l{n}": f"v{n}"}}}
        yield {"type": "state_transition", "agent_id": f"u{n}", "payload": {"target": f"s{n}"}}
        yield {"type": f"kind-{n}", "agent_id": f"a{n}"}
        yield {"type": "error", "agent_id": f"a{n}", "payload": {"type": f"e{n}", "code": f"c{n}"}}
        yield {"type": "message", "agent_id": f"a{n}", "payload": {"to": f"a{n}", "content": 1, "type": f"m{n}"}}
        yield {"type": "goodbye", "agent_id": f"a{n}", "payload": {"reason": f"r{n}"}}


async def invent(running: Running, first: int, last: int) -> None:
    """Send messages and requests that never repeat a value, and wait until all are decided."""
    await running.say(*inventions(first, last))
    await eventually(running.is_drained)  # a command to an unknown agent would be refused
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
    await eventually(lambda: sum(in_state(running).values()) == 2 * last)


async def test_invented_values_add_no_series(server: EmbeddedServer, prefix: str) -> None:
    """Twice as many invented values give the same values of labels: five, and `other`.

    The pairs of type and state depend on which states a sample finds, so they are only bounded.
    """
    async with running_engine(server, prefix, sampler__label_values=5) as running:
        await invent(running, 0, 60)
        before = label_values(running)
        await invent(running, 60, 120)
        assert label_values(running) - before == set()
        types, states = (set(labels) for labels in zip(*in_state(running), strict=True))
        assert (len(types), len(states), "other" in types, "other" in states) == (6, 6, True, True)
        assert running.metric("aism_command_status_changes_total", type="other", status="queued") == 115


async def test_counters_are_exported_as_zero_before_the_first_event(server: EmbeddedServer, prefix: str) -> None:
    """`increase` does not see a counter that starts at 1: the first outage would raise no alert."""
    async with running_engine(server, prefix) as running:
        exported = series(running)
    for name, label, value in (
        ("aism_redis_outages_total", "outage", "refused"),
        ("aism_commits_total", "code", "fenced"),
        ("aism_machine_reloads_total", "outcome", "refused"),
        ("aism_service_failures_total", "service", "response_consumer"),
        ("aism_service_restarts_total", "service", "response_consumer"),
    ):
        assert (name, f"{label}={value}") in exported
    assert [name for name, *_ in exported if name.endswith("_created")] == []


async def test_the_age_of_the_oldest_undelivered_command_grows(server: EmbeddedServer, prefix: str) -> None:
    """Commands in a list and commands that wait for the end of a pause count. Delivered and future ones do not."""
    async with running_engine(server, prefix) as running:

        async def send(command_id: str, agent_id: str, **options: object) -> None:
            payload = {"agent_id": agent_id, "command": {"type": "work"}, "options": options}
            await running.ask({"id": command_id, "type": "send", "payload": payload, "reply": True})
            assert (await running.replied(command_id))["ok"]

        def age_s() -> float:
            return running.metric("aism_oldest_undelivered_command_age_seconds")

        for agent_id in ("in-list", "paused"):
            await running.say({"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}})
        await eventually(lambda: running.metric("aism_agents", liveness="unknown") == 2)
        await send("future", "in-list", start_in=3600)
        await eventually(lambda: running.metric("aism_commands_open") == 1)
        assert age_s() == 0
        await send("listed", "in-list")
        await eventually(lambda: age_s() > 0.05)
        await running.call("RPOP", running.keys.commands("in-list"))
        await eventually(lambda: age_s() == 0)
        await running.ask({"id": "p", "type": "pause", "payload": {"agent_id": "paused"}, "reply": True})
        await running.replied("p")
        await send("waiting", "paused")
        await eventually(lambda: age_s() > 0.05)


async def test_idle_services_export_when_they_last_completed_a_step(server: EmbeddedServer, prefix: str) -> None:
    """An idle service can be told from a stuck one. The duration of an idle poll is not exported."""
    async with running_engine(server, prefix) as running:
        services = [each for each in running.engine.components if isinstance(each, Service)]

        def last_at(service: Service) -> float:
            return running.metric("aism_service_last_success_timestamp_seconds", service=service.name)

        for service in services:
            await eventually(partial(last_at, service))
            steps = partial(running.metric, "aism_service_step_duration_seconds_count", service=service.name)
            if service.times_idle_steps:
                await eventually(steps)
            else:
                assert steps() == 0, service.name
        before = time.time()
        frequent = [each for each in services if each.name in {"response_consumer", "elector", "listener", "sampler"}]
        await eventually(lambda: min(map(last_at, frequent)) > before)


async def test_holds_and_waits_for_a_human_are_counted(server: EmbeddedServer, prefix: str) -> None:
    """By kind of hold, and until the agent is resumed, or leaves the state in which it waits."""
    async with running_engine(server, prefix) as running:

        def counts() -> tuple[float, ...]:
            held = [running.metric("aism_agents_held", hold=hold) for hold in ("pause", "drain")]
            fleet = [running.metric("aism_fleet_held", hold=hold) for hold in ("pause", "drain")]
            return *held, *fleet, running.metric("aism_agents_waiting_for_human")

        for agent_id in ("a", "b", "c"):
            await running.say({"type": "register", "agent_id": agent_id, "payload": {"type": "scribe"}})
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "direct_io"}})
        await eventually(lambda: counts() == (0, 0, 0, 0, 1))
        await eventually(lambda: running.metric("aism_longest_wait_for_human_seconds") > 0)
        holds = {
            "p": ("pause", {"agent_id": "a"}),
            "d": ("drain", {"select": "id in (b,c)"}),
            "f": ("pause", {"all": True}),
        }
        for request_id, (kind, payload) in holds.items():
            await running.ask({"id": request_id, "type": kind, "payload": payload})
        await eventually(lambda: counts() == (1, 2, 1, 0, 1))
        for request_id, payload in {"r1": {"select": "type=scribe"}, "r2": {"all": True}}.items():
            await running.ask({"id": request_id, "type": "resume", "payload": payload})
        await running.say({"type": "state_transition", "agent_id": "a", "payload": {"target": "inbox"}})
        await eventually(lambda: counts() == (0, 0, 0, 0, 0))
        await eventually(lambda: running.metric("aism_longest_wait_for_human_seconds") == 0)
