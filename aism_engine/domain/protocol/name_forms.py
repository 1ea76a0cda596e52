"""Forms of the names in responses, which the codec checks for a whole batch at once.

A pattern in the type of a field makes msgspec call a regular expression for each name, and five such calls cost twice
as much as decoding the message. Therefore msgspec does not check the patterns of `UncheckedId`,
`UncheckedStateName` and `UncheckedMeasurementName`: they are only part of the JSON schema.
"""

import re
from collections.abc import Collection
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from aism_engine.domain.protocol.names import IDENTIFIER, MEASUREMENT_NAME, STATE_NAME


class NameForm:
    """A form that names must have."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.meta = Meta(extra_json_schema={"pattern": f"^{pattern}$"})
        """Annotation of a field. msgspec does not enforce it."""
        self.match = re.compile(pattern).fullmatch
        self._match_lines = re.compile(rf"{pattern}(?:\n{pattern})*").fullmatch

    def match_all(self, names: Collection[str]) -> bool:
        """Return whether all names have this form."""
        lines = "\n".join(names)
        # A name that contains a newline would look like two names.
        return not names or (lines.count("\n") == len(names) - 1 and self._match_lines(lines) is not None)


IDENTIFIERS: Final = NameForm(IDENTIFIER)
STATE_NAMES: Final = NameForm(STATE_NAME)
MEASUREMENT_NAMES: Final = NameForm(MEASUREMENT_NAME)

UncheckedId: TypeAlias = Annotated[str, IDENTIFIERS.meta]
UncheckedStateName: TypeAlias = Annotated[str, STATE_NAMES.meta]
UncheckedMeasurementName: TypeAlias = Annotated[str, MEASUREMENT_NAMES.meta]
