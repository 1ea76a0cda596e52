"""The laws of the wire: what is understood, and that whatever is not ends in a MalformedError with its code."""

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request, decode_response, encode
from aism_engine.domain.protocol.names import is_identifier

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


def said(kind: str = "heartbeat", **fields: object) -> dict[str, Any]:
    """A response that is well-formed but for `fields`."""
    return {"type": kind, "agent_id": "a", **RESPONSES[kind][0], **fields}


def refusal(raw: bytes) -> MalformedError:
    with pytest.raises(MalformedError) as caught:
        decode_response(raw)
    return caught.value


def code(raw: bytes | dict[str, Any]) -> str:
    return refusal(raw if isinstance(raw, bytes) else json.dumps(raw).encode()).code


# What is understood


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("kind", RESPONSES)
def test_each_type_is_understood_in_either_format(kind: str, codec: str) -> None:
    """The first byte tells JSON from MessagePack; the fields are the same."""
    _, expected = RESPONSES[kind]
    assert decode_response(FORMATS[codec](said(kind))) == expected
    assert expected.kind == kind


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("kind", REQUESTS)
def test_each_request_is_understood_in_either_format(kind: str, codec: str) -> None:
    """Operators may use either format, as agents may."""
    fields, expected = REQUESTS[kind]
    assert decode_request(FORMATS[codec]({"type": kind, "id": "r1", **fields})) == expected
    assert expected.kind == kind


@pytest.mark.parametrize("kind", RESPONSES)
def test_only_type_and_agent_id_are_asked_of_every_agent(kind: str) -> None:
    """An id, a timestamp and all that is optional may be absent: the channel design leaves them open."""
    found = decode_response(json.dumps(said(kind)).encode())
    assert (found.id, found.reply, found.timestamp, found.traceparent) == (None, False, None, None)


def test_unknown_fields_are_ignored() -> None:
    """A newer agent may say more than we know."""
    message = said("goodbye", mood="fine", payload={"reason": "done", "mood": "fine"})
    assert decode_response(json.dumps(message).encode()) == m.Goodbye(
        agent_id="a", payload=m.ReasonPayload(reason="done")
    )


@pytest.mark.parametrize("timestamp", [None, "2026-11-22T22:01:34Z", "yesterday", 1_800_000_000, 1.5, {}, ["x"], True])
def test_a_timestamp_is_for_people_and_never_an_error(timestamp: object) -> None:
    """The clocks of agents decide nothing, so neither does what they say of them."""
    assert decode_response(json.dumps(said(timestamp=timestamp)).encode()).agent_id == "a"


@pytest.mark.parametrize("agent_id", ["a", "7", "A.b_c-9", "x" * 128])
def test_what_may_be_an_id(agent_id: str) -> None:
    """Letters, digits, dot, dash and underscore, the first one a letter or a digit, 128 of them at most."""
    assert is_identifier(agent_id)
    assert decode_response(json.dumps(said(agent_id=agent_id)).encode()).agent_id == agent_id


def test_a_type_of_our_operators_is_understood_where_it_has_a_handler() -> None:
    """With a handler its payload may be anything; without one the type is unknown."""
    raw = json.dumps({"type": "sneeze", "agent_id": "a", "payload": [1, 2]}).encode()
    found = decode_response(raw, {"sneeze"})
    assert isinstance(found, m.Custom)
    assert (found.type, found.payload) == ("sneeze", [1, 2])
    for custom in ((), {"cough"}):
        with pytest.raises(MalformedError) as caught:
            decode_response(raw, custom)
        assert caught.value.code == "unknown_type"


# What is not


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
def test_what_is_no_message_is_refused_with_its_code(raw: bytes, expected: str) -> None:
    """The code says which kind of wrong it is, in either format."""
    assert code(raw) == expected


