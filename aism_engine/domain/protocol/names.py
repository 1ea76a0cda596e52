"""What may be a name, as patterns. Ids become parts of keys: nothing else may be one.

Apart, for those who need nothing else: what the agent's tool imports, each of its calls pays for.
"""

import re
from typing import Final

IDENTIFIER: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
"""Of an agent, a message, a request or a command."""
TYPE_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Of a type, a label, a capability or an error's code."""
STATE_NAME: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,63}"
MEASUREMENT_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}"


def is_identifier(value: object) -> bool:
    """Tell whether a value may be the id of an agent, a message or a command: it becomes part of a key."""
    return isinstance(value, str) and re.fullmatch(IDENTIFIER, value) is not None


def is_type_name(text: str) -> bool:
    return re.fullmatch(TYPE_NAME, text) is not None


def is_state_name(text: str) -> bool:
    return re.fullmatch(STATE_NAME, text) is not None


def is_measurement_name(text: str) -> bool:
    return re.fullmatch(MEASUREMENT_NAME, text) is not None
