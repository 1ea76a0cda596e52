"""Measures the size of the protocol's messages in JSON and in MessagePack, and the time to encode and decode them.

Messages to the engine are encoded from a dict, and decoded in batches of 512 with all checks of the engine
(`decode_responses`, `decode_requests`). Commands are encoded from a struct, and decoded without checks, as an agent on
plain Redis does. The limit of decoding is the time of decoding the same messages without checks. The shortest of
several rounds counts, because other load can only make a round longer.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from timeit import Timer
from typing import Any, Final, NamedTuple

import msgspec

from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import decode_requests, decode_responses, encode
from bench.harness import Options, progress
from bench.table import Row

CODECS: Final = ("json", "msgpack")
PLAIN_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "json": msgspec.json.Decoder().decode,
    "msgpack": msgspec.msgpack.Decoder().decode,
}
ID, COMMAND_ID = "01a20576-62b8-70ff-9783-347aa0fa23fb", "01a20576-62a3-72f0-a104-3cd16fd2c663"
AT = "2026-11-22T22:01:34.125Z"
AGENT = "architect-a1b2c3"
ROUND_S: Final = 0.02
BATCH: Final = 512

FINDINGS: Final = [
    {
        "file": f"store/part_{number}.py",
        "line": 17 * number,
        "weight": number / 7,
        "text": "the lease is renewed before it is half over, whatever the loop is busy with at that moment",
    }
    for number in range(50)
]
"""A large payload of text and numbers. Each finding has about 160 bytes."""
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
    """The shortest time of a call in all rounds, in microseconds per message."""

    def __init__(self, call: Callable[[], object], messages: int = 1) -> None:
        self._timer = Timer(call)
        self._messages = messages
        self._calls = 1
        while self._timer.timeit(self._calls) < ROUND_S:
            self._calls *= 2
        self.us = inf

    def measure(self) -> None:
        self.us = min(self.us, self._timer.timeit(self._calls) / self._calls / self._messages * 1e6)


class Message(NamedTuple):
    """A message, its bytes in each codec, and the timings of encoding, decoding, and decoding without checks."""

    title: str
    sizes: dict[str, int]
    write: dict[str, Timing]
    read: dict[str, Timing]
    read_unchecked: dict[str, Timing]
    """Empty if reading has no checks."""

    def timings(self) -> Iterator[Timing]:
        for each in (self.write, self.read, self.read_unchecked):
            yield from each.values()


def rows(options: Options) -> Iterator[Row]:
    """Measure all messages once in each round, so that a short disturbance affects few rounds of each message."""
    messages, rounds = list(prepare_all()), options.size(20, 3)
    for number in range(rounds):
        progress(f"codecs: round {number + 1} of {rounds}")
        for message in messages:
            for timing in message.timings():
                timing.measure()
    for title, sizes, write, read, unchecked in messages:
        note = f"{sizes['json']} B, MessagePack {sizes['msgpack']} B"
        yield Row(f"write {title} in JSON", write["json"].us, "µs", None, {"MessagePack": write["msgpack"].us}, note)
        limit = unchecked["json"].us if unchecked else None
        yield Row(f"read {title} in JSON", read["json"].us, "µs", limit, {"MessagePack": read["msgpack"].us}, note)


def prepare_all() -> Iterator[Message]:
    for title, kind, payload, is_about_command in RESPONSES:
        head = {"id": ID, "type": kind, "agent_id": AGENT} | ({"command_id": COMMAND_ID} if is_about_command else {})
        yield prepare(title, {**head, "payload": payload, "timestamp": AT}, decode_responses)
    for kind, payload in REQUESTS.items():
        yield prepare(f"request {kind}", {"id": ID, "type": kind, "payload": payload, "timestamp": AT}, decode_requests)
    for command in COMMANDS:
        yield prepare(f"command {command.type}", command)


def prepare(title: str, message: object, decode: Callable[[Sequence[bytes]], Any] | None = None) -> Message:
    """Prepare the timings of a message. Without `decode`, it is read without checks."""
    raws = {codec: encode(message, codec) for codec in CODECS}
    unchecked = {codec: Timing(partial(PLAIN_DECODERS[codec], raw)) for codec, raw in raws.items()}
    if decode is None:
        read, unchecked = unchecked, {}
    else:
        read = {codec: Timing(partial(decode, [raw] * BATCH), BATCH) for codec, raw in raws.items()}
    return Message(
        title,
        {codec: len(raw) for codec, raw in raws.items()},
        {codec: Timing(partial(encode, message, codec)) for codec in CODECS},
        read,
        unchecked,
    )
