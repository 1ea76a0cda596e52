"""What it means that something open has no deadline: its record is there, the index has lost it."""

from aism_engine.model import effects as fx
from aism_engine.model.decisions.common import Decision, Scope
from aism_engine.model.draft import Draft
from aism_engine.model.rules import Rules


def decide_stray(draft: Draft, rules: Rules, member: str) -> Decision:
    """Give a command or a group its deadline again, and take it in where the fleet does not hold it."""
    decision = Decision("stray", "unchanged")
    scope = Scope(draft, rules, decision, "engine", member)
    kind, _, name = member.partition(":")
    if kind == "command" and (command := draft.command(name)) is not None and command.open:
        draft.add_command(command)
        scope.add(fx.SetDeadline(member, command.due_at))
        decision.outcome = "applied"
    elif kind == "group" and (group := draft.group(name) or draft.lookups.groups.get(name)) and not group.ended:
        draft.add_group(group)
        # Its record does not tell when its last member is over: one that starts very late is counted as expired.
        scope.add(fx.SetDeadline(member, draft.now + rules.command_ttl_s + rules.retention_s))
        decision.outcome = "applied"
    return decision
