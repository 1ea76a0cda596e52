"""Laws of `tail` and its siblings across outages of the server. The engine is the test: it writes the audit."""

import json
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from aism_engine.store.keys import Keys
from tests.cli.conftest import Start
from tests.support.engine import Client, eventually, plain_client
from tests.support.server import OwnServer

Change: TypeAlias = "Callable[[Tail, Client, str], Awaitable[None]]"
LOST, BACK = "the connection to Redis is lost (", "Redis is back after "


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def own_server(data: Path) -> Iterator[OwnServer]:
    with OwnServer(data_dir=data) as server:
        yield server


class Tail:
    """A `tail` process with JSON, and the audit that it reads."""

    def __init__(self, process: subprocess.Popen[str], server: OwnServer, keys: Keys) -> None:
        self._process = process
        self.server = server
        self.keys = keys

    async def write(self, *names: str, event: str = "noted") -> None:
        """Add a fact about each of these agents to the audit."""
        async with plain_client(self.server) as client:
            for name in names:
                facts = json.dumps([{"event": event, "at": "2027-01-15T08:00:00.000Z", "agent_id": name}])
                await client.xadd(self.keys.audit, {"commit": name, "epoch": "1", "facts": facts})

    def read(self, count: int = 1) -> list[str]:
        """Read items: the agent of a fact, or the kind of a note."""
        assert self._process.stdout is not None
        items = [json.loads(self._process.stdout.readline()) for _ in range(count)]
        return [item.get("agent_id") or next(iter(item)) for item in items]

    def notice(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.readline()

    async def is_subscribed(self) -> bool:
        async with plain_client(self.server) as client:
            ((_, count),) = await client.pubsub_numsub(self.keys.measurements)
            return bool(count)

    def stop(self) -> tuple[int, str]:
        """End it with Ctrl-C, and return its exit code and what it has printed since."""
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate()
        return self._process.returncode, out


@pytest.fixture
async def tail(start: Start, own_server: OwnServer, prefix: str) -> Tail:
    """A process that has printed one fact; two facts are older. An engine leads."""
    keys = Keys(prefix)
    async with plain_client(own_server) as client:
        await client.set(keys.lease, "1:me")
        for commit in ("old-1", "old-2"):
            await client.xadd(keys.audit, {"commit": commit, "epoch": "1", "facts": "[]"})
    flags = ("--json", "--exclude", "skipped", "--redis", own_server.url, "--prefix", prefix)
    tail = Tail(start("tail", *flags), own_server, keys)
    await eventually(tail.is_subscribed)
    await tail.write("first")
    assert tail.read() == ["first"]
    return tail


async def test_tail_survives_a_restart_of_the_server(tail: Tail, own_server: OwnServer) -> None:
    """Every fact once and in order, also those written before it is connected again."""
    for names in (["a", "b"], ["c"]):
        own_server.restart()
        await tail.write(*names)
        assert tail.read(len(names)) == names
        assert tail.notice().startswith(LOST)
        assert tail.notice().startswith(BACK)
    await eventually(tail.is_subscribed)
    await tail.write("d")
    assert tail.read() == ["d"]
    assert tail.stop() == (0, "")


@pytest.mark.parametrize("words", ["top --interval 0.1", "history a --follow"])
async def test_a_command_that_watches_survives_a_restart(
    start: Start, own_server: OwnServer, tail: Tail, prefix: str, tmp_path: Path, words: str
) -> None:
    """Its output goes to a file: a pipe that nobody reads would block it."""
    printed, flags = tmp_path / "printed", ("--json", "--redis", own_server.url, "--prefix", prefix)

    async def prints_more(than: int) -> bool:
        await tail.write("a")
        return _size(printed) > than

    await tail.write("a")
    with printed.open("w") as stdout:
        process = start(*words.split(), *flags, stdout=stdout)
    watching = Tail(process, own_server, tail.keys)
    await eventually(partial(prints_more, 0))
    own_server.kill()
    assert watching.notice().startswith(LOST)
    size = _size(printed)
    own_server.start()
    assert watching.notice().startswith(BACK)
    await eventually(partial(prints_more, size))
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def _size(path: Path) -> int:
    return path.stat().st_size


async def test_tail_says_that_the_server_came_back_empty(tail: Tail, own_server: OwnServer, data: Path) -> None:
    own_server.kill()
    shutil.rmtree(data)
    own_server.start()
    assert tail.notice().startswith(LOST)
    notices = sorted((tail.notice(), tail.notice()))  # two tasks print them
    assert notices[0].endswith("The audit is empty: the server has lost its data\n")
    assert notices[1].startswith("warning: no engine is known to have led")
    await tail.write("a")
    assert tail.read(2) == ["gap", "a"]
    assert tail.stop() == (0, "")


async def _trim(tail: Tail, client: Client, audit: str) -> None:
    await tail.write("a", "b", "c")
    await client.xtrim(audit, maxlen=1, approximate=False)


async def _undo(tail: Tail, client: Client, audit: str) -> None:
    ((entry_id, _),) = await client.xrevrange(audit, count=1)
    await client.xdel(audit, entry_id)
    await tail.write("c")


@pytest.mark.parametrize(("change", "expected"), [(_trim, ["gap", "c"]), (_undo, ["rollback", "c"])])
async def test_tail_says_what_is_missing_after_an_outage(
    tail: Tail, own_server: OwnServer, data: Path, change: Change, expected: list[str]
) -> None:
    """Facts that were trimmed before it could read them, or facts that it has printed and the server has lost."""
    own_server.kill()
    with OwnServer(data_dir=data) as elsewhere:  # the same data at another port, which `tail` does not know
        tail.server = elsewhere
        async with plain_client(elsewhere) as client:
            await change(tail, client, tail.keys.audit)
    own_server.start()
    assert tail.read(2) == expected
    assert tail.stop() == (0, "")


async def test_excluded_events_are_not_printed(tail: Tail) -> None:
    await tail.write("b", event="skipped")
    await tail.write("c")
    assert tail.read() == ["c"]


async def test_a_server_that_is_away_from_the_start_is_an_error(start: Start, own_server: OwnServer) -> None:
    own_server.kill()
    process = start("tail", "--redis", own_server.url)
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (69, "", 1)
