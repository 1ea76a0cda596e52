"""Whether the server keeps what it is given: read from its INFO and its CONFIG alone."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from aism_engine.ops.doctor.findings import (
    DoctorCheck,
    Finding,
    Severity,
    Verdict,
    counted,
    danger,
    judged,
    megabytes,
    note,
    ok,
    warning,
)

OLDEST: Final = (6, 2)
SETTINGS: Final = (
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "save",
    "stop-writes-on-bgsave-error",
    "min-replicas-to-write",
    "replica-read-only",
    "client-output-buffer-limit",
)
"""What is read by CONFIG GET; the rest is told by INFO, which managed servers allow."""

_NEARLY_FULL: Final = 0.8
_LAGGING_S: Final = 10
_NORMAL_HARD: Final = 64 * 1024 * 1024
"""Bytes: some answers at once to what the engine asks for at most, such as 100,000 records in pages."""
_PUBSUB_HARD: Final = 32 * 1024 * 1024
_PUBSUB_SOFT: Final = 8 * 1024 * 1024
"""Bytes: the server's own defaults, which hold some hundred thousand events."""


class Server(Struct, frozen=True, kw_only=True):
    """What the server says of itself. What it would not tell is absent."""

    info: Mapping[str, Any]
    """INFO, numbers as numbers, and a replica (`slave0`) as a table."""
    config: Mapping[str, str]
    prefix: str = "aism"
    watched: bool = False
    """Whether sentinels watch it: then it may be replaced at any moment."""


def _version(server: Server) -> Verdict | None:
    version = server.info.get("redis_version")
    if version is None:
        return None
    name = f"Redis {version}"
    if "valkey_version" in server.info:
        name = f"Valkey {server.info['valkey_version']} (as Redis {version})"
    parts = tuple(int(part) for part in str(version).split(".")[:2] if part.isdigit())
    if parts < OLDEST:
        return danger(name, "Upgrade to Redis 6.2 or newer, or to Valkey.")
    return ok(name)


def _role(server: Server) -> Verdict | None:
    role = server.info.get("role")
    if role is None:
        return None
    if role == "master":
        return ok("it is a primary")
    primary = f"{server.info.get('master_host')}:{server.info.get('master_port')}"
    mend = f"Name the primary in redis.url ({primary}), or the sentinels in redis.sentinels."
    link = "" if server.info.get("master_link_status", "up") == "up" else ", to which its link is down"
    return danger(f"it is a replica of {primary}{link}", mend)


def _persistence(server: Server) -> Verdict | None:
    info, mend = server.info, "CONFIG SET appendonly yes, and the same in its file (or CONFIG REWRITE)."
    appends = _appends(server)
    if appends is None:
        return None
    if appends:
        return ok("it writes an append-only file")
    save = server.config.get("save")
    if save == "":
        return danger("it keeps nothing: no append-only file, and no snapshots", mend)
    unsaved = info.get("rdb_changes_since_last_save")
    since = "" if unsaved is None else f"; now {counted(int(unsaved), 'change')} would be lost"
    kept = "it keeps snapshots only" if save else "it writes no append-only file: at most it keeps snapshots"
    return danger(f"{kept}{since}", mend)


def _fsync(server: Server) -> Verdict | None:
    policy, mend = server.config.get("appendfsync"), "CONFIG SET appendfsync everysec, or always."
    if not _appends(server) or policy is None:
        return None
    if policy == "no":
        return danger("when its file reaches the disk is left to the kernel: half a minute may be missing", mend)
    if server.config.get("no-appendfsync-on-rewrite") == "yes":
        return warning(
            "while the file is rewritten, nothing is forced to the disk", "CONFIG SET no-appendfsync-on-rewrite no."
        )
    if policy == "everysec":
        return note("each second: a crash may take back the last second or two")
    return ok("before each answer: nothing that was acknowledged is lost")


