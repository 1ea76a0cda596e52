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
from timeit import Timer
from typing import Any, Final, NamedTuple

import msgspec

from aism_engine.model import messages as m

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
    write_us: Mapping[str, float]
    read_us: Mapping[str, float]


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
COMMANDS: Final[Mapping[str, m.Command]] = {
    "command: state_transition": m.Command(
        id=_ID, type="state_transition", payload={"target": "deep_work"}, timestamp=_AT
    ),
    "command: review": m.Command(id=_ID, type="review", payload={"change": 4711}, timestamp=_AT, deadline=_AT),
}


def best_us(call: Callable[[], object], rounds: int) -> float:
    """Time a call: the least of so many rounds of about 20 ms, in microseconds."""
    timer = Timer(call)
    number = 100
    while (took_s := timer.timeit(number)) < _ROUND_S:
        number *= 2
    return min(took_s, *(timer.timeit(number) for _ in range(rounds))) / number * 1e6


def measure(name: str, message: object, read: Mapping[str, Callable[[bytes], Any]], rounds: int) -> Line:
    raws = {codec: m.encode(message, codec) for codec in CODECS}
    return Line(
        name,
        {codec: len(raws[codec]) for codec in CODECS},
        {codec: best_us(partial(m.encode, message, codec), rounds) for codec in CODECS},
        {codec: best_us(partial(read[codec], raws[codec]), rounds) for codec in CODECS},
    )


def lines(rounds: int) -> list[Line]:
    """Measure all messages."""
    found = [measure(name, message, dict.fromkeys(CODECS, m.decode_response), rounds) for name, message in SAID.items()]
    found += (
        measure(name, message, dict.fromkeys(CODECS, m.decode_request), rounds) for name, message in ASKED.items()
    )
    found += (measure(name, message, _DECODERS, rounds) for name, message in COMMANDS.items())
    return found


def table(found: list[Line]) -> str:
    """Write the figures as a table of Markdown."""
    head = ("message", "JSON B", "MsgPack B", "share", "write JSON", "write MsgPack", "read JSON", "read MsgPack")
    rows = [head, ("---", *(["--:"] * (len(head) - 1)))]
    for line in found:
        json, msgpack = (line.size[codec] for codec in CODECS)
        times = (f"{figures[codec]:.2f}" for figures in (line.write_us, line.read_us) for codec in CODECS)
        rows.append((line.name, str(json), str(msgpack), f"{msgpack / json:.0%}", *times))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and time of the protocol's messages in JSON and in MessagePack")
    parser.add_argument("--rounds", type=int, default=7, help="rounds a figure, of which the least counts (7)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds: expected at least 1")
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, msgspec {msgspec.__version__}; times in µs",
        file=sys.stderr,
    )
    print(table(lines(rounds)))


if __name__ == "__main__":
    main()
