"""What is kept of a text, and how one is named."""

from hashlib import sha1
from typing import Final

_HEAD_BYTES: Final = 4096
"""Of a message, what its digest covers: SHA-1 of 20 MB stalls a server for 94 ms, and the length tells the rest apart.
"""
_CLIP: Final = 2000


def truncate(text: str) -> str:
    """Keep the head of a text of an agent's, for the audit: 2,000 characters, an arbitrary number."""
    return text if len(text) <= _CLIP else f"{text[:_CLIP]}…"


def message_digest(raw: bytes) -> str:
    """Name a message by the SHA-1 of its first 4 KiB and its length; `peek.lua` and `commit.lua` compute the same."""
    return f"{sha1(raw[:_HEAD_BYTES], usedforsecurity=False).hexdigest()}:{len(raw)}"
