"""Runs every command of docs/operating.md, in order, on a fleet of three scribes."""

import asyncio
import itertools
import re
import shlex
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from aism_engine.agent.client import AgentClient
from aism_engine.cli.main import main
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine

PAGE: Final = Path("docs/operating.md").read_text()
LINES: Final = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
TAIL: Final = "aism-engine tail"


async def _execute(agent: AgentClient) -> None:
    """Execute every command until cancelled."""
    while True:
        if (command := await agent.next_command(1)) is not None:
            await agent.send("result", {"ok": True}, command.id)


async def _run(line: str, server: EmbeddedServer, prefix: str) -> int:
    arguments = [*shlex.split(line)[1:], "--redis", server.url, "--prefix", prefix]
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main, arguments)
    return int(ended.value.code or 0)


async def test_every_line_of_the_page_works(
    server: EmbeddedServer, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(LINES) > 20
    agents = [AgentClient(f"scribe-{number}", url=server.url, prefix=prefix) for number in (1, 2, 3)]
    with capture_logs():
        async with running_engine(server, prefix) as engine:
            for agent, team in zip(agents, "aab", strict=True):
                await agent.register("scribe", labels={"team": team}, capabilities=["ack"])
            message = {"to": "nobody", "content": "hello"}
            await engine.say({"id": "m-1", "type": "message", "agent_id": "scribe-1", "payload": message})
            await eventually(engine.dead_letters)
            executing = [asyncio.create_task(_execute(agent)) for agent in agents]
            exit_codes = {}
            for line in LINES:
                events = asyncio.create_task(_make_events(engine)) if line.startswith(TAIL) else None
                exit_codes[line] = await _run(line, server, prefix)
                if events is not None:
                    events.cancel()
            for task in executing:
                task.cancel()
            await asyncio.gather(*executing, return_exceptions=True)
            for agent in agents:
                await agent.aclose()
    # The replay is refused again: the recipient of the message is still unknown.
    replay = next(line for line in LINES if "replay" in line)
    assert exit_codes == dict.fromkeys(LINES, 0) | {replay: 1}, capsys.readouterr().err


async def _make_events(engine: Running) -> None:
    """Make events of the first scribe until cancelled."""
    for number in itertools.count():
        message = {"id": f"event-{number}", "type": "measurement", "agent_id": "scribe-1", "payload": {"n": number}}
        await engine.say(message)
        await asyncio.sleep(0.05)
