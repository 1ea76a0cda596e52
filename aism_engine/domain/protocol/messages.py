"""The messages of the protocol: responses of agents, requests of operators, and commands.

`Response` and `Request` are unions that are tagged by the field `type`. Unknown types are refused. Unknown fields are
ignored, except in the payloads of requests, where they are most likely a typo. The garbage collector does not visit
messages (`gc=False`): decoded data has no cycles.
"""

from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from msgspec import Meta, Struct, field

from aism_engine.clock import check_iso
from aism_engine.domain.commands.command import OnLost, Priority
from aism_engine.domain.protocol.name_forms import UncheckedId, UncheckedMeasurementName, UncheckedStateName
from aism_engine.domain.protocol.names import DEAD_LETTER_ID, IDENTIFIER, TYPE_NAME
from aism_engine.durations import MAX_DURATION_S, check_duration, parse_duration

Identifier: TypeAlias = Annotated[str, Meta(pattern=rf"\A{IDENTIFIER}\Z")]
TypeName: TypeAlias = Annotated[str, Meta(pattern=rf"\A{TYPE_NAME}\Z")]
MAX_MEASUREMENTS: Final = 32
"""Largest number of measurements in one message."""
Measurements: TypeAlias = Annotated[dict[UncheckedMeasurementName, float], Meta(max_length=MAX_MEASUREMENTS)]
Labels: TypeAlias = Annotated[dict[TypeName, Annotated[str, Meta(max_length=256)]], Meta(max_length=64)]
Capabilities: TypeAlias = Annotated[list[TypeName], Meta(max_length=32)]
MAX_ATTEMPTS: Final = 1000
Duration: TypeAlias = Annotated[float, Meta(gt=0, le=MAX_DURATION_S)] | Annotated[str, Meta(max_length=32)]
"""Seconds, or a text with a unit: `500ms`, `2h`."""
SelectorText: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]
DeadLetterId: TypeAlias = Annotated[str, Meta(pattern=rf"\A{DEAD_LETTER_ID}\Z")]


class _Message(Struct, frozen=True, kw_only=True, gc=False, tag_field="type"):
    timestamp: Any = None
    traceparent: str | None = None

    @property
    def kind(self) -> str:
        return _KINDS.get(type(self), "custom")


# --- agent to engine --------------------------------------------------------------------------------------------------


class _Response(_Message, frozen=True, kw_only=True):
    agent_id: UncheckedId
    id: UncheckedId | None = None
    command_id: UncheckedId | None = None
    reply: bool = False
    instance: UncheckedId | None = None
    """Id of the agent's process: a new one at each start."""
    via: str | None = None
    """`channel` if the listener read the message from a channel and pushed it to the queue."""


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


class TransitionPayload(Struct, frozen=True, gc=False):
    target: UncheckedStateName
    context: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


class MessagePayload(Struct, frozen=True):
    to: UncheckedId
    content: Any
    thread_id: UncheckedId | None = None


class Register(_Response, frozen=True, kw_only=True, tag="register"):
    payload: RegisterPayload


class Heartbeat(_Response, frozen=True, kw_only=True, tag="heartbeat"):
    payload: ReasonPayload = ReasonPayload()


class Goodbye(_Response, frozen=True, kw_only=True, tag="goodbye"):
    payload: ReasonPayload = ReasonPayload()


class Ack(_Response, frozen=True, kw_only=True, tag="ack"):
    command_id: UncheckedId


class Progress(_Response, frozen=True, kw_only=True, tag="progress"):
    command_id: UncheckedId
    payload: ProgressPayload = ProgressPayload()


class Result(_Response, frozen=True, kw_only=True, tag="result"):
    command_id: UncheckedId
    payload: dict[str, Any] = field(default_factory=dict)


class Error(_Response, frozen=True, kw_only=True, tag="error"):
    payload: ErrorPayload


class StateTransition(_Response, frozen=True, kw_only=True, tag="state_transition"):
    payload: TransitionPayload


class Message(_Response, frozen=True, kw_only=True, tag="message"):
    payload: MessagePayload


class Measurement(_Response, frozen=True, kw_only=True, tag="measurement"):
    payload: Measurements = field(default_factory=dict)


class Custom(_Response, frozen=True, kw_only=True, tag=False, tag_field=None):
    """A response of another type, for which the engine was given a handler."""

    type: TypeName
    payload: Any = None


Response: TypeAlias = (
    Register | Heartbeat | Goodbye | Ack | Progress | Result | Error | StateTransition | Message | Measurement
)


# --- operator to engine -----------------------------------------------------------------------------------------------


class CommandSpec(Struct, frozen=True):
    type: TypeName
    payload: dict[str, Any] = field(default_factory=dict)


class SendOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a command. Their defaults are in the section `commands` of the settings."""

    ttl: Duration | None = None
    """Time to live, from acceptance, or from the start of a scheduled command."""
    ack_timeout: Duration | None = None
    timeout: Duration | None = None
    """Execution timeout."""
    max_attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)] | None = None
    priority: Priority = "normal"
    on_lost: OnLost | None = None
    start_at: str | None = None
    """Earliest start, in ISO 8601 with an offset."""
    start_in: Annotated[float, Meta(ge=0, le=MAX_DURATION_S)] | Annotated[str, Meta(max_length=32)] | None = None
    """Time until the earliest start."""
    quorum: Annotated[str, Meta(pattern=r"\A\d{1,7}%?\Z")] | None = None
    """How many of the selected agents must succeed, such as `80%` or `3`. The default is all of them."""

    def seconds(self, name: Literal["ttl", "ack_timeout", "timeout", "start_in"]) -> float | None:
        """Return a duration in seconds; None if it is not given."""
        given: float | str | None = getattr(self, name)
        return parse_duration(given) if isinstance(given, str) else given

    def __post_init__(self) -> None:
        for name in ("ttl", "ack_timeout", "timeout", "start_in"):
            check_duration(name, self.seconds(name), may_be_zero=name == "start_in")
        if self.start_at is not None:
            if self.start_in is not None:
                raise ValueError("`start_at` and `start_in` cannot be combined")
            check_iso("start_at", self.start_at)


class SendPayload(Struct, frozen=True, forbid_unknown_fields=True):
    command: CommandSpec
    agent_id: Identifier | None = None
    select: SelectorText | None = None
    any: bool = False
    """Send it to one of the selected agents only, the one with the fewest commands in flight."""
    options: SendOptions = SendOptions()

    def __post_init__(self) -> None:
        _exactly_one(agent_id=self.agent_id, select=self.select)
        if self.any and self.select is None:
            raise ValueError("`any` needs `select`")
        if self.options.quorum is not None and (self.select is None or self.any):
            raise ValueError("`quorum` needs `select`, and cannot be combined with `any`")


class _WithReason(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: str | None = None
    """Recorded in the audit."""


class HoldPayload(_WithReason, frozen=True):
    agent_id: Identifier | None = None
    select: SelectorText | None = None
    all: bool | None = None
    """The whole fleet, with agents that join later."""

    def __post_init__(self) -> None:
        _exactly_one(agent_id=self.agent_id, select=self.select, all=self.all or None)


class CancelPayload(_WithReason, frozen=True):
    command_id: Identifier | None = None
    group_id: Identifier | None = None

    def __post_init__(self) -> None:
        _exactly_one(command_id=self.command_id, group_id=self.group_id)


class ReplayPayload(Struct, frozen=True, forbid_unknown_fields=True):
    dead_letter_id: DeadLetterId


class PurgePayload(_WithReason, frozen=True):
    dead_letter_ids: Annotated[tuple[DeadLetterId, ...], Meta(min_length=1, max_length=1000)]


def _exactly_one(**choices: object) -> None:
    if sum(choice is not None for choice in choices.values()) != 1:
        raise ValueError(f"expected exactly one of {', '.join(f'`{name}`' for name in choices)}")


class ForgetPayload(_WithReason, frozen=True):
    agent_id: Identifier


class _Request(_Message, frozen=True, kw_only=True):
    id: Identifier
    reply: bool = True
    operator: Annotated[str, Meta(max_length=128)] | None = None
    """Name that the sender gives. Nothing verifies it."""


class Send(_Request, frozen=True, kw_only=True, tag="send"):
    payload: SendPayload


class Cancel(_Request, frozen=True, kw_only=True, tag="cancel"):
    payload: CancelPayload


class Pause(_Request, frozen=True, kw_only=True, tag="pause"):
    payload: HoldPayload


class Drain(_Request, frozen=True, kw_only=True, tag="drain"):
    payload: HoldPayload


class Resume(_Request, frozen=True, kw_only=True, tag="resume"):
    payload: HoldPayload


class Replay(_Request, frozen=True, kw_only=True, tag="replay"):
    payload: ReplayPayload


class Purge(_Request, frozen=True, kw_only=True, tag="purge"):
    payload: PurgePayload


class Forget(_Request, frozen=True, kw_only=True, tag="forget"):
    payload: ForgetPayload


class ConfirmLosses(_Request, frozen=True, kw_only=True, tag="confirm_losses"):
    payload: _WithReason


Request: TypeAlias = Send | Cancel | Pause | Drain | Resume | Replay | Purge | Forget | ConfirmLosses

_KINDS: Final = {member: str(member.__struct_config__.tag) for member in (*get_args(Response), *get_args(Request))}


# --- engine to agent --------------------------------------------------------------------------------------------------


class CommandMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command as the agent pops it. Optional fields with their default value are left out."""

    id: str
    type: str
    payload: dict[str, Any]
    timestamp: str
    deadline: str | None = None
    attempt: int = 1
    traceparent: str | None = None
