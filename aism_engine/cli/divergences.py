"""`aism-engine divergences`: where what agents say and what is seen of them disagree."""

import time
from typing import Annotated, Any

import typer
from msgspec import to_builtins

from aism_engine.cli import options
from aism_engine.cli.admin import with_admin_client
from aism_engine.cli.output import format_age, print_json, print_table
from aism_engine.clock import from_iso
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.agents.divergence import RULES
from aism_engine.ops.admin_client import AdminClient


def _rule(value: str | None) -> str | None:
    if value is not None and value not in RULES:
        raise typer.BadParameter(f"there is no rule {value}; the rules are: {', '.join(RULES)}")
    return value


def divergences(
    *,
    rule: Annotated[str | None, typer.Option(metavar="RULE", help="Only those of this rule.", callback=_rule)] = None,
    kind: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only of agents of this type.")] = None,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    json: options.Json = False,
) -> None:
    """List where agents say one thing and another is seen: all that is open, the oldest first.

    Each is advice, with its reason and how sure it is; nothing is done to an agent for it. What has ended stands in the
    history, as divergence_opened and divergence_closed. The rules are explained in docs/divergences.md.

    \b
    Example:
      aism-engine divergences --rule never_acks
      aism-engine divergences --type scribe --json
    """  # noqa: D301  \b keeps the lines of the example apart
    found = [
        each
        for seen in with_admin_client(redis, prefix, AdminClient.agents)
        if kind in {None, seen.agent.type}
        for each in described(seen.agent)
        if rule in {None, each["rule"]}
    ]
    found.sort(key=lambda each: each["since"])
    if json:
        print_json(found)
        return
    now = time.time()
    rows = (
        (
            each["agent_id"],
            each["type"],
            each["rule"],
            each["confidence"],
            format_age(now - from_iso(each["since"])),
            each["reason"],
        )
        for each in found
    )
    print_table(("AGENT", "TYPE", "RULE", "CONFIDENCE", "OPEN FOR", "REASON"), rows)


def described(agent: AgentRecord) -> list[dict[str, Any]]:
    """Build what programs get of an agent's open divergences: the names are published, and so for ever."""
    return [
        {"agent_id": agent.agent_id, "type": agent.type, "rule": rule, **to_builtins(divergence)}
        for rule, divergence in sorted(agent.divergences.items())
    ]
