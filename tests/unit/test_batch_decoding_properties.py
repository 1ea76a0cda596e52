"""Properties of the decoder of batches: it gives what msgspec gives that checks the pattern of each name by itself."""

import json
from functools import reduce
from operator import or_
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo

from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import Decoder, MalformedError, decode_responses
from tests.support.messages import FORMATS, RESPONSES, response

unchecked_fields: set[str] = set()
"""Fields with a name that msgspec does not check."""


def enforced(form: Any, field: str = "") -> Any:  # noqa: ANN401 - any type
    """Return the same type, in which msgspec enforces all patterns."""
    if isinstance(form, type) and issubclass(form, Struct):
        config, fields = form.__struct_config__, [definition(each) for each in msgspec.structs.fields(form)]
        return msgspec.defstruct(form.__name__, fields, tag=config.tag, tag_field=config.tag_field, kw_only=True)
    if get_origin(form) is Annotated:
        inner, *metas = get_args(form)
        for number, meta in enumerate(metas):
            if pattern := (meta.extra_json_schema or {}).get("pattern"):
                unchecked_fields.add(field)
                metas[number] = Meta(pattern=rf"\A{pattern.strip('^$')}\Z")
        return Annotated[enforced(inner, field), *metas]
    arguments = [enforced(each, field) for each in get_args(form)]
    if get_origin(form) is dict:
        return dict[arguments[0], arguments[1]]  # type: ignore[valid-type]
    return reduce(or_, arguments) if type(None) in arguments or form is m.Response else form


def definition(field: FieldInfo) -> tuple[str, Any, Any]:
    default: Any = msgspec.field(default=field.default, default_factory=field.default_factory)  # type: ignore[call-overload]
    return field.name, enforced(field.type, field.name), default


REFERENCE = Decoder[Any](enforced(m.Response), "response")

_names = st.sampled_from(["a", "7", "deep_work", "a.b_c-9", "a/b", "x" * 64, "x" * 65, "x" * 128, "x" * 129])
_odd_names = st.sampled_from(["", "\n", "a\n", "\na", "a\nb", "-a", "ä", "a b", "a\x00", "*"]) | st.text(max_size=5)
_PLACES = ["agent_id", "id", "command_id", "instance", "target", "to", "thread_id", "measurement"]


@st.composite
def messages(draw: st.DrawFn) -> dict[str, Any]:
    """A response that is valid except for at most one name."""
    message = response(draw(st.sampled_from([*RESPONSES])))
    for field in ("agent_id", "id", "command_id", "instance"):
        if field in message or draw(st.booleans()):
            message[field] = draw(st.sampled_from(["a", "b", "m1", "x" * 128]))
    message["reply"] = draw(st.booleans())
    message["payload"] = payload = dict(message.pop("payload", {}))  # the last field: msgspec reports the first error
    place = draw(st.sampled_from([None, *_PLACES]))
    name = draw(_names | _odd_names)
    if place == "measurement" and message["type"] == "measurement":
        payload[name] = 1
    elif place in payload:
        payload[place] = name
    elif place in message:
        message[place] = name
    return message


_raws = st.builds(lambda codec, message: codec(message), st.sampled_from([*FORMATS.values()]), messages()) | st.builds(
    lambda message: json.dumps(message, ensure_ascii=False).encode(), messages()
)


def outcome(decoded: object) -> object:
    if isinstance(decoded, MalformedError):
        return decoded.code, decoded.reason, decoded.agent_id, decoded.message_id, decoded.reply
    return msgspec.to_builtins(decoded)


@given(st.lists(_raws | st.sampled_from([b"", b"{}", b"[", b"\x81", b'{"type":"heartbeat"}']), max_size=8))
@example([])
def test_a_batch_is_decoded_as_if_each_name_were_checked_by_itself(raws: list[bytes]) -> None:
    """Each message, valid or not, and each reason, at each place of a batch."""
    assert list(map(outcome, decode_responses(raws))) == list(map(outcome, REFERENCE.decode_all(raws)))


def test_the_names_that_msgspec_does_not_check_are_these() -> None:
    """A new field with an unchecked name needs a check in the codec."""
    assert unchecked_fields == {"agent_id", "id", "command_id", "instance", "to", "thread_id", "target", "payload"}


@pytest.mark.parametrize("codec", FORMATS)
@pytest.mark.parametrize("name", ["a\nb", "a\n", "\na", "\n"])
def test_a_name_with_a_newline_is_not_two_names(name: str, codec: str) -> None:
    invalid = [
        response(agent_id=name),
        response(id=name),
        response(instance=name),
        response("ack", command_id=name),
        response("message", payload={"to": name, "content": 1}),
        response("message", payload={"to": "b", "content": 1, "thread_id": name}),
        response("state_transition", payload={"target": name}),
        response("measurement", payload={name: 1}),
    ]
    for message in invalid:
        first, refused, last = decode_responses([FORMATS[codec](each) for each in (response(), message, response())])
        assert first == last == m.Heartbeat(agent_id="a")
        assert isinstance(refused, MalformedError)
