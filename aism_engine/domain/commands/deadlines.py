"""What it means that a deadline has come."""

from typing import Any, Final

from aism_engine.clock import ROUNDING_S
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.machines.state_rules import end_stay
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import decode_as, encode
from aism_engine.domain.text import message_digest

SOURCE: Final = "deadlines"
COMMANDS: Final = "commands"
"""Source of the dead letters that are commands."""


def decide_deadline(
    draft: Draft, policy: Policy, member: str, at: float, *, wrong_type_keys: frozenset[str] = frozenset()
) -> Decision:
    """Decide on one due member of the deadlines, `{kind}:{id}`, as it stood when it was read.

    `wrong_type_keys` names the keys of the command that have the wrong type, `record` or `list`: the command still
    ends, and the effects on these keys are left out.
    """
    decision = Decision("deadline")
    ctx = DecisionContext(draft, policy, decision, "engine", member)
    ctx.add(fx.ExpectDeadline(member, at))
    kind, _, name = member.partition(":")
    if kind == "command" and (command := draft.command(name)) is not None and command.open:
        _command_is_due(ctx, command, at + ROUNDING_S, wrong_type_keys)
    elif kind == "group" and (group := draft.group(name)) is not None:
        while not group.ended:  # what became of the rest can't be known any more
            ctx.count(name, "expired")
    elif kind == "stay" and not wrong_type_keys and (agent := draft.agent(name)) is not None:
        end_stay(ctx, agent)
    else:
        decision.outcome = "late"
        ctx.add(fx.ClearDeadline(member))
    return decision


def _command_is_due(ctx: DecisionContext, command: Command, now: float, wrong_type_keys: frozenset[str]) -> None:
    """Do what the clock asks for that has run out."""
    policy, decision = ctx.policy, ctx.decision
    agent = ctx.draft.agent(command.agent_id)
    if wrong_type_keys or now >= command.expires_at or agent is None:
        _end(ctx, command, Status.EXPIRED, "expired", "not done within its time to live")
    elif not command.step_at or now < command.step_at:
        decision.outcome = "unchanged"
        ctx.add(fx.SetDeadline(command.deadline, command.due_at))
    elif command.status is Status.SCHEDULED:
        ctx.advance(command, command.wait)
        ctx.record_command(command)
    elif command.status is Status.WAITING:
        _send_again(ctx, agent, command)
    elif command.status is Status.DELIVERED and agent.acks:
        reason = f"not acknowledged within {command.ack_timeout_s:g} s"
        ctx.draft.activity(agent.agent_id).miss_ack(command.step_at - command.ack_timeout_s, ctx.draft.now)
        ctx.advance(
            command,
            command.retry,
            ctx.draft.now,
            policy.commands.backoff_initial,
            policy.commands.backoff_max,
            failed=False,
        )
        ctx.record_command(command, "retried", code="not_acknowledged", reason=reason)
    else:
        _end(ctx, command, Status.FAILED, "timeout", f"not done within {command.timeout_s:g} s of execution")
    if wrong_type_keys:
        unwritten = fx.SaveCommand | fx.WithdrawCommand if "record" in wrong_type_keys else fx.WithdrawCommand
        decision.effects[:] = [effect for effect in decision.effects if not isinstance(effect, unwritten)]


def _send_again(ctx: DecisionContext, agent: AgentRecord, command: Command) -> None:
    """Send a command once more, or give up on it; its body was looked up."""
    body = ctx.draft.lookups.bodies.get(command.command_id)
    if body is None:
        ctx.decision.outcome = "unchanged"  # it was something else when that was looked up
    elif not body:
        _end(ctx, command, Status.FAILED, "record_lost", "its record is damaged: it cannot be sent again")
    elif command.attempt >= command.max_attempts:
        attempts = f"{command.attempt} attempts" if command.attempt > 1 else "1 attempt"
        reason = f"given up on after {attempts} and {command.failures} errors"
        _end(ctx, command, Status.DEAD, "attempts_exhausted", reason)
        letter = fx.DeadLetter(
            code="attempts_exhausted",
            reason=reason,
            source=COMMANDS,
            raw=body,
            digest=message_digest(body),
            size=len(body),
            agent_id=agent.agent_id,
        )
        ctx.add_dead_letter(letter)
    else:
        again = decode_as(dict[str, Any], body) | {"attempt": command.attempt + 1}
        ctx.add(fx.SaveCommand(command.command_id, {"body": encode(again, agent.codec)}))
        ctx.advance(command, command.wait)


def _end(ctx: DecisionContext, command: Command, status: Status, code: str, reason: str) -> None:
    if command.status is Status.ACKED:
        ctx.draft.activity(command.agent_id).miss_end(command.step_at - command.timeout_s, ctx.draft.now)
    ctx.end_command(command, status, code=code, reason=reason)
    ctx.publish_error(code, f"command {reason}", agent_id=command.agent_id, command_id=command.command_id)
