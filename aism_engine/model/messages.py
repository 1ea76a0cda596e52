"""The messages of the protocol, as they stand on the wire.

Two tagged unions on `type`: what an agent says (`Response`) and what an operator asks (`Request`). Each is one JSON
object or one MessagePack map; the first byte tells which. Unknown fields are ignored, unknown types are refused.
`decode_*` never raises anything but `MalformedError`, whatever the bytes are.
"""

import re
from collections.abc import Callable, Container
from math import isfinite
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct, field

Text: TypeAlias = Annotated[str, Meta(max_length=2000)]
Identifier: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
TypeName: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
StateName: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")]
MeasureName: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,63}\Z")]
Labels: TypeAlias = Annotated[dict[TypeName, Annotated[str, Meta(max_length=256)]], Meta(max_length=64)]
Capabilities: TypeAlias = Annotated[list[TypeName], Meta(max_length=32)]

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_identifier(value: object) -> bool:
    """Tell whether a value may be the id of an agent, a message or a command: it becomes part of a key."""
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


class MalformedError(Exception):
    """A message that cannot be understood.

    `code` is one of those in docs/protocol.md; `agent_id` and `message_id` are there where they could be read.
    """

    def __init__(self, code: str, reason: str, agent_id: str | None = None, message_id: str | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.agent_id = agent_id
        self.message_id = message_id


# --- agent to engine --------------------------------------------------------------------------------------------------


class _Response(Struct, frozen=True, kw_only=True, tag_field="type"):
    agent_id: Identifier
    id: Identifier | None = None
    command_id: Identifier | None = None
    reply: bool = False
    timestamp: Any = None
    traceparent: Text | None = None
    via: Text | None = None
    """`pubsub` where the listener heard it on a channel and put it into the queue."""

    @property
    def kind(self) -> str:
        return _KINDS[type(self)]


class RegisterPayload(Struct, frozen=True):
    type: TypeName
    labels: Labels = field(default_factory=dict)
    capabilities: Capabilities = field(default_factory=list)
    codec: Annotated[str, Meta(pattern=r"\A(json|msgpack)\Z")] = "json"


class ReasonPayload(Struct, frozen=True):
    reason: Text | None = None


class ProgressPayload(Struct, frozen=True):
    percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    note: Text | None = None


class ErrorPayload(Struct, frozen=True):
    code: TypeName
    message: Text | None = None
    retryable: bool | None = None


class TransitionPayload(Struct, frozen=True):
    target: StateName
    context: dict[str, Any] = field(default_factory=dict)
    reason: Text | None = None


class MessagePayload(Struct, frozen=True):
    to: Identifier
    content: Any
    thread_id: Identifier | None = None


class Register(_Response, frozen=True, kw_only=True, tag="register"):
    payload: RegisterPayload


class Heartbeat(_Response, frozen=True, kw_only=True, tag="heartbeat"):
    payload: ReasonPayload = ReasonPayload()


class Goodbye(_Response, frozen=True, kw_only=True, tag="goodbye"):
    payload: ReasonPayload = ReasonPayload()


class Ack(_Response, frozen=True, kw_only=True, tag="ack"):
    command_id: Identifier


class Progress(_Response, frozen=True, kw_only=True, tag="progress"):
    command_id: Identifier
    payload: ProgressPayload = ProgressPayload()


class Result(_Response, frozen=True, kw_only=True, tag="result"):
    command_id: Identifier
    payload: dict[str, Any] = field(default_factory=dict)


class Error(_Response, frozen=True, kw_only=True, tag="error"):
    payload: ErrorPayload


class StateTransition(_Response, frozen=True, kw_only=True, tag="state_transition"):
    payload: TransitionPayload


class Message(_Response, frozen=True, kw_only=True, tag="message"):
    payload: MessagePayload


class Measurement(_Response, frozen=True, kw_only=True, tag="measurement"):
    payload: Annotated[dict[MeasureName, float], Meta(max_length=32)] = field(default_factory=dict)


class Custom(_Response, frozen=True, kw_only=True, tag=False, tag_field=None):
    """A response of a type that is not ours, but for which the engine was given a handler."""

    type: TypeName
    payload: Any = None

    @property
    def kind(self) -> str:
        return "custom"


Response: TypeAlias = (
    Register | Heartbeat | Goodbye | Ack | Progress | Result | Error | StateTransition | Message | Measurement
)


# --- operator to engine -----------------------------------------------------------------------------------------------


class CommandSpec(Struct, frozen=True):
    type: TypeName
    payload: dict[str, Any] = field(default_factory=dict)


class SendOptions(Struct, frozen=True, forbid_unknown_fields=True):
    ttl: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    """Seconds from acceptance to the end; none: `commands.ttl`."""


class SendPayload(Struct, frozen=True, forbid_unknown_fields=True):
    agent_id: Identifier
    command: CommandSpec
    options: SendOptions = SendOptions()


class ForgetPayload(Struct, frozen=True, forbid_unknown_fields=True):
    agent_id: Identifier
    reason: Text | None = None


class _Request(Struct, frozen=True, kw_only=True, tag_field="type"):
    id: Identifier
    reply: bool = True
    timestamp: Any = None
    traceparent: Text | None = None

    @property
    def kind(self) -> str:
        return _KINDS[type(self)]


class Send(_Request, frozen=True, kw_only=True, tag="send"):
    payload: SendPayload


class Forget(_Request, frozen=True, kw_only=True, tag="forget"):
    payload: ForgetPayload


Request: TypeAlias = Send | Forget

_KINDS: Final = {member: str(member.__struct_config__.tag) for member in (*get_args(Response), *get_args(Request))}


# --- engine to agent --------------------------------------------------------------------------------------------------


class Command(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command as the agent pops it. The optional fields are absent unless they say something."""

    id: str
    type: str
    payload: dict[str, Any]
    timestamp: str
    deadline: str | None = None
    attempt: int = 1
    traceparent: str | None = None


_ENCODERS: Final[dict[str, Callable[[object], bytes]]] = {
    "json": msgspec.json.encode,
    "msgpack": msgspec.msgpack.encode,
}


def encode(message: object, codec: str = "json") -> bytes:
    """Write a message in the codec its reader asked for at `register`."""
    return _ENCODERS[codec](message)


# --- decoding ---------------------------------------------------------------------------------------------------------

T = TypeVar("T")
_MSGPACK_MAP: Final = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
"""First bytes of a MessagePack map; none of them can begin a JSON text."""
_FREE_FORM: Final = frozenset({Result, Message, Custom, Send})
"""Types whose payload may hold any value: it must be possible to write it in either format."""


class _Envelope(Struct, frozen=True):
    type: Any = None
    agent_id: Any = None
    id: Any = None


_ENVELOPES = (msgspec.json.Decoder(_Envelope), msgspec.msgpack.Decoder(_Envelope))


class Codec:
    """Decodes one form of messages, a struct or a union of them, from either format."""

    def __init__(self, form: Any, subject: str) -> None:  # noqa: ANN401 - a type form has no type of its own yet
        self._json = msgspec.json.Decoder(form)
        self._msgpack = msgspec.msgpack.Decoder(form)
        self._subject = subject
        self._types = frozenset(str(member.__struct_config__.tag) for member in get_args(form))

    def decode(self, raw: bytes) -> Any:  # noqa: ANN401 - narrowed by decode_response and decode_request
        """Read one message, or raise `MalformedError` with a code."""
        is_json = not raw or raw[0] not in _MSGPACK_MAP
        try:
            if is_json:
                if not raw.isascii():
                    raw.decode()  # msgspec checks only the strings it keeps
                message = self._json.decode(raw)
            else:
                message = self._msgpack.decode(raw)
            kind = type(message)
            if kind in _FREE_FORM or (kind is StateTransition and message.payload.context):
                # The other format refuses what this one alone can hold: integers past 64 bits, extensions.
                written = encode(message.payload, "msgpack" if is_json else "json")
                if not is_json and b"null" in written:  # what JSON writes for a number that is none, too
                    _check_finite(message.payload)
            elif kind is Measurement and not all(map(isfinite, message.payload.values())):
                raise MalformedError("invalid_message", "a measurement must be a finite number", message.agent_id)
        except msgspec.ValidationError as error:
            raise self._explain(raw, str(error), is_json=is_json) from None
        except RecursionError:
            raise MalformedError("too_deep", "nested too deep") from None
        except UnicodeDecodeError as error:
            raise MalformedError("invalid_utf8", str(error)) from None
        except msgspec.DecodeError as error:
            raise MalformedError("invalid_json" if is_json else "invalid_msgpack", str(error)) from None
        except (OverflowError, ValueError, TypeError) as error:  # a value that the other format cannot hold
            raise self._explain(raw, f"the {self._subject} cannot be written again: {error}", is_json=is_json) from None
        return message

    def _explain(self, raw: bytes, reason: str, *, is_json: bool) -> MalformedError:
        """Find the code of a well-formed message that is none of ours: the slow path, taken only by bad input."""
        try:
            envelope = _ENVELOPES[not is_json].decode(raw)
        except RecursionError:
            return MalformedError("too_deep", "nested too deep")
        except (msgspec.DecodeError, OverflowError, ValueError, TypeError):  # not even that much can be read
            is_object = not is_json or raw.lstrip()[:1] == b"{"
            return MalformedError("invalid_message" if is_object else "not_an_object", reason)
        code, kind = "invalid_message", envelope.type
        agent_id, message_id = (value if is_identifier(value) else None for value in (envelope.agent_id, envelope.id))
        if kind is None:
            reason = "the field `type` is missing"
        elif not isinstance(kind, str) or kind not in self._types:
            code, reason = "unknown_type", f"no {self._subject} has the type {kind!r:.80}"
        elif envelope.agent_id is not None and agent_id is None:
            code, reason = "invalid_agent_id", f"{envelope.agent_id!r:.160} is no agent id"
        return MalformedError(code, reason, agent_id, message_id)


def _check_finite(value: object) -> None:
    """Raise ValueError where there is a NaN or an infinity in a payload: JSON would make it null without a word."""
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{value} is no number")
    if isinstance(value, Struct):
        value = msgspec.structs.asdict(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_finite(part)


_RESPONSES = Codec(Response, "response")
_CUSTOM = Codec(Custom, "response")
_REQUESTS = Codec(Request, "request")


def decode_response(raw: bytes, custom: Container[str] = ()) -> Response | Custom:
    """Read what an agent said; raises `MalformedError`. `custom` holds the types beyond ours that have a handler."""
    try:
        response: Response = _RESPONSES.decode(raw)
    except MalformedError as error:
        if error.code != "unknown_type":
            raise
        other: Custom = _CUSTOM.decode(raw)
        if other.type not in custom:
            raise error from None
        return other
    return response


def decode_request(raw: bytes) -> Request:
    """Read what an operator asks; raises `MalformedError`."""
    request: Request = _REQUESTS.decode(raw)
    return request
