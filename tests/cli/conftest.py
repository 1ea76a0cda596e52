"""How the tests run commands: in this process where that is enough, as a process of its own where it matters."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple, TypeAlias

import pytest

from aism_engine.cli.main import main
from aism_engine.store.embedded import EmbeddedServer


class Done(NamedTuple):
    """How a command has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401
        return json.loads(self.out)


Call: TypeAlias = Callable[..., Coroutine[Any, Any, Done]]
Start: TypeAlias = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set where the tests run is not meant for them."""
    for name in os.environ:
        if name.startswith("AISM_") and name != "AISM_TEST_SERVER":
            monkeypatch.delenv(name)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `aism-engine` with these arguments, in a thread: the test's own loop goes on."""

    async def call(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            await asyncio.to_thread(main, arguments)
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def fleet(cli: Call, server: EmbeddedServer, prefix: str) -> Call:
    """Run a command on the fleet of this test."""

    async def call(*arguments: str) -> Done:
        return await cli(*arguments, "--redis", server.url, "--prefix", prefix)

    return call


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `aism-engine` as a process; whatever is left of it at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:  # noqa: ANN401
        program = [sys.executable, "-c", "from aism_engine.cli.main import main; main()", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process: subprocess.Popen[str] = subprocess.Popen(program, **(pipes | options))
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
