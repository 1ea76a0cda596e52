"""The moves that decisions share. Each changes the draft and adds the effects that make the change true in Redis."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct, field

from aism_engine.model import effects as fx
from aism_engine.model.agent import Agent, Liveness, Sighting
from aism_engine.model.codec import encode
from aism_engine.model.commands import Command, Status, Step
from aism_engine.model.decisions import standing
from aism_engine.model.decisions.faults import Fault, transition_fault
from aism_engine.model.draft import Draft
from aism_engine.model.evidence import Via
from aism_engine.model.machine import Machine, Refusal
from aism_engine.model.rules import Rules
from aism_engine.model.texts import clip, digest

_UNCHANGED: Final[Mapping[str, str]] = {}
_CONTEXT_BYTES: Final = 4096
"""Of the context of a transition, what is kept: an arbitrary number. Of a larger one the digest and the size are."""

Outcome: TypeAlias = Literal["applied", "unchanged", "refused", "duplicate", "late", "contradictory", "buried"]


class Decision(Struct):
    """What one message, request, deadline or heartbeat comes to. `kind` and `outcome` are for the metrics."""

    kind: str
    outcome: Outcome = "applied"
    code: str = ""
    effects: list[fx.Effect] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    """Those of commands, for the metrics."""


class StateChange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The event on `aism:events:state_changes`. The first four fields are the channel design's; ours follow."""

    agent_id: str
    old_state: str
    new_state: str
    timestamp: str
    source: str
    cause: str | None = None


