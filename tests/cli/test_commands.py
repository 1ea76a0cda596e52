"""Laws of `commands`, and of `pause`, `drain` and `resume`."""

import getpass
import json
import re
import socket
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from aism_engine.clock import iso
from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import WORKERS, Call, has_status, response
from tests.support.engine import Reader, Running, eventually, plain_client


async def test_a_scheduled_command_is_listed_and_cancelled(fleet: Call, engine: Running) -> None:
    await fleet("send", "w-0", "work", "--in", "2h", "--id", "later")
    at = datetime.now(UTC) + timedelta(days=300)
    await fleet("send", "w-0", "work", "--at", at.isoformat(), "--id", "much-later")
    await fleet("send", "w-0", "work", "--id", "now")
    listed = (await fleet("commands", "list", "--status", "scheduled", "--json")).json
    assert {each["command_id"] for each in listed} == {"later", "much-later"}
    assert {each["due_at"] for each in listed} > {iso(at.timestamp())}
    cancelled = await fleet("commands", "cancel", "later", "--reason", "no need")
    assert (cancelled.code, cancelled.out) == (0, "later is cancelled\n")
    shown = (await fleet("commands", "show", "later", "--json")).json
    assert (shown["status"], shown["reason"]) == ("cancelled", "no need")
    assert (await fleet("commands", "cancel", "later")).code == 1
    await engine.say(response("w-0", "result", "now", lines=3))
    waited = await fleet("commands", "wait", "now", "--timeout", "1h", "--json")
    assert (waited.code, waited.json["result"]) == (0, {"lines": 3})


async def test_show_prints_the_fields_in_one_order(fleet: Call, engine: Running) -> None:
    """Redis returns the fields of a large record in an arbitrary order."""
    await fleet("send", "w-0", "work", "--id", "c-0", "--payload", f'{{"text": "{"x" * 1000}"}}')
    await engine.say(response("w-0", "result", "c-0", lines=3))
    await fleet("commands", "wait", "c-0")
    fields = list((await fleet("commands", "show", "c-0", "--json")).json)
    assert fields[:4] == ["command_id", "status", "agent_id", "type"]
    assert fields[-4:] == ["ended_at", "payload", "queued_at", "result"]


@pytest.mark.usefixtures("engine")
async def test_list_filters_and_limits(fleet: Call) -> None:
    """The oldest first; ended commands only with --ended."""
    for number, kind in enumerate(("work", "rest", "work")):
        await fleet("send", WORKERS[number], kind, "--id", f"c-{number}")
    await fleet("commands", "cancel", "c-2")

    async def ids(*flags: str) -> list[str]:
        return [each["command_id"] for each in (await fleet("commands", "list", *flags, "--json")).json]

    assert await ids() == ["c-0", "c-1"]
    assert await ids("--ended") == ["c-0", "c-1", "c-2"]
    assert await ids("--type", "work") == ["c-0"]
    assert await ids("--agent", "w-1") == ["c-1"]
    assert await ids("--ended", "--status", "cancelled") == ["c-2"]
    limited = await fleet("commands", "list", "--limit", "1")
    assert limited.out.splitlines()[1].split()[:4] == ["c-1", "w-1", "rest", "queued"]
    assert "showing the newest 1 of 2" in limited.err


async def test_a_group_is_cancelled_as_a_whole(fleet: Call, engine: Running) -> None:
    await fleet("send", "--select", "type=worker", "work", "--id", "g-1")
    await eventually(partial(has_status, engine, "g-1.w-2", "queued"))
    await engine.say(response("w-0", "result", "g-1.w-0"))
    await eventually(partial(has_status, engine, "g-1.w-0", "succeeded"))
    cancelled = await fleet("commands", "cancel", "g-1", "--timeout", "1h", "--json")
    assert (cancelled.code, cancelled.json["total"], cancelled.json["succeeded"]) == (0, 2, 2)
    shown = (await fleet("commands", "show", "g-1", "--json")).json
    assert (shown["status"], shown["cancelled"], shown["succeeded"], shown["cancel_requested"]) == (
        "failed",
        2,
        1,
        True,
    )
    assert (await fleet("commands", "list", "--group", "g-1", "--json")).json == []


