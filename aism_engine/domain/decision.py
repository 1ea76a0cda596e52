"""A decision on one message, request, deadline or heartbeat, and the context in which it is made.

The functions that decide take a `DecisionContext`. They change its draft and add the effects that write the same change
to Redis.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from math import ceil
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias

from msgspec import Struct, field

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord, Via
from aism_engine.domain.commands.command import StatusChange
from aism_engine.domain.draft import Draft
from aism_engine.domain.machines.machine import Machine, Refusal
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import encode

P = ParamSpec("P")
Outcome: TypeAlias = Literal["applied", "unchanged", "refused", "duplicate", "late", "contradictory", "dead_lettered"]


class Decision(Struct, gc=False):
    """The result of one message, request, deadline or heartbeat. `kind`, `outcome` and `code` label the metrics."""

    kind: str
    outcome: Outcome = "applied"
    code: str = ""
    effects: list[fx.Effect] = field(default_factory=list)
    status_changes: list[StatusChange] = field(default_factory=list)
    """Status changes of commands, for the metrics."""


class ErrorReply(Struct, frozen=True):
    """Why something was refused: the field `error` of a reply."""

    type: str
    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    suggestions: tuple[str, ...] = ()


class ErrorEvent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The event on `aism:events:errors`."""

    code: str
    message: str
    timestamp: str
    source: str
    agent_id: str | None = None
    cause: str | None = None
    command_id: str | None = None
    details: dict[str, Any] | None = None


def transition_error(refusal: Refusal) -> ErrorReply:
    details: dict[str, Any] = {
        "current": refusal.current,
        "requested": refusal.requested,
        "allowed": refusal.allowed,
    }
    if refusal.missing:
        details["missing"] = refusal.missing
    if refusal.retry_after_s is not None:
        details["retry_after"] = ceil(refusal.retry_after_s * 1000) / 1000  # rounded up: a retry is never too early
    return ErrorReply("transition_refused", refusal.code, refusal.message, details, refusal.suggestions)


class DecisionContext:
    """The draft that a decision changes, the policy that it applies, and the actor and the message that caused it."""

    __slots__ = ("add", "by", "cause", "decision", "draft", "operator", "policy", "via")

    def __init__(
        self,
        draft: Draft,
        policy: Policy,
        decision: Decision,
        by: fx.Actor,
        cause: str | None = None,
        operator: str | None = None,
    ) -> None:
        self.draft = draft
        self.policy = policy
        self.decision = decision
        self.by = by
        self.cause = cause
        self.operator = operator
        self.via: Via = "queue"
        """How the agent's declaration of a state reached the engine."""
        self.add = decision.effects.append

    def machine(self, agent: AgentRecord) -> Machine:
        return self.policy.machines.for_type(agent.registered_type)

    def record(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - fields of Fact, of several types
        """Record a fact in the audit."""
        operator = self.operator
        self.add(fx.Fact(event=event, at=self.draft.at, by=self.by, cause=self.cause, operator=operator, **fields))

    def publish_error(self, code: str, message: str, **fields: Any) -> None:  # noqa: ANN401 - fields of ErrorEvent
        at, cause = self.draft.at, self.cause
        event = ErrorEvent(code=code, message=message, timestamp=at, source="engine", cause=cause, **fields)
        self.add(fx.Publish("errors", event))

    def encode_for(self, agent_id: str | None, message: object) -> bytes:
        """Encode a message in the codec of the agent that gets it; in JSON for an operator or an unknown agent."""
        agent = None if agent_id is None else self.draft.agent(agent_id)
        return encode(message, "json" if agent is None else agent.codec)

    def reply(self, agent_id: str | None, message_id: str, body: Mapping[str, Any]) -> None:
        """Reply to a message of an agent, or to a request of an operator (`agent_id` is None)."""
        encoded = self.encode_for(agent_id, {"id": message_id, "timestamp": self.draft.at, **body})
        self.add(fx.SendReply(agent_id, message_id, encoded, self.policy.protocol.reply_ttl))


AgentChange: TypeAlias = Callable[Concatenate[DecisionContext, AgentRecord, P], None]
AgentDecision: TypeAlias = Callable[Concatenate[Draft, Policy, str, P], Decision]


def agent_decision(kind: str) -> Callable[[AgentChange[P]], AgentDecision[P]]:
    """Turn a function that changes an agent and adds effects into a decision of the engine.

    The decision takes the id of the agent. It is `unchanged` if the agent is unknown or the function adds no effect.
    """

    def decorate(change: AgentChange[P]) -> AgentDecision[P]:
        @wraps(change)
        def decide(draft: Draft, policy: Policy, agent_id: str, /, *args: P.args, **kwargs: P.kwargs) -> Decision:
            decision = Decision(kind, "unchanged")
            if (agent := draft.agent(agent_id)) is not None:
                change(DecisionContext(draft, policy, decision, "engine"), agent, *args, **kwargs)
                if decision.effects and decision.outcome == "unchanged":
                    decision.outcome = "applied"
            return decision

        return decide

    return decorate
