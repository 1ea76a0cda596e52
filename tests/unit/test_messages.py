"""Decoding of messages: every valid message, and the code of every invalid one."""

import json
import math
import re
from typing import Any

import msgspec
import pytest

from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request, decode_response
from aism_engine.domain.protocol.names import is_identifier
from tests.support.messages import FORMATS, REQUESTS, RESPONSES, response


def refusal(raw: bytes) -> MalformedError:
    with pytest.raises(MalformedError) as caught:
        decode_response(raw)
    return caught.value


def code(raw: bytes | dict[str, Any]) -> str:
    return refusal(raw if isinstance(raw, bytes) else json.dumps(raw).encode()).code


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("kind", RESPONSES)
def test_each_response_type_is_decoded_in_both_formats(kind: str, codec: str) -> None:
    _, expected = RESPONSES[kind]
    assert decode_response(FORMATS[codec](response(kind))) == expected
    assert expected.kind == kind


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("kind", REQUESTS)
def test_each_request_type_is_decoded_in_both_formats(kind: str, codec: str) -> None:
    fields, expected = REQUESTS[kind]
    assert decode_request(FORMATS[codec]({"type": kind, "id": "r1", **fields})) == expected
    assert expected.kind == kind


@pytest.mark.parametrize("kind", RESPONSES)
def test_only_type_and_agent_id_are_required(kind: str) -> None:
    """An id, a timestamp and the other fields of the envelope may be absent."""
    found = decode_response(json.dumps(response(kind)).encode())
    assert (found.id, found.reply, found.timestamp, found.traceparent) == (None, False, None, None)


def test_unknown_fields_are_ignored() -> None:
    """A newer agent may send more fields."""
    message = response("goodbye", mood="fine", payload={"reason": "done", "mood": "fine"})
    assert decode_response(json.dumps(message).encode()) == m.Goodbye(
        agent_id="a", payload=m.ReasonPayload(reason="done")
    )


@pytest.mark.parametrize("timestamp", [None, "2026-11-22T22:01:34Z", "yesterday", 1_800_000_000, 1.5, {}, ["x"], True])
def test_any_timestamp_is_accepted(timestamp: object) -> None:
    """The clocks of agents decide nothing."""
    assert decode_response(json.dumps(response(timestamp=timestamp)).encode()).agent_id == "a"


@pytest.mark.parametrize("agent_id", ["a", "7", "A.b_c-9", "x" * 128])
def test_valid_agent_id_is_accepted(agent_id: str) -> None:
    assert is_identifier(agent_id)
    assert decode_response(json.dumps(response(agent_id=agent_id)).encode()).agent_id == agent_id


def test_custom_type_is_decoded_if_it_has_a_handler() -> None:
    raw = json.dumps({"type": "sneeze", "agent_id": "a", "payload": [1, 2]}).encode()
    found = decode_response(raw, {"sneeze"})
    assert isinstance(found, m.Custom)
    assert (found.type, found.payload) == ("sneeze", [1, 2])
    for custom in ((), {"cough"}):
        with pytest.raises(MalformedError) as caught:
            decode_response(raw, custom)
        assert caught.value.code == "unknown_type"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"agent_id": "a b"}, "invalid_agent_id"),
        ({"agent_id": 7}, "invalid_agent_id"),
        ({"id": "m:1"}, "invalid_message"),
        ({"payload": math.nan}, "invalid_message"),
    ],
)
def test_an_invalid_custom_message_is_not_of_an_unknown_type(fields: dict[str, Any], code: str) -> None:
    raw = msgspec.msgpack.encode({"type": "sneeze", "agent_id": "a", **fields})
    with pytest.raises(MalformedError) as caught:
        decode_response(raw, {"sneeze"})
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "invalid_json"),
        (b" \n", "invalid_json"),
        (b"hello", "invalid_json"),
        (b'{"type":"heartbeat","agent_id":"a"', "invalid_json"),
        (b'{"type":"heartbeat","agent_id":"a"}{}', "invalid_json"),
        (b"{'type':'heartbeat','agent_id':'a'}", "invalid_json"),
        (b'\xef\xbb\xbf{"type":"heartbeat","agent_id":"a"}', "invalid_json"),
        (b'{"type":"result","agent_id":"a","command_id":"c","payload":{"x":NaN}}', "invalid_json"),
        (b'{"type":"result","agent_id":"a","command_id":"c","payload":{"x":-Infinity}}', "invalid_json"),
        (b'{"type":"goodbye","agent_id":"a","payload":{"reason":"\\ud800"}}', "invalid_json"),
        (b"\x82\xa4type", "invalid_msgpack"),
        (msgspec.msgpack.encode({"type": "heartbeat", "agent_id": "a"}) + b"\x00", "invalid_msgpack"),
        (b'{"type":"heartbeat","agent_id":"a","mood":"\xff"}', "invalid_utf8"),
        (b"\xff\xfe{}", "invalid_utf8"),
        (b"[]", "not_an_object"),
        (b'"heartbeat"', "not_an_object"),
        (b"17", "not_an_object"),
        (b"null", "not_an_object"),
        (b"[" * 100_000, "not_an_object"),
        (b'{"type":"heartbeat","agent_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b'{"type":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "too_deep"),
        (b'{"type":"heartbeat","agent_id":"a","mood":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b"\x82\xa4type\xa6result\xa7payload" + b"\x91" * 100_000 + b"\xc0", "too_deep"),
        (b"{}", "invalid_message"),
        (b'{"type":null,"agent_id":"a"}', "invalid_message"),
        (b'{"type":"heartbeat"}', "invalid_message"),
        (b'{"type":"heartbeat","agent_id":null}', "invalid_message"),
        (b'{"type":"heartbeat","agent_id":' + b"9" * 5000 + b"}", "invalid_message"),
        (b"\x82\x01\x02\xa4type\xa9heartbeat", "invalid_message"),
        (b"\x82\xa4type\xa9heartbeat\xa8agent_id\x81\x80\x01", "invalid_message"),
        (b'{"type":"","agent_id":"a"}', "unknown_type"),
        (b'{"type":"Heartbeat","agent_id":"a"}', "unknown_type"),
        (b'{"type":"send","agent_id":"a"}', "unknown_type"),
        (b'{"type":7,"agent_id":"a"}', "unknown_type"),
        (b'{"type":["heartbeat"],"agent_id":"a"}', "unknown_type"),
    ],
)
def test_undecodable_message_is_refused_with_its_code(raw: bytes, expected: str) -> None:
    assert code(raw) == expected


