"""JSON or MessagePack: how large the protocol's own messages are in each, and how long msgspec takes over them.

One line a message: its bytes, then the microseconds to write it and to read it. Writing is what its sender does (an
agent has a dict, the engine the struct). Reading is what its reader does: the engine decodes with all of its checks
(`decode_response`, `decode_request`), an agent without any. The least of several rounds is taken: what disturbs a round
can only make it longer. Run it when the machine is quiet: `python bench/codecs.py [--rounds N]`.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from math import inf
from timeit import Timer
from typing import Any, Final, NamedTuple

import msgspec

from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import decode_request, decode_response, encode

CODECS: Final = ("json", "msgpack")
_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "json": msgspec.json.Decoder().decode,
    "msgpack": msgspec.msgpack.Decoder().decode,
}
_ID, _COMMAND_ID = "01a20576-62b8-70ff-9783-347aa0fa23fb", "01a20576-62a3-72f0-a104-3cd16fd2c663"
_AT = "2026-11-22T22:01:34.125Z"
_ROUND_S: Final = 0.02


class Line(NamedTuple):
    """A message's figures, by codec."""

    name: str
    size: Mapping[str, int]
    write: Mapping[str, "Figure"]
    read: Mapping[str, "Figure"]


def said(type_: str, payload: object, **fields: object) -> dict[str, object]:
    """Build what an agent says, as most would write it."""
    head = {"id": _ID, "type": type_, "agent_id": "architect-a1b2c3", **fields}
    return {**head, "payload": payload, "timestamp": _AT}


def findings(count: int) -> list[dict[str, object]]:
    """Build a payload of some size: text and numbers, about 160 bytes each."""
    text = "the lease is renewed before it is half over, whatever the loop is busy with at that moment"
    return [{"file": f"store/part_{n}.py", "line": 17 * n, "weight": n / 7, "text": text} for n in range(count)]


SAID: Final[Mapping[str, dict[str, object]]] = {
    "register": said(
        "register", {"type": "architect", "labels": {"team": "core", "zone": "b"}, "capabilities": ["ack"]}
    ),
    "heartbeat": said("heartbeat", {}),
    "goodbye": said("goodbye", {"reason": "done for today"}),
    "ack": said("ack", {}, command_id=_COMMAND_ID),
    "progress": said("progress", {"percent": 42.5, "note": "half of the files are read"}, command_id=_COMMAND_ID),
    "result": said("result", {"files": 12, "passed": True, "seconds": 8.25}, command_id=_COMMAND_ID),
    "result of 50 findings": said("result", {"findings": findings(50)}, command_id=_COMMAND_ID),
    "error": said("error", {"code": "tests_failed", "message": "3 of 214 tests failed"}, command_id=_COMMAND_ID),
    "state_transition": said("state_transition", {"target": "deep_work", "reason": "took up a task"}),
    "message": said("message", {"to": "reviewer-9f", "content": "please look at the lease", "thread_id": "lease-7"}),
    "measurement": said("measurement", {"context_tokens": 81234, "tokens_per_s": 57.3, "cost_usd": 0.412}),
}
ASKED: Final[Mapping[str, dict[str, object]]] = {
    "request: send": {
        "id": _ID,
        "type": "send",
        "payload": {"agent_id": "architect-a1b2c3", "command": {"type": "review", "payload": {"change": 4711}}},
        "timestamp": _AT,
    },
    "request: forget": {"id": _ID, "type": "forget", "payload": {"agent_id": "architect-a1b2c3"}, "timestamp": _AT},
}
COMMANDS: Final[Mapping[str, m.CommandMessage]] = {
    "command: state_transition": m.CommandMessage(
        id=_ID, type="state_transition", payload={"target": "deep_work"}, timestamp=_AT
    ),
    "command: review": m.CommandMessage(id=_ID, type="review", payload={"change": 4711}, timestamp=_AT, deadline=_AT),
}


class Figure:
    """One call, timed again and again: the least of all rounds, in microseconds."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._timer = Timer(call)
        self._number = 100
        while self._timer.timeit(self._number) < _ROUND_S:
            self._number *= 2
        self.us = inf

    def round(self) -> None:
        self.us = min(self.us, self._timer.timeit(self._number) / self._number * 1e6)


def begin(name: str, message: object, read: Callable[[bytes], Any] | None = None) -> Line:
    """Prepare the figures of a message; read by a plain decoder, unless told."""
    raws = {codec: encode(message, codec) for codec in CODECS}
    return Line(
        name,
        {codec: len(raw) for codec, raw in raws.items()},
        {codec: Figure(partial(encode, message, codec)) for codec in CODECS},
        {codec: Figure(partial(read or _DECODERS[codec], raw)) for codec, raw in raws.items()},
    )


def measure(rounds: int) -> list[Line]:
    """Measure all messages, round by round: whatever else the machine does for a second spoils one round of each."""
    lines = [begin(name, message, decode_response) for name, message in SAID.items()]
    lines += (begin(name, message, decode_request) for name, message in ASKED.items())
    lines += (begin(name, message) for name, message in COMMANDS.items())
    for _ in range(rounds):
        for line in lines:
            for figure in (*line.write.values(), *line.read.values()):
                figure.round()
    return lines


def table(lines: list[Line]) -> str:
    """Write the figures as a table of Markdown."""
    head = ("message", "JSON B", "MsgPack B", "share", "write JSON", "write MsgPack", "read JSON", "read MsgPack")
    rows = [head, ("---", *(["--:"] * (len(head) - 1)))]
    for line in lines:
        json, msgpack = (line.size[codec] for codec in CODECS)
        times = (f"{figures[codec].us:.2f}" for figures in (line.write, line.read) for codec in CODECS)
        rows.append((line.name, str(json), str(msgpack), f"{msgpack / json:.0%}", *times))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and time of the protocol's messages in JSON and in MessagePack")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of which the least counts (20)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds: expected at least 1")
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, msgspec {msgspec.__version__}; times in µs",
        file=sys.stderr,
    )
    print(table(measure(rounds)))


if __name__ == "__main__":
    main()
