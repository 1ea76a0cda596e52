"""Checks of the server: can it lose what was written to it? Needs INFO and CONFIG only."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from aism_engine.ops.doctor.findings import CheckResult, Checks, NotReportedError, danger, note, ok, plural, warning

_OLDEST_VERSION: Final = (6, 2)
CONFIG_NAMES: Final = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "save",
    "stop-writes-on-bgsave-error",
    "min-replicas-to-write",
    "replica-read-only",
    "client-output-buffer-limit",
)
"""Read by CONFIG GET. Everything else is in INFO, which managed servers allow."""

_NEARLY_FULL: Final = 0.8
_MAX_REPLICA_LAG_S: Final = 10
_MIN_NORMAL_BYTES: Final = 64 * 1024 * 1024
"""Lowest sufficient limit for the client class `normal`, which includes the engine.

It is a few times the largest reply that the engine reads.
"""
_MIN_PUBSUB_HARD_BYTES: Final = 32 * 1024 * 1024
_MIN_PUBSUB_SOFT_BYTES: Final = 8 * 1024 * 1024
"""The server's own defaults, enough for some hundred thousand events."""


class ServerFacts(Struct, frozen=True, kw_only=True):
    """What the server reports about itself. What it denied is absent."""

    info: Mapping[str, Any]
    """INFO, with numbers as numbers, and each replica (`slave0`) as a mapping."""
    config: Mapping[str, str]
    prefix: str = "aism"
    watched: bool = False
    """Whether sentinels watch the server, so that a failover can happen at any moment."""

    def reported(self, name: str) -> Any:  # noqa: ANN401  the type depends on the name
        """Return a value of INFO or CONFIG. Raises NotReportedError."""
        for source in (self.info, self.config):
            if name in source:
                return source[name]
        raise NotReportedError(name)

    @property
    def append_only(self) -> bool:
        """Whether the server writes an append-only file. Raises NotReportedError."""
        return bool(self.info["aof_enabled"]) if "aof_enabled" in self.info else self.reported("appendonly") == "yes"


SERVER_CHECKS: Final = Checks[ServerFacts]()
"""The engine itself repeats these checks while it runs."""


@SERVER_CHECKS.add("Older servers lack commands that the engine needs.")
def version(server: ServerFacts) -> CheckResult | None:
    number = str(server.reported("redis_version"))
    name = f"Redis {number}"
    if "valkey_version" in server.info:
        name = f"Valkey {server.info['valkey_version']} (compatible with Redis {number})"
    if tuple(int(part) for part in number.split(".")[:2] if part.isdigit()) < _OLDEST_VERSION:
        return danger(f"{name} is too old", "Upgrade to Redis 6.2 or newer, or to Valkey.")
    return ok(name)


@SERVER_CHECKS.add("A replica refuses writes, or loses them.")
def role(server: ServerFacts) -> CheckResult | None:
    if server.reported("role") == "master":
        return ok("the server is a primary")
    primary = f"{server.info.get('master_host')}:{server.info.get('master_port')}"
    fix = f"Set redis.url to the primary ({primary}), or set redis.sentinels."
    link = "" if server.info.get("master_link_status", "up") == "up" else ", and the link to it is down"
    return danger(f"the server is a replica of {primary}{link}", fix)


@SERVER_CHECKS.add("Without persistence, a restart loses what agents pushed and what the engine accepted.")
def persistence(server: ServerFacts) -> CheckResult | None:
    if server.append_only:
        return ok("the server writes an append-only file")
    save, fix = server.config.get("save"), "CONFIG SET appendonly yes, and the same in redis.conf (or CONFIG REWRITE)."
    if save == "":
        return danger("the server persists nothing: no append-only file and no snapshots", fix)
    unsaved = server.info.get("rdb_changes_since_last_save")
    loss = "" if unsaved is None else f"; a crash now loses {plural(int(unsaved), 'change')}"
    kept = "the server writes snapshots only" if save else "the server writes no append-only file"
    return danger(f"{kept}{loss}", fix)


