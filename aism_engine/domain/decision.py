"""The moves that decisions share. Each changes the draft and adds the effects that make the change true in Redis."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct, field

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.activity import Via
from aism_engine.domain.agents.agent import AgentRecord, AgentSnapshot, Liveness
from aism_engine.domain.commands.command import Command, Status, StatusChange
from aism_engine.domain.draft import Draft
from aism_engine.domain.error_reply import ErrorReply, transition_error
from aism_engine.domain.machines import state_rules
from aism_engine.domain.machines.machine import Machine, Refusal
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest, truncate

_UNCHANGED: Final[Mapping[str, str]] = {}
_CONTEXT_BYTES: Final = 4096
"""Of the context of a transition, what is kept: an arbitrary number. Of a larger one the digest and the size are."""

Outcome: TypeAlias = Literal["applied", "unchanged", "refused", "duplicate", "late", "contradictory", "dead_lettered"]


class Decision(Struct):
    """What one message, request, deadline or heartbeat comes to. `kind` and `outcome` are for the metrics."""

    kind: str
    outcome: Outcome = "applied"
    code: str = ""
    effects: list[fx.Effect] = field(default_factory=list)
    status_changes: list[StatusChange] = field(default_factory=list)
    """Those of commands, for the metrics."""


class StateChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The event on `aism:events:state_changes`. The first four fields are the channel design's; ours follow."""

    agent_id: str
    old_state: str
    new_state: str
    timestamp: str
    source: str
    cause: str | None = None


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


