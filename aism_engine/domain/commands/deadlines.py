"""Due deadlines: ack timeout, execution timeout, time to live, scheduled start, next attempt, longest stay."""

from collections.abc import Set as AbstractSet
from typing import Any

from aism_engine.clock import ROUNDING_S
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.agents.transitions import end_stay
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.commands.lifecycle import advance, count_in_group, end_command, record_command, retry
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import decode_as, encode


def decide_deadline(
    draft: Draft, policy: Policy, member: str, at: float, *, wrong_type_keys: AbstractSet[str] = frozenset()
) -> Decision:
    """Decide on one due deadline: its member, `{kind}:{id}`, and its instant, both as they were read.

    `wrong_type_keys` names the keys of the command that have the wrong type, `record` or `list`: the command still
    ends, and the effects on these keys are left out.
    """
    decision = Decision("deadline")
    ctx = DecisionContext(draft, policy, decision, "engine", member)
    ctx.add(fx.ExpectDeadline(member, at))
    kind, _, name = member.partition(":")
    if kind == "command" and (command := draft.command(name)) is not None and command.open:
        _command_due(ctx, command, at + ROUNDING_S, wrong_type_keys)
    elif kind == "group" and (group := draft.group(name)) is not None:
        count_in_group(ctx, name, "expired", group.pending)  # the outcomes of these members can no longer be known
    elif kind == "stay" and not wrong_type_keys and (agent := draft.agent(name)) is not None:
        end_stay(ctx, agent)
    else:
        decision.outcome = "late"
        ctx.add(fx.ClearDeadline(member))
    return decision


def _command_due(ctx: DecisionContext, command: Command, now: float, wrong_type_keys: AbstractSet[str]) -> None:
    """Act on the due deadline of a command."""
    decision = ctx.decision
    agent = ctx.draft.agent(command.agent_id)
    if wrong_type_keys or now >= command.expires_at or agent is None:
        _end(ctx, command, Status.EXPIRED, "expired", "did not end within its time to live")
    elif not command.step_at or now < command.step_at:
        decision.outcome = "unchanged"
        ctx.add(fx.SetDeadline(command.deadline, command.due_at))
    elif command.status is Status.SCHEDULED:
        advance(ctx, command, command.wait)
        record_command(ctx, command)
    elif command.status is Status.WAITING:
        _next_attempt(ctx, agent, command)
    elif command.status is Status.DELIVERED and agent.acks:
        ctx.draft.activity(agent.agent_id).add_ack_timeout(command.step_at - command.ack_timeout_s, ctx.draft.now)
        reason = f"not acknowledged within {command.ack_timeout_s:g} s"
        retry(ctx, command, "not_acknowledged", reason, failed=False)
    else:
        _end(ctx, command, Status.FAILED, "timeout", f"did not end within {command.timeout_s:g} s of execution")
    if wrong_type_keys:
        unwritten = fx.SaveCommand | fx.WithdrawCommand if "record" in wrong_type_keys else fx.WithdrawCommand
        decision.effects[:] = [effect for effect in decision.effects if not isinstance(effect, unwritten)]


def _next_attempt(ctx: DecisionContext, agent: AgentRecord, command: Command) -> None:
    """Let a command wait for dispatch again, or dead-letter it when all its attempts are used."""
    body = ctx.draft.lookups.bodies.get(command.command_id)
    if body is None:
        ctx.decision.outcome = "unchanged"  # the command had another status when the bodies were looked up
    elif not body:
        _end(ctx, command, Status.FAILED, "record_damaged", "cannot be sent again: the body in its record is missing")
    elif command.attempt >= command.max_attempts:
        attempts = f"{command.attempt} attempts" if command.attempt > 1 else "1 attempt"
        reason = f"did not succeed in {attempts}, with {command.failures} errors"
        _end(ctx, command, Status.DEAD, "attempts_exhausted", reason)
        ctx.dead_letter("attempts_exhausted", reason, body, source="commands", agent_id=agent.agent_id)
    else:
        message = decode_as(dict[str, Any], body) | {"attempt": command.attempt + 1}
        ctx.add(fx.SaveCommand(command.command_id, {"body": encode(message, agent.codec)}))
        advance(ctx, command, command.wait)


def _end(ctx: DecisionContext, command: Command, status: Status, code: str, reason: str) -> None:
    if command.status is Status.ACKED:
        ctx.draft.activity(command.agent_id).add_execution_timeout(command.step_at - command.timeout_s, ctx.draft.now)
    end_command(ctx, command, status, code=code, reason=reason)
    message = f"command {command.command_id} {reason}"
    ctx.publish_error(code, message, agent_id=command.agent_id, command_id=command.command_id)