@SERVER_CHECKS.add("After a crash the append-only file holds only what was synced to the disk.")
def fsync(server: ServerFacts) -> CheckResult | None:
    if not server.append_only:
        return None
    policy, fix = server.reported("appendfsync"), "CONFIG SET appendfsync everysec, or always."
    if policy == "no":
        return danger("the kernel decides when to sync the append-only file: a crash loses up to half a minute", fix)
    if server.config.get("no-appendfsync-on-rewrite") == "yes":
        fix = "CONFIG SET no-appendfsync-on-rewrite no."
        return warning("the append-only file is not synced while it is rewritten", fix)
    if policy == "everysec":
        return note("the append-only file is synced every second: a crash loses the last second or two")
    return ok("the append-only file is synced before each reply: a crash loses nothing that was acknowledged")


@SERVER_CHECKS.add("After a failed write to disk, a restart may lose data, and the server may refuse writes.")
def persistence_status(server: ServerFacts) -> CheckResult | None:
    fix = "Read the server's log: most often its disk is full, or it has too little memory to fork."
    if server.append_only and server.info.get("aof_last_write_status", "ok") != "ok":
        return danger("the last write of the append-only file failed", fix)
    if server.append_only and server.info.get("aof_last_bgrewrite_status", "ok") != "ok":
        return warning("the last rewrite of the append-only file failed, so the file keeps growing", fix)
    if server.reported("rdb_last_bgsave_status") != "ok":
        stops_writes = server.config.get("stop-writes-on-bgsave-error") == "yes"
        summary = f"the last snapshot failed{'; the server may refuse writes (MISCONF)' if stops_writes else ''}"
        return warning(summary, fix) if server.append_only else danger(summary, fix)
    return ok("the last write to disk succeeded")


@SERVER_CHECKS.add("Eviction deletes commands, queues and records silently.")
def eviction(server: ServerFacts) -> CheckResult | None:
    policy, limit = server.reported("maxmemory_policy"), int(server.info.get("maxmemory", 0))
    if policy == "noeviction":
        return ok("the server evicts nothing (noeviction)")
    fix = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf."
    if limit == 0:
        return warning(f"the policy is {policy}: harmless only while maxmemory is 0", fix)
    evicted = "replies, and records of ended commands" if policy.startswith("volatile") else "queues and records"
    return danger(f"the policy is {policy}: above {_mebibytes(limit)} the server deletes {evicted}", fix)


@SERVER_CHECKS.add("A full server accepts no responses and no commands.")
def memory(server: ServerFacts) -> CheckResult | None:
    used, limit = server.reported("used_memory"), int(server.info.get("maxmemory", 0))
    if limit == 0:
        machine = int(server.info.get("total_system_memory", 0))
        if machine and used > _NEARLY_FULL * machine:
            return warning(
                f"the server uses {used / machine:.0%} of the machine's memory, and has no limit",
                "Give the machine more memory, and set maxmemory below what it has.",
            )
        return note(
            f"the server uses {_mebibytes(used)}, without a limit: when the machine is full, the kernel kills it",
            "Set maxmemory to about three quarters of the machine's memory.",
        )
    share = used / limit
    if share > _NEARLY_FULL:
        return warning(
            f"the server uses {share:.0%} of {_mebibytes(limit)}; at 100% it refuses writes (OOM)",
            "Raise maxmemory, or find what grows: aism-engine top --once shows the queues.",
        )
    return ok(f"the server uses {share:.0%} of {_mebibytes(limit)}")


@SERVER_CHECKS.add("A failover loses what no replica has received.")
def replicas(server: ServerFacts) -> CheckResult | None:
    if server.reported("role") != "master":
        return None
    connected, fix = int(server.reported("connected_slaves")), "CONFIG SET min-replicas-to-write 1."
    if connected == 0 and not server.watched:
        return note("there is no replica: if the disk is lost, the fleet is lost", "Add a replica, and sentinels.")
    if connected == 0:
        return danger("there is no replica, so the sentinels cannot fail over", "Repair or add a replica.")
    needed = int(server.reported("min-replicas-to-write"))
    if needed > 0:
        condition = f"only while at least {plural(needed, 'replica')} can be reached (min-replicas-to-write)"
        return ok(f"{plural(connected, 'replica')}; the primary accepts writes {condition}")
    summary = f"{plural(connected, 'replica')}; the primary accepts writes without any (min-replicas-to-write is 0)"
    return danger(summary, fix) if server.watched else warning(summary, fix)


