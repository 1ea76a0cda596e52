"""Why a command or a group has not ended: pauses of its agent and of the fleet, or members that have not ended."""

from collections.abc import Mapping
from typing import Any, Final

from aism_engine.cli.output import fields_as_json, format_distance
from aism_engine.domain.agents.agent import Held, Hold
from aism_engine.domain.commands.command import Status
from aism_engine.ops.admin_client import AdminClient

HOLD_TEXTS: Final = {"pause": "is paused", "drain": "is draining", "": "takes commands"}
_NAMES: Final = 20
"""Maximum number of missing members in a text."""


async def read_causes(admin: AdminClient, outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return why a command or a group is open.

    `holds` are the pauses that stop its dispatch. `missing` are the members of the group that have not ended.
    """
    causes: dict[str, Any] = {}
    if "command_id" not in outcome and "ended_at" not in outcome:
        causes["missing"] = await admin.missing(outcome["group_id"])
        holds = await admin.holds()
    elif outcome.get("status") in {Status.WAITING, Status.SCHEDULED}:
        holds = await admin.holds(outcome["agent_id"])
    else:
        return causes
    paused = {of: held for of, held in holds.items() if held.hold is Hold.PAUSE}
    return causes | {"holds": [{"of": of, **held_as_json(held)} for of, held in paused.items()]}


def format_causes(outcome: Mapping[str, Any], causes: Mapping[str, Any]) -> dict[str, str]:
    """Return one line of text for each cause. Lists the first `_NAMES` missing members, and counts the others."""
    texts = {}
    if holds := causes.get("holds"):
        subjects = {"agent": f"agent {outcome.get('agent_id')}", "fleet": "the fleet"}
        texts["holds"] = "; ".join(format_hold(subjects[hold["of"]], hold) for hold in holds)
    if missing := causes.get("missing"):
        names = [f"{each.name} ({each.status or 'not sent yet'})" for each in missing[:_NAMES]]
        more = f"… and {len(missing) - _NAMES} more: aism-engine commands list --group {outcome['group_id']}"
        texts["missing"] = ", ".join([*names, more] if len(missing) > _NAMES else names)
    return texts


def held_as_json(held: Held) -> dict[str, Any]:
    return fields_as_json(held, *Held.__struct_fields__)


def format_hold(of: str, hold: Mapping[str, Any]) -> str:
    """Return a hold as one line: what is held, since when, by whom, and why."""
    text = f"{of} {HOLD_TEXTS[hold['hold'] or '']}"
    since = format_distance(hold["held_at"]) if hold["held_at"] else ""
    known = ", ".join(filter(None, (since, hold["held_by"] and f"by {hold['held_by']}")))
    return text + (f" ({known})" if known else "") + (f": {hold['hold_reason']}" if hold["hold_reason"] else "")
