"""Runs the examples of docs/agents.md and docs/python.md."""

import asyncio
import inspect
import os
import re
import sys
from functools import partial
from inspect import Parameter
from pathlib import Path

from structlog.testing import capture_logs

from aism_engine import Agent
from aism_engine.store.embedded import EmbeddedServer
from tests.docs.reading import DOCS, names, table
from tests.support.engine import Running, eventually, running_engine

BIN = Path(sys.executable).parent


def blocks(language: str, page: str = "agents.md") -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def environ(server: EmbeddedServer, prefix: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**others, "PATH": path, "AISM_REDIS_URL": server.url, "AISM_REDIS__PREFIX": prefix}


async def test_the_shell_example_works(server: EmbeddedServer, prefix: str) -> None:
    """The first block runs as one script, which ends at the first call that fails."""
    with capture_logs():
        async with running_engine(server, prefix) as engine:
            shell = await asyncio.create_subprocess_exec(
                *("bash", "-euc", blocks("sh")[0]), env=environ(server, prefix), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await shell.communicate()
            assert shell.returncode == 0, out
            assert b"a note to myself" in out
            assert (await engine.command("c1"))["status"] == "succeeded"
            assert (await engine.record("scribe-1"))["liveness"] == "left"


async def test_the_python_example_works(server: EmbeddedServer, prefix: str, tmp_path: Path) -> None:
    """It is a complete program: it registers, succeeds, and fails as shown."""
    program = tmp_path / "reviewer.py"
    program.write_text(blocks("python")[0])
    with capture_logs():
        async with running_engine(server, prefix) as engine:
            agent = await asyncio.create_subprocess_exec(
                *(sys.executable, str(program)), env=environ(server, prefix), stdout=asyncio.subprocess.DEVNULL
            )
            try:
                await eventually(lambda: engine.audit("agent_registered"))
                assert await outcome(engine, "c1", branch="main") == ("succeeded", '{"verdict":"good"}')
                assert await outcome(engine, "c2") == ("failed", "no_branch")
            finally:
                agent.terminate()
                await agent.wait()


async def test_the_pipeline_prints_what_the_page_says(server: EmbeddedServer, prefix: str) -> None:
    (program,), (printed,) = blocks("python", "python.md"), blocks("text", "python.md")
    with capture_logs():
        async with running_engine(server, prefix) as engine:
            pipeline = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program), env=environ(server, prefix), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await pipeline.communicate()
            lines = [line for line in out.decode().splitlines() if "[info" not in line]
            assert "\n".join(lines) == printed.strip()
            await eventually(lambda: engine.audit("agent_left", agent_id="writer-1"))
            facts = await engine.audit("state_changed", agent_id="writer-1")
            path = ["bootstrap", "inbox", "deep_work", "inbox", "offline"]
            assert [fact["new_state"] for fact in facts] == path
            assert await engine.call("HGET", engine.keys.agent_measurements("writer-1"), "words") == b"7.0"


def test_the_arguments_of_an_agent_are_listed_with_their_defaults() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    listed = {name: row[1].strip("`") for row in table("Run an agent", page) for name in names(row[0])}
    defaults = {name: each.default for name, each in inspect.signature(Agent).parameters.items()}
    assert listed == {name: "required" if each is Parameter.empty else repr(each) for name, each in defaults.items()}


async def outcome(engine: Running, command_id: str, **payload: str) -> tuple[str, str]:
    request = {"agent_id": "reviewer-1", "command": {"type": "review", "payload": payload}}
    await engine.ask({"id": command_id, "type": "send", "payload": request})
    await eventually(partial(is_ended, engine, command_id))
    record = await engine.command(command_id)
    return record["status"], record.get("result") or record["code"]


async def is_ended(engine: Running, command_id: str) -> bool:
    return "ended_at" in await engine.command(command_id)