@pytest.mark.parametrize(
    "agent_id",
    [
        *("", "a:b", "*", "a*", "{a}", "a b", " a", "a\n", "a\u0000", "-a", ".a", "_a", "ä", "x" * 129, "x" * 10_240),
        *(7, 1.5, True, ["a"], {"a": 1}),
    ],
)
def test_what_may_not_be_an_agent_id(agent_id: object) -> None:
    """It would become part of a key."""
    for codec in FORMATS.values():
        assert code(codec(said(agent_id=agent_id))) == "invalid_agent_id"


@pytest.mark.parametrize(
    "message",
    [
        said(id="m:1"),
        said(id=7),
        said(id=""),
        said(reply="yes"),
        said("register", payload={}),
        said("register", payload={"type": ""}),
        said("register", payload={"type": "a b"}),
        said("register", payload={"type": "a", "labels": {"team": 1}}),
        said("register", payload={"type": "a", "labels": {"te am": "x"}}),
        said("register", payload={"type": "a", "labels": {"team": "x" * 257}}),
        said("register", payload={"type": "a", "labels": {f"l{n}": "x" for n in range(65)}}),
        said("register", payload={"type": "a", "capabilities": "ack"}),
        said("register", payload={"type": "a", "capabilities": [f"c{n}" for n in range(33)]}),
        said("register", payload={"type": "a", "codec": "xml"}),
        said("goodbye", payload={"reason": 7}),
        said("goodbye", payload=[]),
        said("ack", command_id=None),
        said("ack", command_id="*"),
        said("progress", payload={"percent": -1}),
        said("progress", payload={"percent": 100.1}),
        said("progress", payload={"percent": "half"}),
        said("result", payload=[1]),
        said("result", payload=None),
        said("result", command_id={}),
        said("error", payload={}),
        said("error", payload={"code": ""}),
        said("error", payload={"code": "x", "retryable": "no"}),
        said("state_transition", payload={}),
        said("state_transition", payload={"target": None}),
        said("state_transition", payload={"target": "7up"}),
        said("state_transition", payload={"target": "x" * 65}),
        said("state_transition", payload={"target": "inbox", "context": []}),
        said("message", payload={"to": "b"}),
        said("message", payload={"content": "x"}),
        said("message", payload={"to": "b:c", "content": "x"}),
        said("measurement", payload={"x": "12"}),
        said("measurement", payload={"x": None}),
        said("measurement", payload={"x y": 1}),
        said("measurement", payload={f"x{n}": n for n in range(33)}),
    ],
    ids=lambda message: f"{message['type']}-{json.dumps(message)[-40:]}",
)
def test_a_field_that_is_missing_or_wrong_makes_it_invalid(message: dict[str, Any]) -> None:
    """Each field has one type and its bounds; the error says which field it was, and whose message."""
    for codec in FORMATS.values():
        error = refusal(codec(message))
        assert (error.code, error.agent_id) == ("invalid_message", "a")
        assert "$." in error.reason or "missing" in error.reason


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "where",
    [
        lambda number: said("result", payload={"deep": [{"down": number}]}),
        lambda number: said("message", payload={"to": "b", "content": number}),
        lambda number: said("state_transition", payload={"target": "inbox", "context": {"x": number}}),
        lambda number: said("measurement", payload={"x": number}),
        lambda number: said("progress", payload={"percent": number}),
    ],
)
def test_a_number_that_is_none_is_refused_in_messagepack_too(where: Any, number: float) -> None:  # noqa: ANN401
    """MessagePack can hold them and JSON can't: an agent that reads JSON would find null in their place."""
    error = refusal(msgspec.msgpack.encode(where(number)))
    assert (error.code, error.agent_id) == ("invalid_message", "a")


def test_a_null_in_messagepack_is_no_wrong_number() -> None:
    """Only what is no number is refused, not what is honestly nothing."""
    found = decode_response(msgspec.msgpack.encode(said("result", payload={"x": None, "y": [1.5, None]})))
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
def test_what_only_one_of_the_formats_can_hold_is_refused_at_the_door(raw: bytes) -> None:
    """Whatever is accepted can be written in the format of whoever will read it."""
    error = refusal(raw)
    assert (error.code, error.agent_id) == ("invalid_message", "a")


