"""Truncated texts, digests of messages, and the order and the similarity of names."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from hashlib import sha1
from typing import Final

DIGESTED_BYTES: Final = 4096
"""Number of bytes that a digest covers. Later bytes change only the length that the digest ends with.

The server computes digests too, and SHA-1 of 20 MB stalls it for 94 ms.
"""
_MAX_CHARACTERS: Final = 2000
"""An arbitrary number."""
_DIGITS: Final = re.compile("([0-9]+)")


def truncate(text: str) -> str:
    """Keep the first 2,000 characters of a text that an agent or an operator wrote."""
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}…"


def truncate_reason(reason: str | None) -> str | None:
    """Truncate the reason in a payload; None if there is none, or if it is empty."""
    return truncate(reason) if reason else None


def message_digest(raw: bytes) -> str:
    """Return the SHA-1 of the first 4 KiB of a message and its length; `peek.lua` and `commit.lua` compute the same."""
    return f"{sha1(raw[:DIGESTED_BYTES], usedforsecurity=False).hexdigest()}:{len(raw)}"


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts names by their numbers: `builder-2` comes before `builder-10`."""
    parts = _DIGITS.split(name)
    parts[1::2] = [digits.lstrip("0") for digits in parts[1::2]]  # every second part is a number
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(parts)], name


def similar(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are similar to `name` if case is ignored, the most similar first."""
    folded = {each.casefold(): each for each in names}
    return [folded[match] for match in get_close_matches(name.casefold(), folded)]


def hint(name: str, names: Iterable[str]) -> str:
    """Return a hint for an error message, empty if no name is similar."""
    return "".join(f' (did you mean "{found}"?)' for found in similar(name, names)[:1])
