"""Checks of the environment of the engine: permissions, clocks, latency, sentinels, the settings file."""

from collections.abc import Sequence
from statistics import median
from typing import Final

from msgspec import Struct

from aism_engine.ops.doctor.findings import CheckResult, Checks, Examples, danger, note, ok, plural, warning
from aism_engine.ops.doctor.permissions import EVAL_COMMANDS, RequiredCommand, missing_rules

_CLOCK_NOTE_S: Final = 1.0
_CLOCK_WARNING_S: Final = 30.0
_SLOW_S: Final = 0.005
_VERY_SLOW_S: Final = 0.05
_MIN_SENTINELS: Final = 3
_WAKING_COMMANDS: Final = frozenset({"SUBSCRIBE", "UNSUBSCRIBE", "BLMOVE"})
"""Without these the engine works by polling."""
_MOST_TESTED_PROTOCOL: Final = 2


class SentinelFacts(Struct, frozen=True, kw_only=True):
    """The replies of one configured sentinel. Only the address and the error are set if it does not answer."""

    address: str
    primary: str = ""
    """`host:port`; empty if the sentinel knows no primary of the configured name."""
    others: int = 0
    """The number of other sentinels that it knows."""
    error: str = ""
    """Why it did not answer, or the error of its CKQUORUM."""


class ConfigFile(Struct, frozen=True, kw_only=True):
    """The settings file. `mode` is its permission bits, as for chmod."""

    path: str
    mode: int
    has_password: bool


class EnvironmentFacts(Struct, frozen=True, kw_only=True):
    """What was measured between the engine's machine and the server. What could not be measured is None or empty."""

    protocol: int = 2
    clock_ahead_s: float | None = None
    """How far the server's clock is ahead of the local one, corrected by half of the round trip."""
    round_trips_s: Sequence[float] = ()
    commits_s: Sequence[float] = ()
    """Durations of commits with a stale token: the cost of the script before it writes."""
    denied: Sequence[RequiredCommand] | None = None
    """The required commands that the user may not send."""
    required: Sequence[RequiredCommand] = ()
    sentinels: Sequence[SentinelFacts] = ()
    config_file: ConfigFile | None = None
    unchecked: Sequence[str] = ()
    """What the server did not let the doctor read, each with the server's error."""


ENVIRONMENT_CHECKS: Final = Checks[EnvironmentFacts]()


@ENVIRONMENT_CHECKS.add("A denied command stops the engine; if only subscribing or BLMOVE is denied, the engine polls.")
def permissions(environment: EnvironmentFacts) -> CheckResult | None:
    denied = environment.denied
    if denied is None:
        return None
    if not denied:
        return ok("the user has every permission that the engine needs")
    examples = Examples()
    for command in dict.fromkeys(map(str, denied)):
        examples.add(command)
    summary = f"the user may not send: {examples}"
    fix = f"ACL SETUSER <user> {' '.join(missing_rules(denied, environment.required))}"
    # If the user may use neither scripts nor MULTI, only the script commands are known to be denied.
    if all(command.name in EVAL_COMMANDS for command in denied):
        fix += "; then run the doctor again: more may be missing (docs/doctor.md lists all permissions)"
    can_poll = all(command.name in _WAKING_COMMANDS for command in denied)
    return warning(summary, fix) if can_poll else danger(summary, fix)


@ENVIRONMENT_CHECKS.add("Deadlines use the server's clock. Logs and heartbeats use local clocks.")
def clock(environment: EnvironmentFacts) -> CheckResult | None:
    ahead_s = environment.clock_ahead_s
    if ahead_s is None:
        return None
    difference_s = abs(ahead_s)
    if difference_s < _CLOCK_NOTE_S:
        return ok(f"the clocks differ by {difference_s * 1000:.0f} ms")
    direction = "ahead of" if ahead_s > 0 else "behind"
    summary = f"the server's clock is {difference_s:.1f} s {direction} the local clock"
    fix = "Synchronize both machines by NTP (chrony, systemd-timesyncd)."
    return warning(summary, fix) if difference_s > _CLOCK_WARNING_S else note(summary, fix)


@ENVIRONMENT_CHECKS.add("One commit is in flight at a time, and each takes a round trip.")
def latency(environment: EnvironmentFacts) -> CheckResult | None:
    round_trips_s, commits_s = environment.round_trips_s, environment.commits_s
    if not round_trips_s:
        return None
    typical, longest = median(round_trips_s), max(round_trips_s)
    summary = f"a round trip takes {_ms(typical)}, at most {_ms(longest)}"
    if commits_s:
        summary += f"; a rejected commit takes {_ms(median(commits_s))}, at most {_ms(max(commits_s))}"
    fix = "Run the engine near its server; check SLOWLOG GET, and the machine's load."
    if typical > _VERY_SLOW_S or longest > 10 * _VERY_SLOW_S:
        return warning(summary, fix)
    return note(summary, fix) if typical > _SLOW_S else ok(summary)


@ENVIRONMENT_CHECKS.add("Client libraries represent some replies differently in RESP2 and in RESP3.")
def protocol(environment: EnvironmentFacts) -> CheckResult | None:
    if environment.protocol == _MOST_TESTED_PROTOCOL:
        return ok(f"RESP{environment.protocol}")
    return note(f"RESP{environment.protocol}", "RESP2 is tested most: set redis.protocol = 2.")


@ENVIRONMENT_CHECKS.add("The sentinels choose the primary, and the engine asks them for it.")
def sentinels(environment: EnvironmentFacts) -> CheckResult | None:
    if not environment.sentinels:
        return None
    answering = [each for each in environment.sentinels if each.primary]
    primaries = sorted({each.primary for each in answering})
    errors = [f"{each.address}: {each.error}" for each in environment.sentinels if each.error]
    if len(primaries) > 1:
        summary = f"the sentinels name different primaries: {', '.join(primaries)}"
        return danger(summary, "Wait: a failover may be in progress. If this lasts, run SENTINEL RESET NAME on each.")
    if errors:
        fix = "Start that sentinel, or remove it from redis.sentinels. SENTINEL CKQUORUM has details."
        return warning("; ".join(errors), fix)
    known = min((each.others + 1 for each in answering), default=0)
    if known < _MIN_SENTINELS:
        has = f"the primary has {plural(known, 'sentinel')}"
        summary = f"{has}: it needs three, so that two of them can agree when one fails"
        return warning(summary, "Run three sentinels on three machines.")
    return ok(f"{plural(len(answering), 'sentinel')} of {known} answered; the primary is {primaries[0]}")


@ENVIRONMENT_CHECKS.add("The Redis password allows a reader of the file to read, forge and delete everything.")
def config_file(environment: EnvironmentFacts) -> CheckResult | None:
    file = environment.config_file
    if file is None:
        return None
    summary = f"{file.path} has mode {file.mode:04o}"
    if file.mode & 0o002:
        return warning(f"{summary}: every user of this machine can change it", f"chmod o-w {file.path}")
    if file.has_password and file.mode & 0o004:
        return warning(
            f"{summary} and contains a password: every user of this machine can read it",
            f"chmod o-r {file.path}, or set the password in the environment (AISM_REDIS_URL).",
        )
    return ok(f"{summary}{', which protects its password' if file.has_password else ' and contains no password'}")


@ENVIRONMENT_CHECKS.add("What was not checked may be wrong.")
def not_checked(environment: EnvironmentFacts) -> CheckResult | None:
    if not environment.unchecked:
        return None
    fix = "Run the doctor with a user that may read them (--redis), or ask your provider for these settings."
    return warning("; ".join(environment.unchecked), fix)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