def test_the_error_says_whose_message_it_was_where_that_can_be_read() -> None:
    """The dead letter names the agent, and a request the id under which its sender waits."""
    error = refusal(json.dumps(said("state_transition", id="m7", payload={})).encode())
    assert (error.agent_id, error.message_id) == ("a", "m7")
    error = refusal(json.dumps(said(id="m:7", agent_id="a:b")).encode())
    assert (error.agent_id, error.message_id) == (None, None)


def request(kind: str = "send", **payload: object) -> dict[str, Any]:
    return {"type": kind, "id": "r", "payload": {"agent_id": "a", "command": {"type": "x"}, **payload}}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"type": "send"}, "invalid_message"),
        (request(agent_id=None), "invalid_message"),
        (request(agent_id="a*"), "invalid_message"),
        (request(command=None), "invalid_message"),
        (request(command={"type": ""}), "invalid_message"),
        (request(command={"type": "x", "payload": 1}), "invalid_message"),
        (request(option={}), "invalid_message"),
        (request(options={"tttl": 5}), "invalid_message"),
        (request("forget"), "invalid_message"),  # it takes no command
        (request() | {"id": "r:1"}, "invalid_message"),
        (request("heartbeat"), "unknown_type"),
        ([], "not_an_object"),
    ],
)
def test_a_request_is_judged_as_strictly(asked: object, expected: str) -> None:
    """A misspelt option is an error too: an operator who asks for something shall not get something else."""
    with pytest.raises(MalformedError) as caught:
        decode_request(json.dumps(asked).encode())
    assert caught.value.code == expected


@pytest.mark.parametrize("ttl", [0, -1, 31_536_001, "1", math.nan, math.inf])
def test_a_time_to_live_is_a_sane_number_of_seconds(ttl: object) -> None:
    """Up to a year."""
    with pytest.raises(MalformedError) as caught:
        decode_request(msgspec.msgpack.encode(request(options={"ttl": ttl})))
    assert (caught.value.code, caught.value.message_id) == ("invalid_message", "r")


# Whatever comes

_BIG = 2**70
_KEYS = ("type", "agent_id", "id", "command_id", "payload", "reply", "timestamp", "target", "percent", "to", "content")
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*RESPONSES, *REQUESTS, "a", "deep_work"])
)
_json_values = st.recursive(
    _scalars | st.integers(-_BIG, _BIG),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(_KEYS) | st.text(), inner, max_size=8),
    max_leaves=20,
)
_msgpack_values = st.recursive(
    _scalars | st.binary(max_size=20) | st.builds(msgspec.msgpack.Ext, st.integers(0, 127), st.binary(max_size=12)),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(_KEYS) | _scalars | st.tuples(_scalars), inner, max_size=8)
    ),
    max_leaves=20,
)
_near_misses = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from([*RESPONSES, *REQUESTS]) | _json_values,
        "agent_id": st.just("a") | _json_values,
        "id": st.just("m1") | _json_values,
        "command_id": st.just("c1") | _json_values,
        "payload": _json_values,
        "reply": _json_values,
        "timestamp": _json_values,
        "traceparent": _json_values,
    },
)


def check_decode(raw: bytes) -> None:
    for decode in (decode_response, decode_request, lambda raw: decode_response(raw, {"sneeze"})):
        found: Any = None
        error: MalformedError | None = None
        try:
            found = decode(raw)
        except MalformedError as raised:
            error = raised
        if error is None:
            for codec in ("json", "msgpack"):
                assert encode(getattr(found, "payload", None), codec)
        else:
            assert all((error.code, error.reason.encode()))
            assert all(each is None or is_identifier(each) for each in (error.agent_id, error.message_id))


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b'{"type":"' + tail))
def test_no_bytes_raise_anything_but_a_malformed_error(raw: bytes) -> None:
    """What cannot be read is refused, whatever it is; what is accepted can be written in either format."""
    check_decode(raw)


