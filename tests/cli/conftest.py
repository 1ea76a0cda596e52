"""Fixtures that run commands: in this process, or as a process where signals and exit matter."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import pytest
from structlog.testing import capture_logs

from aism_engine.cli.main import main
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually, running_engine

WORKERS: Final = ("w-0", "w-1", "w-2")
_MAIN: Final = "from aism_engine.cli.main import main; main()"


class Completed(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)


Call: TypeAlias = Callable[..., Coroutine[Any, Any, Completed]]
Start: TypeAlias = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the AISM_ variables of the surrounding shell."""
    for name in os.environ:
        if name.startswith("AISM_") and name != "AISM_TEST_SERVER":
            monkeypatch.delenv(name)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `aism-engine` in a thread, so that the event loop of the test goes on."""

    async def call(*arguments: str) -> Completed:
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(main, arguments)
        return Completed(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def fleet(cli: Call, server: EmbeddedServer, prefix: str) -> Call:
    """Run `aism-engine` on the fleet of this test."""

    async def call(*arguments: str) -> Completed:
        return await cli(*arguments, "--redis", server.url, "--prefix", prefix)

    return call


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    """An engine with three registered workers. Its logs are kept out of the output of the commands."""
    with capture_logs():
        async with running_engine(server, prefix, dispatcher__poll_interval=0.02) as engine:
            for number, worker in enumerate(WORKERS):
                labels = {"team": "ab"[number % 2]}
                await engine.say(response(worker, "register", type="worker", labels=labels, capabilities=["ack"]))
            await eventually(partial(engine.record, WORKERS[-1]))
            yield engine


def response(agent_id: str, kind: str, command_id: str | None = None, **payload: Any) -> dict[str, Any]:  # noqa: ANN401
    """Build a message of an agent."""
    message = {"id": f"{agent_id}-{kind}-{command_id}", "type": kind, "agent_id": agent_id, "payload": payload}
    return message | ({"command_id": command_id} if command_id else {})


async def has_status(engine: Running, command_id: str, expected: str) -> bool:
    return (await engine.command(command_id)).get("status") == expected


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `aism-engine`, or another program, as a process; the end of the test kills it."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, program: str = _MAIN, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", program, *arguments]
        process: subprocess.Popen[str] = subprocess.Popen(command, **(pipes | options))
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