@pytest.mark.usefixtures("engine")
async def test_an_unknown_id_is_1(fleet: Call) -> None:
    for arguments in (("show", "missing-1"), ("wait", "missing-1"), ("cancel", "missing-1")):
        ended = await fleet("commands", *arguments)
        assert (ended.code, ended.out) == (1, "")
        assert "missing-1" in ended.err


async def test_holds_of_agents_and_of_the_fleet_add_up(fleet: Call, engine: Running) -> None:
    """Commands wait until both holds have ended."""
    assert (await fleet("pause", "w-0")).out == "agent w-0 is paused, with 0 open commands\n"
    paused = await fleet("pause", "--select", "label.team=a", "--reason", "quota", "--timeout", "1h")
    assert (paused.code, paused.out) == (0, "pause: succeeded (2 succeeded, of 2)\n")
    assert (await fleet("pause", "--all")).out == "the fleet is paused; agents with a pause or drain of their own: 2\n"
    await fleet("send", "w-0", "work", "--id", "c-0")
    await fleet("send", "w-1", "work", "--id", "c-1")
    resumed = await fleet("resume", "w-0")
    assert resumed.out == "agent w-0 takes commands, with 1 open commands; but the fleet is paused\n"
    assert [await has_status(engine, each, "waiting") for each in ("c-0", "c-1")] == [True, True]
    assert (await fleet("resume", "--all", "--json")).json["held_agents"] == 1
    for each in ("c-0", "c-1"):
        await eventually(partial(has_status, engine, each, "queued"))


async def test_a_hold_says_who_when_and_why(fleet: Call, engine: Running) -> None:
    """In the list and the record of the agent, in the overview, and for a command that waits because of it."""
    await fleet("pause", "w-0", "--reason", "quota used up")
    await fleet("pause", "--all", "--reason", "maintenance")
    await fleet("send", "w-0", "work", "--id", "c-0")
    user = f"{getpass.getuser()}@{socket.gethostname()}"
    record = await engine.record("w-0")
    assert (record["hold"], record["held_by"], record["hold_reason"]) == ("pause", user, "quota used up")
    listed, *others = (await fleet("agents", "list", "--json")).json
    expected = {name: record[name] for name in ("hold", "held_by", "hold_reason")} | {"held_at": iso(record["held_at"])}
    assert expected.items() <= listed.items()
    assert [each["hold"] for each in others] == [None, None]
    assert expected.items() <= (await fleet("agents", "show", "w-0", "--json")).json.items()
    assert re.search(rf"w-0 .* pause +\S+ ago +{user} +quota used up\n", (await fleet("agents", "list")).out)
    agent, whole = rf"agent w-0 is paused \(\S+ ago, by {user}\): quota used up", "the fleet is paused .*: maintenance"
    text = (await fleet("commands", "show", "c-0")).out
    assert re.search(f"holds +{agent}; {whole}\n", text)
    assert re.findall("timeout +(.+)\n", text) == ["30s", "1h"]
    holds = (await fleet("commands", "show", "c-0", "--json")).json["holds"]
    assert [(each["of"], each["hold_reason"]) for each in holds] == [
        ("agent", "quota used up"),
        ("fleet", "maintenance"),
    ]
    assert re.search(whole, " ".join((await fleet("top", "--once")).out.split()))
    waited = await fleet("commands", "wait", "c-0", "--timeout", "10ms")
    assert (waited.code, bool(re.search(f"c-0 is still waiting; holds: {agent}; {whole}", waited.err))) == (2, True)
    held, fleet_held = await engine.audit("agent_held", "fleet_held")
    assert (held["operator"], fleet_held["operator"], fleet_held["reason"]) == (user, user, "maintenance")
    for arguments in (["w-0"], ["--all"]):
        await fleet("resume", *arguments)
    await eventually(partial(has_status, engine, "c-0", "queued"))
    assert "holds" not in (await fleet("commands", "show", "c-0", "--json")).json


@pytest.mark.usefixtures("engine")
async def test_a_drained_agent_is_sent_nothing_new(fleet: Call) -> None:
    await fleet("drain", "w-0")
    sent = await fleet("send", "w-0", "work")
    assert sent.code == 1
    assert "drain" in sent.err
    assert (await fleet("resume", "w-0")).code == 0
    assert (await fleet("send", "w-0", "work")).code == 0


