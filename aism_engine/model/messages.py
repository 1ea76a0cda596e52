"""The messages of the protocol, as they stand on the wire.

Two tagged unions on `type`: what an agent says (`Response`) and what an operator asks (`Request`). Each is one JSON
object or one MessagePack map; the first byte tells which. Unknown fields are ignored, unknown types are refused.
`decode_*` never raises anything but `MalformedError`, whatever the bytes are.
"""

import re
from collections.abc import Callable
from math import isfinite
from typing import Annotated, Any, Final, TypeAlias, TypeVar

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
    """A message that cannot be understood. `code` is one of those in docs/protocol.md; `agent_id` where it could be
    read.
    """

    def __init__(self, code: str, reason: str, agent_id: str | None = None) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.agent_id = agent_id


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
        return str(self.__struct_config__.tag)


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
        return str(self.__struct_config__.tag)


class Send(_Request, frozen=True, kw_only=True, tag="send"):
    payload: SendPayload


class Forget(_Request, frozen=True, kw_only=True, tag="forget"):
    payload: ForgetPayload


Request: TypeAlias = Send | Forget


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
_FREE_FORM: Final = (Result, Message, Send)
"""Types whose payload may hold any value: it must be possible to write it in either format."""


class _Envelope(Struct, frozen=True):
    type: Any = None
    agent_id: Any = None


_ENVELOPES = (msgspec.json.Decoder(_Envelope), msgspec.msgpack.Decoder(_Envelope))


class Codec:
    """Decodes one union of messages from either format."""

    def __init__(self, union: Any, subject: str) -> None:  # noqa: ANN401 - a type form has no type of its own yet
        self._json = msgspec.json.Decoder(union)
        self._msgpack = msgspec.msgpack.Decoder(union)
        self._subject = subject
        self._types = frozenset(str(member.__struct_config__.tag) for member in union.__args__)

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
            if isinstance(message, _FREE_FORM) or (isinstance(message, StateTransition) and message.payload.context):
                encode(
                    message.payload, "msgpack" if is_json else "json"
                )  # refuses integers past 64 bits, and extensions
            elif isinstance(message, Measurement) and not all(map(isfinite, message.payload.values())):
                raise MalformedError("invalid_message", "a measurement must be a finite number", message.agent_id)
        except msgspec.ValidationError as error:
            raise self._explain(raw, str(error), is_json=is_json) from None
        except RecursionError:
            raise MalformedError("too_deep", "nested too deep") from None
        except UnicodeDecodeError as error:
            raise MalformedError("invalid_utf8", str(error)) from None
        except msgspec.DecodeError as error:
            raise MalformedError("invalid_json" if is_json else "invalid_msgpack", str(error)) from None
        except (OverflowError, ValueError, TypeError) as error:  # a value that JSON cannot hold
            raise MalformedError("invalid_message", f"{self._subject} cannot be written again: {error}") from None
        return message

    def _explain(self, raw: bytes, reason: str, *, is_json: bool) -> MalformedError:
        """Find the code of a well-formed message that is none of ours: the slow path, taken only by bad input."""
        try:
            envelope = _ENVELOPES[not is_json].decode(raw)
        except RecursionError:
            return MalformedError("too_deep", "nested too deep")
        except (msgspec.DecodeError, UnicodeDecodeError):
            return MalformedError("not_an_object", reason)
        agent_id = envelope.agent_id if is_identifier(envelope.agent_id) else None
        if envelope.type is None:
            return MalformedError("invalid_message", "the field `type` is missing", agent_id)
        if envelope.type not in self._types if isinstance(envelope.type, str) else True:
            return MalformedError("unknown_type", f"no {self._subject} has the type {envelope.type!r:.80}", agent_id)
        if envelope.agent_id is not None and agent_id is None:
            return MalformedError("invalid_agent_id", f"{envelope.agent_id!r:.160} is no agent id")
        return MalformedError("invalid_message", reason, agent_id)


_RESPONSES = Codec(Response, "response")
_REQUESTS = Codec(Request, "request")


def decode_response(raw: bytes) -> Response:
    """Read what an agent said; raises `MalformedError`."""
    response: Response = _RESPONSES.decode(raw)
    return response


def decode_request(raw: bytes) -> Request:
    """Read what an operator asks; raises `MalformedError`."""
    request: Request = _REQUESTS.decode(raw)
    return request
