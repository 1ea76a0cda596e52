"""The table of results: its rows, and their form as text, Markdown and JSON."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

Line = tuple[str, str, str, str]

HEAD: Final[Line] = ("measured", "figure", "share of the limit", "times as good as a peer")
MORE_IS_BETTER: Final = frozenset({"/s", "MB/s"})
"""Units of rates. Of all other units (durations, CPU time, bytes) less is better."""
_LARGE: Final = 1000
_MEDIUM: Final = 10


class Row(NamedTuple):
    """One figure, with what it is compared to: figures of the same unit from the same run.

    A ratio says how many times as good the figure is: above 1 it is better than the other, for rates and for durations
    alike.
    """

    name: str
    figure: float
    unit: str
    limit: float | None = None
    """Figure of a program that leaves out work that every engine has to do, so that no engine can be better."""
    peers: Mapping[str, float | str] = {}
    """Figure of each peer, or why it was not measured."""
    note: str = ""

    def ratio(self, other: float) -> float:
        """Return how many times as good as `other` the figure is. 0 if one of the two is 0."""
        better, worse = (self.figure, other) if self.unit in MORE_IS_BETTER else (other, self.figure)
        return better / worse if worse else 0.0

    def as_json(self) -> dict[str, Any]:
        limit = None if self.limit is None else {"figure": self.limit, "ratio": self.ratio(self.limit)}
        peers = {
            name: {"not_measured": peer} if isinstance(peer, str) else {"figure": peer, "ratio": self.ratio(peer)}
            for name, peer in self.peers.items()
        }
        return self._asdict() | {"limit": limit, "peers": peers}

    def lines(self) -> list[Line]:
        """Return the row as lines of the table: one for each peer, and at least one."""
        title = f"{self.name} ({self.note})" if self.note else self.name
        figure = f"{number(self.figure)} {self.unit}"
        limit = "" if self.limit is None else f"{self.ratio(self.limit):.2f} of {number(self.limit)} {self.unit}"
        first, *others = [self._peer(name, peer) for name, peer in self.peers.items()] or [""]
        return [(title, figure, limit, first), *(("", "", "", other) for other in others)]

    def _peer(self, name: str, peer: float | str) -> str:
        if isinstance(peer, str):
            return f"{name}: not measured: {peer}"
        return f"{self.ratio(peer):.2f} x {name} ({number(peer)} {self.unit})"


def number(value: float) -> str:
    """Format a figure with about three significant digits."""
    return f"{value:,.0f}" if value >= _LARGE else f"{value:.1f}" if value >= _MEDIUM else f"{value:.3g}"


def as_text(header: Mapping[str, str], rows: Iterable[Row]) -> str:
    """Format header and rows for a terminal."""
    lines = [HEAD, *(line for row in rows for line in row.lines())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join([*(f"{name}: {value}" for name, value in header.items()), "", *table])


def as_markdown(header: Mapping[str, str], rows: Iterable[Row]) -> str:
    """Format header and rows for docs/performance.md."""
    lines = [HEAD, ("---", "--:", "--:", "---"), *(line for row in rows for line in row.lines())]
    facts = "; ".join(f"{name}: {value}" for name, value in header.items())
    return "\n".join([facts, "", *(f"| {' | '.join(line)} |" for line in lines)])


def as_json(header: Mapping[str, str], rows: Iterable[Row]) -> dict[str, Any]:
    return {"header": dict(header), "rows": [row.as_json() for row in rows]}
