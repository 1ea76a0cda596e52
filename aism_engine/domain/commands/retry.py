"""Retries: when a command is sent again, and when it is dead-lettered because all its attempts are used."""

from typing import Any
from zlib import crc32

from aism_engine.backoff import Backoff
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.commands.lifecycle import advance, end_command, stop_with_error
from aism_engine.domain.dead_letters import add_dead_letter
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.policy import CommandsSettings
from aism_engine.domain.protocol.codec import decode_as, encode


def retry(
    ctx: DecisionContext, command: Command, code: str, reason: str, *, failed: bool = False, restarted: bool = False
) -> None:
    """Schedule the next attempt. If none is left, the command is due at once, and is dead-lettered then.

    `failed`: the agent has reported an error. `restarted`: the attempt ended because the agent's process ended.
    """
    now, pause_s = ctx.draft.now, attempt_pause_s(command, ctx.policy.commands)
    why = {"event": "retried", "code": code, "reason": reason}
    advance(ctx, command, command.retry, now, pause_s, failed=failed, restarted=restarted, **why)


def attempt_pause_s(command: Command, policy: CommandsSettings) -> float:
    """Return the pause before the next attempt. Its jitter is a hash of the command id and the attempt number."""
    jitter = crc32(f"{command.command_id} {command.attempt}".encode()) / 2**32
    return Backoff(policy.backoff_initial, policy.backoff_max).pause_s(command.attempt, jitter)


def next_attempt(ctx: DecisionContext, agent: AgentRecord, command: Command) -> None:
    """Let a command wait for dispatch again, or dead-letter it when all its attempts are used."""
    body = ctx.draft.lookups.bodies.get(command.command_id)
    if body is None:
        ctx.decision.outcome = "unchanged"  # the command had another status when the bodies were looked up
    elif (message := _decode_body(body)) is None:
        reason = "cannot be sent again: the body in its record is missing or damaged"
        stop_with_error(ctx, command, Status.FAILED, "record_damaged", reason)
    elif not command.has_attempts_left:
        attempts = f"{command.attempt} attempts" if command.attempt > 1 else "1 attempt"
        reason = f"did not succeed in {attempts}, with {command.failures} errors"
        stop_with_error(ctx, command, Status.DEAD, "attempts_exhausted", reason)
        add_dead_letter(ctx, "attempts_exhausted", reason, body, "commands", agent.agent_id)
    else:
        again = encode(message | {"attempt": command.attempt + 1}, agent.codec)
        ctx.add(fx.SaveCommand(command.command_id, {"body": again}))
        advance(ctx, command, command.wait)


def _decode_body(body: bytes) -> dict[str, Any] | None:
    """Decode the body in a command's record; None if another client has damaged it."""
    try:
        return decode_as(dict[str, Any], body)
    except (ValueError, RecursionError):
        return None


def release_taken(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Send the taken commands again, without counting the attempt. Without the capability `ack`, fail them instead.

    Only a registration under another `instance` proves that the earlier process is gone. Acknowledged commands were
    taken by the earlier process. A delivered command may have been taken by the new process, which can pop commands as
    soon as it has pushed its registration.

    The engine has applied every response that was in the queue at the instant `applied_until`, but not yet the
    registration. Therefore the registration was pushed after that instant. A command that was delivered before that
    instant was taken by the earlier process. A command that was delivered later is left alone.
    """
    delivered = ctx.draft.commands_of(agent.agent_id).delivered
    taken = [command for each in delivered if (command := ctx.draft.command(each)) is not None]
    for command in sorted(taken, key=lambda each: each.seq):
        if command.status is Status.DELIVERED and command.status_since >= ctx.draft.lookups.applied_until:
            continue
        if agent.acks:
            retry(ctx, command, "agent_restarted", "its agent has restarted", restarted=True)
            continue
        reason = "its agent has restarted, and does not acknowledge commands"
        end_command(ctx, command, Status.FAILED, code="agent_restarted", reason=reason)
        message = f"command {command.command_id} {reason}"
        ctx.publish_error("agent_restarted", message, agent_id=agent.agent_id, command_id=command.command_id)
