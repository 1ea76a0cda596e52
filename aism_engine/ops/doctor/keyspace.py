"""Checks of the keys under the prefix: does the engine know all of them, and do they belong together?"""

from typing import Final

from msgspec import Struct, field

from aism_engine.ops.doctor.findings import CheckResult, DoctorCheck, danger, list_examples, note, ok, plural, warning

_MAX_EXAMPLES: Final = 5
_MAX_NAME: Final = 120
_FIX_PREFIX: Final = "Choose prefixes that do not start with each other: aism-a and aism-b, not aism and aism:b."


class Examples(Struct):
    """A count of names, and the first of them."""

    count: int = 0
    names: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _MAX_EXAMPLES:
            self.names.append(name[:_MAX_NAME])

    def __str__(self) -> str:
        return list_examples(self.count, self.names)


class KeyspaceFacts(Struct, kw_only=True):
    """What a scan of the keys under the prefix found."""

    prefix: str
    scanned: int = 0
    """The number of keys."""
    truncated: bool = False
    """Whether the scan ended at its limit: then what seems to be missing may be among the other keys."""
    fleets_above: list[str] = []
    """Prefixes of other fleets with which this prefix begins."""
    fleets_below: Examples = field(default_factory=Examples)
    """Prefixes of other fleets that begin with this prefix."""
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
    """Open commands and groups that have no deadline, so that nothing ends them."""
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


def _prefix(keyspace: KeyspaceFacts) -> CheckResult | None:
    prefix = keyspace.prefix
    if keyspace.fleets_above:
        return warning(f"{prefix} is under the prefix of a fleet: {', '.join(keyspace.fleets_above)}", _FIX_PREFIX)
    if keyspace.other_databases:
        return warning(
            f"other databases of this server hold a fleet {prefix}: {', '.join(map(str, keyspace.other_databases))}",
            "Give each fleet its own prefix: what one publishes is received in every database.",
        )
    if keyspace.fleets_below.count:
        return warning(f"other fleets are under {prefix}: {keyspace.fleets_below}", _FIX_PREFIX)
    return ok(f"no other fleet's prefix begins with {prefix}")


def _foreign_keys(keyspace: KeyspaceFacts) -> CheckResult | None:
    foreign = keyspace.foreign
    if foreign.count:
        return warning(
            f"{plural(foreign.count, 'key is', 'keys are')} unknown to this version: {foreign}",
            "If another version of the engine wrote them, keep them; otherwise move them to another prefix.",
        )
    if keyspace.scanned == 0:
        return ok("there are no keys yet")
    return ok(f"{plural(keyspace.scanned, 'key')}, all known to this version")


def _key_types(keyspace: KeyspaceFacts) -> CheckResult | None:
    wrong = keyspace.wrong_type
    if not wrong.count:
        return ok("every key has the right type")
    summary = f"{plural(wrong.count, 'key has', 'keys have')} another type than docs/protocol.md says: {wrong}"
    return danger(summary, "Check them with TYPE, and RENAME them: the engine creates its own.")


def _orphaned_agents(keyspace: KeyspaceFacts) -> CheckResult | None:
    missing, unindexed = keyspace.missing_records, keyspace.unindexed_agents
    if missing.count:
        return warning(
            f"{plural(missing.count, 'agent')} in the index without a record: {missing}",
            "Their next heartbeat or message creates the record; otherwise SREM them from the index.",
        )
    if unindexed.count:
        return note(
            f"{plural(unindexed.count, 'agent')} with keys and not in the index: {unindexed}",
            "Agents that are starting send a heartbeat soon. Delete the keys <prefix>:agent:<id>:* of the others.",
        )
    return ok("every agent that has keys is in the index")


def _orphaned_commands(keyspace: KeyspaceFacts) -> CheckResult | None:
    found = keyspace.commands_without_deadline
    if found.count:
        return danger(
            f"{plural(found.count, 'open command')} without a deadline: {found}",
            "ZADD <prefix>:engine:deadlines 0 command:<id> for each, and restart the engine: it ends them.",
        )
    if keyspace.truncated:
        return note("not all keys were scanned: there may be open commands without a deadline")
    return ok("every open command has a deadline")


def _orphaned_deadlines(keyspace: KeyspaceFacts) -> CheckResult | None:
    found = keyspace.deadlines_without_record
    if not found.count:
        return ok("every deadline has its record")
    return warning(
        f"{plural(found.count, 'deadline')} without a record: {found}",
        "Find out who deleted the records. The engine removes these deadlines when they are due.",
    )


def _no_expiry(keyspace: KeyspaceFacts) -> CheckResult | None:
    found = keyspace.without_expiry
    if keyspace.lease_without_expiry:
        return danger(
            "the lease does not expire: when its holder crashes, no other engine can lead",
            "PEXPIRE <prefix>:engine:lease 5000; a live leader renews it.",
        )
    if found.count:
        return warning(
            f"{plural(found.count, 'key')} without an expiry: {found}",
            "PEXPIRE each of them: they are replies, and records of what has ended.",
        )
    return ok("every key that should expire has an expiry")


def _heartbeats(keyspace: KeyspaceFacts) -> CheckResult | None:
    invalid, unindexed = keyspace.invalid_members, keyspace.unindexed_members
    if invalid.count:
        return note(
            f"{plural(invalid.count, 'member is not an agent id', 'members are not agent ids')}: {invalid}",
            "Find out who writes them, and ZREM them: the engine ignores them.",
        )
    if unindexed.count:
        return note(
            f"{plural(unindexed.count, 'agent')} with heartbeats and not in the index: {unindexed}",
            "A leading engine adds them within seconds, unless agents.auto_register is off, or the fleet has "
            "agents.max_agents.",
        )
    if not keyspace.heartbeats:
        return ok("no agent sends heartbeats")
    return ok(f"{plural(keyspace.heartbeats, 'agent sends', 'agents send')} heartbeats, all in the index")


CHECKS: Final = (
    DoctorCheck("prefix", "Overlapping prefixes share ACL patterns, and may share keys or channels.", _prefix),
    DoctorCheck("foreign_keys", "Whatever writes them may also overwrite a key of the engine.", _foreign_keys),
    DoctorCheck("key_types", "A key of the wrong type stops the engine, or messages to that agent.", _key_types),
    DoctorCheck("orphaned_agents", "Nothing reads these keys or deletes them.", _orphaned_agents),
    DoctorCheck("orphaned_commands", "Nothing ends such a command, so its sender waits forever.", _orphaned_commands),
    DoctorCheck("orphaned_deadlines", "A command without its record has no outcome.", _orphaned_deadlines),
    DoctorCheck(
        "no_expiry", "Such keys fill the memory, and a lease without an expiry blocks every failover.", _no_expiry
    ),
    DoctorCheck("heartbeats", "An agent that is not in the index gets no commands and is never lost.", _heartbeats),
)