def _persistence_status(server: Server) -> Verdict | None:
    info, mend = server.info, "Read the log of the server: most often its disk is full, or memory too short to fork."
    appends = _appends(server)
    if "rdb_last_bgsave_status" not in info and "aof_last_write_status" not in info:
        return None
    if appends and info.get("aof_last_write_status", "ok") != "ok":
        return danger("the last write of its append-only file failed", mend)
    if appends and info.get("aof_last_bgrewrite_status", "ok") != "ok":
        return warning("the last rewriting of its append-only file failed: the file only grows", mend)
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        refused = "; it may refuse writes (MISCONF)" if _refuses_unsaved(server) else ""
        severity = Severity.WARNING if appends else Severity.DANGER
        return Verdict(severity, f"its last snapshot failed{refused}", mend)
    return ok("what it wrote last, it could write")


def _eviction(server: Server) -> Verdict | None:
    policy, most = server.info.get("maxmemory_policy"), int(server.info.get("maxmemory", 0))
    if policy is None:
        return None
    if policy == "noeviction":
        return ok("it evicts nothing (noeviction)")
    mend = "CONFIG SET maxmemory-policy noeviction, and the same in its file."
    if most == 0:
        return warning(f"{policy}: harmless only as long as maxmemory is 0", mend)
    what = f"{policy}, from {megabytes(most)} on"
    if policy.startswith("volatile"):
        return danger(f"{what}: it throws away answers, and records of commands that have ended", mend)
    return danger(f"{what}: it throws away queues and records", mend)


def _memory(server: Server) -> Verdict | None:
    used, most = server.info.get("used_memory"), int(server.info.get("maxmemory", 0))
    if used is None:
        return None
    if most == 0:
        whole = int(server.info.get("total_system_memory", 0))
        if whole and used > _NEARLY_FULL * whole:
            return warning(
                f"it uses {used / whole:.0%} of the machine's memory, and has no bound",
                "Give the machine more memory, and set maxmemory below what it has.",
            )
        return note(
            f"it uses {megabytes(used)}, and has no bound: when the machine is full, the kernel kills it",
            "Set maxmemory to some three quarters of the machine's memory.",
        )
    share = used / most
    if share > _NEARLY_FULL:
        return warning(
            f"it uses {share:.0%} of its {megabytes(most)}; then it refuses writes (OOM)",
            "Raise maxmemory, or find what grows: aism-engine top --once shows the queues.",
        )
    return ok(f"it uses {share:.0%} of its {megabytes(most)}")


def _replicas(server: Server) -> Verdict | None:
    needed = server.config.get("min-replicas-to-write")
    if server.info.get("role") != "master" or "connected_slaves" not in server.info:
        return None
    connected, mend = int(server.info["connected_slaves"]), "CONFIG SET min-replicas-to-write 1."
    if connected == 0 and not server.watched:
        return note("it has no replica: if its disk is gone, so is the fleet", "Add a replica, and sentinels.")
    if connected == 0:
        return danger("sentinels watch it, and it has no replica: none can take its place", "Mend the replica.")
    if needed is None:
        return None
    if int(needed) > 0:
        return ok(f"{counted(connected, 'replica')}; it takes writes only while {needed} can follow")
    what = f"{counted(connected, 'replica')}, and it takes writes also when none can follow (min-replicas-to-write 0)"
    return danger(what, mend) if server.watched else warning(what, mend)


def _replica_lag(server: Server) -> Verdict | None:
    replicas = [value for name, value in server.info.items() if name[:5] == "slave" and isinstance(value, Mapping)]
    if not replicas:
        return None
    late = []
    for replica in replicas:
        name, state, lag = f"{replica.get('ip')}:{replica.get('port')}", replica.get("state"), replica.get("lag", 0)
        if state != "online":
            late.append(f"{name} is {state}")
        elif int(lag) > _LAGGING_S:
            late.append(f"{name} has not been heard of for {lag} s")
    if late:
        return warning("; ".join(late), "Look at the replica, its log, and the network to it.")
    return ok(f"{counted(len(replicas), 'replica')}, none behind")


def _replica_read_only(server: Server) -> Verdict | None:
    value = server.config.get("replica-read-only")
    if value is None:
        return None
    if value == "yes":
        return ok("as a replica it takes no writes")
    severity = Severity.WARNING if server.info.get("role") == "master" else Severity.DANGER
    return Verdict(severity, "as a replica it takes writes", "CONFIG SET replica-read-only yes.")


