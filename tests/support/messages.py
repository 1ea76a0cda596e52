"""Well-formed messages of every type."""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from aism_engine.domain.protocol import messages as m

RESPONSES: dict[str, tuple[dict[str, Any], m.Response]] = {
    "register": (
        {"payload": {"type": "architect", "labels": {"team": "a"}, "capabilities": ["ack"], "codec": "msgpack"}},
        m.Register(agent_id="a", payload=m.RegisterPayload("architect", {"team": "a"}, ["ack"], "msgpack")),
    ),
    "heartbeat": ({}, m.Heartbeat(agent_id="a")),
    "goodbye": ({"payload": {"reason": "done"}}, m.Goodbye(agent_id="a", payload=m.ReasonPayload("done"))),
    "ack": ({"command_id": "c1"}, m.Ack(agent_id="a", command_id="c1")),
    "progress": (
        {"command_id": "c1", "payload": {"percent": 12.5, "note": "half"}},
        m.Progress(agent_id="a", command_id="c1", payload=m.ProgressPayload(12.5, "half")),
    ),
    "result": (
        {"command_id": "c1", "payload": {"pages": [1, None, "three"]}},
        m.Result(agent_id="a", command_id="c1", payload={"pages": [1, None, "three"]}),
    ),
    "error": (
        {"payload": {"code": "disk_full", "retryable": False}},
        m.Error(agent_id="a", payload=m.ErrorPayload("disk_full", retryable=False)),
    ),
    "state_transition": (
        {"payload": {"target": "deep_work", "context": {"page": 7}}},
        m.StateTransition(agent_id="a", payload=m.TransitionPayload("deep_work", {"page": 7})),
    ),
    "message": (
        {"payload": {"to": "b", "content": "hello", "thread_id": "t1"}},
        m.Message(agent_id="a", payload=m.MessagePayload("b", "hello", "t1")),
    ),
    "measurement": ({"payload": {"tokens": 12}}, m.Measurement(agent_id="a", payload={"tokens": 12.0})),
}
REQUESTS: dict[str, tuple[dict[str, Any], m.Request]] = {
    "send": (
        {"payload": {"agent_id": "a", "command": {"type": "work", "payload": {"n": 1}}, "options": {"ttl": 5}}},
        m.Send(id="r1", payload=m.SendPayload(m.CommandSpec("work", {"n": 1}), "a", options=m.SendOptions(5.0))),
    ),
    "forget": (
        {"payload": {"agent_id": "a"}, "reply": False},
        m.Forget(id="r1", reply=False, payload=m.ForgetPayload("a")),
    ),
}
FORMATS: dict[str, Callable[[object], bytes]] = {
    "json": lambda message: json.dumps(message).encode(),
    "msgpack": msgspec.msgpack.encode,
}


def response(kind: str = "heartbeat", **fields: object) -> dict[str, Any]:
    """Build a response that is well-formed except for `fields`."""
    return {"type": kind, "agent_id": "a", **RESPONSES[kind][0], **fields}
