"""Removes passwords from URLs, before they reach a log, an error or a screen."""

import re

_USERINFO = re.compile(r"(://[^\s:/]*:)(\S*)")
_PARAMETER = re.compile(r"([?&]password=)[^&\s]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """Replace the password of every URL in `text` by `***`, both in `user:password@` and in `?password=`.

    A password may contain anything but white space, so the last `@` counts as its end. This may hide more than the
    password.
    """
    return _PARAMETER.sub(r"\1***", _USERINFO.sub(_hide, text)) if "://" in text else text


def _hide(match: re.Match[str]) -> str:
    _, at, host = match[2].rpartition("@")
    return f"{match[1]}***@{host}" if at else match[0]