@pytest.mark.parametrize("arguments", [(), ("w-0", "--all"), ("--all", "--select", "type=a")])
async def test_a_hold_needs_exactly_one_target(fleet: Call, arguments: tuple[str, ...]) -> None:
    paused = await fleet("pause", *arguments)
    assert (paused.code, paused.out) == (64, "")
    assert "expected exactly one of AGENT, --select SELECTOR and --all" in paused.err


async def test_an_open_group_names_its_missing_members(fleet: Call, engine: Running) -> None:
    """As text the first ones only; also if the wait for it times out."""
    for number in range(3, 23):
        await engine.say(response(f"w-{number}", "register", type="worker"))
    await eventually(partial(engine.record, "w-22"))
    await fleet("send", "--select", "type=worker", "work", "--id", "g-1")
    await eventually(partial(has_status, engine, "g-1.w-22", "queued"))
    for agent_id in ("w-0", "w-2"):
        await engine.say(response(agent_id, "result", f"g-1.{agent_id}"))
    await engine.say(response("w-1", "ack", "g-1.w-1"))
    await eventually(partial(has_status, engine, "g-1.w-2", "succeeded"))
    await eventually(partial(has_status, engine, "g-1.w-1", "acked"))
    missing = (await fleet("commands", "show", "g-1", "--json")).json["missing"]
    assert [each["agent_id"] for each in missing] == ["w-1", *(f"w-{number}" for number in range(3, 23))]
    assert (missing[0]["command_id"], missing[0]["status"]) == ("g-1.w-1", "acked")
    text = "w-1 (acked), w-3 (queued), w-4 (queued)"
    more = "w-21 (queued), … and 1 more: aism-engine commands list --group g-1"
    waited = await fleet("commands", "wait", "g-1", "--timeout", "10ms")
    assert waited.code == 2
    await fleet("pause", "--all", "--reason", "maintenance")
    assert "maintenance" in (await fleet("commands", "show", "g-1")).out
    for shown in ((await fleet("commands", "show", "g-1")).out, waited.err):
        assert (text in shown, more in shown, "w-22" in shown) == (True, True, False)
    member = await fleet("commands", "wait", "g-1.w-0")
    assert (member.code, member.out) == (0, "g-1.w-0 succeeded\n")


async def test_targets_that_were_not_reached_yet_are_missing(fleet: Call, server: EmbeddedServer, prefix: str) -> None:
    """The record of a group whose request was not applied to all of its targets."""
    reader = Reader(plain_client(server), prefix)
    async with reader.client:
        fields = {"kind": "send", "total": 2, "needed": 2, "status": "open"}
        await reader.client.hset(reader.keys.group("g-1"), mapping=fields)
        for group_id, agent_id in (("g-1", "w-10"), ("g-2", "w-3"), ("g-1", "w-9")):
            await reader.call("LPUSH", reader.keys.fanout, json.dumps({"group_id": group_id, "agent_id": agent_id}))
        await reader.call("LPUSH", reader.keys.fanout, "no target")
    missing = (await fleet("commands", "show", "g-1", "--json")).json["missing"]
    assert [(each["agent_id"], each["status"]) for each in missing] == [("w-9", None), ("w-10", None)]
    assert "w-9 (not sent yet), w-10 (not sent yet)\n" in (await fleet("commands", "show", "g-1")).out


async def test_text_of_an_agent_cannot_control_the_terminal(fleet: Call, engine: Running) -> None:
    """Neither by an escape sequence nor by a line break that forges a line of output."""
    await fleet("send", "w-0", "work", "--id", "c-1")
    await engine.say(response("w-0", "result", "c-1", note="\x1b[2J\nforged"))
    await engine.say(response("w-1", "error", None, code="oops", message="\x1b[2J\nforged"))
    await eventually(partial(has_status, engine, "c-1", "succeeded"))
    await eventually(lambda: engine.audit("agent_error"))
    await engine.call("SET", f"{engine.keys.prefix}:\x1b[2J\nforged", "")
    for command in (["commands", "show", "c-1"], ["commands", "wait", "c-1"], ["history", "w-1"], ["doctor"]):
        shown = (await fleet(*command)).out
        assert ("\nforged" in shown, r"[2J\nforged" in shown) == (False, True), command
