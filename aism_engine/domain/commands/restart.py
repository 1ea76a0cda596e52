"""The restart of an agent: what becomes of the commands that its earlier process has taken and not ended."""

from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.commands.command import Status
from aism_engine.domain.commands.lifecycle import end_command
from aism_engine.domain.commands.retry import retry
from aism_engine.domain.decision import DecisionContext


def release_taken(ctx: DecisionContext, agent: AgentRecord) -> None:
    """Send the taken commands again, without counting the attempt. Without the capability `ack`, fail them instead.

    Only a registration under another `instance` proves that the earlier process is gone. That process has the commands
    that were acknowledged before the registration. A delivered command may be with the new process instead, which pops
    as soon as it has pushed its registration. So a delivered command is released only if it was delivered before
    `applied_until`: at that instant the registration was not in the queue yet.
    """
    taken = [command for each in agent.delivered if (command := ctx.draft.command(each)) is not None]
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
