"""How the engine stands to its server: the way there, its rights, the clocks, the sentinels, its own configuration."""

from collections.abc import Sequence
from statistics import median
from typing import Final

from msgspec import Struct

from aism_engine.ops.doctor.findings import DoctorCheck, Verdict, counted, danger, named, note, ok, warning
from aism_engine.ops.doctor.permissions import EVALS, lacking, told

_CLOCKS_APART_S: Final = 1.0
_CLOCKS_FAR_APART_S: Final = 30.0
_SLOW_S: Final = 0.005
_VERY_SLOW_S: Final = 0.05
_FEW_SENTINELS: Final = 3
_TO_HEAR: Final = frozenset({"SUBSCRIBE", "UNSUBSCRIBE"})
"""Without these the engine works, by polling."""
_TESTED_MOST: Final = 2


class Sentinel(Struct, frozen=True, kw_only=True):
    """One of the sentinels that are set, and what it says. All but the address is absent where it does not answer."""

    address: str
    primary: str = ""
    """Whom it calls the primary, `host:port`; empty: it knows none of that name."""
    others: int = 0
    """How many other sentinels it knows."""
    quorum: int = 0
    trouble: str = ""
    """Why it does not answer, or what its CKQUORUM complains of."""


class ConfigFile(Struct, frozen=True, kw_only=True):
    """The file of settings: who may read it is in its mode, as chmod writes it."""

    path: str
    mode: int
    has_password: bool


class Surroundings(Struct, frozen=True, kw_only=True):
    """What was measured from here. What could not be is None."""

    where: str
    protocol: int = 2
    clock_ahead_s: float | None = None
    """How far the server's clock is ahead of ours; the way there and back is taken off."""
    pings_s: Sequence[float] = ()
    commits_s: Sequence[float] = ()
    """Of a commit that is refused at once: what the script costs before it writes."""
    refused: Sequence[tuple[str, ...]] | None = None
    """The commands, each with its key or channel, that the engine needs and may not use."""
    needed: Sequence[tuple[str, ...]] = ()
    """All that it needs."""
    sentinels: Sequence[Sentinel] = ()
    config_file: ConfigFile | None = None
    silent: Sequence[str] = ()
    """What the server did not let us see, each with its words."""


def _rights(around: Surroundings) -> Verdict | None:
    if around.refused is None:
        return None
    if not around.refused:
        return ok("it may do all that the engine does")
    missing = lacking(around.refused, around.needed)
    shown = list(dict.fromkeys(told(words) for words in around.refused))
    what, mend = f"it may not: {named(len(shown), shown[:5])}", f"ACL SETUSER <user> {' '.join(missing)}"
    if all(words[0] in EVALS for words in around.refused):  # without scripts there is no asking for the others
        mend += "; then look again: more may be missing (docs/doctor.md has all that an engine needs)"
    only_hears_less = all(words[0] in _TO_HEAR for words in around.refused)
    return warning(what, mend) if only_hears_less else danger(what, mend)


def _clock(around: Surroundings) -> Verdict | None:
    ahead_s = around.clock_ahead_s
    if ahead_s is None:
        return None
    apart_s = abs(ahead_s)
    if apart_s < _CLOCKS_APART_S:
        return ok(f"the clocks are {apart_s * 1000:.0f} ms apart")
    told = f"the server's clock is {apart_s:.1f} s {'ahead of' if ahead_s > 0 else 'behind'} ours"
    mend = "Let both machines keep time by NTP (chrony, systemd-timesyncd)."
    return warning(told, mend) if apart_s > _CLOCKS_FAR_APART_S else note(told, mend)


def _latency(around: Surroundings) -> Verdict | None:
    if not around.pings_s:
        return None
    middle, longest = median(around.pings_s), max(around.pings_s)
    told = f"a round trip takes {_ms(middle)}, at most {_ms(longest)}"
    if around.commits_s:
        told += f"; a commit that is refused {_ms(median(around.commits_s))}, at most {_ms(max(around.commits_s))}"
    mend = "Put the engine next to its server; look at SLOWLOG GET, and at the machine's load."
    if middle > _VERY_SLOW_S or longest > 10 * _VERY_SLOW_S:
        return warning(told, mend)
    return note(told, mend) if middle > _SLOW_S else ok(told)


def _protocol(around: Surroundings) -> Verdict | None:
    if around.protocol == _TESTED_MOST:
        return ok(f"RESP{around.protocol}")
    return note(f"RESP{around.protocol}", "RESP2 is what is tested most: redis.protocol = 2.")


def _sentinels(around: Surroundings) -> Verdict | None:
    if not around.sentinels:
        return None
    answering = [each for each in around.sentinels if each.primary]
    named_primaries = sorted({each.primary for each in answering})
    troubles = [f"{each.address}: {each.trouble}" for each in around.sentinels if each.trouble]
    if len(named_primaries) > 1:
        what = f"they call different servers the primary: {', '.join(named_primaries)}"
        return danger(what, "Wait for the end of a failover; if it lasts, SENTINEL RESET the name at each.")
    if troubles:
        return warning("; ".join(troubles), "Start it, or take it out of redis.sentinels; SENTINEL CKQUORUM says more.")
    known = min((each.others + 1 for each in answering), default=0)
    if known < _FEW_SENTINELS:
        return warning(f"there is no majority without each of {known}", "Run three sentinels, on three machines.")
    return ok(f"{counted(len(answering), 'sentinel')} of {known} answered; all call {named_primaries[0]} the primary")


def _config_file(around: Surroundings) -> Verdict | None:
    file = around.config_file
    if file is None:
        return None
    told = f"{file.path} has the mode {file.mode:04o}"
    if file.mode & 0o002:
        return warning(f"{told}: anyone on this machine may change it", f"chmod o-w {file.path}")
    if file.has_password and file.mode & 0o004:
        return warning(
            f"{told}, and a password in it: anyone on this machine may read it",
            f"chmod o-r {file.path}, or put the password into the environment (AISM_REDIS_URL).",
        )
    return ok(f"{told}; {'the password in it is safe' if file.has_password else 'there is no password in it'}")


def _could_not_look(around: Surroundings) -> Verdict | None:
    if not around.silent:
        return None
    return warning(
        "; ".join(around.silent),
        "Let the doctor look with a user that may (--redis), or ask your provider for these settings.",
    )


CHECKS: Final = (
    DoctorCheck(
        "rights", "A command that is forbidden stops the engine; where it may not subscribe, it polls.", _rights
    ),
    DoctorCheck(
        "clock",
        "Deadlines go by the server's clock; logs, and those who beat by ours, seem early or late beside them.",
        _clock,
    ),
    DoctorCheck("latency", "One commit is in flight at a time: each costs a round trip.", _latency),
    DoctorCheck("protocol", "The two versions differ in what clients make of them.", _protocol),
    DoctorCheck("sentinels", "They choose the primary, and tell the engine where it is.", _sentinels),
    DoctorCheck("config_file", "Who has the password of Redis can read, forge and delete everything.", _config_file),
    DoctorCheck("could_not_look", "What was not looked at may be good or bad.", _could_not_look),
)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
