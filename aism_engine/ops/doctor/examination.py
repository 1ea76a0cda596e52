"""The whole examination: everything that was read, and what is to be said of it, the worst first."""

from typing import Final

from msgspec import Struct

from aism_engine.ops.doctor import keyspace, server, surroundings
from aism_engine.ops.doctor.findings import Finding, Severity, judged
from aism_engine.ops.doctor.keyspace import Keyspace
from aism_engine.ops.doctor.server import Server
from aism_engine.ops.doctor.surroundings import Surroundings

CODES: Final = (
    *server.CODES,
    *(check.code for check in surroundings.CHECKS),
    *(check.code for check in keyspace.CHECKS),
)
_ORDER: Final = (Severity.DANGER, Severity.WARNING, Severity.NOTE, Severity.OK)


class DoctorFacts(Struct, frozen=True):
    """All that was read. `keyspace` is None where keys were not to be looked at."""

    server: Server
    surroundings: Surroundings
    keyspace: Keyspace | None = None


def examine(facts: DoctorFacts) -> list[Finding]:
    found = server.examine_server(facts.server)
    found += judged(surroundings.CHECKS, facts.surroundings)
    if facts.keyspace is not None:
        found += judged(keyspace.CHECKS, facts.keyspace)
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))
