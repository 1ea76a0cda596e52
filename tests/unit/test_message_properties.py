"""Properties of the codec: any bytes are decoded or refused, and valid messages survive both formats."""

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError, decode_request, decode_response, encode
from aism_engine.domain.protocol.names import is_identifier
from tests.support.messages import FORMATS, REQUESTS, RESPONSES, response

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
    """Every accepted message can be written in both formats."""
    check_decode(raw)


@given(_json_values | _near_misses)
def test_no_json_raises_anything_but_a_malformed_error(value: object) -> None:
    check_decode(json.dumps(value).encode())


@given(_msgpack_values | st.dictionaries(st.sampled_from(_KEYS), _msgpack_values, max_size=8))
def test_no_messagepack_raises_anything_but_a_malformed_error(value: object) -> None:
    """Including binary, extensions, and keys that are not strings."""
    check_decode(msgspec.msgpack.encode(value))


@given(
    st.sampled_from([*RESPONSES]),
    st.binary(min_size=1, max_size=6),
    st.integers(0, 200),
)
def test_no_damage_to_a_message_raises_anything_but_a_malformed_error(kind: str, damage: bytes, at: int) -> None:
    for codec in FORMATS.values():
        raw = codec(response(kind))
        at %= len(raw)
        check_decode(raw[:at] + damage + raw[at + len(damage) :])
        check_decode(raw[:at] + damage + raw[at:])
        check_decode(raw[:at])


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
def test_encoded_message_decodes_to_an_equal_message(message: Any, codec: str) -> None:  # noqa: ANN401
    assert decode_response(encode(message, codec)) == message


def test_command_omits_fields_with_their_default() -> None:
    """`payload` is always present."""
    bare = m.CommandMessage(id="c1", type="work", payload={}, timestamp="2026-11-22T22:01:34.125Z")
    expected = {"id": "c1", "type": "work", "payload": {}, "timestamp": "2026-11-22T22:01:34.125Z"}
    assert json.loads(encode(bare)) == expected
    assert msgspec.msgpack.decode(encode(bare, "msgpack")) == expected
