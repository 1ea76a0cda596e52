"""Decoding and encoding of messages in JSON or MessagePack. The first byte tells which.

`decode_responses` decodes a batch, because the names of many messages are checked faster together than one by one.
Except for `decode_as`, the functions that decode raise only `MalformedError`, whatever the bytes are.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final, Generic, TypeAlias, TypeVar, final, get_args

import msgspec
from msgspec import Struct

from aism_engine.domain.plain_words import PATTERNS, explain
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.name_forms import IDENTIFIERS, MEASUREMENT_NAMES, STATE_NAMES, NameForm
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


@final
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
"""First bytes of a MessagePack map. None of them is ASCII, so none can begin a JSON text."""


def _is_msgpack(raw: bytes) -> bool:
    return raw != b"" and raw[0] in _MSGPACK_MAP


def decode_as(form: type[T], raw: bytes) -> T:
    """Decode JSON or MessagePack to the type `form`. Raises ValueError or RecursionError if that is not possible."""
    if _is_msgpack(raw):
        return msgspec.msgpack.decode(raw, type=form)
    return msgspec.json.decode(raw, type=form)


# --- values that only one of the formats can represent ----------------------------------------------------------------


def _check_msgpack(payload: object) -> None:
    if msgspec.json.decode(encode(payload), type=type(payload)) != payload:
        raise ValueError("a value that JSON cannot represent: NaN, an infinity, binary, or a key that is not a string")


def _check_finite(payload: dict[str, float]) -> None:
    if not all(map(isfinite, payload.values())):
        raise ValueError("a measurement must be a finite number")


_FREE_FORM: Final = (m.Result, m.Message, m.Custom, m.Send)
_JSON_CHECKS: Final[dict[type, Callable[[Any], object]]] = {
    **dict.fromkeys(_FREE_FORM, msgspec.msgpack.encode),  # raises for integers of more than 64 bits
    m.StateTransition: lambda payload: msgspec.msgpack.encode(payload.context) if payload.context else None,
}
_MSGPACK_CHECKS: Final[dict[type, Callable[[Any], object]]] = {
    **dict.fromkeys(_FREE_FORM, _check_msgpack),
    m.StateTransition: lambda payload: _check_msgpack(payload.context) if payload.context else None,
    m.Measurement: _check_finite,
}
"""Checks of payloads, by the type of the message. msgspec itself refuses JSON numbers that are not finite."""


# --- one message ------------------------------------------------------------------------------------------------------


class _Envelope(Struct, frozen=True):
    type: Any = None
    agent_id: Any = None
    id: Any = None
    reply: Any = None


class Decoder(Generic[T]):
    """Decoder of one struct, or a tagged union of structs, from either format."""

    def __init__(self, form: Any, subject: str) -> None:  # noqa: ANN401 - a type form has no type of its own yet
        self._json = msgspec.json.Decoder[T](form).decode
        self._msgpack = msgspec.msgpack.Decoder[T](form).decode
        self._subject = subject
        self._types = frozenset(str(member.__struct_config__.tag) for member in get_args(form))

    def decode(self, raw: bytes) -> T:
        """Decode one message. Raises `MalformedError`."""
        (decoded,) = self.decode_all([raw])
        if isinstance(decoded, MalformedError):
            raise decoded
        return decoded

    def decode_all(self, raws: Sequence[bytes]) -> list[T | MalformedError]:
        """Decode messages, each of them by itself: to a message, or to the reason why it was refused."""
        decoded: list[T | MalformedError] = []
        for raw in raws:
            try:
                if raw.isascii():
                    message = self._json(raw)
                    check = _JSON_CHECKS.get(type(message))
                elif raw[0] in _MSGPACK_MAP:
                    message = self._msgpack(raw)
                    check = _MSGPACK_CHECKS.get(type(message))
                else:
                    raw.decode()  # msgspec checks UTF-8 only in the strings that it keeps
                    message = self._json(raw)
                    check = _JSON_CHECKS.get(type(message))
                if check is not None:
                    check(message.payload)
                decoded.append(message)
            except (RecursionError, OverflowError, ValueError, TypeError) as error:
                decoded.append(self._malformed(raw, error))
        return decoded

    def _malformed(self, raw: bytes, error: Exception) -> MalformedError:
        if isinstance(error, RecursionError):
            return MalformedError("too_deep", "nested too deep")
        if isinstance(error, UnicodeDecodeError):
            return MalformedError("invalid_utf8", explain(error))
        if type(error) is msgspec.DecodeError:
            return MalformedError("invalid_msgpack" if _is_msgpack(raw) else "invalid_json", explain(error))
        return self.refuse(raw, explain(error))

    def refuse(self, raw: bytes, reason: str) -> MalformedError:
        """Return the error for a message with an invalid value. The error holds the ids that can be read."""
        try:
            envelope = decode_as(_Envelope, raw)
        except RecursionError:
            return MalformedError("too_deep", "nested too deep")
        except (OverflowError, ValueError, TypeError):  # not even the envelope can be read
            is_object = _is_msgpack(raw) or raw.lstrip()[:1] == b"{"
            return MalformedError("invalid_message" if is_object else "not_an_object", reason)
        code, kind = "invalid_message", envelope.type
        agent_id, message_id = (value if is_identifier(value) else None for value in (envelope.agent_id, envelope.id))
        if kind is None:
            reason = "the field `type` is missing"
        elif self._types and (not isinstance(kind, str) or kind not in self._types):
            code, reason = "unknown_type", f"unknown {self._subject} type {kind!r:.80}"
        elif envelope.agent_id is not None and agent_id is None:
            code, reason = "invalid_agent_id", f"invalid agent id {envelope.agent_id!r:.160}"
        return MalformedError(code, reason, agent_id, message_id, reply=envelope.reply is True)


_REQUESTS: Final = Decoder[m.Request](m.Request, "request")
decode_request: Final = _REQUESTS.decode
decode_requests: Final = _REQUESTS.decode_all


# --- responses --------------------------------------------------------------------------------------------------------

AnyResponse: TypeAlias = m.Response | m.Custom
_RESPONSES: Final = Decoder[AnyResponse](m.Response, "response")
_CUSTOM: Final = Decoder[AnyResponse](m.Custom, "response")


def decode_responses(raws: Sequence[bytes], custom: Container[str] = ()) -> list[AnyResponse | MalformedError]:
    """Decode a batch of responses, each of them by itself.

    `custom` holds the types of custom responses that have a handler.
    """
    decoded = _RESPONSES.decode_all(raws)
    responses = [each for each in decoded if type(each) is not MalformedError]
    if len(responses) < len(decoded):
        decoded = [_decode_custom(each, raw, custom) for each, raw in zip(decoded, raws, strict=True)]
        responses = [each for each in decoded if type(each) is not MalformedError]
    if not _have_valid_names(responses):
        decoded = [_check_names(each, raw) for each, raw in zip(decoded, raws, strict=True)]
    return decoded


def decode_response(raw: bytes, custom: Container[str] = ()) -> AnyResponse:
    """Decode one response. Raises `MalformedError`."""
    (decoded,) = decode_responses([raw], custom)
    if isinstance(decoded, MalformedError):
        raise decoded
    return decoded


def _decode_custom(
    decoded: AnyResponse | MalformedError, raw: bytes, custom: Container[str]
) -> AnyResponse | MalformedError:
    """Decode a response of an unknown type again if its type has a handler."""
    if isinstance(decoded, MalformedError) and decoded.code == "unknown_type":
        kind = decode_as(_Envelope, raw).type
        if isinstance(kind, str) and kind in custom:
            (decoded,) = _CUSTOM.decode_all([raw])
    return decoded


def _have_valid_names(responses: Sequence[AnyResponse]) -> bool:
    """Return whether all ids, state names and measurement names in a batch of responses are valid."""
    ids = [*{each.agent_id for each in responses}]
    ids += [each.id for each in responses if each.id is not None]
    ids += [each.command_id for each in responses if each.command_id is not None]
    ids += {each.instance for each in responses if each.instance is not None}
    mail = [each.payload for each in responses if type(each) is m.Message]
    ids += [each.to for each in mail]
    ids += [each.thread_id for each in mail if each.thread_id is not None]
    states = {each.payload.target for each in responses if type(each) is m.StateTransition}
    measurements = {name for each in responses if type(each) is m.Measurement for name in each.payload}
    return IDENTIFIERS.match_all(ids) and STATE_NAMES.match_all(states) and MEASUREMENT_NAMES.match_all(measurements)


def _check_names(decoded: AnyResponse | MalformedError, raw: bytes) -> AnyResponse | MalformedError:
    """Refuse a response with an invalid name."""
    if not isinstance(decoded, MalformedError):
        for place, name, form in _names(decoded):
            if form.match(name) is None:
                decoder = _CUSTOM if isinstance(decoded, m.Custom) else _RESPONSES
                return decoder.refuse(raw, f"{place}: expected {PATTERNS[form.pattern]}")
    return decoded


def _names(response: AnyResponse) -> Iterator[tuple[str, str, NameForm]]:
    """Yield each name that msgspec has not checked, with its place and its form."""
    for field_name in ("agent_id", "id", "command_id", "instance"):
        if (value := getattr(response, field_name)) is not None:
            yield field_name, value, IDENTIFIERS
    if isinstance(response, m.Message):
        yield "payload.to", response.payload.to, IDENTIFIERS
        if response.payload.thread_id is not None:
            yield "payload.thread_id", response.payload.thread_id, IDENTIFIERS
    if isinstance(response, m.StateTransition):
        yield "payload.target", response.payload.target, STATE_NAMES
    if isinstance(response, m.Measurement):
        for name in response.payload:
            yield "a name in payload", name, MEASUREMENT_NAMES
