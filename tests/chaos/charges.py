"""What a trial can be found guilty of."""

from typing import Final, NamedTuple

LOST: Final = "lost"
DUPLICATED: Final = "duplicated"
REORDERED: Final = "reordered"
STALE: Final = "stale_writes"
WRONG: Final = "wrong"
LEFT_OVER: Final = "left_over"
CHARGES: Final = (LOST, DUPLICATED, REORDERED, STALE, WRONG, LEFT_OVER)

ENDED: Final = frozenset({"succeeded", "failed", "expired", "cancelled", "dead"})
"""How a command may end."""


class Violation(NamedTuple):
    """What is wrong, with whom: an id of a message, a request, a commit or an agent."""

    charge: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.charge}: {self.subject}: {self.what}"
