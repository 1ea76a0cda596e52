"""Measures how long an idle engine takes for one message: from an agent's push to the event, and from an operator's
request until the agent has the command.

The engine, a bare consumer (`peers.consume`) and the limit take turns, message by message. The bare consumer blocks in
BRPOP and publishes for the same subscriber. The limit leaves the consumer out: the sender itself publishes the event,
or pushes the command to the agent.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import count
from typing import Final

import msgspec

from bench import peers
from bench.engine_process import EngineProcess
from bench.harness import (
    KEYS,
    Command,
    Options,
    RawConnection,
    make_server,
    percentile,
    progress,
    run_in_process,
    sample,
)
from bench.table import Row
from bench.workloads import agent_id, response, transition

PAUSE_S: Final = 0.01
"""Mean pause between two messages: long enough for the engine to become idle."""
BARE: Final = "bare consumer"
NOBODY: Final = "bare:nobody"
"""A queue that nobody reads."""
WAKE_RESPONSES: Final[Command] = ("PUBLISH", KEYS.responses, b"")
WAKE_REQUESTS: Final[Command] = ("PUBLISH", KEYS.requests, b"")
EVENT: Final[Command] = ("PUBLISH", peers.BARE_EVENTS, b"{}")


def rows(options: Options) -> Iterator[Row]:
    turns = options.size(1000, 100)
    with make_server() as server, EngineProcess(server.url) as engine, run_in_process(peers.consume, server.url):
        engine.wait_leading()
        event, command = EventProbe(server.url), CommandProbe(server.url)
        event.measure(KEYS.response_queue, WAKE_RESPONSES)  # the engine knows the agent from now on
        event.measure(peers.BARE_RESPONSES)  # the bare consumer has started
        to_event: dict[str, Callable[[], float]] = {
            "engine": partial(event.measure, KEYS.response_queue, WAKE_RESPONSES),
            BARE: partial(event.measure, peers.BARE_RESPONSES),
            "limit": partial(event.measure, NOBODY, EVENT),
        }
        yield from compare("push and publish, until the event", turns, to_event)
        to_event["engine"] = partial(event.measure, KEYS.response_queue)
        yield from compare("push without publish, until the event", turns // 2, to_event)
        to_command: dict[str, Callable[[], float]] = {
            "engine": partial(command.measure, KEYS.request_queue, WAKE_REQUESTS),
            BARE: partial(command.measure, peers.BARE_REQUESTS),
            "limit": command.measure_limit,
        }
        yield from compare("request, until the agent has the command", turns, to_command)


def compare(title: str, turns: int, probes: Mapping[str, Callable[[], float]]) -> Iterator[Row]:
    """Measure all probes in turn, and yield the median and the 99th percentile."""
    progress(f"latency: {title}, {turns} turns")
    seconds = sample(turns, probes, PAUSE_S)
    for percent in (50, 99):
        ms = {name: 1000 * percentile(each, percent) for name, each in seconds.items()}
        yield Row(f"{title}, p{percent}", ms["engine"], "ms", ms["limit"], {BARE: ms[BARE]})


class EventProbe:
    """An agent that changes its state, and a subscriber that waits for the event."""

    def __init__(self, url: str) -> None:
        self._sender, self._subscriber = RawConnection(url), RawConnection(url)
        self._subscriber.call(*(("SUBSCRIBE", channel) for channel in (KEYS.state_changes, peers.BARE_EVENTS)))
        self._numbers: dict[str, Iterator[int]] = defaultdict(count)
        """Number of the next message of each queue. A queue has numbers without gaps, because consecutive numbers have
        different target states, so that each message changes the state."""

    def measure(self, queue: str, *publish: Command) -> float:
        """Push a state change, and return the seconds until the subscriber has one event."""
        push: Command = ("LPUSH", queue, transition(next(self._numbers[queue]), agents=1))
        started_at = time.perf_counter()
        self._sender.send(push, *publish)
        self._subscriber.read()
        seconds = time.perf_counter() - started_at
        self._sender.discard(1 + len(publish))
        return seconds


class CommandProbe:
    """An operator that sends commands to one agent, which waits for them and answers each with a result."""

    def __init__(self, url: str) -> None:
        self._operator, self._agent = RawConnection(url), RawConnection(url)
        self._numbers = count()

    def measure(self, queue: str, *publish: Command) -> float:
        """Push a request, and return the seconds until the agent has popped the command."""
        number = next(self._numbers)
        payload = {"agent_id": agent_id(0), "command": {"type": "work"}}
        request = msgspec.json.encode({"id": f"probe-{number}", "type": "send", "payload": payload})
        seconds = self._measure(("LPUSH", queue, request), *publish)
        if queue == KEYS.request_queue:
            result = response(number, "result", 0, {}, command_id=f"probe-{number}")
            self._operator.call(("LPUSH", KEYS.response_queue, result), WAKE_RESPONSES)
        return seconds

    def measure_limit(self) -> float:
        """Push a command directly to the agent."""
        return self._measure(("LPUSH", KEYS.commands(agent_id(0)), b"{}"))

    def _measure(self, *commands: Command) -> float:
        self._agent.send(("BRPOP", KEYS.commands(agent_id(0)), 0))
        started_at = time.perf_counter()
        self._operator.send(*commands)
        self._agent.read()
        seconds = time.perf_counter() - started_at
        self._operator.discard(len(commands))
        return seconds
