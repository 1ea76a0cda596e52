"""Maps an error reply of the server to an outage, and describes errors of connections for people."""

import os
import re
from collections.abc import Iterator
from typing import Final

_SAME_NAME: Final = "MISCONF BUSY READONLY OOM NOAUTH NOPERM LOADING MASTERDOWN CLUSTERDOWN NOREPLICAS"
_OUTAGES: Final = {
    **{code: code.lower() for code in _SAME_NAME.split()},
    **dict.fromkeys(("MOVED", "ASK", "TRYAGAIN", "CROSSSLOT"), "cluster"),
    "WRONGTYPE": "wrong_type",
    "UNKILLABLE": "busy",
    "WRONGPASS": "noauth",
}
_TEXTS: Final = {
    "SELECT is not allowed in cluster mode": "cluster",
    "DB index is out of range": "no_database",
    "AUTH <password> called without": "noauth",
}
"""Beginnings of error replies to SELECT and AUTH, whose code is only ERR."""
REPLY_OUTAGES: Final = frozenset({*_OUTAGES.values(), *_TEXTS.values()})
NOT_REDIS: Final = "the reply does not come from a Redis server"
_IN_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -?([A-Z]+)\b")
"""Finds the error code of a command that failed in a script. Before Redis 7.0 the script's own error reply contains it.

There it follows the name `@user_script` and the number of a line.
"""
_DENIED_IN_SCRIPT: Final = re.compile(
    r"(^|@user_script: ?\d+: )(ACL failure in script|The user executing the script can't)\b"
)
"""The message about a command in a script that the ACL refuses. Its error code is only ERR."""


class RefusedCommandError(Exception):
    """The server refused a command, and not because of an outage: the caller has a bug."""


class MissingScriptError(RefusedCommandError):
    """The server has not cached a script."""


def outage_of_reply(message: str, code: str | None = None) -> str | None:
    """Return the outage that an error reply means; None if it means a bug. redis-py may have split off the code."""
    message = message.removeprefix("ERR ")
    return next(_outages(message, code), None)


def describe_connection_error(error: BaseException) -> str:
    """Describe an error of a socket in the words of the operating system, and one of TLS by its reason."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if number := type(error).__module__ == "builtins" and getattr(error, "errno", None):
        return os.strerror(number)
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    return reason.replace("_", " ").lower() if reason else getattr(error, "strerror", None) or str(error)


def _outages(message: str, code: str | None) -> Iterator[str]:
    in_script = _IN_SCRIPT.search(message)
    for each in (code, message.partition(" ")[0], in_script and in_script[1]):
        if outage := _OUTAGES.get(each or ""):
            yield outage
    yield from (outage for start, outage in _TEXTS.items() if message.startswith(start))
    if _DENIED_IN_SCRIPT.search(message):
        yield "noperm"
