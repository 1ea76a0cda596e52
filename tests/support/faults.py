"""What the tests of faults share: a load whose every effect is known beforehand, and the daemon as a process."""

import asyncio
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aism_engine.store.scripts import COMMIT, LEASE, Script
from tests.support.cues import Match, Request
from tests.support.engine import Reader, eventually


def calls(script: Script) -> Match:
    """Match the requests that call this script."""
    digest = script.digest.encode()

    def match(request: Request) -> bool:
        return request[0] == b"EVALSHA" and request[1] == digest

    return match


IS_COMMIT: Final = calls(COMMIT)
IS_LEASE: Final = calls(LEASE)


class Load:
    """Agents that move from state to state, one that nobody has been in before each time: each response has an id and
    exactly one effect, and the audit tells of both.
    """

    def __init__(self, agents: int = 3) -> None:
        self._agents = agents
        self._said: list[tuple[str, str]] = []

    def more(self, count: int) -> list[dict[str, Any]]:
        """Give further responses, one agent after the other."""
        first = len(self._said)
        self._said += [(f"a{number % self._agents}", f"m{number}") for number in range(first, first + count)]
        return [
            {"type": "state_transition", "agent_id": agent, "id": name, "payload": {"target": f"s-{name}"}}
            for agent, name in self._said[first:]
        ]

    def encoded(self, count: int) -> list[bytes]:
        """Give further responses as they are pushed."""
        return [json.dumps(message).encode() for message in self.more(count)]

    async def say(self, reader: Reader, count: int) -> None:
        """Push further responses."""
        messages = self.more(count)
        for start in range(0, count, 1000):
            await reader.say(*messages[start : start + 1000])

    async def applied(self, reader: Reader) -> dict[str, list[str]]:
        """Read which responses were applied, by agent, in the order of the audit."""
        found = defaultdict(list)
        for fact in await reader.audit("state_changed"):
            assert fact["new_state"] == f"s-{fact.get('cause')}", fact
            found[fact["agent_id"]].append(fact["cause"])
        return dict(found)

    async def wait_applied_once(self, reader: Reader, within_s: float = 10.0) -> None:
        """Wait until the queues are empty, then check: every response was applied once, each agent's in order, none is
        in the dead letters, and the states are those of the last ones.
        """
        await eventually(reader.is_drained, within_s)
        expected: dict[str, list[str]] = defaultdict(list)
        for agent, name in self._said:
            expected[agent].append(name)
        assert await self.applied(reader) == dict(expected)
        assert await reader.buried() == []
        for agent, names in expected.items():
            assert await reader.state(agent) == f"s-{names[-1]}"
            assert (await reader.record(agent))["state"] == f"s-{names[-1]}"


class Daemon:
    """`aism-engine run` as a process of its own; what it logs is read as it comes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    def count(self, event: str, **fields: Any) -> int:  # noqa: ANN401
        """Count how often it has logged this."""
        return sum(_is(each, event, fields) for each in self.events)

    async def wait_event(self, event: str, *, within_s: float = 20.0, times: int = 1, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        """Wait until it has logged this so often; gives the last of those."""
        try:
            async with asyncio.timeout(within_s):
                while self.count(event, **fields) < times and not self._reading.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        found = [each for each in self.events if _is(each, event, fields)]
        assert len(found) >= times, f"no {event} {fields} within {within_s} s, but {self.events[-20:]}"
        return found[times - 1]

    async def wait_exit(self, within_s: float = 10.0) -> int:
        """Wait until it has ended; gives its exit code, negative for a signal."""
        async with asyncio.timeout(within_s):
            code = await self.process.wait()
        await self._reading
        return code

    async def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP face; gives the status and the text."""
        _, port = (await self.wait_event("engine_starting"))["http"]
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{port}{path}")

    async def metric(self, name: str) -> float:
        """Read a metric, named with its labels as it is written; 0 where there is none."""
        _, text = await self.get("/metrics")
        return next((float(line.split()[-1]) for line in text.splitlines() if line.rpartition(" ")[0] == name), 0.0)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens where it has ended."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)  # `send_signal` would snatch the exit code from who waits for it

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.events.append(json.loads(line) if line.startswith(b"{") else {"event": "", "text": line.decode()})
            self._changed.set()
        self._changed.set()


@asynccontextmanager
async def daemon(url: str, prefix: str, **settings: object) -> AsyncIterator[Daemon]:
    """Start the daemon, with the settings that are shipped but for these (`section__key`). What is left of it in the
    end is killed.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")}
    given = {"redis__url": url, "redis__prefix": prefix, "http__port": 0, **settings}
    environ |= {f"AISM_{name.upper()}": str(value) for name, value in given.items()}
    program = (sys.executable, "-c", "from aism_engine.cli.main import main; main()", "run", "--log-format", "json")
    process = await asyncio.create_subprocess_exec(*program, env=environ, stdout=DEVNULL, stderr=PIPE, limit=1 << 20)
    running = Daemon(process)
    try:
        yield running
    finally:
        running.signal(signal.SIGKILL)
        await running.wait_exit()


def _is(logged: dict[str, Any], event: str, fields: dict[str, Any]) -> bool:
    return logged["event"] == event and all(logged.get(name) == value for name, value in fields.items())


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - it is ours
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
