"""Removes passwords from URLs, before they reach a log, an error or a screen."""

import re
from typing import Final
from urllib.parse import urlsplit

_USERINFO = re.compile(r"(://[^\s:/]*:)(\S*)")
_PARAMETER = re.compile(r"([?&]password=)[^&\s]*", re.IGNORECASE)

AMBIGUOUS_URL: Final = (
    "it can be read in more than one way; in a password, write / as %2F, # as %23, ? as %3F, % as %25, a space as %20"
)
"""Error message for a URL that must not be shown, because it is not known which part of it is the password."""


def is_unambiguous(url: str) -> bool:
    """Return whether a URL can be read in one way only.

    An unescaped / # or ? in a password ends it early, and the rest of it would be taken for a port, a database or an
    option.
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
    """Replace the password of every URL in `text` by `***`, both in `user:password@` and in `?password=`.

    In doubt it hides too much: a password may contain anything but white space, so it ends at the last `@`.
    """
    return _PARAMETER.sub(r"\1***", _USERINFO.sub(_hide, text)) if "://" in text else text


def _hide(match: re.Match[str]) -> str:
    _, at, host = match[2].rpartition("@")
    return f"{match[1]}***@{host}" if at else match[0]
