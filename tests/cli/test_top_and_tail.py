"""Laws of `top` and `tail`."""

import asyncio
import json
import re
from functools import partial

import pytest

from tests.cli.conftest import Call, has_status, response
from tests.support.engine import Running, eventually


async def test_top_counts_agents_commands_and_queues(fleet: Call, engine: Running) -> None:
    await fleet("send", "w-0", "work", "--id", "slow")
    await fleet("send", "w-1", "work", "--in", "1h")
    await fleet("pause", "w-2")
    await engine.say(response("w-0", "ack", "slow"))
    await eventually(partial(has_status, engine, "slow", "acked"))
    found = (await fleet("top", "--once", "--json")).json
    assert list(found["problems"]) == ["lost", "silent", "stuck", "diverging", "waiting_for_human", "held"]
    assert (found["agents"], found["problems"]["lost"], found["problems"]["held"]) == (3, [], ["w-2"])
    assert (found["by_type"], found["by_state"]) == ({"worker": 3}, {"bootstrap": 3})
    assert found["commands"] == {"acked": 1, "scheduled": 1}
    assert found["queues"] == {"responses": 0, "requests": 0, "fanout": 0, "deadlines": 2, "dead_letters": 0}
    assert [each["command_id"] for each in found["slowest"]] == ["slow"]
    assert found["leader"].startswith("1:")
    shown = (await fleet("top", "--once")).out
    for text in ("3 agents", "HELD: 1", "bootstrap 3", "acked 1", "slow"):
        assert text in shown


async def test_lists_of_problems_are_complete(fleet: Call, engine: Running) -> None:
    """`top --json` has all names, in natural order, and `agents list --problem` prints the same agents."""
    for number in range(3, 30):
        await engine.say(response(f"w-{number}", "register", type="worker"))
    await eventually(partial(engine.record, "w-29"))
    await fleet("pause", "--select", "type=worker", "--reason", "quota", "--timeout", "1h")
    names = [f"w-{number}" for number in range(30)]
    assert (await fleet("top", "--once", "--json")).json["problems"]["held"] == names
    listed = (await fleet("agents", "list", "--problem", "held", "--json")).json
    assert [each["agent_id"] for each in listed] == names
    assert (await fleet("agents", "list", "--problem", "lost", "--json")).json == []
    shown = (await fleet("top", "--once")).out
    assert re.search(r"HELD: 30\nw-0 .*\nw-29 .*pause by \S+: quota\n", shown, re.DOTALL)
    assert "\x1b" not in shown


@pytest.mark.usefixtures("engine")
async def test_top_shows_rates_of_the_last_seconds(fleet: Call) -> None:
    """A fact counts for ten seconds: each round of the test makes a new one."""

    async def has_rate() -> bool:
        await fleet("send", "w-0", "work")
        return bool((await fleet("top", "--once", "--json")).json["rates"].get("command_queued"))

    await eventually(has_rate)


async def test_tail_prints_the_selected_events(fleet: Call, engine: Running) -> None:
    """Only the selected types, of the selected agent, and it ends after --count of them."""
    flags = ("--type", "command_queued", "--type", "measurement", "--agent", "w-0", "--count", "2", "--json")
    following = asyncio.create_task(fleet("tail", *flags))
    await eventually(partial(_is_subscribed, engine))
    for agent_id in ("w-1", "w-0"):
        await _send(engine, agent_id, f"c-{agent_id}")
        event = {"agent_id": agent_id, "values": {"tokens": 1.0}}
        await engine.call("PUBLISH", engine.keys.measurements, json.dumps(event))
    events = [json.loads(line) for line in (await following).out.splitlines()]
    assert {event["event"] for event in events} == {"command_queued", "measurement"}
    assert {event["agent_id"] for event in events} == {"w-0"}


async def test_tail_follows_one_command(fleet: Call, engine: Running) -> None:
    following = asyncio.create_task(fleet("tail", "--command", "c-2", "--count", "2", "--json"))
    await eventually(partial(_is_subscribed, engine))
    await _send(engine, "w-0", "c-1")
    await _send(engine, "w-1", "c-2")
    await engine.say(response("w-1", "result", "c-2"))
    events = [json.loads(line) for line in (await following).out.splitlines()]
    assert [each["command_id"] for each in events] == ["c-2", "c-2"]
    assert events[0]["event"] == "command_queued"


async def test_tail_skips_what_no_engine_wrote(fleet: Call, engine: Running) -> None:
    """Anyone can write to the audit: `tail` prints the facts that follow."""
    following = asyncio.create_task(fleet("tail", "--type", "command_queued", "--count", "1", "--json"))
    await eventually(partial(_is_subscribed, engine))
    for facts in ("not json", "7", '[1, {"cause": 7}, {"event": 7}]'):
        await engine.call("XADD", engine.keys.audit, "*", "facts", facts)
    await _send(engine, "w-0", "c-1")
    done = await following
    assert (done.code, json.loads(done.out)["command_id"]) == (0, "c-1")


async def _send(engine: Running, agent_id: str, command_id: str) -> None:
    """Send a command without `aism-engine`: two of them at a time would mix their output."""
    await engine.ask({"id": command_id, "type": "send", "payload": {"agent_id": agent_id, "command": {"type": "work"}}})
    await eventually(partial(has_status, engine, command_id, "queued"))


async def _is_subscribed(engine: Running) -> bool:
    """Whether `tail` has subscribed: from then on it prints everything that happens."""
    clients = await engine.client.client_list()
    return any("operator-pubsub" in each["name"] and each["sub"] != "0" for each in clients)
