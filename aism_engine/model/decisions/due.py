"""What it means that a deadline has come."""

from typing import Any, Final

from aism_engine.clock import ROUNDING_S
from aism_engine.model import effects as fx
from aism_engine.model.agent import Agent
from aism_engine.model.codec import decode_as, encode
from aism_engine.model.commands import Command, Status
from aism_engine.model.decisions.common import Decision, Scope
from aism_engine.model.decisions.standing import end_stay
from aism_engine.model.draft import Draft
from aism_engine.model.rules import Rules
from aism_engine.model.texts import digest

SOURCE: Final = "deadlines"
COMMANDS: Final = "commands"
"""Source of the dead letters that are commands."""


def decide_due(draft: Draft, rules: Rules, member: str, at: float, *, spoilt: frozenset[str] = frozenset()) -> Decision:
    """Decide on one due member of the deadlines, `{kind}:{id}`, as it stood when it was read.

    `spoilt` names what has a key of the wrong type, `record` or `list`: the command ends all the same, and what cannot
    be written is left out.
    """
    decision = Decision("deadline")
    scope = Scope(draft, rules, decision, "engine", member)
    scope.add(fx.ExpectDeadline(member, at))
    kind, _, name = member.partition(":")
    if kind == "command" and (command := draft.command(name)) is not None and command.open:
        _command_is_due(scope, command, at + ROUNDING_S, spoilt)
    elif kind == "group" and (group := draft.group(name)) is not None:
        while not group.ended:  # what became of the rest can't be known any more
            scope.count(name, "expired")
    elif kind == "stay" and not spoilt and (agent := draft.agent(name)) is not None:
        end_stay(scope, agent)
    else:
        decision.outcome = "late"
        scope.add(fx.ClearDeadline(member))
    return decision


def _command_is_due(scope: Scope, command: Command, now: float, spoilt: frozenset[str]) -> None:
    """Do what the clock asks for that has run out."""
    rules, decision = scope.rules, scope.decision
    agent = scope.draft.agent(command.agent_id)
    if spoilt or now >= command.expires_at or agent is None:
        _end(scope, command, Status.EXPIRED, "expired", "not done within its time to live")
    elif not command.step_at or now < command.step_at:
        decision.outcome = "unchanged"
        scope.add(fx.SetDeadline(command.deadline, command.due_at))
    elif command.status is Status.SCHEDULED:
        scope.advance(command, command.wait)
        scope.tell_command(command)
    elif command.status is Status.WAITING:
        _send_again(scope, agent, command)
    elif command.status is Status.DELIVERED and agent.acks:
        reason = f"not acknowledged within {command.ack_timeout_s:g} s"
        scope.draft.deeds(agent.agent_id).miss_ack(command.step_at - command.ack_timeout_s, scope.draft.now)
        scope.advance(
            command, command.retry, scope.draft.now, rules.backoff_initial_s, rules.backoff_max_s, failed=False
        )
        scope.tell_command(command, "retried", code="not_acknowledged", reason=reason)
    else:
        _end(scope, command, Status.FAILED, "timeout", f"not done within {command.timeout_s:g} s of execution")
    if spoilt:
        unwritten = fx.SaveCommand | fx.WithdrawCommand if "record" in spoilt else fx.WithdrawCommand
        decision.effects[:] = [effect for effect in decision.effects if not isinstance(effect, unwritten)]


def _send_again(scope: Scope, agent: Agent, command: Command) -> None:
    """Send a command once more, or give up on it; its body was looked up."""
    body = scope.draft.lookups.bodies.get(command.command_id)
    if body is None:
        scope.decision.outcome = "unchanged"  # it was something else when that was looked up
    elif not body:
        _end(scope, command, Status.FAILED, "record_lost", "its record is damaged: it cannot be sent again")
    elif command.attempt >= command.max_attempts:
        attempts = f"{command.attempt} attempts" if command.attempt > 1 else "1 attempt"
        reason = f"given up on after {attempts} and {command.failures} errors"
        _end(scope, command, Status.DEAD, "attempts_exhausted", reason)
        letter = fx.Letter(
            code="attempts_exhausted",
            reason=reason,
            source=COMMANDS,
            raw=body,
            digest=digest(body),
            size=len(body),
            agent_id=agent.agent_id,
        )
        scope.add_letter(letter)
    else:
        again = decode_as(dict[str, Any], body) | {"attempt": command.attempt + 1}
        scope.add(fx.SaveCommand(command.command_id, {"body": encode(again, agent.codec)}))
        scope.advance(command, command.wait)


def _end(scope: Scope, command: Command, status: Status, code: str, reason: str) -> None:
    if command.status is Status.ACKED:
        scope.draft.deeds(command.agent_id).miss_end(command.step_at - command.timeout_s, scope.draft.now)
    scope.end_command(command, status, code=code, reason=reason)
    scope.trouble(code, f"command {reason}", agent_id=command.agent_id, command_id=command.command_id)
