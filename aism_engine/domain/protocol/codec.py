"""Decoding and encoding of messages in JSON or MessagePack. The first byte tells which.

`decode_response` and `decode_request` raise only `MalformedError`, whatever the bytes are.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, Generic, TypeVar, get_args

import msgspec
from msgspec import Struct

from aism_engine.domain.plain_words import explain
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.names import is_identifier

_ENCODERS: Final[dict[str, Callable[[object], bytes]]] = {
    "json": msgspec.json.encode,
    "msgpack": msgspec.msgpack.encode,
}


def encode(message: object, codec: str = "json") -> bytes:
    """Encode a message in JSON (`json`) or MessagePack (`msgpack`)."""
    return _ENCODERS[codec](message)


def encode_sorted(value: object) -> bytes:
    """Encode a value in JSON with sorted keys, so that equal values have equal bytes."""
    return msgspec.json.encode(value, order="sorted")


@dataclass(eq=False)
class MalformedError(Exception):
    """A message that cannot be decoded. `agent_id` and `message_id` are set if they could be read."""

    code: str
    """One of the codes in docs/protocol.md."""
    reason: str
    agent_id: str | None = None
    message_id: str | None = None
    reply: bool = field(default=False, kw_only=True)
    """Whether the message asks for a reply."""

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


def encode_finite(message: object) -> bytes:
    """Encode a message in JSON. Raises MalformedError for NaN, for an infinity, and for what cannot be encoded."""
    try:
        body, is_finite = msgspec.json.encode(message), _is_finite(msgspec.to_builtins(message))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedError("invalid_message", f"cannot be encoded: {explain(error)}") from error
    if not is_finite:
        raise MalformedError("invalid_message", "JSON has no NaN and no infinity")
    return body


def _is_finite(value: object) -> bool:
    """Whether all numbers in a value are finite: msgspec encodes others as null."""
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_is_finite, value))


T = TypeVar("T")
_MSGPACK_MAP: Final = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
"""First bytes of a MessagePack map. None of them can begin a JSON text."""
_FREE_FORM: Final = frozenset({m.Result, m.Message, m.Custom, m.Send, m.StateTransition, m.Measurement})
"""Types whose payload may hold values that only one of the formats can represent."""


def decode_as(form: type[T], raw: bytes) -> T:
    """Decode a message of any form from either format. Raises ValueError or RecursionError for anything else."""
    if raw and raw[0] in _MSGPACK_MAP:
        return msgspec.msgpack.decode(raw, type=form)
    return msgspec.json.decode(raw, type=form)


class _Envelope(Struct, frozen=True):
    type: Any = None
    agent_id: Any = None
    id: Any = None
    reply: Any = None


_ENVELOPES = (msgspec.json.Decoder(_Envelope), msgspec.msgpack.Decoder(_Envelope))


class Decoder(Generic[T]):
    """Decoder of one struct, or a tagged union of structs, from either format."""

    def __init__(self, form: Any, subject: str) -> None:  # noqa: ANN401 - a type form has no type of its own yet
        self._json = msgspec.json.Decoder(form)
        self._msgpack = msgspec.msgpack.Decoder(form)
        self._subject = subject
        self._types = frozenset(str(member.__struct_config__.tag) for member in get_args(form))

    def decode(self, raw: bytes) -> T:
        """Decode one message. Raises `MalformedError`."""
        is_json = not raw or raw[0] not in _MSGPACK_MAP
        try:
            if is_json and not raw.isascii():
                raw.decode()  # msgspec checks UTF-8 only in the strings that it keeps
            message: T = (self._json if is_json else self._msgpack).decode(raw)
            _check_values(message, is_json=is_json)
        except RecursionError:
            raise MalformedError("too_deep", "nested too deep") from None
        except UnicodeDecodeError as error:
            raise MalformedError("invalid_utf8", explain(error)) from None
        except msgspec.DecodeError as error:
            if not isinstance(error, msgspec.ValidationError):
                raise MalformedError("invalid_json" if is_json else "invalid_msgpack", explain(error)) from None
            raise self._explain(raw, explain(error), is_json=is_json) from None
        except (OverflowError, ValueError, TypeError) as error:  # raised by _check_values
            raise self._explain(raw, explain(error), is_json=is_json) from None
        return message

    def _explain(self, raw: bytes, reason: str, *, is_json: bool) -> MalformedError:
        """Find the code for a message that was refused. This is the slow path, taken only by bad input."""
        try:
            envelope = _ENVELOPES[not is_json].decode(raw)
        except RecursionError:
            return MalformedError("too_deep", "nested too deep")
        except (OverflowError, ValueError, TypeError):  # not even the envelope can be read
            is_object = not is_json or raw.lstrip()[:1] == b"{"
            return MalformedError("invalid_message" if is_object else "not_an_object", reason)
        code, kind = "invalid_message", envelope.type
        agent_id, message_id = (value if is_identifier(value) else None for value in (envelope.agent_id, envelope.id))
        if kind is None:
            reason = "the field `type` is missing"
        elif not isinstance(kind, str) or kind not in self._types:
            code, reason = "unknown_type", f"unknown {self._subject} type {kind!r:.80}"
        elif envelope.agent_id is not None and agent_id is None:
            code, reason = "invalid_agent_id", f"invalid agent id {envelope.agent_id!r:.160}"
        return MalformedError(code, reason, agent_id, message_id, reply=envelope.reply is True)


def _check_values(message: Any, *, is_json: bool) -> None:  # noqa: ANN401 - any of the messages
    """Raise for values that cannot be encoded in the other format, and for measurements that are not finite."""
    if type(message) not in _FREE_FORM or (isinstance(message, m.StateTransition) and not message.payload.context):
        return
    if isinstance(message, m.Measurement):
        if not all(map(isfinite, message.payload.values())):
            raise ValueError("a measurement must be a finite number")
    elif is_json:
        encode(message.payload, "msgpack")  # raises for integers of more than 64 bits
    elif msgspec.json.decode(encode(message.payload), type=type(message.payload)) != message.payload:
        raise ValueError("a value that JSON cannot represent: NaN, an infinity, binary, or a key that is not a string")


_RESPONSES = Decoder[m.Response](m.Response, "response")
_CUSTOM = Decoder[m.Custom](m.Custom, "response")
decode_request: Final = Decoder[m.Request](m.Request, "request").decode


def decode_response(raw: bytes, custom: Container[str] = ()) -> m.Response | m.Custom:
    """Decode a response. Raises `MalformedError`. `custom` holds the types of custom responses that have a handler."""
    try:
        return _RESPONSES.decode(raw)
    except MalformedError as error:
        if error.code != "unknown_type":
            raise
        other = _CUSTOM.decode(raw)
        if other.type not in custom:
            raise error from None
        return other