class Trouble(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The event on `aism:events:errors`."""

    code: str
    message: str
    timestamp: str
    source: str
    agent_id: str | None = None
    cause: str | None = None
    command_id: str | None = None
    details: dict[str, Any] | None = None


class Scope:
    """One decision in the making: the draft it changes, the rules it obeys, who caused it, and with which message."""

    __slots__ = ("add", "by", "cause", "decision", "draft", "rules", "via")

    def __init__(self, draft: Draft, rules: Rules, decision: Decision, by: fx.Party, cause: str | None = None) -> None:
        self.draft = draft
        self.rules = rules
        self.decision = decision
        self.by = by
        self.cause = cause
        self.via: Via = "queue"
        """How a state that is declared here was declared."""
        self.add = decision.effects.append

    # --- telling ----------------------------------------------------------------------------------------------------

    def record(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - the fields of a Fact, which checks nothing itself
        self.add(fx.Record(fx.Fact(event=event, at=self.draft.at, by=self.by, cause=self.cause, **fields)))

    def trouble(self, code: str, message: str, *, agent_id: str | None = None, **fields: Any) -> None:  # noqa: ANN401
        event = Trouble(
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
        self.add(fx.Answer(agent_id, message_id, encode(body, codec), self.rules.reply_ttl_s))

    # --- agents -----------------------------------------------------------------------------------------------------

    def machine(self, agent: Agent) -> Machine:
        return self.rules.machines.for_type(agent.type if agent.registered else None)

    def take_in(self, agent_id: str, registering_as: str | None = None) -> Agent:
        """Meet an agent for the first time: what it has set by its own hand is kept."""
        draft = self.draft
        seen = draft.lookups.sightings.get(agent_id) or Sighting()
        machine = self.rules.machines.for_type(registering_as)
        agent = Agent(
            agent_id=agent_id,
            type=seen.type or "unknown",
            labels=seen.labels,
            state=machine.initial if seen.state is None else seen.state,
            since=draft.now,
            liveness=Liveness.UNKNOWN if seen.score is None else Liveness.FRESH,
            met_at=draft.now,
        )
        draft.add_agent(agent)
        standing.settle(self, agent)
        self.add(fx.IndexAgent(agent_id))
        self.add(fx.SaveAgent(agent_id, agent.record()))
        if seen.state is None:
            self.add(fx.SetState(agent_id, agent.state))
        self.record("agent_met", agent_id=agent_id, type=agent.type, new_state=agent.state)
        return agent

    def change_state(
        self,
        agent: Agent,
        state: str,
        source: str,
        fields: Mapping[str, str] = _UNCHANGED,
        *,
        reason: str | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        """Move the agent, whoever asked for it; `fields` of its record that change with it are written along."""
        draft, agent_id, old_state, at = self.draft, agent.agent_id, agent.state, self.draft.at
        if old_state in self.rules.divergence.distill_states:
            draft.deeds(agent_id).distil()
        agent.state = state
        agent.since = draft.now
        changed = {"state": state, "since": at, **fields}
        changed |= standing.cool(self, agent, old_state)
        changed |= standing.settle(self, agent)
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
        self.add(fx.Record(fact))
        if self.rules.events:
            event = StateChange(
                agent_id=agent_id,
                old_state=old_state,
                new_state=state,
                timestamp=at,
                source="engine",
                cause=self.cause,
            )
            self.add(fx.Publish("state_changes", encode(event)))
        standing.release_mail(self, agent)
        if source != "lost" and agent.load:
            self._end_what_asked_for(agent)

    def _end_what_asked_for(self, agent: Agent) -> None:
        """End the commands that asked the agent to go where it is now."""
        for command_id in agent.open_commands:
            command = self.draft.command(command_id)
            if command is not None and command.target == agent.state and command.given:
                self.end_command(command, Status.SUCCEEDED)

    def come_back(self, agent: Agent) -> None:
        """Undo an absence: the agent has shown itself again. One that was lost returns to the state it was in, if there
        is room.
        """
        state = agent.state
        if agent.liveness is Liveness.LOST:
            state = standing.returns_to(self, agent)
        agent.present()
        fields = agent.absence()
        self.record("agent_returned", agent_id=agent.agent_id)
        if state == agent.state:
            self.add(fx.SaveAgent(agent.agent_id, fields))
        else:
            self.change_state(agent, state, "return", fields)

    def declare(
        self,
        agent: Agent,
        target: str,
        *,
        by: fx.Party = "agent",
        context: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Refusal | None:
        """Take what the agent says of its state: kept as declared in any case, and true if its machine allows it. `by`
        is whoever asked for it.
        """
        declared = {"declared": target, "declared_at": self.draft.at, "declared_via": self.via}
        agent.declared, agent.declared_at, agent.declared_via = target, self.draft.now, self.via
        refusal = self.machine(agent).check(agent.state, target, lambda: standing.case(self, agent, by, context or {}))
        if refusal is None and target != agent.state:
            self.change_state(agent, target, "agent", declared, reason=reason, context=context)
        else:
            self.decision.outcome = "unchanged"
            self.add(fx.SaveAgent(agent.agent_id, declared))
        return refusal

    def forget(self, agent: Agent, reason: str | None) -> None:
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
        standing.unwatch_stay(self, agent)
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
            self.decision.steps.append(command.stepped(before.value, self.draft.now))
        self.add(fx.SaveCommand(command.command_id, fields))
        if command.due_at != due_at:
            self.add(fx.SetDeadline(command.deadline, command.due_at))
        self.draft.file(command)

    def tell_command(
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
        self.decision.steps.append(command.stepped(before.value, self.draft.now))
        self.draft.file(command)
        self.add(fx.SaveCommand(command.command_id, ended, self.rules.retention_s))
        self.add(fx.ClearDeadline(command.deadline))
        self.tell_command(command, code=fields.get("code"), reason=fields.get("reason"))
        if command.group_id is not None:
            self.count(command.group_id, status.value)

    def count(self, group_id: str, outcome: str) -> None:
        """Count what became of a member of a group."""
        group = self.draft.group(group_id)
        if group is None:
            return
        was_open = group.verdict == "open"
        fields: dict[str, str | bytes] = {**group.count(outcome, self.draft.now)}
        self.add(fx.SaveGroup(group_id, fields, self.rules.retention_s if group.ended else None))
        if group.ended:
            self.add(fx.ClearDeadline(group.deadline))
        if was_open and group.verdict != "open":
            event = "group_succeeded" if group.verdict == "succeeded" else "group_failed"
            self.record(event, type=group.kind, details={"group_id": group_id, **group.counts})

    def may_be_handed_out(self, agent: Agent) -> bool:
        """Whether one more command may go into the agent's list now."""
        return agent.in_flight < self.rules.max_in_flight and not self.draft.is_paused(agent)

    # --- saying no --------------------------------------------------------------------------------------------------

    def bury(self, code: str, reason: str, raw: bytes, *, source: str, agent_id: str | None = None) -> None:
        """Give up on a message: it is kept whole with its reason, an event says so, and the next one goes on."""
        self.decision.outcome, self.decision.code = "buried", code
        letter = fx.Letter(
            code=code,
            reason=clip(reason),
            source=source,
            raw=raw,
            digest=digest(raw),
            size=len(raw),
            agent_id=agent_id,
        )
        self.add_letter(letter)

    def add_letter(self, letter: fx.Letter) -> None:
        self.decision.outcome, self.decision.code = "buried", letter.code
        self.add(fx.Bury(letter))
        self.record(
            "dead_letter",
            agent_id=letter.agent_id,
            code=letter.code,
            reason=letter.reason,
            details={"source": letter.source, "digest": letter.digest, "size": letter.size},
        )
        self.trouble(
            letter.code, letter.reason, agent_id=letter.agent_id, details={"digest": letter.digest, "size": letter.size}
        )

    def refuse_transition(self, agent: Agent, refusal: Refusal) -> Fault:
        """Say why an agent may not change its state so, and what it could do; nothing changes."""
        self.decision.outcome, self.decision.code = "refused", refusal.code
        fault = transition_fault(refusal)
        self.record(
            "transition_refused",
            agent_id=agent.agent_id,
            old_state=refusal.current,
            new_state=refusal.requested,
            code=refusal.code,
            reason=refusal.message,
        )
        self.trouble(refusal.code, refusal.message, agent_id=agent.agent_id, details=fault.details)
        return fault


def kept_context(context: Mapping[str, Any] | None) -> tuple[str, dict[str, Any] | None]:
    """Give what is kept of the context of a transition: in the record, and in the details of its fact."""
    if not context:
        return "", None
    encoded = encode(context)
    if len(encoded) <= _CONTEXT_BYTES:
        return encoded.decode(), {"context": context}
    return "", {"context_digest": digest(encoded), "context_size": len(encoded)}
