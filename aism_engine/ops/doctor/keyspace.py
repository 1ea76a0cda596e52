"""Checks of the keys under the prefix: does the engine know all of them, and do indexes and records agree?"""

from typing import Final

from msgspec import Struct, field

from aism_engine.ops.doctor.findings import CheckResult, Checks, Examples, Severity, danger, note, ok, plural, warning

_FIX_PREFIX: Final = "Choose prefixes that do not start with each other: aism-a and aism-b, not aism and aism:b."


class KeyspaceFacts(Struct, kw_only=True):
    """What a scan of the keys under the prefix found."""

    prefix: str
    scanned: int = 0
    """The number of keys."""
    truncated: bool = False
    """Whether the scan ended at its limit. Then the keys that it did not reach may have problems, too."""
    fleets_above: list[str] = []
    """Prefixes of other fleets that are the start of this prefix: `aism`, if this prefix is `aism:b`."""
    fleets_below: Examples = field(default_factory=Examples)
    """Prefixes of other fleets that begin with this prefix: `aism:b`, if this prefix is `aism`."""
    other_databases: list[int] = []
    """Other databases of the server that hold a fleet of this prefix."""
    foreign: Examples = field(default_factory=Examples)
    """Keys that no engine of this version writes."""
    wrong_type: Examples = field(default_factory=Examples)
    """Keys of the engine with another Redis type."""
    unindexed_agents: Examples = field(default_factory=Examples)
    """Agents that have keys and are not in the index."""
    missing_records: Examples = field(default_factory=Examples)
    """Agents that are in the index and have no record."""
    commands_without_deadline: Examples = field(default_factory=Examples)
    """Open commands and groups that have no deadline."""
    deadlines_without_record: Examples = field(default_factory=Examples)
    """Members of the deadlines whose command, group or agent does not exist."""
    without_expiry: Examples = field(default_factory=Examples)
    """Keys that should expire and have no expiry."""
    lease_without_expiry: bool = False
    invalid_members: Examples = field(default_factory=Examples)
    """Members of the heartbeats that are not agent ids."""
    unindexed_members: Examples = field(default_factory=Examples)
    """Agents that send heartbeats and are not in the index."""
    heartbeats: int = 0


KEYSPACE_CHECKS: Final = Checks[KeyspaceFacts]()


@KEYSPACE_CHECKS.add("Overlapping prefixes share ACL patterns, and may share keys or channels.")
def prefix(keyspace: KeyspaceFacts) -> CheckResult | None:
    name, databases = keyspace.prefix, ", ".join(map(str, keyspace.other_databases))
    if keyspace.fleets_above:
        return warning(f"{name} is under the prefix of a fleet: {', '.join(keyspace.fleets_above)}", _FIX_PREFIX)
    if databases:
        fix = "Give each fleet its own prefix: a published message is received in every database."
        return warning(f"other databases of this server hold a fleet {name}: {databases}", fix)
    if keyspace.fleets_below.count:
        return warning(f"other fleets are under {name}: {keyspace.fleets_below}", _FIX_PREFIX)
    return ok(f"no other fleet's prefix begins with {name}")


@KEYSPACE_CHECKS.add("A program that writes unknown keys may also overwrite a key of the engine.")
def foreign_keys(keyspace: KeyspaceFacts) -> CheckResult | None:
    fix = "If another version of the engine wrote them, keep them; otherwise move them to another prefix."
    return _problem(Severity.WARNING, keyspace.foreign, "key", "unknown to this version", fix) or ok(
        f"{plural(keyspace.scanned, 'key')}, all known to this version" if keyspace.scanned else "there are no keys yet"
    )


@KEYSPACE_CHECKS.add(
    "If an engine's key has the wrong type, the engine waits. If an agent's key has it, messages are dead-lettered."
)
def key_types(keyspace: KeyspaceFacts) -> CheckResult | None:
    fix = "Check them with TYPE, and RENAME them: the engine creates its own."
    what = "with another type than docs/protocol.md says"
    return _problem(Severity.DANGER, keyspace.wrong_type, "key", what, fix) or ok("every key has the right type")


@KEYSPACE_CHECKS.add("An engine that takes over does not know these agents, and nothing deletes their keys.")
def orphaned_agents(keyspace: KeyspaceFacts) -> CheckResult | None:
    missing_fix = (
        "Find out who deletes the records; maxmemory-policy must be noeviction. A leading engine restores the records "
        "of the agents it knows. The next heartbeat or message of any other agent creates its record. Agents that are "
        "gone for good: SREM them from the index."
    )
    unindexed_fix = "Agents that are starting send a heartbeat soon. Delete <prefix>:agent:<id>:* of the others."
    return (
        _problem(Severity.WARNING, keyspace.missing_records, "agent", "in the index without a record", missing_fix)
        or _problem(Severity.NOTE, keyspace.unindexed_agents, "agent", "with keys and not in the index", unindexed_fix)
        or ok("every agent that has keys is in the index")
    )


@KEYSPACE_CHECKS.add("Nothing ends such a command or group until an engine has restored its deadline.")
def orphaned_commands(keyspace: KeyspaceFacts) -> CheckResult | None:
    fix = "Run an engine that may use SCAN: it restores the deadlines, and checks about 500 keys a second."
    found = keyspace.commands_without_deadline
    if keyspace.truncated and not found.count:
        return note("not all keys were scanned: there may be open commands or groups without a deadline")
    return _problem(Severity.DANGER, found, "missing deadline", "of open commands and groups", fix) or ok(
        "every open command and group has a deadline"
    )


@KEYSPACE_CHECKS.add("A command without its record has no outcome.")
def orphaned_deadlines(keyspace: KeyspaceFacts) -> CheckResult | None:
    fix = "Find out who deleted the records. The engine removes these deadlines when they are due."
    found = keyspace.deadlines_without_record
    return _problem(Severity.WARNING, found, "deadline", "without a record", fix) or ok("every deadline has its record")


@KEYSPACE_CHECKS.add("Such keys fill the memory, and a lease without an expiry blocks every failover.")
def no_expiry(keyspace: KeyspaceFacts) -> CheckResult | None:
    if keyspace.lease_without_expiry:
        return danger(
            "the lease does not expire: when its holder crashes, no other engine can lead",
            "PEXPIRE <prefix>:engine:lease 5000; a live leader renews it.",
        )
    fix = "PEXPIRE each of them: they are replies, and records of ended commands and groups."
    return _problem(Severity.WARNING, keyspace.without_expiry, "key", "without an expiry", fix) or ok(
        "every key that should expire has an expiry"
    )


@KEYSPACE_CHECKS.add("An agent that is not in the index gets no commands and is never lost.")
def heartbeats(keyspace: KeyspaceFacts) -> CheckResult | None:
    invalid_fix = "Find out who writes them, and ZREM them: the engine ignores them."
    unindexed_fix = "A leading engine adds them, unless agents.auto_register or agents.max_agents forbids it."
    return (
        _problem(Severity.NOTE, keyspace.invalid_members, "heartbeat", "without a valid agent id", invalid_fix)
        or _problem(
            Severity.NOTE, keyspace.unindexed_members, "agent", "with heartbeats and not in the index", unindexed_fix
        )
        or ok(f"{plural(keyspace.heartbeats, 'agent')} with heartbeats, all in the index")
    )


def _problem(severity: Severity, found: Examples, noun: str, what: str, fix: str) -> CheckResult | None:
    """Return a result such as `2 keys without an expiry: a, b`; None if nothing was found."""
    return CheckResult(severity, f"{plural(found.count, noun)} {what}: {found}", fix) if found.count else None
