"""Passwords in URLs: what never belongs into a log, an error or onto a screen."""

import re

_USERINFO = re.compile(r"(://[^\s:/]*:)(\S*)")
_PARAMETER = re.compile(r"([?&]password=)[^&\s]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """Replace the password of every URL in `text` by `***`: in `user:password@` as in `?password=`.

    In doubt it hides too much: a password may hold anything but white space, so it ends at the last `@` of the run.
    """
    return _PARAMETER.sub(r"\1***", _USERINFO.sub(_hidden, text)) if "://" in text else text


def _hidden(match: re.Match[str]) -> str:
    _, at, host = match[2].rpartition("@")
    return f"{match[1]}***@{host}" if at else match[0]