@SERVER_CHECKS.add("A failover loses what the replica has not received.")
def replica_lag(server: ServerFacts) -> CheckResult | None:
    found = [value for name, value in server.info.items() if name[:5] == "slave" and isinstance(value, Mapping)]
    if not found:
        return None
    problems = []
    for replica in found:
        name, state, lag = f"{replica.get('ip')}:{replica.get('port')}", replica.get("state"), replica.get("lag", 0)
        if state != "online":
            problems.append(f"{name} is {state}")
        elif int(lag) > _MAX_REPLICA_LAG_S:
            problems.append(f"{name} last replied {lag} s ago")
    if problems:
        return warning("; ".join(problems), "Check the replica, its log, and the network to it.")
    return ok(f"{plural(len(found), 'replica')}, none behind")


@SERVER_CHECKS.add("Writes to a replica are lost when it follows its primary again.")
def replica_read_only(server: ServerFacts) -> CheckResult | None:
    if server.reported("replica-read-only") == "yes":
        return ok("the server refuses writes when it is a replica")
    result = warning if server.info.get("role") == "master" else danger
    return result("the server accepts writes when it is a replica", "CONFIG SET replica-read-only yes.")


@SERVER_CHECKS.add("A disconnected subscriber misses messages. The engine and `aism-engine tail` are subscribers.")
def output_buffers(server: ServerFacts) -> CheckResult | None:
    words = server.reported("client-output-buffer-limit").split()
    limits = {words[start]: words[start + 1 : start + 4] for start in range(0, len(words) - 3, 4)}
    if "pubsub" not in limits:
        return None
    hard, soft, seconds = map(_bytes, limits["pubsub"])
    normal = _bytes(limits.get("normal", ["0"])[0])
    if 0 < normal < _MIN_NORMAL_BYTES:
        return warning(
            f"a client with {_mebibytes(normal)} of unread replies is disconnected: this can be the engine, while it "
            "loads a large fleet",
            'CONFIG SET client-output-buffer-limit "normal 0 0 0".',
        )
    fix = 'CONFIG SET client-output-buffer-limit "pubsub 33554432 8388608 60".'
    if hard == soft == 0:
        return warning("subscribers have no limit: one that does not read fills the memory", fix)
    summary = f"a subscriber is disconnected at {_mebibytes(hard)}, or at {_mebibytes(soft)} for {seconds} s"
    too_small = 0 < hard < _MIN_PUBSUB_HARD_BYTES or 0 < soft < _MIN_PUBSUB_SOFT_BYTES
    return warning(summary, fix) if too_small else ok(summary)


@SERVER_CHECKS.add("Each agent that waits for a command holds a connection.")
def clients(server: ServerFacts) -> CheckResult | None:
    connected, limit = server.reported("connected_clients"), server.reported("maxclients")
    summary = f"{connected} of at most {limit} connections"
    if connected > _NEARLY_FULL * limit:
        return warning(summary, "Raise maxclients, and the server's limit of open files.")
    return ok(summary)


@SERVER_CHECKS.add("A script can use the keys of one slot only.")
def cluster(server: ServerFacts) -> CheckResult | None:
    if not server.reported("cluster_enabled"):
        return ok("the server is not a cluster node")
    tag = server.prefix.partition("{")[2].partition("}")
    if tag[0] and tag[1]:
        return note(
            "the server is a cluster node, and the prefix keeps the fleet in one slot",
            "Set redis.url to the node that holds the slot: the engine does not follow the slot when it moves.",
        )
    return danger(
        f"the server is a cluster node, and the keys of {server.prefix!r} are in many slots",
        "Set redis.url to a server that is not a cluster node. On a node that never loses a slot, a prefix in braces "
        f'works: redis.prefix = "{{{server.prefix}}}".',
    )


def _bytes(text: str) -> int:
    """Parse a number of bytes; managed servers may write `32mb`."""
    for unit, factor in (("kb", 1024), ("mb", 1024**2), ("gb", 1024**3)):
        if text.lower().endswith(unit):
            return int(text[:-2]) * factor
    return int(text)


def _mebibytes(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB"
