"""`aism-engine divergences`: lists what agents declare that contradicts what the engine measures."""

from typing import Annotated

import typer

from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions
from aism_engine.cli.agents import DIVERGENCE_COLUMNS, divergences_as_json
from aism_engine.cli.output import Output
from aism_engine.domain.agents.divergence import RULES
from aism_engine.ops.admin_client import AdminClient


def _check_rule(value: str | None) -> str | None:
    if value is not None and value not in RULES:
        raise typer.BadParameter(f"there is no rule {value}. The rules are: {', '.join(RULES)}")
    return value


def divergences(
    *,
    rule: Annotated[
        str | None, typer.Option(metavar="RULE", help="Only divergences of this rule.", callback=_check_rule)
    ] = None,
    kind: options.AgentType = None,
    fleet: FleetOptions,
    output: Output,
) -> None:
    """List the open divergences, the oldest first.

    A divergence is a contradiction between what an agent declares and what the engine measures. It is advice, with a
    reason and a confidence; the engine takes no action. `aism-engine history AGENT` shows closed divergences.
    docs/divergences.md explains the rules.

    \b
    Example:
      aism-engine divergences --rule never_acks
      aism-engine divergences --type scribe --json
    """
    found = [
        divergence
        for view in fleet.read(AdminClient.agents)
        if kind in {None, view.agent.type}
        for divergence in divergences_as_json(view.agent)
        if rule in {None, divergence["rule"]}
    ]
    output.print_table(sorted(found, key=lambda each: each["since"]), DIVERGENCE_COLUMNS)
