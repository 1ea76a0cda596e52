"""The audit as a log: its entries, the place up to which one has read, and what is said where something is missing.

The id of an entry is `{milliseconds}-{number}`, given by the server, and grows: the time of the entry stands in it. A
server that has gone back in time (a failover, a backup) may give an id again, to another commit: an entry is known by
both together.
"""

from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Raw, Struct

BEGINNING: Final = "0-0"
"""Less than the id of any entry."""
NOTHING: Final = Raw()
NO_COMMIT: Final = "-"
"""Of an entry that no engine has written."""
_CLIP: Final = 4096
_ITEMS: Final = msgspec.json.Decoder(list[Raw])


def order(entry_id: str) -> tuple[int, int]:
    """Give what ids are compared by. Raises ValueError where it is none."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def instant(entry_id: str) -> float:
    """Give when an entry was written, in unix seconds by Redis `TIME`."""
    return order(entry_id)[0] / 1000


def day(entry_id: str) -> str:
    """Give the day of an entry, in UTC: `2026-11-23`. What no calendar holds is the day before all."""
    try:
        return datetime.fromtimestamp(instant(entry_id), UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return "0001-01-01"


class Cursor(NamedTuple):
    """The last entry that was read. `number` is how many had ever been written by then; None: the server cannot tell.

    Without a commit it is a mere place, of which nobody says that there was an entry.
    """

    id: str = BEGINNING
    commit: str = ""
    number: int | None = None


class Gap(Struct, frozen=True):
    """What lay between these two was trimmed before it was read; `entries` is how many, None where nobody knows."""

    after: str
    before: str
    entries: int | None


class Rewound(Struct, frozen=True):
    """The server has gone back: what was read behind `after`, up to `before`, is not in the audit any more.

    `after` is `0-0` where nothing of what was read is there.
    """

    after: str
    before: str


class Line(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of an archive: an entry of the audit, or what is to be said of the entries around it.

    `n` is the number of the entry, counted by the server from the first one ever; absent where it cannot tell.
    `strange` holds the fields of an entry that no engine has written.
    """

    id: str = ""
    n: int | None = None
    commit: str = ""
    epoch: str = ""
    facts: Raw = NOTHING
    heard: Raw = NOTHING
    strange: dict[str, str] | None = None
    gap: Gap | None = None
    rewound: Rewound | None = None

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.id, self.commit, self.n)

    def decoded(self) -> list[dict[str, Any]]:
        """Decode the facts; what is no object among them is none."""
        if not bytes(self.facts):
            return []
        try:
            found = msgspec.json.decode(self.facts)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []
        return [fact for fact in found if isinstance(fact, dict)]


def line(entry_id: bytes, fields: dict[bytes, bytes], number: int | None = None) -> Line:
    """Take an entry as the server gives it. Anyone may have written it: what is not ours is kept as it is, in text."""
    facts, heard = _array(fields.get(b"facts", b"[]")), _array(fields.get(b"heard"))
    known = fields.keys() <= {b"commit", b"epoch", b"facts", b"heard"} and fields.get(b"commit")
    if not known or facts is None or heard is None:
        strange = {clipped(name): clipped(value) for name, value in fields.items()}
        commit = clipped(fields.get(b"commit") or NO_COMMIT.encode())
        return Line(id=clipped(entry_id), n=number, commit=commit, strange=strange)
    return Line(
        id=clipped(entry_id),
        n=number,
        commit=clipped(fields[b"commit"]),
        epoch=clipped(fields.get(b"epoch", b"")),
        facts=facts,
        heard=heard,
    )


def _array(raw: bytes | None) -> Raw | None:
    """Check that it is a JSON array, on one line; its items are not built. None where it is not."""
    if raw is None:
        return NOTHING
    try:
        raw.decode()
        _ITEMS.decode(raw)
        return Raw(msgspec.json.format(raw, indent=-1) if b"\n" in raw or b"\r" in raw else raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def clipped(value: bytes) -> str:
    """Read what anyone may have written: the head of it, and what is no UTF-8 escaped."""
    return value[:_CLIP].decode(errors="backslashreplace")


Missing: TypeAlias = Literal["nothing", "gap", "rewound"]


def missing(cursor: Cursor, found: str | None, first: str, first_number: int | None) -> tuple[Missing, int | None]:
    """Judge whether the audit still holds what follows the cursor; where it does not, how many entries are gone.

    `found` is the commit of the entry at the cursor, None where there is none any more; `first` is the id of the oldest
    entry that is left, and `first_number` its number. Who trims leaves the entry at the cursor of an archive in its
    place. So where it is gone, either the bound has gone over it, and all that is left is younger; or something older
    is there still: then the server has gone back to before it was written.
    """
    if not cursor.commit or found == cursor.commit:
        return "nothing", 0
    if order(first) <= order(cursor.id):
        return "rewound", None
    if first_number is None or cursor.number is None or first_number <= cursor.number:
        return "gap", None  # no number, or a count that has begun anew: nobody knows
    entries = first_number - cursor.number - 1
    return ("gap" if entries else "nothing"), entries
