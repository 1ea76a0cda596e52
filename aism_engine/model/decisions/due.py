"""What it means that a deadline has come."""

from typing import Final

from aism_engine.model import effects as fx
from aism_engine.model.commands import Status
from aism_engine.model.decisions.common import Decision, Rules, Scope
from aism_engine.model.fleet import Draft

SOURCE: Final = "deadlines"


def decide_due(draft: Draft, rules: Rules, member: str, at: float, *, spoilt: bool = False) -> Decision:
    """Decide on one due member of the deadlines, `{kind}:{id}`, as it stood when it was read.

    `spoilt` where a key has the wrong type: the command ends all the same, and what cannot be written is left out.
    """
    decision = Decision("deadline")
    scope = Scope(draft, rules, decision, "engine", member)
    scope.add(fx.ExpectDeadline(member, at))
    kind, _, command_id = member.partition(":")
    command = draft.command(command_id) if kind == "ttl" else None
    if command is None or not command.open:
        decision.outcome = "late"
        scope.add(fx.ClearDeadline(member))
        return decision
    body = draft.lookups.bodies.get(command_id)
    if body and not spoilt:
        scope.add(fx.WithdrawCommand(command.agent_id, body))
    scope.end_command(command, Status.EXPIRED, code="expired", reason="not done within its time to live")
    if spoilt and not body:  # it is the record itself
        decision.effects[:] = [effect for effect in decision.effects if not isinstance(effect, fx.SaveCommand)]
    scope.trouble(
        "expired", "command not done within its time to live", agent_id=command.agent_id, command_id=command_id
    )
    return decision