@given(_json_values | _near_misses)
def test_no_json_raises_anything_but_a_malformed_error(value: object) -> None:
    """Not with NaN, nor with integers past 64 bits, nor with what looks almost right."""
    check_decode(json.dumps(value).encode())


@given(_msgpack_values | st.dictionaries(st.sampled_from(_KEYS), _msgpack_values, max_size=8))
def test_no_messagepack_raises_anything_but_a_malformed_error(value: object) -> None:
    """Not with binary, extensions, or keys that are no strings."""
    check_decode(msgspec.msgpack.encode(value))


@given(
    st.sampled_from([*RESPONSES]),
    st.binary(min_size=1, max_size=6),
    st.integers(0, 200),
)
def test_no_damage_to_a_message_raises_anything_but_a_malformed_error(kind: str, damage: bytes, at: int) -> None:
    """Bytes that change on the way are found out, or make another message."""
    for codec in FORMATS.values():
        raw = codec(said(kind))
        at %= len(raw)
        check_decode(raw[:at] + damage + raw[at + len(damage) :])
        check_decode(raw[:at] + damage + raw[at:])
        check_decode(raw[:at])


# There and back

_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
_names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", fullmatch=True)
_texts = st.none() | st.text(st.characters(codec="utf-8"), max_size=50)
_free = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), inner)
    ),
    max_leaves=10,
)
_objects = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), _free, max_size=4)
_common = {"agent_id": _ids, "id": st.none() | _ids, "reply": st.booleans(), "traceparent": _texts}
_reasons = st.builds(m.ReasonPayload, reason=_texts)
_messages = st.one_of(
    st.builds(
        m.Register,
        payload=st.builds(
            m.RegisterPayload,
            type=_names,
            labels=st.dictionaries(_names, st.text(st.characters(codec="utf-8"), max_size=20), max_size=4),
            capabilities=st.lists(_names, max_size=3),
            codec=st.sampled_from(["json", "msgpack"]),
        ),
        **_common,
    ),
    st.builds(m.Heartbeat, payload=_reasons, **_common),
    st.builds(m.Goodbye, payload=_reasons, **_common),
    st.builds(m.Ack, command_id=_ids, **_common),
    st.builds(
        m.Progress,
        command_id=_ids,
        payload=st.builds(m.ProgressPayload, percent=st.none() | st.floats(0, 100), note=_texts),
        **_common,
    ),
    st.builds(m.Result, command_id=_ids, payload=_objects, **_common),
    st.builds(
        m.Error,
        command_id=st.none() | _ids,
        payload=st.builds(m.ErrorPayload, code=_names, message=_texts, retryable=st.none() | st.booleans()),
        **_common,
    ),
    st.builds(
        m.StateTransition,
        command_id=st.none() | _ids,
        payload=st.builds(m.TransitionPayload, target=_names, context=_objects, reason=_texts),
        **_common,
    ),
    st.builds(
        m.Message,
        payload=st.builds(m.MessagePayload, to=_ids, content=_free, thread_id=st.none() | _ids),
        **_common,
    ),
    st.builds(
        m.Measurement,
        payload=st.dictionaries(_names, st.floats(allow_nan=False, allow_infinity=False), max_size=5),
        **_common,
    ),
)


@given(_messages, st.sampled_from(["json", "msgpack"]))
def test_what_was_written_is_read_as_it_was(message: Any, codec: str) -> None:  # noqa: ANN401
    """Every valid message survives the way there, in either format."""
    assert decode_response(encode(message, codec)) == message


def test_a_command_says_only_what_there_is_to_say() -> None:
    """The optional fields of a command are absent unless they mean something; `payload` is always there."""
    bare = m.CommandMessage(id="c1", type="work", payload={}, timestamp="2026-11-22T22:01:34.125Z")
    expected = {"id": "c1", "type": "work", "payload": {}, "timestamp": "2026-11-22T22:01:34.125Z"}
    assert json.loads(encode(bare)) == expected
    assert msgspec.msgpack.decode(encode(bare, "msgpack")) == expected