class DecisionContext:
    """One decision in the making: the draft it changes, the policy it obeys, who caused it, and with which message."""

    __slots__ = ("add", "by", "cause", "decision", "draft", "policy", "via")

    def __init__(
        self, draft: Draft, policy: Policy, decision: Decision, by: fx.Actor, cause: str | None = None
    ) -> None:
        self.draft = draft
        self.policy = policy
        self.decision = decision
        self.by = by
        self.cause = cause
        self.via: Via = "queue"
        """How a state that is declared here was declared."""
        self.add = decision.effects.append

    # --- telling ----------------------------------------------------------------------------------------------------

    def record(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - the fields of a Fact, which checks nothing itself
        self.add(fx.RecordFact(fx.Fact(event=event, at=self.draft.at, by=self.by, cause=self.cause, **fields)))

    def publish_error(self, code: str, message: str, *, agent_id: str | None = None, **fields: Any) -> None:  # noqa: ANN401
        event = ErrorEvent(
            code=code,
            message=message,
            timestamp=self.draft.at,
            source="engine",
            agent_id=agent_id,
            cause=self.cause,
            **fields,
        )
        self.add(fx.Publish("errors", encode(event)))

    def answer(self, agent_id: str | None, message_id: str, body: dict[str, Any], codec: str = "json") -> None:
        body = {"id": message_id, "timestamp": self.draft.at, **body}
        self.add(fx.SendReply(agent_id, message_id, encode(body, codec), self.policy.protocol.reply_ttl))

    # --- agents -----------------------------------------------------------------------------------------------------

    def machine(self, agent: AgentRecord) -> Machine:
        return self.policy.machines.for_type(agent.type if agent.registered else None)

    def admit(self, agent_id: str, registering_as: str | None = None) -> AgentRecord:
        """Meet an agent for the first time: what it has set by its own hand is kept."""
        draft = self.draft
        seen = draft.lookups.snapshots.get(agent_id) or AgentSnapshot()
        machine = self.policy.machines.for_type(registering_as)
        agent = AgentRecord(
            agent_id=agent_id,
            type=seen.type or "unknown",
            labels=seen.labels,
            state=machine.initial if seen.state is None else seen.state,
            since=draft.now,
            liveness=Liveness.UNKNOWN if seen.score is None else Liveness.FRESH,
            first_seen_at=draft.now,
        )
        draft.add_agent(agent)
        state_rules.apply_state_terms(self, agent)
        self.add(fx.IndexAgent(agent_id))
        self.add(fx.SaveAgent(agent_id, agent.record()))
        if seen.state is None:
            self.add(fx.SetState(agent_id, agent.state))
        self.record("agent_first_seen", agent_id=agent_id, type=agent.type, new_state=agent.state)
        return agent

    def change_state(
        self,
        agent: AgentRecord,
        state: str,
        source: str,
        fields: Mapping[str, str] = _UNCHANGED,
        *,
        reason: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Move the agent, whoever asked for it; `fields` of its record that change with it are written along."""
        draft, agent_id, old_state, at = self.draft, agent.agent_id, agent.state, self.draft.at
        if old_state in self.policy.divergence.distill_states:
            draft.activity(agent_id).distil()
        agent.state = state
        agent.since = draft.now
        changed = {"state": state, "since": at, **fields}
        changed |= state_rules.start_cooldown(self, agent, old_state)
        changed |= state_rules.apply_state_terms(self, agent)
        details = None
        if reason or context or agent.explained:
            kept, details = kept_context(context)
            changed |= {"reason": reason or "", "context": kept}
            agent.explained = bool(reason or context)
        self.add(fx.SaveAgent(agent_id, changed))
        self.add(fx.SetState(agent_id, state))
        fact = fx.Fact(
            event="state_changed",
            at=at,
            by=self.by,
            agent_id=agent_id,
            cause=self.cause,
            old_state=old_state,
            new_state=state,
            source=source,
            reason=reason,
            details=details,
        )
        self.add(fx.RecordFact(fact))
        if self.policy.protocol.publish_events:
            event = StateChange(
                agent_id=agent_id,
                old_state=old_state,
                new_state=state,
                timestamp=at,
                source="engine",
                cause=self.cause,
            )
            self.add(fx.Publish("state_changes", encode(event)))
        state_rules.release_mail(self, agent)
        if source != "lost" and agent.load:
            self._complete_transitions(agent)

    def _complete_transitions(self, agent: AgentRecord) -> None:
        """End the commands that asked the agent to go where it is now."""
        for command_id in agent.open_commands:
            command = self.draft.command(command_id)
            if command is not None and command.target == agent.state and command.was_sent:
                self.end_command(command, Status.SUCCEEDED)

    def mark_returned(self, agent: AgentRecord) -> None:
        """Undo an absence: the agent has shown itself again. One that was lost returns to the state it was in, if there
        is room.
        """
        state = agent.state
        if agent.liveness is Liveness.LOST:
            state = state_rules.state_on_return(self, agent)
        agent.present()
        fields = agent.absence()
        self.record("agent_returned", agent_id=agent.agent_id)
        if state == agent.state:
            self.add(fx.SaveAgent(agent.agent_id, fields))
        else:
            self.change_state(agent, state, "return", fields)

    def declare(
        self,
        agent: AgentRecord,
        target: str,
        *,
        by: fx.Actor = "agent",
        context: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Refusal | None:
        """Take what the agent says of its state: kept as declared in any case, and true if its machine allows it. `by`
        is whoever asked for it.
        """
        declared = {"declared": target, "declared_at": self.draft.at, "declared_via": self.via}
        agent.declared, agent.declared_at, agent.declared_via = target, self.draft.now, self.via
        refusal = self.machine(agent).check(
            agent.state, target, lambda: state_rules.transition_case(self, agent, by, context or {})
        )
        if refusal is None and target != agent.state:
            self.change_state(agent, target, "agent", declared, reason=reason, context=context)
        else:
            self.decision.outcome = "unchanged"
            self.add(fx.SaveAgent(agent.agent_id, declared))
        return refusal

    def forget(self, agent: AgentRecord, reason: str | None) -> None:
        """Delete all that is kept of an agent; what it had still to do is cancelled."""
        for command_id in agent.open_commands:
            if command := self.draft.command(command_id):
                self.end_command(
                    command,
                    Status.CANCELLED,
                    withdraw=False,
                    code="agent_forgotten",
                    reason="its agent was forgotten",
                )
        state_rules.unwatch_stay(self, agent)
        self.draft.remove_agent(agent.agent_id)
        self.add(fx.ForgetAgent(agent.agent_id))
        self.record("agent_forgotten", agent_id=agent.agent_id, old_state=agent.state, reason=reason)

    # --- commands ---------------------------------------------------------------------------------------------------

    def advance(
        self,
        command: Command,
        step: Callable[..., dict[str, str]],
        *arguments: Any,  # noqa: ANN401 - those of the step
        **named: Any,  # noqa: ANN401
    ) -> None:
        """Take a step of a command's life: its record, its deadline and its agent follow."""
        due_at, before = command.due_at, command.status
        fields: dict[str, Any] = step(*arguments, **named)
        if command.status is not before:
            self.decision.status_changes.append(command.status_change(before.value, self.draft.now))
        self.add(fx.SaveCommand(command.command_id, fields))
        if command.due_at != due_at:
            self.add(fx.SetDeadline(command.deadline, command.due_at))
        self.draft.index(command)

    def record_command(
        self, command: Command, event: str | None = None, *, code: str | None = None, reason: str | None = None
    ) -> None:
        """Record what became of a command; unless told, that it is now what its status says."""
        self.record(
            f"command_{event or command.status.value}",
            agent_id=command.agent_id,
            command_id=command.command_id,
            type=command.type,
            code=code,
            reason=reason,
            details={"attempt": command.attempt} if command.attempt > 1 else None,
        )

    def end_command(self, command: Command, status: Status, *, withdraw: bool = True, **fields: str) -> None:
        """End a command that is open; its record is kept for the retention, its deadline is gone, and no copy of it is
        left in its agent's list.
        """
        if not command.open:  # a change of state has ended it already, being what it asked for
            return
        if withdraw and command.status is Status.QUEUED:
            self.add(fx.WithdrawCommand(command.agent_id, command.command_id))
        before = command.status
        ended: dict[str, Any] = {**command.end(status, self.draft.now), **fields}
        self.decision.status_changes.append(command.status_change(before.value, self.draft.now))
        self.draft.index(command)
        self.add(fx.SaveCommand(command.command_id, ended, self.policy.commands.retention))
        self.add(fx.ClearDeadline(command.deadline))
        self.record_command(command, code=fields.get("code"), reason=fields.get("reason"))
        if command.group_id is not None:
            self.count(command.group_id, status.value)

    def count(self, group_id: str, outcome: str) -> None:
        """Count what became of a member of a group."""
        group = self.draft.group(group_id)
        if group is None:
            return
        was_open = group.status == "open"
        fields: dict[str, str | bytes] = {**group.count(outcome, self.draft.now)}
        self.add(fx.SaveGroup(group_id, fields, self.policy.commands.retention if group.ended else None))
        if group.ended:
            self.add(fx.ClearDeadline(group.deadline))
        if was_open and group.status != "open":
            event = "group_succeeded" if group.status == "succeeded" else "group_failed"
            self.record(event, type=group.kind, details={"group_id": group_id, **group.counts})

    def may_dispatch(self, agent: AgentRecord) -> bool:
        """Whether one more command may go into the agent's list now."""
        return agent.in_flight < self.policy.commands.max_in_flight and not self.draft.is_paused(agent)

    # --- saying no --------------------------------------------------------------------------------------------------

    def dead_letter(self, code: str, reason: str, raw: bytes, *, source: str, agent_id: str | None = None) -> None:
        """Give up on a message: it is kept whole with its reason, an event says so, and the next one goes on."""
        self.decision.outcome, self.decision.code = "dead_lettered", code
        letter = fx.DeadLetter(
            code=code,
            reason=truncate(reason),
            source=source,
            raw=raw,
            digest=message_digest(raw),
            size=len(raw),
            agent_id=agent_id,
        )
        self.add_dead_letter(letter)

    def add_dead_letter(self, letter: fx.DeadLetter) -> None:
        self.decision.outcome, self.decision.code = "dead_lettered", letter.code
        self.add(fx.AddDeadLetter(letter))
        self.record(
            "dead_letter",
            agent_id=letter.agent_id,
            code=letter.code,
            reason=letter.reason,
            details={"source": letter.source, "digest": letter.digest, "size": letter.size},
        )
        self.publish_error(
            letter.code, letter.reason, agent_id=letter.agent_id, details={"digest": letter.digest, "size": letter.size}
        )

    def refuse_transition(self, agent: AgentRecord, refusal: Refusal) -> ErrorReply:
        """Say why an agent may not change its state so, and what it could do; nothing changes."""
        self.decision.outcome, self.decision.code = "refused", refusal.code
        error = transition_error(refusal)
        self.record(
            "transition_refused",
            agent_id=agent.agent_id,
            old_state=refusal.current,
            new_state=refusal.requested,
            code=refusal.code,
            reason=refusal.message,
        )
        self.publish_error(refusal.code, refusal.message, agent_id=agent.agent_id, details=error.details)
        return error


def kept_context(context: Mapping[str, Any] | None) -> tuple[str, dict[str, Any] | None]:
    """Give what is kept of the context of a transition: in the record, and in the details of its fact."""
    if not context:
        return "", None
    encoded = encode(context)
    if len(encoded) <= _CONTEXT_BYTES:
        return encoded.decode(), {"context": context}
    return "", {"context_digest": message_digest(encoded), "context_size": len(encoded)}
