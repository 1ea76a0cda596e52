"""Laws of `aism`, the agent's tool."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple, TypeAlias

import pytest
from structlog.testing import capture_logs

from aism_engine.agent.tool import main
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, running_engine

AGENT = "scribe-1"


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)


Tool: TypeAlias = Callable[..., Coroutine[Any, Any, Done]]


@pytest.fixture
def aism(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer, prefix: str
) -> Tool:
    """Run `aism` as the agent of this test, in a thread."""
    monkeypatch.setenv("AISM_AGENT_ID", AGENT)
    monkeypatch.setenv("AISM_REDIS_URL", server.url)
    monkeypatch.setenv("AISM_REDIS__PREFIX", prefix)

    async def call(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(main, arguments)
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    with capture_logs():
        async with running_engine(server, prefix) as engine:
            yield engine


@pytest.fixture
async def work(engine: Running, aism: Tool) -> str:
    """The id of a command that waits for the agent."""
    await aism("register", "--type", "scribe")
    request = {"agent_id": AGENT, "command": {"type": "work", "payload": {"n": 1}}}
    await engine.ask({"id": "work-1", "type": "send", "payload": request})
    await engine.replied("work-1")
    return "work-1"


async def test_an_agent_can_live_by_it(engine: Running, aism: Tool) -> None:
    """Register, beat, move, measure and leave: each prints the engine's answer, or what it has found."""
    assert (await aism("register", "--type", "scribe", "--label", "team=a", "--capability", "ack")).json["ok"]
    assert (await engine.record(AGENT))["labels"] == '{"team":"a"}'
    assert (await aism("heartbeat")).json == {"ok": True}
    assert (await aism("state", "transition", "inbox", "--context", '{"n": 1}', "--reason", "ready")).code == 0
    assert (await aism("state", "current")).json == {"agent_id": AGENT, "state": "inbox"}
    assert (await aism("measure", "tokens=12.5", "lines=3")).code == 0
    assert await engine.call("HGET", engine.keys.agent_measurements(AGENT), "tokens") == b"12.5"
    assert (await aism("goodbye", "--reason", "done")).json["state"] == "offline"


async def test_a_command_is_taken_and_done(engine: Running, aism: Tool, work: str) -> None:
    """`command next` prints it, the others answer it."""
    assert (await aism("command", "next", "--wait", "5")).json["payload"] == {"n": 1}
    assert (await aism("command", "ack", work)).code == 0
    assert (await aism("command", "progress", work, "--percent", "50", "--note", "half")).code == 0
    assert (await aism("command", "done", work, "--payload", '{"lines": 3}')).code == 0
    assert (await engine.command(work))["status"] == "succeeded"
    late = await aism("command", "fail", work, "--code", "no_luck")
    assert (late.code, late.json["error"]["code"]) == (1, "command_ended")


@pytest.mark.usefixtures("engine")
async def test_agents_write_to_each_other(aism: Tool) -> None:
    """`message send` gives it to the engine, `inbox` takes it, with its sender and its thread."""
    await aism("register", "--type", "scribe")
    await aism("--agent", "scribe-2", "register", "--type", "scribe")
    for agent in ("scribe-2", AGENT):
        assert (await aism("--agent", agent, "state", "transition", "inbox")).code == 0
    assert (await aism("message", "send", "scribe-2", "the draft is ready", "--thread", "t1")).code == 0
    found = (await aism("--agent", "scribe-2", "inbox", "--wait", "5")).json
    assert found["payload"] == {"from": AGENT, "content": "the draft is ready", "thread_id": "t1"}
    assert (await aism("inbox")).code == 2
    nobody = await aism("message", "send", "nobody", "hello")
    assert (nobody.code, nobody.json["error"]["code"]) == (1, "unknown_recipient")


async def test_a_command_can_fail(engine: Running, aism: Tool, work: str) -> None:
    """With the code and the words of the agent."""
    assert (await aism("command", "fail", work, "--code", "no_luck", "--message", "it rained", "--final")).code == 0
    record = await engine.command(work)
    assert (record["status"], record["code"], record["reason"]) == ("failed", "no_luck", "it rained")


@pytest.mark.usefixtures("engine")
async def test_a_refusal_is_1_and_one_line_of_reason(aism: Tool) -> None:
    """The answer is on standard output, the reason and what to do instead on standard error."""
    await aism("register", "--type", "scribe")
    done = await aism("state", "transition", "deep_work")
    assert (done.code, done.json["ok"], done.err.count("\n")) == (1, False, 1)
    assert "inbox, then deep_work" in done.err


async def test_nothing_in_time_is_2(aism: Tool) -> None:
    """Neither a command, nor an answer."""
    assert (await aism("command", "next")).code == 2
    done = await aism("--timeout", "0.05", "goodbye")
    assert (done.code, done.out) == (2, "")


async def test_an_agent_that_the_engine_has_not_met_has_no_state(aism: Tool) -> None:
    assert (await aism("whoami")).json == {"agent_id": AGENT, "state": None}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["register"],
        ["--agent", "a b", "whoami"],
        ["--redis", "http://localhost", "whoami"],
        ["measure", "tokens"],
        ["measure", "tokens=many"],
        ["measure", "a b=1"],
        ["state", "transition", "no name"],
        ["command", "done", "work-1", "--payload", "[]"],
        ["command", "done", "work-1", "--payload", "{"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_64(aism: Tool, arguments: list[str]) -> None:
    """One line says what is wrong."""
    done = await aism(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (64, "", 1)


async def test_an_agent_has_to_say_who_it_is(aism: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By flag or by AISM_AGENT_ID, else by AGENT_ID."""
    monkeypatch.delenv("AISM_AGENT_ID")
    assert (await aism("whoami")).code == 64
    monkeypatch.setenv("AGENT_ID", "other")
    assert (await aism("whoami")).json["agent_id"] == "other"


async def test_redis_out_of_reach_is_69(aism: Tool) -> None:
    """And no password is shown."""
    done = await aism("--redis", "redis://user:hush@127.0.0.1:1", "heartbeat")
    assert (done.code, done.err.count("\n"), "hush" in done.err) == (69, 1, False)
