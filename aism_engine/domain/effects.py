"""Effects: the closed set of writes that a decision may ask for.

An effect names things of the domain (an agent, a command, a fact). Only the store knows their keys and server commands.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from aism_engine.domain.agents.agent import AgentRecord

Channel: TypeAlias = Literal["state_changes", "errors", "measurements"]

Actor: TypeAlias = Literal["agent", "operator", "engine"]
DeadLetterSource: TypeAlias = Literal["response_queue", "request_queue", "fanout", "commands"]
"""The queue from which a dead letter was read; `commands` if it is a command whose attempts are used up."""


class Effect(Struct, frozen=True, gc=False):
    """A write or a precondition. Its subclasses are in this module."""


class AgentEffect(Effect, frozen=True):
    """An effect on what belongs to one agent."""

    agent_id: str


class SaveAgent(Effect, frozen=True):
    """Write the record of the agent, as it is when the batch is complete."""

    agent: AgentRecord


class IndexAgent(AgentEffect, frozen=True):
    """Add the agent to the index of known agents."""


class SetState(AgentEffect, frozen=True):
    """Write the state to the key that agents read."""

    state: str


class SaveMetadata(AgentEffect, frozen=True):
    fields: dict[str, str]


class SaveMeasurements(AgentEffect, frozen=True):
    values: dict[str, float]


class ForgetAgent(AgentEffect, frozen=True):
    """Delete everything that is kept about the agent."""


class SaveSilent(Effect, frozen=True):
    """Mark the agents in `since` as silent since an instant, and those in `no_longer` as not silent any more."""

    since: dict[str, float]
    no_longer: list[str]


class SaveCommand(Effect, frozen=True):
    """Set fields of the command's record. `ttl_s` is set when the command has ended."""

    command_id: str
    fields: dict[str, str | bytes]
    ttl_s: float | None = None


class PushCommand(AgentEffect, frozen=True):
    body: bytes


class PushCancel(AgentEffect, frozen=True):
    """Push a `cancel` to the agent's list so that the agent pops it next, before all commands."""

    body: bytes


class ReleaseCommand(AgentEffect, frozen=True):
    """Push the body that is in the command's record. The server copies it, so the engine need not read it."""

    command_id: str


class WithdrawCommand(AgentEffect, frozen=True):
    """Remove a copy of the command from the agent's list. If the agent has popped it, push the `cancel` in `notice`."""

    command_id: str
    notice: bytes | None = None


class SaveGroup(Effect, frozen=True):
    """Set fields of the group's record. `ttl_s` is set when all members have ended."""

    group_id: str
    fields: dict[str, str | bytes]
    ttl_s: float | None = None


class AddFanoutTargets(Effect, frozen=True):
    """Append the targets of a group's request to the fan-out queue. Each body is an encoded `FanoutTarget`."""

    bodies: list[bytes]


class SaveHold(Effect, frozen=True):
    """Set the hold of the whole fleet. Empty fields clear it."""

    fields: dict[str, str]


class SaveRequestReply(Effect, frozen=True):
    """Keep a digest of a request and the reply to it, so that the same request gets the same reply."""

    request_id: str
    body: bytes
    ttl_s: float


class RemoveDeadLetters(Effect, frozen=True):
    """Remove dead letters by their stream ids."""

    dead_letter_ids: tuple[str, ...]


class DeliverMail(AgentEffect, frozen=True):
    """Push a message to the agent's inbox."""

    body: bytes


class DeferMail(AgentEffect, frozen=True):
    """Keep a message until the agent accepts messages. `ReleaseMail` delivers it then."""

    body: bytes


class ReleaseMail(AgentEffect, frozen=True):
    """Move all waiting messages of the agent to its inbox, in order."""


class SendReply(Effect, frozen=True):
    """Reply to an agent's message, or to an operator's request (`agent_id` is None). An unread reply expires."""

    agent_id: str | None
    message_id: str
    body: bytes
    ttl_s: float


class SetDeadline(Effect, frozen=True):
    """Set a deadline. `member` is `command:{id}`, `group:{id}` or `stay:{id}`."""

    member: str
    at: float


class ClearDeadline(Effect, frozen=True):
    member: str


class Publish(Effect, frozen=True):
    """Publish an event, in JSON."""

    channel: Channel
    event: Mapping[str, Any] | Struct


class Fact(Effect, frozen=True, kw_only=True, omit_defaults=True):
    """An event to record in the audit. `at` is ISO 8601 in UTC, by Redis `TIME`.

    `by` is the actor that caused the event. `cause` is the id of the message, request or group that caused it, or the
    member of the deadline. `operator` is the name that the request of an operator gives.
    """

    event: str
    at: str
    by: Actor
    agent_id: str | None = None
    cause: str | None = None
    operator: str | None = None
    command_id: str | None = None
    type: str | None = None
    old_state: str | None = None
    new_state: str | None = None
    source: str | None = None
    code: str | None = None
    reason: str | None = None
    details: dict[str, Any] | None = None


class DeadLetter(Effect, frozen=True, kw_only=True):
    """A message or command to add to the dead letters, with the reason. `raw` is only its head if it was oversized."""

    code: str
    reason: str
    source: str
    raw: bytes
    digest: str
    size: int
    agent_id: str | None = None
    replay_of: str | None = None
    """Id of the dead letter whose replay failed."""


class ExpectScore(AgentEffect, frozen=True):
    """Precondition: the heartbeat of the agent still has this score."""

    score: float


class ExpectDeadline(Effect, frozen=True):
    """Precondition: the deadline still has this instant."""

    member: str
    at: float
