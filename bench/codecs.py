"""Measures the size of the protocol's messages in JSON and in MessagePack, and the time to encode and decode them.

One line for each message: its bytes, then the microseconds to encode and to decode it. Messages to the engine are
encoded from a dict, and decoded with all checks of the engine (`decode_response`, `decode_request`). Commands are
encoded from a struct, and decoded without checks, as agents do. The shortest of several rounds counts, because other
load can only make a round longer. Run it on a quiet machine.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from timeit import Timer
from typing import Any, Final, NamedTuple

import msgspec

from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import decode_request, decode_response, encode

CODECS: Final = ("json", "msgpack")
PLAIN_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "json": msgspec.json.Decoder().decode,
    "msgpack": msgspec.msgpack.Decoder().decode,
}
ID, COMMAND_ID = "01a20576-62b8-70ff-9783-347aa0fa23fb", "01a20576-62a3-72f0-a104-3cd16fd2c663"
AT = "2026-11-22T22:01:34.125Z"
AGENT = "architect-a1b2c3"
ROUND_S: Final = 0.02

FINDINGS: Final = [
    {
        "file": f"store/part_{number}.py",
        "line": 17 * number,
        "weight": number / 7,
        "text": "the lease is renewed before it is half over, whatever the loop is busy with at that moment",
    }
    for number in range(50)
]
"""A large payload of text and numbers, about 160 bytes each."""
REGISTRATION: Final = {"type": "architect", "labels": {"team": "core", "zone": "b"}, "capabilities": ["ack"]}
RESPONSES: Final[list[tuple[str, str, dict[str, Any], bool]]] = [
    ("register", "register", REGISTRATION, False),
    ("heartbeat", "heartbeat", {}, False),
    ("goodbye", "goodbye", {"reason": "done for today"}, False),
    ("ack", "ack", {}, True),
    ("progress", "progress", {"percent": 42.5, "note": "half of the files are read"}, True),
    ("result", "result", {"files": 12, "passed": True, "seconds": 8.25}, True),
    ("result of 50 findings", "result", {"findings": FINDINGS}, True),
    ("error", "error", {"code": "tests_failed", "message": "3 of 214 tests failed"}, True),
    ("state_transition", "state_transition", {"target": "deep_work", "reason": "took up a task"}, False),
    ("message", "message", {"to": "reviewer-9f", "content": "please look at the lease", "thread_id": "lease-7"}, False),
    ("measurement", "measurement", {"context_tokens": 81234, "tokens_per_s": 57.3, "cost_usd": 0.412}, False),
]
"""Title, type and payload of each response, and whether it is about a command."""
REQUESTS: Final[dict[str, dict[str, Any]]] = {
    "send": {"agent_id": AGENT, "command": {"type": "review", "payload": {"change": 4711}}},
    "forget": {"agent_id": AGENT},
}
COMMANDS: Final = (
    m.CommandMessage(id=ID, type="state_transition", payload={"target": "deep_work"}, timestamp=AT),
    m.CommandMessage(id=ID, type="review", payload={"change": 4711}, timestamp=AT, deadline=AT),
)


class Timing:
    """The shortest time of a call in all rounds, in microseconds."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._timer = Timer(call)
        self._calls = 100
        while self._timer.timeit(self._calls) < ROUND_S:
            self._calls *= 2
        self.us = inf

    def measure(self) -> None:
        self.us = min(self.us, self._timer.timeit(self._calls) / self._calls * 1e6)


class Row(NamedTuple):
    """A message, its size in each codec, and the timings of encoding and then of decoding it in each codec."""

    title: str
    sizes: list[int]
    timings: list[Timing]


def rows() -> Iterator[Row]:
    for title, kind, payload, is_about_command in RESPONSES:
        head = {"id": ID, "type": kind, "agent_id": AGENT} | ({"command_id": COMMAND_ID} if is_about_command else {})
        yield row(title, {**head, "payload": payload, "timestamp": AT}, decode_response)
    for kind, payload in REQUESTS.items():
        yield row(f"request: {kind}", {"id": ID, "type": kind, "payload": payload, "timestamp": AT}, decode_request)
    for command in COMMANDS:
        yield row(f"command: {command.type}", command)


def row(title: str, message: object, decode: Callable[[bytes], Any] | None = None) -> Row:
    """Prepare the row of a message. Without `decode`, a decoder without checks is measured."""
    raws = {codec: encode(message, codec) for codec in CODECS}
    encoding = [Timing(partial(encode, message, codec)) for codec in CODECS]
    decoding = [Timing(partial(decode or PLAIN_DECODERS[codec], raw)) for codec, raw in raws.items()]
    return Row(title, [len(raw) for raw in raws.values()], encoding + decoding)


def table(measured: list[Row]) -> str:
    """Format the figures as a Markdown table."""
    head = ("message", "JSON B", "MsgPack B", "share", "write JSON", "write MsgPack", "read JSON", "read MsgPack")
    lines = [head, ("---", *(["--:"] * (len(head) - 1)))]
    for title, (json, msgpack), timings in measured:
        times = (f"{timing.us:.2f}" for timing in timings)
        lines.append((title, str(json), str(msgpack), f"{msgpack / json:.0%}", *times))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(rounds: int) -> None:
    """Measure all messages once in each round, so that a short disturbance affects few rounds of each message."""
    measured = list(rows())
    for _ in range(rounds):
        for each in measured:
            for timing in each.timings:
                timing.measure()
    versions = f"Python {platform.python_version()}, msgspec {msgspec.__version__}"
    print(f"{os.cpu_count()} cores, {versions}; times in µs", file=sys.stderr)
    print(table(measured))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=20, help="number of rounds; the shortest one is reported; default: 20"
    )
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds: expected at least 1")
    main(rounds)
