"""Laws of what a person works a fleet with: `send` in full, `commands`, `pause`, `dead-letters`, `top`."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from aism_engine.clock import iso
from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call
from tests.support.engine import Running, eventually, running_engine

WORKERS: Final = ("w-0", "w-1", "w-2")


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    """An engine with three workers who acknowledge; they take and answer what the test lets them."""
    with capture_logs():
        async with running_engine(server, prefix, dispatcher__poll_interval=0.02) as engine:
            for number, worker in enumerate(WORKERS):
                labels = {"team": "ab"[number % 2]}
                await engine.say(said(worker, "register", type="worker", labels=labels, capabilities=["ack"]))
            await eventually(partial(engine.record, WORKERS[-1]))
            yield engine


def said(agent_id: str, kind: str, command_id: str | None = None, **payload: Any) -> dict[str, Any]:  # noqa: ANN401
    """Build a message of an agent."""
    message = {"id": f"{agent_id}-{kind}-{command_id}", "type": kind, "agent_id": agent_id, "payload": payload}
    return message | ({"command_id": command_id} if command_id else {})


async def status(engine: Running, command_id: str, expected: str) -> bool:
    return (await engine.command(command_id)).get("status") == expected


# --- send to many -----------------------------------------------------------------------------------------------------


async def test_a_selector_reaches_all_that_fit_and_waiting_tells_what_became_of_enough(
    fleet: Call, engine: Running
) -> None:
    """Code 0 as soon as the quorum has succeeded, though another one has failed."""
    flags = ("--select", "type=worker", "--quorum", "50%", "--id", "all", "--wait", "--json")
    sending = asyncio.create_task(fleet("send", *flags, "work"))
    for worker in WORKERS:
        await eventually(partial(status, engine, f"all.{worker}", "queued"))
    await engine.say(said("w-0", "error", "all.w-0", code="oops"))
    await engine.say(said("w-1", "result", "all.w-1"), said("w-2", "result", "all.w-2"))
    done = await sending
    found = done.json
    assert (done.code, found["group_id"], found["status"]) == (0, "all", "succeeded")
    assert (found["total"], found["needed"], found["succeeded"], found["failed"]) == (3, 2, 2, 1)


@pytest.mark.usefixtures("engine")
async def test_what_can_no_longer_succeed_is_1_and_what_goes_on_is_2(fleet: Call, engine: Running) -> None:
    """A group is decided as soon as too few are left; until then waiting ends by the clock."""
    flags = ("--select", "label.team=a", "--id", "two", "--wait")
    assert (await fleet("send", *flags, "work", "--wait-for", "300ms")).code == 2
    await engine.say(said("w-0", "error", "two.w-0", code="oops"))
    done = await fleet("commands", "wait", "two")
    assert (done.code, done.out) == (1, "two failed (1 failed, of 2)\n")


@pytest.mark.usefixtures("engine")
async def test_any_gives_it_to_whoever_has_the_least_to_do(fleet: Call) -> None:
    await fleet("send", "w-0", "work")
    await fleet("send", "w-2", "work")
    done = await fleet("send", "--select", "type=worker", "--any", "work", "--json")
    assert done.json["agent_id"] == "w-1"


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--select", "type=nobody", "work"], 1, "no agent that is present fits type=nobody"),
        (["--select", "kind=worker", "work"], 64, "'kind' is no key"),
        (["--select", "type=worker", "w-0", "work"], 64, "expected AGENT TYPE"),
        (["work"], 64, "expected AGENT TYPE, or --select SELECTOR TYPE"),
        (["w-0", "work", "--any"], 64, "--any needs --select"),
        (["w-0", "no type"], 64, "is no name"),
        (["w-0", "work", "--ttl", "soon"], 64, "--ttl: expected more than 0, like 30s"),
        (["w-0", "work", "--in", "0"], 64, "--in: expected more than 0"),
        (["w-0", "work", "--in", "999999d"], 64, "and at most 365d, got '999999d'"),
        (["w-0", "work", "--ttl", "9" * 400], 64, "--ttl: expected more than 0"),
        (["w-0", "work", "--max-attempts", "1001"], 64, "less than or equal to 1000"),
        (["w-0", "work", "--at", "noon"], 64, "--at: expected a time like"),
        (["w-0", "work", "--in", "1m", "--at", "2030-01-01T00:00:00Z"], 64, "exclude each other"),
        (["w-0", "work", "--quorum", "2"], 64, "--quorum needs --select"),
        (["--select", "type=worker", "--any", "work", "--quorum", "2"], 64, "and not --any"),
        (["--select", "type=worker", "work", "--quorum", "most"], 64, "--quorum: expected a number or a share"),
        (["--select", "type=worker", "work", "--quorum", "4"], 1, "there are 3 targets"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_reason(
    fleet: Call, arguments: list[str], code: int, complaint: str
) -> None:
    done = await fleet("send", *arguments)
    assert (done.code, done.out) == (code, "")
    assert complaint in done.err


# --- clocks and later -------------------------------------------------------------------------------------------------


async def test_every_clock_is_an_option(fleet: Call, engine: Running) -> None:
    """They are in the record, as the engine takes them."""
    flags = ("--ttl", "10m", "--ack-timeout", "5s", "--timeout", "1h", "--max-attempts", "2", "--priority", "high")
    await fleet("send", "w-0", "work", *flags, "--on-lost", "fail", "--id", "c-1")
    record = await engine.command("c-1")
    named = ("ack_timeout", "timeout", "max_attempts", "priority", "on_lost")
    assert [record[name] for name in named] == ["5", "3600", "2", "high", "fail"]


async def test_what_is_sent_for_later_is_listed_and_cancelled_like_any_other(fleet: Call, engine: Running) -> None:
    await fleet("send", "w-0", "work", "--in", "2h", "--id", "later")
    await fleet("send", "w-0", "work", "--at", "2999-01-01T00:00:00+00:00", "--id", "much-later")
    await fleet("send", "w-0", "work", "--id", "now")
    listed = (await fleet("commands", "list", "--status", "scheduled", "--json")).json
    assert {each["command_id"] for each in listed} == {"later", "much-later"}
    assert {each["due_at"] for each in listed} > {iso(32_472_144_000)}
    done = await fleet("commands", "cancel", "later", "--reason", "no need")
    assert (done.code, done.out) == (0, "later is cancelled\n")
    shown = (await fleet("commands", "show", "later", "--json")).json
    assert (shown["status"], shown["reason"]) == ("cancelled", "no need")
    assert (await fleet("commands", "cancel", "later")).code == 1
    await engine.say(said("w-0", "result", "now", lines=3))
    waited = await fleet("commands", "wait", "now", "--json")
    assert (waited.code, waited.json["result"]) == (0, {"lines": 3})


@pytest.mark.usefixtures("engine")
async def test_commands_are_listed_by_what_they_are(fleet: Call) -> None:
    """The oldest first; those that have ended are there when asked for."""
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
    await eventually(partial(status, engine, "g-1.w-2", "queued"))
    await engine.say(said("w-0", "result", "g-1.w-0"))
    await eventually(partial(status, engine, "g-1.w-0", "succeeded"))
    done = await fleet("commands", "cancel", "g-1", "--json")
    assert (done.code, done.json["total"], done.json["succeeded"]) == (0, 2, 2)
    shown = (await fleet("commands", "show", "g-1", "--json")).json
    assert (shown["status"], shown["cancelled"], shown["succeeded"], shown["stopped"]) == ("failed", 2, 1, True)
    assert (await fleet("commands", "list", "--group", "g-1", "--json")).json == []


async def test_what_is_not_there_is_1(fleet: Call, engine: Running) -> None:
    del engine
    for arguments in (("show", "nothing"), ("wait", "nothing"), ("cancel", "nothing")):
        done = await fleet("commands", *arguments)
        assert (done.code, done.out) == (1, "")
        assert "there is no command nothing" in done.err


# --- holds ------------------------------------------------------------------------------------------------------------


async def test_one_a_selection_and_the_whole_fleet_can_be_held(fleet: Call, engine: Running) -> None:
    """What is sent meanwhile waits at the engine, and goes out when both holds have ended."""
    assert (await fleet("pause", "w-0")).out == "w-0 is paused, with 0 open commands\n"
    done = await fleet("pause", "--select", "label.team=a", "--reason", "quota")
    assert (done.code, done.out) == (0, "pause: succeeded (2 succeeded, of 2)\n")
    assert (await fleet("pause", "--all")).out == "the fleet is paused; 2 agents have a hold of their own\n"
    await fleet("send", "w-0", "work", "--id", "c-0")
    await fleet("send", "w-1", "work", "--id", "c-1")
    assert (await fleet("resume", "w-0")).out == "w-0 takes commands, with 1 open commands; but the fleet is paused\n"
    assert [await status(engine, each, "waiting") for each in ("c-0", "c-1")] == [True, True]
    assert (await fleet("resume", "--all", "--json")).json["held_agents"] == 1
    for each in ("c-0", "c-1"):
        await eventually(partial(status, engine, each, "queued"))


@pytest.mark.usefixtures("engine")
async def test_a_drained_agent_is_given_nothing_new(fleet: Call) -> None:
    await fleet("drain", "w-0")
    done = await fleet("send", "w-0", "work")
    assert done.code == 1
    assert "drain" in done.err
    assert (await fleet("resume", "w-0")).code == 0
    assert (await fleet("send", "w-0", "work")).code == 0


async def test_a_hold_is_for_one_of_three(fleet: Call) -> None:
    for arguments in ((), ("w-0", "--all"), ("--all", "--select", "type=a")):
        done = await fleet("pause", *arguments)
        assert (done.code, done.out) == (64, "")
        assert "expected one of AGENT" in done.err


# --- dead letters -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def letters(engine: Running) -> dict[str, str]:
    """Three of them, by their codes."""
    await engine.say(
        b"no message", said("w-0", "result", "never-sent"), said("w-1", "message", to="late", content="hi")
    )

    async def buried() -> dict[str, str] | None:
        found = await engine.client.xrange(engine.keys.dead_letters)
        codes = {fields[b"code"].decode(): dead_letter_id.decode() for dead_letter_id, fields in found}
        return codes if len(codes) == 3 else None

    found = await eventually(buried)
    assert found is not None
    return found


async def test_dead_letters_are_listed_by_what_they_are(fleet: Call, letters: dict[str, str]) -> None:
    async def codes(*flags: str) -> list[str]:
        return [each["code"] for each in (await fleet("dead-letters", "list", *flags, "--json")).json]

    assert sorted(await codes()) == sorted(letters)
    assert await codes("--code", "invalid_json") == ["invalid_json"]
    assert await codes("--agent", "w-0") == ["unknown_command"]
    assert await codes("--source", "commands") == []
    assert await codes("--since", "1h", "--until", "30m") == []
    shown = (await fleet("dead-letters", "show", letters["invalid_json"], "--json")).json
    assert (shown["raw"], shown["size"]) == ("no message", 10)
    assert letters["invalid_json"] in (await fleet("dead-letters", "list")).out
    assert (await fleet("dead-letters", "show", "1-1")).code == 1


async def test_what_is_replayed_goes_through_the_front_door(
    fleet: Call, engine: Running, letters: dict[str, str]
) -> None:
    """It is applied once its reason is gone; what is wrong still is buried again, linked to what it was."""
    await engine.say(said("late", "register", type="worker"))
    await eventually(partial(engine.record, "late"))
    done = await fleet("dead-letters", "replay", letters["unknown_recipient"], "--json")
    assert (done.code, [each["outcome"] for each in done.json]) == (0, ["applied"])
    assert await engine.call("LLEN", engine.keys.inbox("late")) == 1
    done = await fleet("dead-letters", "replay", "--all", "--json")
    assert done.code == 1
    assert {each["dead_letter_id"]: each["outcome"] for each in done.json} == {
        letters["invalid_json"]: "refused",
        letters["unknown_command"]: "dead_lettered",
    }
    left = (await fleet("dead-letters", "list", "--json")).json
    assert {each["code"]: each["replay_of"] for each in left} == {
        "invalid_json": None,
        "unknown_command": letters["unknown_command"],
    }
    gone = await fleet("dead-letters", "replay", letters["unknown_recipient"])
    assert (gone.code, gone.out.splitlines()[-1]) == (1, "1 refused")


async def test_a_purge_removes_what_is_meant_and_nothing_else(
    fleet: Call, engine: Running, letters: dict[str, str]
) -> None:
    assert (await fleet("dead-letters", "purge")).code == 64
    assert (await fleet("dead-letters", "purge", letters["invalid_json"], "--all")).code == 64
    assert (await fleet("dead-letters", "purge", "--code", "invalid_json", "--reason", "noise")).out == "1 purged\n"
    assert (await fleet("dead-letters", "purge", "--until", "1h", "--json")).json == {"purged": 0}
    assert len(await engine.dead_letters()) == 2
    assert (await fleet("dead-letters", "purge", "--all")).out == "2 purged\n"
    (told, _) = await engine.audit("dead_letters_purged")
    assert (told["reason"], told["details"]["count"]) == ("noise", 1)


# --- the whole --------------------------------------------------------------------------------------------------------


async def test_top_counts_what_is_there(fleet: Call, engine: Running) -> None:
    await fleet("send", "w-0", "work", "--id", "slow")
    await fleet("send", "w-1", "work", "--in", "1h")
    await fleet("pause", "w-2")
    await engine.say(said("w-0", "ack", "slow"))
    await eventually(partial(status, engine, "slow", "acked"))
    found = (await fleet("top", "--once", "--json")).json
    assert (found["agents"], found["held"], found["by_type"], found["by_state"]) == (
        *(3, 1, {"worker": 3}),
        {"bootstrap": 3},
    )
    assert found["commands"] == {"acked": 1, "scheduled": 1}
    assert found["queues"] == {"responses": 0, "requests": 0, "fanout": 0, "deadlines": 2, "dead_letters": 0}
    assert [each["command_id"] for each in found["slowest"]] == ["slow"]
    assert found["rates"]["command_acked"] > 0
    assert found["leader"].startswith("1:")
    shown = (await fleet("top", "--once")).out
    for told in ("3 agents", "1 held", "bootstrap 3", "acked 1", "slow"):
        assert told in shown


async def test_tail_follows_one_command(fleet: Call, engine: Running) -> None:
    following = asyncio.create_task(fleet("tail", "--command", "c-2", "--count", "2", "--json"))

    async def heard() -> bool:
        names = await engine.client.client_list()
        return any(each["name"] == "aism-operator-pubsub" and each["sub"] != "0" for each in names)

    await eventually(heard)
    await fleet("send", "w-0", "work", "--id", "c-1")
    await fleet("send", "w-1", "work", "--id", "c-2")
    await engine.say(said("w-1", "result", "c-2"))
    events = [json.loads(line) for line in (await following).out.splitlines()]
    assert {each["command_id"] for each in events} == {"c-2"}
    assert events[0]["event"] == "command_queued"
