"""Laws of `send`."""

import asyncio
from functools import partial

import pytest

from tests.cli.conftest import WORKERS, Call, has_status, response
from tests.support.engine import Running, eventually


async def test_an_accepted_command_is_in_the_list_of_its_agent(fleet: Call, engine: Running) -> None:
    """Code 0 means that the engine has accepted it; its id is printed."""
    sent = await fleet("send", "w-0", "work", "--payload", '{"n": 1}', "--id", "work-1")
    assert (sent.code, sent.out) == (0, "work-1 queued\n")
    body = await engine.call("RPOP", engine.keys.commands("w-0"))
    assert b'"id":"work-1","type":"work","payload":{"n":1}' in body


@pytest.mark.usefixtures("engine")
async def test_a_refusal_has_reason_and_suggestions(fleet: Call) -> None:
    refused = await fleet("send", "w-0", "state_transition", "--payload", '{"target": "deep_wok"}')
    assert (refused.code, refused.out) == (1, "")
    assert "deep_work" in refused.err
    refused = await fleet("send", "unknown-1", "work", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "unknown_agent")


async def test_no_reply_is_2_and_says_how_to_ask_again(fleet: Call) -> None:
    """Without an engine the request stays queued."""
    sent = await fleet("send", "w-0", "work", "--id", "work-1", "--wait-for", "0.1")
    assert (sent.code, sent.out) == (2, "")
    assert "stays queued" in sent.err
    assert "--id work-1" in sent.err


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        (response("w-0", "result", "work-1", lines=3), 0, "succeeded"),
        (response("w-0", "error", "work-1", code="no_access"), 1, "failed"),
    ],
)
async def test_wait_returns_the_outcome(
    fleet: Call, engine: Running, answer: dict[str, object], code: int, status: str
) -> None:
    sending = asyncio.create_task(
        fleet("send", "w-0", "work", "--id", "work-1", "--wait", "--json", "--wait-for", "1h")
    )
    await eventually(partial(has_status, engine, "work-1", "queued"))
    await engine.say(answer)
    sent = await sending
    assert (sent.code, sent.json["status"]) == (code, status)
    assert sent.json.get("result") == ({"lines": 3} if code == 0 else None)


@pytest.mark.usefixtures("engine")
async def test_wait_ends_without_an_outcome_with_2(fleet: Call) -> None:
    """The command goes on; one that expires while waiting is 1."""
    await fleet("send", "w-0", "work", "--id", "work-1")
    waited = await fleet("commands", "wait", "work-1", "--timeout", "0.1")
    assert waited.code == 2
    assert "work-1 is still queued" in waited.err
    sent = await fleet("send", "w-0", "work", "--wait", "--wait-for", "1h", "--ttl", "0.1")
    assert (sent.code, sent.out.split()[1]) == (1, "expired")


async def test_a_group_succeeds_with_its_quorum(fleet: Call, engine: Running) -> None:
    """Code 0 as soon as the quorum has succeeded, although one command has failed."""
    flags = ("--select", "type=worker", "--quorum", "50%", "--id", "all", "--wait", "--wait-for", "1h", "--json")
    sending = asyncio.create_task(fleet("send", *flags, "work"))
    for worker in WORKERS:
        await eventually(partial(has_status, engine, f"all.{worker}", "queued"))
    await engine.say(response("w-0", "error", "all.w-0", code="oops"))
    await engine.say(response("w-1", "result", "all.w-1"), response("w-2", "result", "all.w-2"))
    sent = await sending
    assert (sent.code, sent.json["group_id"], sent.json["status"]) == (0, "all", "succeeded")
    assert [sent.json[name] for name in ("total", "needed", "succeeded", "failed")] == [3, 2, 2, 1]


async def test_a_group_fails_as_soon_as_too_few_are_left(fleet: Call, engine: Running) -> None:
    """Until then the group is open."""
    await fleet("send", "--select", "label.team=a", "--id", "two", "work")
    assert (await fleet("commands", "wait", "two", "--timeout", "0.1")).code == 2
    await eventually(partial(has_status, engine, "two.w-0", "queued"))
    await engine.say(response("w-0", "error", "two.w-0", code="oops"))
    waited = await fleet("commands", "wait", "two", "--timeout", "1h")
    assert (waited.code, waited.out) == (1, "two failed (1 failed, of 2)\n")


@pytest.mark.usefixtures("engine")
async def test_any_selects_the_least_busy_agent(fleet: Call) -> None:
    await fleet("send", "w-0", "work")
    await fleet("send", "w-2", "work")
    sent = await fleet("send", "--select", "type=worker", "--any", "work", "--json")
    assert sent.json["agent_id"] == "w-1"


async def test_every_limit_is_an_option(fleet: Call, engine: Running) -> None:
    flags = ("--ttl", "10m", "--ack-timeout", "5s", "--timeout", "1h", "--max-attempts", "2", "--priority", "high")
    await fleet("send", "w-0", "work", *flags, "--on-lost", "fail", "--id", "c-1")
    record = await engine.command("c-1")
    names = ("ack_timeout", "timeout", "max_attempts", "priority", "on_lost")
    assert [record[name] for name in names] == ["5", "3600", "2", "high", "fail"]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--select", "type=nobody", "work"], 1, "type=nobody"),
        (["--select", "kind=worker", "work"], 64, "'kind'"),
        (["--select", "type=worker", "w-0", "work"], 64, "expected AGENT TYPE, or --select SELECTOR TYPE"),
        (["work"], 64, "expected AGENT TYPE, or --select SELECTOR TYPE"),
        (["w-0", "work", "--any"], 64, "--any needs --select"),
        (["w-0", "no type"], 64, "expected a name of at most 64 letters, digits, "),
        (["w 0", "work"], 64, "expected an id of at most 128 letters, digits, "),
        (["w-0", "work", "--ttl", "soon"], 64, "--ttl: expected a duration like 500ms"),
        (["w-0", "work", "--in", "0"], 64, "--in: expected a duration like 500ms"),
        (["w-0", "work", "--in", "999999d"], 64, "and at most 365d, got '999999d'"),
        (["w-0", "work", "--ttl", "9" * 400], 64, "--ttl: expected a duration"),
        (["w-0", "work", "--max-attempts", "1001"], 64, "expected a whole number from 1 to 1000, got '1001'"),
        (["w-0", "work", "--at", "noon"], 64, "--at: expected a time like"),
        (["w-0", "work", "--in", "1m", "--at", "2030-01-01T00:00:00Z"], 64, "exclude each other"),
        (["w-0", "work", "--quorum", "2"], 64, "--quorum needs --select"),
        (["--select", "type=worker", "--any", "work", "--quorum", "2"], 64, "--quorum and --any exclude each other"),
        (["--select", "type=worker", "work", "--quorum", "most"], 64, "--quorum: expected a number or a percentage"),
        (["--select", "type=worker", "work", "--quorum", "4"], 1, "3"),
    ],
)
async def test_invalid_arguments_are_refused_with_the_reason(
    fleet: Call, arguments: list[str], code: int, message: str
) -> None:
    sent = await fleet("send", *arguments)
    assert (sent.code, sent.out) == (code, "")
    assert message in sent.err
