"""The messages of the protocol, as they stand on the wire.

Two tagged unions on `type`: what an agent says (`Response`) and what an operator asks (`Request`). Each is one JSON
object or one MessagePack map; the first byte tells which. Unknown fields are ignored (but for an operator's payloads,
where a typo must not pass), unknown types are refused. `decode_*` never raises anything but `MalformedError`, whatever
the bytes are.
"""

import re
from typing import Annotated, Any, Final, TypeAlias, get_args

from msgspec import Meta, Struct, field

Identifier: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
TypeName: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
StateName: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")]
MeasureName: TypeAlias = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,63}\Z")]
Labels: TypeAlias = Annotated[dict[TypeName, Annotated[str, Meta(max_length=256)]], Meta(max_length=64)]
Capabilities: TypeAlias = Annotated[list[TypeName], Meta(max_length=32)]

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TYPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STATE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def is_identifier(value: object) -> bool:
    """Tell whether a value may be the id of an agent, a message or a command: it becomes part of a key."""
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


def is_type_name(text: str) -> bool:
    return _TYPE_NAME.fullmatch(text) is not None


def is_state_name(text: str) -> bool:
    return _STATE_NAME.fullmatch(text) is not None


# --- agent to engine --------------------------------------------------------------------------------------------------


class _Response(Struct, frozen=True, kw_only=True, tag_field="type"):
    agent_id: Identifier
    id: Identifier | None = None
    command_id: Identifier | None = None
    reply: bool = False
    timestamp: Any = None
    traceparent: str | None = None
    via: str | None = None
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
    reason: str | None = None


class ProgressPayload(Struct, frozen=True):
    percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    note: str | None = None


class ErrorPayload(Struct, frozen=True):
    code: Annotated[str, Meta(min_length=1)]
    message: str | None = None
    retryable: bool | None = None


class TransitionPayload(Struct, frozen=True):
    target: StateName
    context: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


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
    reason: str | None = None


class _Request(Struct, frozen=True, kw_only=True, tag_field="type"):
    id: Identifier
    reply: bool = True
    timestamp: Any = None
    traceparent: str | None = None

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
