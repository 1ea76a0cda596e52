"""What a request to many agents comes to: one group, which counts what became of each.

A group ends when each of its members has ended. It is decided as soon as enough have succeeded, or too few still can.
"""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

from aism_engine.clock import iso

GroupStatus: TypeAlias = Literal["open", "succeeded", "failed"]
OUTCOMES: Final = ("succeeded", "failed", "expired", "cancelled", "dead", "refused")
"""What a member can come to: the ends of a command, or `refused` where there never was one."""


class Group(Struct, kw_only=True):
    """A request to many. `needed` of its `total` members must succeed."""

    group_id: str
    kind: str
    total: int
    needed: int
    status: GroupStatus = "open"
    stopped: bool = False
    """What of it is not accepted yet will not be."""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return sum(self.counts.values())

    @property
    def ended(self) -> bool:
        return self.done >= self.total

    @property
    def deadline(self) -> str:
        """Member of the deadlines by which an open group is found again."""
        return f"group:{self.group_id}"

    def count(self, outcome: str, now: float) -> dict[str, str]:
        """Count what became of one member; gives the fields of the record that changed."""
        self.counts = {**self.counts, outcome: self.counts.get(outcome, 0) + 1}
        fields = {outcome: str(self.counts[outcome])}
        if self.status == "open":
            succeeded = self.counts.get("succeeded", 0)
            if succeeded >= self.needed:
                self.status = "succeeded"
            elif self.total - self.done + succeeded < self.needed:
                self.status = "failed"
            if self.status != "open":
                fields |= {"status": self.status, "decided_at": iso(now)}
        if self.ended:
            fields["ended_at"] = iso(now)
        return fields

    def record(self) -> dict[str, str]:
        counts = {outcome: str(self.counts.get(outcome, 0)) for outcome in OUTCOMES}
        return {
            "kind": self.kind,
            "total": str(self.total),
            "needed": str(self.needed),
            "status": self.status,
            "stopped": "1" if self.stopped else "",
            **counts,
        }

    @classmethod
    def from_record(cls, group_id: str, record: Mapping[str, str]) -> "Group":
        """Read a record back. Raises KeyError or ValueError where somebody has damaged it."""
        status = record["status"]
        if status not in {"open", "succeeded", "failed"}:
            raise ValueError("a record with an unknown status")
        return cls(
            group_id=group_id,
            kind=record["kind"],
            total=int(record["total"]),
            needed=int(record["needed"]),
            status=status,  # type: ignore[arg-type]
            stopped=bool(record["stopped"]),
            counts={outcome: int(record[outcome]) for outcome in OUTCOMES if record[outcome] != "0"},
        )


GROUP_FIELDS: Final = tuple(Group(group_id="", kind="", total=0, needed=0).record())
"""The fields of a record that the engine reads back."""


def quorum(text: str | None, total: int) -> int:
    """How many of so many must succeed: `80%` rounded up, or a number; without a word all of them.

    Raises ValueError where it can't be reached, or is no share.
    """
    if text is None:
        return total
    if text.endswith("%"):
        share = int(text[:-1])
        if not 1 <= share <= 100:  # noqa: PLR2004  a percentage
            raise ValueError(f"a quorum of {text}: expected 1% to 100%")
        return -(-share * total // 100)
    if not 1 <= int(text) <= total:
        raise ValueError(f"a quorum of {text}: there are {total} targets")
    return int(text)