def _output_buffers(server: Server) -> Verdict | None:
    words = server.config.get("client-output-buffer-limit", "").split()
    limits = {words[place]: words[place + 1 : place + 4] for place in range(0, len(words) - 3, 4)}
    if "pubsub" not in limits:
        return None
    hard, soft, seconds = map(_bytes, limits["pubsub"])
    mend = 'CONFIG SET client-output-buffer-limit "pubsub 33554432 8388608 60".'
    normal = _bytes(limits.get("normal", ["0"])[0])
    if 0 < normal < _NORMAL_HARD:
        return warning(
            f"every client is cut off at {megabytes(normal)}, the engine too when it reads much at once",
            'CONFIG SET client-output-buffer-limit "normal 0 0 0".',
        )
    if hard == soft == 0:
        return warning("for subscribers there is no limit: one that does not read fills the memory", mend)
    told = f"a subscriber is cut off at {megabytes(hard)}, or at {megabytes(soft)} for {seconds} s"
    if 0 < hard < _PUBSUB_HARD or 0 < soft < _PUBSUB_SOFT:
        return warning(told, mend)
    return ok(told)


def _clients(server: Server) -> Verdict | None:
    connected, most = server.info.get("connected_clients"), server.info.get("maxclients")
    if connected is None or most is None:
        return None
    told = f"{connected} of at most {most} connections"
    if connected > _NEARLY_FULL * most:
        return warning(told, "Raise maxclients, and the limit of open files of the server.")
    return ok(told)


def _cluster(server: Server) -> Verdict | None:
    enabled = server.info.get("cluster_enabled")
    if enabled is None:
        return None
    if not enabled:
        return ok("it is no node of a cluster")
    tag = server.prefix.partition("{")[2].partition("}")
    if tag[0] and tag[1]:
        return note(
            "it is a node of a cluster, and the prefix keeps the fleet in one slot",
            "Name the node that has the slot in redis.url: the engine does not follow it when it moves.",
        )
    return danger(
        f"it is a node of a cluster, and the keys of {server.prefix!r} lie in many slots",
        f'Take a prefix in braces: redis.prefix = "{{{server.prefix}}}".',
    )


CHECKS: Final = (
    DoctorCheck("version", "Older servers lack commands that the engine needs.", _version),
    DoctorCheck("role", "A replica refuses writes, or forgets them.", _role),
    DoctorCheck(
        "persistence",
        "What an agent has pushed, and what the engine has accepted, is gone when the server restarts.",
        _persistence,
    ),
    DoctorCheck("fsync", "An append-only file protects only as far as it has reached the disk.", _fsync),
    DoctorCheck(
        "persistence_status",
        "What could not be written is lost at the next restart, or stops writes.",
        _persistence_status,
    ),
    DoctorCheck("eviction", "A server that evicts deletes commands, queues and records without a word.", _eviction),
    DoctorCheck("memory", "A full server takes no responses and no commands.", _memory),
    DoctorCheck("replicas", "What no replica has seen is taken back when one becomes the primary.", _replicas),
    DoctorCheck("replica_lag", "A failover takes back what the replica has not received.", _replica_lag),
    DoctorCheck(
        "replica_read_only",
        "What is written to a replica is lost when it follows its primary again.",
        _replica_read_only,
    ),
    DoctorCheck("output_buffers", "The engine's listener, and whoever tails, is such a subscriber.", _output_buffers),
    DoctorCheck("clients", "Each agent that waits for a command holds a connection.", _clients),
    DoctorCheck("cluster", "A script can touch the keys of one slot only.", _cluster),
)
CODES: Final = tuple(check.code for check in CHECKS)


def examine_server(server: Server) -> list[Finding]:
    """Judge whether this server can lose what it is given. It is all that the engine itself watches."""
    return judged(CHECKS, server)


def _appends(server: Server) -> bool | None:
    enabled = server.info.get("aof_enabled")
    if enabled is not None:
        return bool(enabled)
    value = server.config.get("appendonly")
    return None if value is None else value == "yes"


def _refuses_unsaved(server: Server) -> bool:
    return server.config.get("stop-writes-on-bgsave-error") == "yes"


def _bytes(text: str) -> int:
    """Read a number of bytes: managed servers may write `32mb`."""
    units = {"kb": 1024, "mb": 1024**2, "gb": 1024**3}
    for unit, factor in units.items():
        if text.lower().endswith(unit):
            return int(text[:-2]) * factor
    return int(text)
