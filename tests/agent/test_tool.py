"""Laws of `aism`, the command line tool for agents."""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

import aism_engine
from aism_engine.agent.tool import main
from aism_engine.agent.tool_commands import COMMANDS
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, running_engine

AGENT = "scribe-1"


class Completed(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)


Tool: TypeAlias = Callable[..., Coroutine[Any, Any, Completed]]


@pytest.fixture
def aism(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, server: EmbeddedServer, prefix: str
) -> Tool:
    """Run `aism` as the agent of this test, in a thread."""
    monkeypatch.setenv("AISM_AGENT_ID", AGENT)
    monkeypatch.setenv("AISM_REDIS_URL", server.url)
    monkeypatch.setenv("AISM_REDIS__PREFIX", prefix)

    async def call(*arguments: str) -> Completed:
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(main, arguments)
        return Completed(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    with capture_logs():
        async with running_engine(server, prefix) as engine:
            yield engine


@pytest.fixture
async def work(engine: Running, aism: Tool) -> str:
    """The id of a command in the agent's list."""
    await aism("register", "--type", "scribe")
    request = {"agent_id": AGENT, "command": {"type": "work", "payload": {"n": 1}}}
    await engine.ask({"id": "work-1", "type": "send", "payload": request})
    await engine.replied("work-1")
    return "work-1"


async def test_an_agent_can_register_work_and_leave(engine: Running, aism: Tool) -> None:
    """Each call prints the engine's reply, or what it has read."""
    assert (await aism("register", "--type", "scribe", "--label", "team=a", "--capability", "ack")).json["ok"]
    assert (await engine.record(AGENT))["labels"] == {"team": "a"}
    assert (await aism("heartbeat")).json == {"ok": True}
    assert (await aism("state", "transition", "inbox", "--context", '{"n": 1}', "--reason", "ready")).code == 0
    assert (await aism("state", "current")).json == {"agent_id": AGENT, "state": "inbox"}
    assert (await aism("measure", "tokens=12.5", "lines=3")).code == 0
    assert await engine.call("HGET", engine.keys.agent_measurements(AGENT), "tokens") == b"12.5"
    assert (await aism("goodbye", "--reason", "done")).json["state"] == "offline"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_describes_each_argument(command: str) -> None:
    parser = argparse.ArgumentParser()
    added = [add_to(parser) for add_to in COMMANDS[command][2:]]
    assert [argument.dest for argument in added if not argument.help] == []


@pytest.mark.usefixtures("engine")
async def test_an_agent_that_nobody_registered_is_warned_about(aism: Tool) -> None:
    """A typing error in the id succeeds, and is seen. A registered agent gets no warning."""
    ghost = await aism("--agent", "ghost", "state", "transition", "merging")
    assert (ghost.code, ghost.json["ok"]) == (0, True)
    assert ghost.err.startswith("aism: warning: the agent ghost is not registered; ")
    assert "not registered" in (await aism("--agent", "ghost", "command", "next")).err
    assert (await aism("register", "--type", "scribe")).err == ""
    assert (await aism("state", "transition", "inbox")).err == ""


async def test_without_a_leader_aism_says_so(aism: Tool, redis_client: Redis, prefix: str) -> None:
    """The output is still that of the command. A request without a reply names the reason."""
    await redis_client.set(f"{prefix}:engine:led_at", int(time.time()) - 5 * 3600)
    consequence = "states were written by the last leader, and messages wait until one leads"
    warning = f"aism: warning: no engine has led for 5h: {consequence}\n"
    shown = await aism("state", "current")
    assert (shown.code, shown.json["state"], shown.err) == (0, None, warning)
    sent = await aism("goodbye", "--timeout", "0.1")
    assert (sent.code, sent.out, sent.err.startswith(warning), sent.err.count("\n")) == (2, "", True, 2)


async def test_a_user_who_may_not_read_the_lease_gets_the_other_warning(
    aism: Tool,
    redis_client: Any,  # noqa: ANN401  a `Redis`, whose method has no annotations
    server: EmbeddedServer,
    prefix: str,
) -> None:
    rights = ("on", "nopass", "+@all", "&*", f"~{prefix}:agent:*")
    await redis_client.execute_command("ACL", "SETUSER", prefix, *rights)
    url = server.url.replace("://", f"://{prefix}@")
    shown = await aism("--redis", url, "state", "current")
    await redis_client.execute_command("ACL", "DELUSER", prefix)
    assert (shown.code, shown.err.partition(";")[0]) == (0, f"aism: warning: the agent {AGENT} is not registered")


async def test_a_command_is_taken_and_done(engine: Running, aism: Tool, work: str) -> None:
    assert (await aism("command", "next", "--wait", "300")).json["payload"] == {"n": 1}
    assert (await aism("command", "ack", work)).code == 0
    assert (await aism("command", "progress", work, "--percent", "50", "--note", "half")).code == 0
    assert (await aism("command", "result", work, "--payload", '{"lines": 3, "rest": null}')).code == 0
    record = await engine.command(work)
    assert (record["status"], record["result"]) == ("succeeded", '{"lines":3,"rest":null}')
    late = await aism("command", "error", work, "--code", "no_luck")
    assert (late.code, late.json["error"]["code"]) == (1, "command_ended")


@pytest.mark.usefixtures("engine")
async def test_agents_send_messages_to_each_other(aism: Tool) -> None:
    await aism("register", "--type", "scribe")
    await aism("--agent", "scribe-2", "register", "--type", "scribe")
    for agent in ("scribe-2", AGENT):
        assert (await aism("--agent", agent, "state", "transition", "inbox")).code == 0
    assert (await aism("message", "send", "scribe-2", "the draft is ready", "--thread", "t1")).code == 0
    found = (await aism("--agent", "scribe-2", "inbox", "--wait", "300")).json
    assert found["payload"] == {"from": AGENT, "content": "the draft is ready", "thread_id": "t1"}
    assert (await aism("inbox")).code == 2
    nobody = await aism("message", "send", "nobody", "hello")
    assert (nobody.code, nobody.json["error"]["code"]) == (1, "unknown_recipient")


async def test_a_command_can_fail(engine: Running, aism: Tool, work: str) -> None:
    assert (await aism("command", "error", work, "--code", "no_luck", "--message", "it rained", "--final")).code == 0
    record = await engine.command(work)
    assert (record["status"], record["code"], record["reason"]) == ("failed", "no_luck", "it rained")


@pytest.mark.usefixtures("engine")
async def test_a_refusal_is_1_with_reason_and_suggestion(aism: Tool) -> None:
    """The reply is on standard output, the reason in one line on standard error."""
    await aism("register", "--type", "scribe")
    ended = await aism("state", "transition", "deep_work")
    assert (ended.code, ended.json["ok"], ended.err.count("\n")) == (1, False, 1)
    assert "inbox, then deep_work" in ended.err


async def test_no_command_or_no_reply_in_time_is_2(aism: Tool) -> None:
    assert (await aism("command", "next")).code == 2
    ended = await aism("--timeout", "0.05", "goodbye")
    assert (ended.code, ended.out) == (2, "")


async def test_an_unknown_agent_has_no_state(aism: Tool) -> None:
    assert (await aism("whoami")).json == {"agent_id": AGENT, "state": None}


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["register"],
        ["--agent", "a b", "whoami"],
        ["--redis", "http://localhost", "whoami"],
        ["measure", "tokens"],
        ["measure", "tokens=many"],
        ["measure", "a b=1"],
        ["run", "--type", "scribe", "--concurrency", "1.5", "--", "true"],
        ["state", "transition", "no name"],
        ["command", "result", "work-1", "--payload", "[]"],
        ["command", "result", "work-1", "--payload", "{"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_64(aism: Tool, arguments: list[str]) -> None:
    """One line says what is wrong."""
    ended = await aism(*arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (64, "", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("bogus", "there is no command bogus. Choose from: "),
        ("whoami --bogus x", "there is no option --bogus. See aism whoami --help"),
        ("whoami x", "unexpected: x. See aism whoami --help"),
        ("register", "missing: --type. See aism register --help"),
        ("register --type", "--type needs a value. See "),
        ("--version=1", "--version takes no value. See "),
        ("--prefix a%b whoami", "--prefix: expected 1 to 64 letters, digits, "),
        ("run --type x --concurrency 1.5 true", "--concurrency: expected a whole number from 1 to 10000, got"),
        ("measure tokens=nan", "NAME=VALUE: expected a number, got 'nan'. See "),
        ("command ack a%b", "ID: expected an id of at most 128 letters, digits, "),
        ("inbox --wait 2y", "--wait: expected a duration like 500ms, 30s, 10m, 2h or 1d, or a number of seconds, "),
    ],
)
async def test_wrong_usage_is_explained_in_our_words(aism: Tool, arguments: str, message: str) -> None:
    assert (await aism(*arguments.split())).err.startswith(f"aism: {message}")


async def test_the_id_comes_from_the_flag_or_the_environment(aism: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    """AISM_AGENT_ID, else AGENT_ID."""
    monkeypatch.delenv("AISM_AGENT_ID")
    missing = await aism("whoami")
    assert (missing.code, "give --agent ID or set AISM_AGENT_ID" in missing.err) == (64, True)
    monkeypatch.setenv("AGENT_ID", "other")
    assert (await aism("whoami")).json["agent_id"] == "other"


async def test_redis_out_of_reach_is_69_and_shows_no_password(aism: Tool) -> None:
    ended = await aism("--redis", "redis://user:hush@127.0.0.1:1", "heartbeat")
    assert (ended.code, ended.err.count("\n"), "hush" in ended.err) == (69, 1, False)
    assert "Redis is not available: refused: 127.0.0.1:1: Connection refused. " in ended.err


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:  # noqa: ANN401
    """Run `aism` as a process, where its standard output matters."""
    script = "from aism_engine.agent.tool import main; main()"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([sys.executable, "-c", script, *arguments], check=False, **pipes)


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.usefixtures("aism")
@pytest.mark.parametrize("output", ["full disk", "closed pipe", "closed"])
async def test_a_message_that_cannot_be_printed_is_put_back(redis_client: Redis, prefix: str, output: str) -> None:
    """It is the next one that is taken."""
    key = f"{prefix}:agent:{AGENT}:commands"
    await redis_client.hset(f"{prefix}:agent:{AGENT}:metadata", "registered_at", "now")  # otherwise aism warns
    await redis_client.set(f"{prefix}:engine:lease", "1:me")
    await redis_client.rpush(key, '{"id": "newer"}', '{"id": "oldest"}')
    stdout = os.open("/dev/full", os.O_WRONLY) if output == "full disk" else closed_pipe()
    options: dict[str, Any] = {"stdout": stdout}
    if output == "closed":
        options["preexec_fn"] = partial(os.close, 1)
    ended = await asyncio.to_thread(start, "command", "next", **options)
    assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
    assert (b"The message is back in its list" in ended.stderr) == (output != "closed")  # then it was not taken
    assert await redis_client.lrange(key, 0, -1) == [b'{"id": "newer"}', b'{"id": "oldest"}']


@pytest.mark.usefixtures("aism")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
async def test_output_that_cannot_be_encoded_is_escaped(redis_client: Redis, prefix: str, encoding: str) -> None:
    """Half of a surrogate pair cannot be written in any encoding."""
    message = {"content": "größe 漢 \ud800"}
    await redis_client.rpush(f"{prefix}:agent:{AGENT}:inbox", json.dumps(message))
    environ = os.environ | {"PYTHONIOENCODING": encoding}
    ended = await asyncio.to_thread(start, "inbox", env=environ)
    assert (ended.returncode, json.loads(ended.stdout)) == (0, message)


async def test_an_argument_that_is_not_utf8_is_refused_at_once(aism: Tool) -> None:
    ended = await aism("message", "send", "scribe-2", "caf\udce9")
    assert (ended.code, ended.err) == (64, "aism: 'caf\\udce9' is not valid UTF-8. See aism --help\n")


async def test_options_stand_before_or_after_the_command(aism: Tool) -> None:
    assert (await aism("--timeout", "1ms", "goodbye")).code == 2
    ended = await aism("goodbye", "--timeout", "1ms")
    assert (ended.code, "within 1ms. The message stays queued" in ended.err) == (2, True)


@pytest.mark.parametrize("arguments", [[], ["state"], ["state", "transition", "-h"], ["command", "--help"]])
async def test_a_group_alone_and_help_options_print_help(aism: Tool, arguments: list[str]) -> None:
    shown = await aism(*arguments)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(" ".join(["usage: aism", *(each for each in arguments if each[0] != "-")]))


async def test_the_version_is_printed(aism: Tool) -> None:
    assert (await aism("--version")).out == f"{aism_engine.__version__}\n"
