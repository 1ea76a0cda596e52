"""Passwords in URLs: what never belongs into a log, an error or onto a screen."""

import re
from typing import Final
from urllib.parse import urlsplit

_USERINFO = re.compile(r"(://[^\s:/]*:)(\S*)")
_PARAMETER = re.compile(r"([?&]password=)[^&\s]*", re.IGNORECASE)

NOT_PLAIN: Final = (
    "its parts cannot be told apart: in a password write / as %2F, # as %23, ? as %3F, % as %25, and a space as %20"
)
"""Said of a URL without showing it: nobody knows what of it is the password."""


def is_plain(url: str) -> bool:
    """Tell whether a URL means one thing: a password with a bare / # or ? in it ends where nobody wants it to, and what
    is behind that would be taken for a port, a database or an option.
    """
    if re.search(r"[\s#]", url):
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    is_database = re.fullmatch(r"/?\d*", parts.path) is not None
    return (is_database or parts.scheme == "unix") and all("=" in each for each in parts.query.split("&") if each)


def redacted(text: str) -> str:
    """Replace the password of every URL in `text` by `***`: in `user:password@` as in `?password=`.

    In doubt it hides too much: a password may hold anything but white space, so it ends at the last `@` of the run.
    """
    return _PARAMETER.sub(r"\1***", _USERINFO.sub(_hidden, text)) if "://" in text else text


def _hidden(match: re.Match[str]) -> str:
    _, at, host = match[2].rpartition("@")
    return f"{match[1]}***@{host}" if at else match[0]
