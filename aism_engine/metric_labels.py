"""Metric labels with a bounded number of values, and gauges over them.

Agents invent types, states and names of measurements, operators invent types of commands. A label keeps the first
`limit` values that it sees; all others share the value `other`.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from math import inf
from typing import Final, Generic, TypeAlias, TypeVar

from prometheus_client import Gauge

OTHER: Final = "other"
PAIRS_PER_VALUE: Final = 8
"""A gauge over pairs keeps this many pairs for each value that a label keeps.

The number is that of the states of the machine `journey`: agents of each type can be in each of these states.
"""
_Pair: TypeAlias = tuple[str, str]
_OTHER_PAIR: Final = (OTHER, OTHER)
T = TypeVar("T", bound=Hashable)


class BoundedLabel(Generic[T]):
    """Maps the first `limit` values, or pairs of values, to themselves, and all later ones to `other`."""

    def __init__(self, limit: int, other: T) -> None:
        self.limit = limit
        self._other = other
        self._known: set[T] = set()

    def __call__(self, value: T) -> T:
        if value not in self._known:
            if len(self._known) >= self.limit:
                return self._other
            self._known.add(value)
        return value


class CountGauge:
    """A gauge with two labels. `set` takes the counts of all pairs; an exported pair that is not among them becomes 0.

    Fifty types in fifty states would be 2,500 series. The first pairs keep their labels, all others count as the pair
    `other`, `other`.
    """

    def __init__(self, gauge: Gauge, first: BoundedLabel[str], second: BoundedLabel[str]) -> None:
        self._gauge = gauge
        self._first, self._second = first, second
        self._pairs = BoundedLabel(PAIRS_PER_VALUE * max(first.limit, second.limit), _OTHER_PAIR)
        self._exported: set[_Pair] = set()

    def set(self, counts: Mapping[_Pair, int]) -> None:
        totals = Counter[_Pair]()
        for (first, second), count in counts.items():
            totals[self._pairs((self._first(first), self._second(second)))] += count
        self._exported |= totals.keys()
        for labels in self._exported:
            self._gauge.labels(*labels).set(totals[labels])

    def clear(self) -> None:
        """Export no value, because nothing is counted any more."""
        self._gauge.clear()
        self._exported.clear()


class MeasurementStats:
    """Statistics of what agents measure, by agent type and name of the measurement: count, mean, minimum, maximum.

    If there are more than `limit` pairs, those with the most agents keep their labels. An agent that invents names can
    therefore not displace the names that many agents use. Of `other` only the count is exported: its values have
    nothing in common.
    """

    def __init__(
        self, types: BoundedLabel[str], limit: int, *, count: Gauge, mean: Gauge, low: Gauge, high: Gauge
    ) -> None:
        self._types = types
        self._limit = limit
        self._gauges = {"count": count, "mean": mean, "minimum": low, "maximum": high}
        self._exported: set[_Pair] = set()
        self._stats: dict[_Pair, _Stats] = {}
        self._most_common: _MostCommon | None = None
        """Counts the agents that have each pair; None if the latest export had at most `limit` pairs."""
        self._chosen: frozenset[_Pair] | None = None
        """The pairs that keep their labels; None: the first `limit` pairs of this export keep them."""
        self._has_too_many = False

    def add(self, kind: str, values: Mapping[str, float]) -> None:
        """Add the latest values of one agent to the next export."""
        stats, kind = self._stats, self._types(kind)
        for name, value in values.items():
            pair_stats = stats.get((kind, name))
            if pair_stats is None:
                pair_stats = self._new_or_other((kind, name))
            pair_stats.add(value)
        if self._most_common is not None:
            self._most_common.add((kind, name) for name in values)

    def _new_or_other(self, pair: _Pair) -> "_Stats":
        has_room = len(self._stats) < self._limit if self._chosen is None else pair in self._chosen
        if not has_room:
            pair, self._has_too_many = _OTHER_PAIR, True
        if pair not in self._stats:
            self._stats[pair] = _Stats()
        return self._stats[pair]

    def export(self) -> None:
        """Set the gauges to what was added since the latest export."""
        stats, self._stats = self._stats, {}
        for labels in self._exported - stats.keys():
            for gauge in self._gauges.values():
                with suppress(KeyError):  # `other` has only the count
                    gauge.remove(*labels)
        self._exported = set(stats)
        for labels, pair_stats in stats.items():
            for name, gauge in self._gauges.items():
                if name == "count" or labels[1] != OTHER:
                    gauge.labels(*labels).set(getattr(pair_stats, name))
        self._chosen = self._most_common.most_common() if self._most_common is not None and self._has_too_many else None
        self._most_common = _MostCommon(self._limit) if self._has_too_many else None
        self._has_too_many = False


class _MostCommon:
    """Finds the `limit` most common of any number of pairs in bounded memory: rare pairs are forgotten."""

    MEMORY: Final = 16
    """Maximum number of pairs that are counted, as a multiple of `limit`; an arbitrary number."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts = Counter[_Pair]()

    def add(self, pairs: Iterable[_Pair]) -> None:
        self._counts.update(pairs)
        if len(self._counts) > self.MEMORY * self._limit:
            repeated = Counter({pair: count for pair, count in self._counts.items() if count > 1})
            self._counts = Counter(dict(repeated.most_common(self.MEMORY * self._limit // 2)))

    def most_common(self) -> frozenset[_Pair]:
        """Return the `limit` most common pairs."""
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return frozenset(pair for pair, _ in ranked[: self._limit])


class _Stats:
    __slots__ = ("count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.count, self.total, self.minimum, self.maximum = 0, 0.0, inf, -inf

    @property
    def mean(self) -> float:
        return self.total / self.count

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        # Every value of every agent is added here, and min() and max() take three times as long.
        if value < self.minimum:  # noqa: PLR1730
            self.minimum = value
        if value > self.maximum:  # noqa: PLR1730
            self.maximum = value