@pytest.mark.parametrize(
    "agent_id",
    [
        *("", "a:b", "*", "a*", "{a}", "a b", " a", "a\n", "a\u0000", "-a", ".a", "_a", "ä", "x" * 129, "x" * 10_240),
        *(7, 1.5, True, ["a"], {"a": 1}),
    ],
)
def test_invalid_agent_id_is_refused(agent_id: object) -> None:
    """An agent id becomes part of a key."""
    for codec in FORMATS.values():
        assert code(codec(response(agent_id=agent_id))) == "invalid_agent_id"


@pytest.mark.parametrize(
    "message",
    [
        response(id="m:1"),
        response(id=7),
        response(id=""),
        response(reply="yes"),
        response("register", payload={}),
        response("register", payload={"type": ""}),
        response("register", payload={"type": "a b"}),
        response("register", payload={"type": "a", "labels": {"team": 1}}),
        response("register", payload={"type": "a", "labels": {"te am": "x"}}),
        response("register", payload={"type": "a", "labels": {"team": "x" * 257}}),
        response("register", payload={"type": "a", "labels": {f"l{n}": "x" for n in range(65)}}),
        response("register", payload={"type": "a", "capabilities": "ack"}),
        response("register", payload={"type": "a", "capabilities": [f"c{n}" for n in range(33)]}),
        response("register", payload={"type": "a", "codec": "xml"}),
        response("goodbye", payload={"reason": 7}),
        response("goodbye", payload=[]),
        response("ack", command_id=None),
        response("ack", command_id="*"),
        response("progress", payload={"percent": -1}),
        response("progress", payload={"percent": 100.1}),
        response("progress", payload={"percent": "half"}),
        response("result", payload=[1]),
        response("result", payload=None),
        response("result", command_id={}),
        response("error", payload={}),
        response("error", payload={"code": ""}),
        response("error", payload={"code": "x", "retryable": "no"}),
        response("state_transition", payload={}),
        response("state_transition", payload={"target": None}),
        response("state_transition", payload={"target": "7up"}),
        response("state_transition", payload={"target": "x" * 65}),
        response("state_transition", payload={"target": "inbox", "context": []}),
        response("message", payload={"to": "b"}),
        response("message", payload={"content": "x"}),
        response("message", payload={"to": "b:c", "content": "x"}),
        response("measurement", payload={"x": "12"}),
        response("measurement", payload={"x": None}),
        response("measurement", payload={"x y": 1}),
        response("measurement", payload={f"x{n}": n for n in range(33)}),
    ],
    ids=lambda message: f"{message['type']}-{json.dumps(message)[-40:]}",
)
def test_missing_or_wrong_field_is_refused(message: dict[str, Any]) -> None:
    """The error names the field and the agent."""
    for codec in FORMATS.values():
        error = refusal(codec(message))
        assert (error.code, error.agent_id) == ("invalid_message", "a")
        assert re.match(r"(a name in )?[a-z_]+(\.[a-z_*]+|\[\d+\])*: |the field ", error.reason)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "where",
    [
        lambda number: response("result", payload={"deep": [{"down": number}]}),
        lambda number: response("message", payload={"to": "b", "content": number}),
        lambda number: response("state_transition", payload={"target": "inbox", "context": {"x": number}}),
        lambda number: response("measurement", payload={"x": number}),
        lambda number: response("progress", payload={"percent": number}),
    ],
)
def test_nan_and_infinity_in_messagepack_are_refused(where: Any, number: float) -> None:  # noqa: ANN401
    """JSON has no such numbers: a reader of JSON would find null instead."""
    error = refusal(msgspec.msgpack.encode(where(number)))
    assert (error.code, error.agent_id) == ("invalid_message", "a")


