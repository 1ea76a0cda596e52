"""Laws of the words for a value of the wrong form."""

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from aism_engine.domain.plain_words import explain, in_plain_words
from aism_engine.domain.protocol.codec import decode_as
from aism_engine.domain.protocol.messages import Identifier, TypeName
from aism_engine.settings import Address, Prefix, Url


class _Form(Struct, forbid_unknown_fields=True):
    needed: int
    ratio: Annotated[float, Meta(gt=0, le=1)] = 1.0
    names: Annotated[list[str], Meta(max_length=2)] = []
    labels: dict[str, bool] = {}
    hold: Literal["pause", "drain"] | None = None
    text: Annotated[str, Meta(min_length=1)] = "x"
    note: Annotated[str, Meta(max_length=3)] | None = None
    agent_id: Identifier = "a"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected an object, got a list"),
        ({}, "the field `needed` is missing"),
        ({"needed": 1, "bogus": 1}, "there is no field `bogus`"),
        ({"needed": "1"}, "needed: expected a whole number, got text"),
        ({"needed": None}, "needed: expected a whole number, got null"),
        ({"needed": 1, "ratio": 0}, "ratio: expected a number, more than 0"),
        ({"needed": 1, "ratio": 1.5}, "ratio: expected a number, at most 1"),
        ({"needed": 1, "names": ["a", "b", "c"]}, "names: expected a list with at most 2 entries"),
        ({"needed": 1, "names": [1]}, "names[0]: expected text, got a whole number"),
        ({"needed": 1, "labels": {"a": 1}}, "labels.*: expected true or false, got a whole number"),
        ({"needed": 1, "labels": {2: True}}, "a name in labels: expected text, got a whole number"),
        ({"needed": 1, "hold": "stop"}, "hold: 'stop' is not one of the values that are allowed here"),
        ({"needed": 1, "text": ""}, "text: expected text that is not empty"),
        ({"needed": 1, "note": "long"}, "note: expected text with at most 3 characters"),
        (
            {"needed": 1, "agent_id": "a b"},
            (
                "agent_id: expected an id of at most 128 letters, digits, `.`, `_` and `-`, "
                "beginning with a letter or a digit"
            ),
        ),
    ],
)
def test_the_place_and_what_was_expected_there_are_named(value: object, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert(value, _Form)
    assert in_plain_words(str(refused.value)) == words


@pytest.mark.parametrize("form", [Identifier, TypeName, Url, Address, Prefix])
def test_no_pattern_of_ours_reaches_a_person_as_a_regular_expression(form: Any) -> None:  # noqa: ANN401
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert("*", form)
    assert "of the form" not in in_plain_words(str(refused.value))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "the end of the message is missing"),
        (b'{"needed": x}', "not JSON at byte 11: invalid character"),
        (b'{"needed": 1} 2', "not JSON at byte 15: trailing characters"),
        (b"\x81\xa6needed\xc1", "not MessagePack at byte 8: invalid opcode '\\xc1'"),
        (b'{"text": "\xff"}', "text that is not valid UTF-8"),
        (b"[" * 10_000, "expected an object, got a list"),
    ],
)
def test_a_message_that_cannot_be_decoded_is_explained(raw: bytes, words: str) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)) as refused:
        decode_as(_Form, raw)
    assert explain(refused.value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "a value of the type object cannot be encoded"),
        (2**64, "an integer has more than 64 bits"),
        ("\ud800", "text that is not valid UTF-8"),
    ],
)
def test_a_value_that_cannot_be_encoded_is_explained(value: object, words: str) -> None:
    with pytest.raises((TypeError, OverflowError, UnicodeError)) as refused:
        msgspec.msgpack.encode(value)
    assert explain(refused.value) == words
