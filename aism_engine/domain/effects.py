"""What a decision wants written: one small closed set, and nothing else can be written.

An effect names things of the model (an agent, a command, a fact); the store alone knows which keys and which server
commands they are.
"""

from typing import Any, Literal, TypeAlias

from msgspec import Struct

Channel: TypeAlias = Literal["state_changes", "errors", "measurements"]

Actor: TypeAlias = Literal["agent", "operator", "engine"]


class Fact(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the audit: what happened, to whom, by whom, because of which message. `at` is ISO 8601 in UTC, by
    Redis `TIME`.
    """

    event: str
    at: str
    by: Actor
    agent_id: str | None = None
    cause: str | None = None
    command_id: str | None = None
    type: str | None = None
    old_state: str | None = None
    new_state: str | None = None
    source: str | None = None
    code: str | None = None
    reason: str | None = None
    details: dict[str, Any] | None = None


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A dead letter: what was given up on, whole, and why. `raw` is the head of it where `size` exceeds
    `max_message_bytes`.
    """

    code: str
    reason: str
    source: str
    raw: bytes
    digest: str
    size: int
    agent_id: str | None = None
    replay_of: str | None = None
    """The dead letter it was before it was replayed, in vain."""


class SaveAgent(Struct, frozen=True, gc=False):
    """Set these fields of the agent's record, the authority on it."""

    agent_id: str
    fields: dict[str, str]


class IndexAgent(Struct, frozen=True, gc=False):
    """Count the agent among the known."""

    agent_id: str


class SetState(Struct, frozen=True, gc=False):
    """Project the state of the record to the key that agents read."""

    agent_id: str
    state: str


class SaveMetadata(Struct, frozen=True, gc=False):
    agent_id: str
    fields: dict[str, str]


class SaveMeasurements(Struct, frozen=True, gc=False):
    agent_id: str
    values: dict[str, float]


class ForgetAgent(Struct, frozen=True, gc=False):
    """Delete everything that is kept about the agent."""

    agent_id: str


class SaveSilent(Struct, frozen=True, gc=False):
    """Show these agents as silent, each since its instant, and those no longer."""

    since: dict[str, float]
    over: list[str]


class SaveCommand(Struct, frozen=True, gc=False):
    """Set these fields of the command's record; `ttl_s` bounds its life once the command has ended."""

    command_id: str
    fields: dict[str, str | bytes]
    ttl_s: float | None = None


class PushCommand(Struct, frozen=True, gc=False):
    agent_id: str
    body: bytes


class ReleaseCommand(Struct, frozen=True, gc=False):
    """Push what the record of the command has as its body: the server copies it, nobody has to read it first."""

    agent_id: str
    command_id: str


class WithdrawCommand(Struct, frozen=True, gc=False):
    """Take a copy that was not popped yet out of the agent's list. Where there is none any more, push `otherwise`."""

    agent_id: str
    command_id: str
    otherwise: bytes | None = None


class SaveGroup(Struct, frozen=True, gc=False):
    """Set these fields of the group's record; `ttl_s` bounds its life once all its members have ended."""

    group_id: str
    fields: dict[str, str | bytes]
    ttl_s: float | None = None


class AddFanoutTargets(Struct, frozen=True, gc=False):
    """Give the engine something to do later, in order: one small message for each target of a request to many."""

    bodies: list[bytes]


class SaveHold(Struct, frozen=True, gc=False):
    """Set, or with an empty text clear, what holds the whole fleet."""

    hold: str


class SaveRequestReply(Struct, frozen=True, gc=False):
    """Keep what was answered to a request: asked again, it is answered the same."""

    request_id: str
    body: bytes
    ttl_s: float


class RemoveDeadLetters(Struct, frozen=True, gc=False):
    """Remove dead letters by their ids in the stream."""

    dead_letter_ids: tuple[str, ...]


class DeliverMail(Struct, frozen=True, gc=False):
    """Put a message into the agent's inbox."""

    agent_id: str
    body: bytes


class HoldMail(Struct, frozen=True, gc=False):
    """Put a message behind those that wait until the agent accepts them."""

    agent_id: str
    body: bytes


class ReleaseMail(Struct, frozen=True, gc=False):
    """Put all messages that wait for the agent into its inbox, in their order."""

    agent_id: str


class SendReply(Struct, frozen=True, gc=False):
    """Answer an agent's message, or an operator's request (`agent_id` none); if nobody fetches it, it expires."""

    agent_id: str | None
    message_id: str
    body: bytes
    ttl_s: float


class SetDeadline(Struct, frozen=True, gc=False):
    member: str
    at: float


class ClearDeadline(Struct, frozen=True, gc=False):
    member: str


class Publish(Struct, frozen=True, gc=False):
    channel: Channel
    body: bytes


class RecordFact(Struct, frozen=True, gc=False):
    fact: Fact


class AddDeadLetter(Struct, frozen=True, gc=False):
    dead_letter: DeadLetter


class ExpectScore(Struct, frozen=True, gc=False):
    """A precondition: the agent has not beaten since `score` was read."""

    agent_id: str
    score: float


class ExpectDeadline(Struct, frozen=True, gc=False):
    """A precondition: the deadline is still there and has not moved."""

    member: str
    at: float


Effect: TypeAlias = (
    SaveAgent
    | IndexAgent
    | SetState
    | SaveMetadata
    | SaveMeasurements
    | ForgetAgent
    | SaveSilent
    | SaveCommand
    | PushCommand
    | ReleaseCommand
    | WithdrawCommand
    | SaveGroup
    | AddFanoutTargets
    | SaveHold
    | SaveRequestReply
    | RemoveDeadLetters
    | DeliverMail
    | HoldMail
    | ReleaseMail
    | SendReply
    | SetDeadline
    | ClearDeadline
    | Publish
    | RecordFact
    | AddDeadLetter
    | ExpectScore
    | ExpectDeadline
)
