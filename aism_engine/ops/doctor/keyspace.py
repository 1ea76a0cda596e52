"""What lies under the prefix: whether all of it is ours, and whether it all hangs together."""

from typing import Final

from msgspec import Struct, field

from aism_engine.ops.doctor.findings import DoctorCheck, Verdict, counted, danger, named, note, ok, warning

_SHOWN: Final = 5


class Some(Struct):
    """So many, and the first of them."""

    count: int = 0
    examples: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(name[:120])

    def __str__(self) -> str:
        return named(self.count, self.examples)


class Keyspace(Struct, kw_only=True):
    """What was found under the prefix. Each is of keys, of members or of ids, as it says."""

    prefix: str
    looked_at: int = 0
    """How many keys."""
    more: bool = False
    """Whether there are more than were to be looked at: then what is missing may lie among those."""
    fleets_above: list[str] = []
    """Prefixes with an engine, of which ours is a part."""
    fleets_below: Some = field(default_factory=Some)
    """Prefixes with an engine that begin as ours does."""
    twins: list[int] = []
    """Other databases of the server in which there is a fleet of this prefix."""
    foreign: Some = field(default_factory=Some)
    """Keys that no engine of this version writes."""
    wrong_type: Some = field(default_factory=Some)
    """Keys of ours that have another Redis type."""
    stray_agents: Some = field(default_factory=Some)
    """Agents, not in the index, that have keys."""
    lost_records: Some = field(default_factory=Some)
    """Members of the index without a record."""
    commands_without_deadline: Some = field(default_factory=Some)
    """Commands, and groups, that are open and that nothing will ever end."""
    deadlines_without_record: Some = field(default_factory=Some)
    """Members of the deadlines."""
    for_ever: Some = field(default_factory=Some)
    """Keys that should expire, and never will."""
    lease_for_ever: bool = False
    strange_members: Some = field(default_factory=Some)
    """Members of the heartbeats that are no agent ids."""
    unknown_members: Some = field(default_factory=Some)
    """Members of the heartbeats that are not in the index."""
    beating: int = 0


def _prefix(space: Keyspace) -> Verdict:
    if space.fleets_above:
        heads = ", ".join(space.fleets_above)
        return warning(
            f"there is a fleet {heads}, and {space.prefix} lies under its prefix",
            "Give each fleet a prefix that begins like no other's: aism-a and aism-b, not aism and aism:b.",
        )
    if space.twins:
        numbers = ", ".join(map(str, space.twins))
        return warning(
            f"there is a fleet {space.prefix} in another database of this server, too: {numbers}",
            "Give each fleet a prefix of its own: what is published is heard in every database.",
        )
    if space.fleets_below.count:
        return warning(
            f"under {space.prefix} lie other fleets: {space.fleets_below}",
            "Give each fleet a prefix that begins like no other's: aism-a and aism-b, not aism and aism:b.",
        )
    return ok(f"no other fleet begins with {space.prefix}")


def _foreign_keys(space: Keyspace) -> Verdict:
    if space.foreign.count:
        return warning(
            f"{counted(space.foreign.count, 'key')} of no kind that this version knows: {space.foreign}",
            "If another version of the engine wrote them, leave them to it; else move them to a prefix of their own.",
        )
    if space.looked_at == 0:
        return ok("there are no keys yet")
    return ok(f"{counted(space.looked_at, 'key')}, all of a kind that this version knows")


def _key_types(space: Keyspace) -> Verdict:
    if space.wrong_type.count:
        return danger(
            f"{counted(space.wrong_type.count, 'key')} of another type than docs/protocol.md says: {space.wrong_type}",
            "TYPE says what each is. RENAME it out of the way: the engine makes its own.",
        )
    return ok("each key has the type that it should have")


def _orphaned_agents(space: Keyspace) -> Verdict:
    if space.lost_records.count:
        return warning(
            f"{counted(space.lost_records.count, 'agent')} in the index without a record: {space.lost_records}",
            "They are taken in again at their next heartbeat or message; else SREM them from the index.",
        )
    if space.stray_agents.count:
        return note(
            f"keys of {counted(space.stray_agents.count, 'agent')} that the index does not know: {space.stray_agents}",
            "Those that are about to start beat soon. Of the others delete the keys <prefix>:agent:<id>:*.",
        )
    return ok("each agent that has keys is in the index")


def _orphaned_commands(space: Keyspace) -> Verdict:
    if space.commands_without_deadline.count:
        return danger(
            f"{counted(space.commands_without_deadline.count, 'open command')} without a deadline: "
            f"{space.commands_without_deadline}",
            "ZADD <prefix>:engine:deadlines 0 command:<id> for each, and start the engine anew: it ends them.",
        )
    if space.more:
        return note("not all keys were looked at: whether each open command has a deadline is not known")
    return ok("each open command has a deadline")


def _orphaned_deadlines(space: Keyspace) -> Verdict:
    if space.deadlines_without_record.count:
        found = space.deadlines_without_record
        return warning(
            f"{counted(found.count, 'deadline')} without a record: {found}",
            "Find out who deleted the records. The engine clears these when they are due.",
        )
    return ok("each deadline has its record")


def _no_expiry(space: Keyspace) -> Verdict:
    if space.lease_for_ever:
        return danger(
            "the lease does not expire: when its holder dies, nobody follows",
            "PEXPIRE <prefix>:engine:lease 5000; a leader that lives renews it.",
        )
    if space.for_ever.count:
        return warning(
            f"{counted(space.for_ever.count, 'key')} that should expire and will not: {space.for_ever}",
            "PEXPIRE each of them: they are answers, and records of what has ended.",
        )
    return ok("what should expire does")


def _heartbeats(space: Keyspace) -> Verdict:
    if space.strange_members.count:
        return note(
            f"{counted(space.strange_members.count, 'member is no agent id', 'members are no agent ids')}: "
            f"{space.strange_members}",
            "Find out who writes them, and ZREM them: the engine passes over them.",
        )
    if space.unknown_members.count:
        return note(
            f"{counted(space.unknown_members.count, 'agent that beats is', 'agents that beat are')} not in the index: "
            f"{space.unknown_members}",
            "An engine that leads takes them in within seconds, unless agents.auto_register is off, or the fleet has "
            "agents.max_agents.",
        )
    return ok(f"{counted(space.beating, 'agent')} beat, and each is known" if space.beating else "nobody beats")


CHECKS: Final = (
    DoctorCheck("prefix", "Fleets that share a head share ACL patterns, and may meet in a key or a channel.", _prefix),
    DoctorCheck("foreign_keys", "Whoever writes there may one day write a key of ours.", _foreign_keys),
    DoctorCheck(
        "key_types", "A key of the wrong type stops the engine, or whatever is said to that agent.", _key_types
    ),
    DoctorCheck("orphaned_agents", "Nobody reads these keys, and nobody forgets them.", _orphaned_agents),
    DoctorCheck(
        "orphaned_commands", "Nothing ends such a command: whoever waits for it waits for ever.", _orphaned_commands
    ),
    DoctorCheck("orphaned_deadlines", "A command whose record is gone has no outcome.", _orphaned_deadlines),
    DoctorCheck(
        "no_expiry", "What never expires fills the memory, and a lease that does not is never another's.", _no_expiry
    ),
    DoctorCheck(
        "heartbeats",
        "Who beats and is not known is not watched: it is never given a command, and never lost.",
        _heartbeats,
    ),
)
