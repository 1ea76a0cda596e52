"""Groups: a request for many agents, and the count of the outcomes of its members.

A group ends when all of its members have ended. It succeeds as soon as enough members have succeeded, and fails as soon
as too few members can still succeed.
"""

from typing import Annotated, Final, Literal, TypeAlias, get_args

from msgspec import Struct

from aism_engine.clock import iso
from aism_engine.domain.commands.command import OPEN
from aism_engine.domain.records import FLAG, INTEGER, TEXT, RecordTable, choice

GroupStatus: TypeAlias = Literal["open", "succeeded", "failed"]
OUTCOMES: Final = ("succeeded", "failed", "expired", "cancelled", "dead", "refused")
"""Outcomes of a member: how its command ended, or `refused` if no command was accepted."""
UNDECIDED: Final = frozenset({*(status.value for status in OPEN), "open"})
"""Statuses of a command that has not ended, and of a group that has not succeeded or failed yet."""


class Group(Struct, kw_only=True):
    """Progress of a request for many agents. It succeeds when `needed` of its `total` members have succeeded."""

    group_id: str
    kind: Annotated[str, TEXT]
    total: Annotated[int, INTEGER]
    needed: Annotated[int, INTEGER]
    status: Annotated[GroupStatus, choice(get_args(GroupStatus))] = "open"
    cancel_requested: Annotated[bool, FLAG] = False
    """Whether the group was cancelled. Targets still in the fan-out queue are then counted as cancelled."""
    succeeded: Annotated[int, INTEGER] = 0
    failed: Annotated[int, INTEGER] = 0
    expired: Annotated[int, INTEGER] = 0
    cancelled: Annotated[int, INTEGER] = 0
    dead: Annotated[int, INTEGER] = 0
    refused: Annotated[int, INTEGER] = 0

    @property
    def counts(self) -> dict[str, int]:
        """The outcomes that occurred, with their counts."""
        return {outcome: count for outcome in OUTCOMES if (count := getattr(self, outcome))}

    @property
    def pending(self) -> int:
        """Number of members that have not ended."""
        return self.total - sum(self.counts.values())

    @property
    def ended(self) -> bool:
        return self.pending <= 0

    @property
    def deadline(self) -> str:
        """Member of this group in the sorted set of deadlines."""
        return f"group:{self.group_id}"

    def count(self, outcome: str, now: float, members: int = 1) -> dict[str, str]:
        """Count one outcome for a number of members. Return the fields of the record that change."""
        setattr(self, outcome, getattr(self, outcome) + members)
        fields = {outcome: str(getattr(self, outcome))}
        if self.status == "open":
            if self.succeeded >= self.needed:
                self.status = "succeeded"
            elif self.pending + self.succeeded < self.needed:
                self.status = "failed"
            if self.status != "open":
                fields |= {"status": self.status, "decided_at": iso(now)}
        if self.ended:
            fields["ended_at"] = iso(now)
        return fields


GROUP_TABLE: Final = RecordTable(Group, "group_id", required=("kind", "total", "needed", "status"))


def quorum(text: str | None, total: int) -> int:
    """Return how many of `total` must succeed: `80%` is rounded up, a number is taken as it is, None means all.

    Raises ValueError for a share outside 1% to 100%, or a number outside 1 to `total`.
    """
    if text is None:
        return total
    if text.endswith("%"):
        share = int(text[:-1])
        if not 1 <= share <= 100:  # noqa: PLR2004  a percentage
            raise ValueError(f"a quorum of {text}: expected 1% to 100%")
        return -(-share * total // 100)
    if not 1 <= int(text) <= total:
        raise ValueError(f"a quorum of {text}: expected 1 to {total}, the number of targets")
    return int(text)
