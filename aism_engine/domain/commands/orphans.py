"""Orphans: open commands and groups whose record exists but whose deadline is missing from the index."""

from aism_engine.domain import effects as fx
from aism_engine.domain.decision import Decision, DecisionContext
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy


def decide_orphan(draft: Draft, policy: Policy, member: str) -> Decision:
    """Write the deadline of a command or group again, and add it to the fleet if it is missing there."""
    ctx = DecisionContext(draft, policy, Decision("orphan", "unchanged"), "engine", member)
    kind, _, name = member.partition(":")
    if kind == "command" and (command := draft.command(name)) is not None and command.open:
        draft.add_command(command)
        ctx.add(fx.SetDeadline(member, command.due_at))
        ctx.decision.outcome = "applied"
    elif kind == "group" and (group := draft.group(name) or draft.lookups.groups.get(name)) and not group.ended:
        draft.add_group(group)
        # The record does not say when the last member will end. A member that is scheduled for later than this deadline
        # is counted as expired.
        ctx.add(fx.SetDeadline(member, draft.now + policy.commands.ttl + policy.commands.retention))
        ctx.decision.outcome = "applied"
    return ctx.decision