def test_null_in_messagepack_is_accepted() -> None:
    found = decode_response(msgspec.msgpack.encode(response("result", payload={"x": None, "y": [1.5, None]})))
    assert isinstance(found, m.Result)
    assert found.payload == {"x": None, "y": [1.5, None]}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"result","agent_id":"a","command_id":"c","payload":{"x":1e400}}',
        b'{"type":"result","agent_id":"a","command_id":"c","payload":{"x":99999999999999999999}}',
        b'{"type":"result","agent_id":"a","command_id":"c","payload":{"x":' + b"9" * 5000 + b"}}",
        b'{"type":"measurement","agent_id":"a","payload":{"x":1e400}}',
        b'{"type":"heartbeat","agent_id":"a","timestamp":' + b"9" * 5000 + b"}",
        b"\x84\xa4type\xa6result\xa8agent_id\xa1a\xaacommand_id\xa1c\xa7payload\x81\xa1x\xd4\x05\x00",  # an extension
        b"\x84\xa4type\xa6result\xa8agent_id\xa1a\xaacommand_id\xa1c\xa7payload\x81\xa1x\x81\xc0\x01",  # a key of null
    ],
)
def test_value_that_only_one_format_can_hold_is_refused(raw: bytes) -> None:
    """Every accepted message can be written in the format of its reader."""
    error = refusal(raw)
    assert (error.code, error.agent_id) == ("invalid_message", "a")


def test_error_has_the_agent_id_and_message_id_if_they_can_be_read() -> None:
    error = refusal(json.dumps(response("state_transition", id="m7", payload={})).encode())
    assert (error.agent_id, error.message_id) == ("a", "m7")
    error = refusal(json.dumps(response(id="m:7", agent_id="a:b")).encode())
    assert (error.agent_id, error.message_id) == (None, None)


def request(kind: str = "send", **payload: object) -> dict[str, Any]:
    return {"type": kind, "id": "r", "payload": {"agent_id": "a", "command": {"type": "x"}, **payload}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "send"}, "invalid_message"),
        (request(agent_id=None), "invalid_message"),
        (request(agent_id="a*"), "invalid_message"),
        (request(command=None), "invalid_message"),
        (request(command={"type": ""}), "invalid_message"),
        (request(command={"type": "x", "payload": 1}), "invalid_message"),
        (request(option={}), "invalid_message"),
        (request(options={"tttl": 5}), "invalid_message"),
        (request("forget"), "invalid_message"),  # a forget has no command
        (request() | {"id": "r:1"}, "invalid_message"),
        (request("heartbeat"), "unknown_type"),
        ([], "not_an_object"),
    ],
)
def test_invalid_request_is_refused_with_its_code(message: object, expected: str) -> None:
    """An unknown option is an error too: it is most likely a typing error."""
    with pytest.raises(MalformedError) as caught:
        decode_request(json.dumps(message).encode())
    assert caught.value.code == expected


@pytest.mark.parametrize(("given", "seconds"), [(90, 90.0), (0.5, 0.5), ("90", 90.0), ("500ms", 0.5), ("10m", 600.0)])
def test_a_duration_of_a_request_may_have_a_unit(given: object, seconds: float) -> None:
    options = m.SendOptions(**dict.fromkeys(("ttl", "ack_timeout", "timeout", "start_in"), given))  # type: ignore[arg-type]
    assert options.seconds("ttl") == options.seconds("start_in") == seconds


@pytest.mark.parametrize("ttl", [0, -1, 31_536_001, "1w", "0s", "366d", math.nan, math.inf])
def test_invalid_ttl_is_refused(ttl: object) -> None:
    with pytest.raises(MalformedError) as caught:
        decode_request(msgspec.msgpack.encode(request(options={"ttl": ttl})))
    assert (caught.value.code, caught.value.message_id) == ("invalid_message", "r")
