"""Checks of the fleet itself: does an engine lead it, and are its agents there?"""

from typing import Final

from msgspec import Struct, field

from aism_engine.ops.doctor.findings import CheckResult, Checks, Examples, danger, note, ok, plural, warning
from aism_engine.store.lease import LeaseStatus


class FleetFacts(Struct, kw_only=True):
    """What the records of the fleet say. What could not be read is None."""

    lease: LeaseStatus | None = None
    agents: int | None = None
    lost: Examples = field(default_factory=Examples)
    """Agents that are lost."""


FLEET_CHECKS: Final = Checks[FleetFacts]()


@FLEET_CHECKS.add(
    "Without a leader no message is applied, no command is dispatched or ended, and no agent is marked as lost."
)
def leader(fleet: FleetFacts) -> CheckResult | None:
    lease = fleet.lease
    if lease is None:
        return None
    fix = "Start one: aism-engine run. If engines run, aism-engine health says what each of them waits for."
    if lease.token is not None:
        return ok("an engine leads")
    return note(lease.absence, fix) if lease.led_at is None else danger(lease.absence, fix)


@FLEET_CHECKS.add("The commands of a lost agent wait or fail: their option on_lost says which.")
def lost_agents(fleet: FleetFacts) -> CheckResult | None:
    if fleet.agents is None:
        return None
    if not fleet.lost.count:
        return ok(f"{plural(fleet.agents, 'agent')}, none of them lost")
    fix = "Start them again, or remove those that are gone for good: aism-engine agents forget ID."
    return warning(f"{fleet.lost.count} of {plural(fleet.agents, 'agent')} lost: {fleet.lost}", fix)
