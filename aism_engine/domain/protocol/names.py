"""Patterns of identifiers and names. Identifiers become parts of Redis keys, so other texts are refused.

A module of its own, because the agent's command-line tool pays for each import at each call.
"""

import re
from functools import lru_cache, partial
from typing import Final

IDENTIFIER: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Id of an agent, a message, a request or a command."""
TYPE_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Name of a type, a label, a capability or an error code."""
STATE_NAME: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
MAX_STATE_NAME: Final = 64
MEASUREMENT_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}"
MAX_MEASUREMENT_NAME: Final = 64
DEAD_LETTER_ID: Final = r"[0-9]{1,19}-[0-9]{1,19}"
"""Id of an entry of a stream. Every number of at most 19 digits fits in 64 bits, so Redis accepts all of these ids."""
PREFIX: Final = r"[A-Za-z0-9._{}:-]{1,64}"
"""First part of the keys of a fleet."""


def is_identifier(value: object) -> bool:
    """Tell whether a value is a valid id of an agent, a message, a request or a command."""
    return isinstance(value, str) and re.fullmatch(IDENTIFIER, value) is not None


def check_agent_id(agent_id: str) -> str:
    """Return a valid agent id; raise ValueError for any other text."""
    if not is_identifier(agent_id):
        rule = "use at most 128 letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
        raise ValueError(f"{agent_id!r} is not a valid agent id: {rule}")
    return agent_id


is_type_name: Final = partial(re.fullmatch, TYPE_NAME)
is_state_name: Final = partial(re.fullmatch, STATE_NAME)
is_measurement_name: Final = partial(re.fullmatch, MEASUREMENT_NAME)
is_cached_state_name: Final = lru_cache(maxsize=4096)(is_state_name)
"""`is_state_name` with a cache. Callers must refuse texts longer than `MAX_STATE_NAME` first.

The cache is bounded in entries only: with longer texts, its size in bytes would have no bound.
"""
