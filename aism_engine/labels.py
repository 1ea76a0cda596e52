"""Labels whose values others choose: agents invent types and states, operators commands. A label must not grow without
end, so the first so many values keep their own name, and all others together are `other`.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from prometheus_client import Gauge

OTHER: Final = "other"


class Few:
    """Gives a name its label."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(name)
        return name


class Census:
    """A gauge of what was counted all at once. What was there at the last count, and is not now, is 0."""

    def __init__(self, gauge: Gauge, *names: Few) -> None:
        """`names` are for the labels, in their order."""
        self._gauge = gauge
        self._names = names
        self._shown: set[tuple[str, ...]] = set()

    def show(self, counts: Mapping[tuple[str, ...], int]) -> None:
        shown = Counter[tuple[str, ...]]()
        for values, count in counts.items():
            shown[tuple(name(value) for name, value in zip(self._names, values, strict=True))] += count
        self._shown |= shown.keys()
        for labels in self._shown:
            self._gauge.labels(*labels).set(shown[labels])

    def clear(self) -> None:
        """Show nothing: nobody counts any more."""
        self._gauge.clear()
        self._shown.clear()
