"""The responses of an agent about its commands: ack, progress, result, error.

A response proves that the agent has taken the command, even if the engine has not seen it leave the list. If the
command was pushed only once, the list holds no copy of it. If it was pushed again, the response may be about an earlier
attempt: the list may still hold the latest copy, which is withdrawn.
"""

from aism_engine.domain import effects as fx
from aism_engine.domain.agents import state_changes
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.commands.lifecycle import advance, end_command, find_command
from aism_engine.domain.commands.retry import retry
from aism_engine.domain.decision import DecisionContext, ErrorReply
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest, truncate


def ack(ctx: DecisionContext, agent: AgentRecord, response: m.Ack, raw: bytes) -> ErrorReply | None:
    command = _open_command(ctx, agent, response, raw)
    if isinstance(command, ErrorReply):
        return command
    if command.may_become(Status.ACKED):
        _acknowledge(ctx, command)
    else:
        ctx.decision.outcome = "unchanged"
    return None


def progress(ctx: DecisionContext, agent: AgentRecord, response: m.Progress, raw: bytes) -> ErrorReply | None:
    """Record the progress. It acknowledges the command, or restarts its execution timeout."""
    command = _open_command(ctx, agent, response, raw)
    if isinstance(command, ErrorReply):
        return command
    if command.may_become(Status.ACKED):
        _acknowledge(ctx, command)
    elif ctx.policy.commands.extend_on_progress:
        advance(ctx, command, command.extend, ctx.draft.now)
    fields: dict[str, str | bytes] = {"progress_at": ctx.draft.at}
    if response.payload.percent is not None:
        fields["percent"] = format(response.payload.percent, "g")
    if response.payload.note is not None:
        fields["note"] = truncate(response.payload.note)
    ctx.add(fx.SaveCommand(command.command_id, fields))
    return None


def result(ctx: DecisionContext, agent: AgentRecord, response: m.Result, raw: bytes) -> ErrorReply | None:
    """End a command as succeeded. A `state_transition` changes the agent's state too, and fails if that is refused."""
    command = _open_command(ctx, agent, response, raw)
    if isinstance(command, ErrorReply):
        return command
    value = encode(response.payload)
    kept: dict[str, str | bytes] = {"result": value}
    if len(value) > ctx.policy.commands.max_result_bytes:
        kept = {"result_digest": message_digest(value), "result_size": str(len(value))}
    ctx.add(fx.SaveCommand(command.command_id, kept))
    refusal = None
    if command.target is not None:
        refusal = state_changes.declare(ctx, agent, command.target, by="operator", context=response.payload)
    ctx.decision.outcome = "applied"
    if refusal is not None:
        end_command(ctx, command, Status.FAILED, code=refusal.code, reason=refusal.message)
        return state_changes.refuse(ctx, agent, refusal)
    end_command(ctx, command, Status.SUCCEEDED, withdraw_queued=command.attempt > 1)
    return None


def error(ctx: DecisionContext, agent: AgentRecord, response: m.Error, raw: bytes) -> ErrorReply | None:
    """Retry or fail the command that the error is about; an error without a command is only published."""
    code, message = truncate(response.payload.code), truncate(response.payload.message or response.payload.code)
    if response.command_id is None:
        ctx.record("agent_error", agent_id=agent.agent_id, code=code, reason=message)
        ctx.publish_error(code, message, agent_id=agent.agent_id)
        return None
    command = _open_command(ctx, agent, response, raw)
    if isinstance(command, ErrorReply):
        return command
    if response.payload.retryable and agent.acks:
        if command.bucket == "queued":
            ctx.add(fx.WithdrawCommand(command.agent_id, command.command_id))
        stopped = code == "agent_stopped"
        retry(ctx, command, code, message, failed=not stopped, restarted=stopped)
        return None
    end_command(ctx, command, Status.FAILED, withdraw_queued=command.attempt > 1, code=code, reason=message)
    ctx.publish_error(code, message, agent_id=agent.agent_id, command_id=command.command_id)
    return None


def _open_command(ctx: DecisionContext, agent: AgentRecord, response: m.Response, raw: bytes) -> Command | ErrorReply:
    """Return the command that a response is about, or an error reply if it is unknown or has ended."""
    command = find_command(ctx, agent, response, raw)
    if isinstance(command, ErrorReply) or command.open:
        return command
    message = f"command {command.command_id} has already ended: {command.status}"
    return ErrorReply("command_refused", "command_ended", message, {"status": command.status})


def _acknowledge(ctx: DecisionContext, command: Command) -> None:
    if command.status is Status.QUEUED:
        if command.attempt > 1:
            ctx.add(fx.WithdrawCommand(command.agent_id, command.command_id))
        advance(ctx, command, command.deliver, ctx.draft.now, acks=True)
    advance(ctx, command, command.acknowledge, ctx.draft.now)
