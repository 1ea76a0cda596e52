"""Every command line of docs/operating.md does what its page says: it is run, in order, on a fleet of three scribes."""

import asyncio
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
ENDLESS: Final = "aism-engine tail"


async def _work(agent: AgentClient) -> None:
    """Do whatever comes, as long as the test goes on."""
    while True:
        if (command := await agent.next_command(1)) is not None:
            await agent.result(command.id, {"ok": True})


async def _call(line: str, server: EmbeddedServer, prefix: str) -> int:
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
            working = [asyncio.create_task(_work(agent)) for agent in agents]
            found = {}
            for line in LINES:
                stirring = asyncio.create_task(_stir(engine)) if line.startswith(ENDLESS) else None
                found[line] = await _call(line, server, prefix)
                if stirring is not None:
                    stirring.cancel()
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)
            for agent in agents:
                await agent.aclose()
    replay = next(line for line in LINES if "replay" in line)
    assert found == dict.fromkeys(LINES, 0) | {replay: 1}, capsys.readouterr().err  # there still is nobody


async def _stir(engine: Running) -> None:
    """Let something happen to the first scribe, again and again."""
    for number in range(1000):
        message = {"id": f"stir-{number}", "type": "measurement", "agent_id": "scribe-1", "payload": {"n": number}}
        await engine.say(message)
        await asyncio.sleep(0.05)
