"""What a trial can find wrong."""

from typing import Final, NamedTuple

LOST: Final = "lost"
DUPLICATED: Final = "duplicated"
REORDERED: Final = "reordered"
STALE: Final = "stale_writes"
WRONG: Final = "wrong"
LEFT_OVER: Final = "left_over"
KINDS_OF_VIOLATION: Final = (LOST, DUPLICATED, REORDERED, STALE, WRONG, LEFT_OVER)


class Violation(NamedTuple):
    """One violation. `subject` is the id of a message, a request, a commit or an agent."""

    kind: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.what}"
