"""Labels whose values others choose: agents invent types and states, operators commands. A label must not grow without
end, so the first so many values keep their own name, and all others together are `other`. Nor must a product of two.

Here, too: what agents measure, rolled up under such labels.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import inf
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry, Gauge

OTHER: Final = "other"
_Pair: TypeAlias = tuple[str, str]
_OTHERS: Final = (OTHER, OTHER)


class BoundedLabel:
    """Gives a name its label."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= self.most:
                return OTHER
            self._known.add(name)
        return name


class BoundedLabelPair:
    """Gives two names their labels. Fifty types in fifty states are 2,500 series: the first so many pairs keep their
    names, all others together are `other` and `other`.
    """

    EACH: Final = 8
    """Pairs for each name that is told apart: all types that are may be in each of the eight states of the journey."""

    def __init__(self, first: BoundedLabel, second: BoundedLabel) -> None:
        self._first, self._second = first, second
        self._most = self.EACH * max(first.most, second.most)
        self._known: set[_Pair] = set()

    def __call__(self, first: str, second: str) -> _Pair:
        pair = (self._first(first), self._second(second))
        if pair not in self._known:
            if len(self._known) >= self._most:
                return _OTHERS
            self._known.add(pair)
        return pair


class CountGauge:
    """A gauge of what was counted all at once. What was there at the last count, and is not now, is 0."""

    def __init__(self, gauge: Gauge, pairs: BoundedLabelPair) -> None:
        self._gauge = gauge
        self._pairs = pairs
        self._shown: set[_Pair] = set()

    def show(self, counts: Mapping[_Pair, int]) -> None:
        shown = Counter[_Pair]()
        for (first, second), count in counts.items():
            shown[self._pairs(first, second)] += count
        self._shown |= shown.keys()
        for labels in self._shown:
            self._gauge.labels(*labels).set(shown[labels])

    def clear(self) -> None:
        """Show nothing: nobody counts any more."""
        self._gauge.clear()
        self._shown.clear()


class MeasurementStats:
    """What agents measured, by their type and the name of it: of how many, their mean, the least and the largest.

    Where there are more pairs than may be told apart, those that most agents have keep their names: nobody can take
    them all by inventing many. Of all that are `other` it shows only how many: their values have nothing in common.
    """

    def __init__(self, types: BoundedLabel, most: int, registry: CollectorRegistry) -> None:
        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"aism_measurement_{name}", what, ["type", "name"], registry=registry)

        self._types = types
        self._most = most
        self._agents = gauge("agents", "Agents that have measured it, and are not away")
        self._gauges = {
            "mean": gauge("mean", "Mean of their latest values"),
            "least": gauge("min", "Least of their latest values"),
            "most": gauge("max", "Largest of their latest values"),
        }
        self._shown: set[_Pair] = set()
        self._spreads: dict[_Pair, _Spread] = {}
        self._ranking: _Ranking | None = None
        """Only where there were too many the last time: else nobody has to be chosen."""
        self._chosen: frozenset[_Pair] | None = None
        self._are_too_many = False

    def add(self, kind: str, values: Mapping[str, float]) -> None:
        """Add the latest values of one agent to what will be shown."""
        spreads, kind = self._spreads, self._types(kind)
        for name, value in values.items():
            spread = spreads.get((kind, name))
            if spread is None:  # the first one, or one of the others
                spread = self._spread((kind, name))
            spread.add(value)
        if self._ranking is not None:
            self._ranking.add((kind, name) for name in values)

    def _spread(self, pair: _Pair) -> "_Spread":
        has_room = len(self._spreads) < self._most if self._chosen is None else pair in self._chosen
        if not has_room:
            pair, self._are_too_many = _OTHERS, True
        spread = self._spreads.get(pair)
        if spread is None:
            spread = self._spreads[pair] = _Spread()
        return spread

    def show(self) -> None:
        """Show what was added since the last time, and nothing else."""
        spreads, self._spreads = self._spreads, {}
        for labels in self._shown - spreads.keys():
            for gauge in (self._agents, *self._gauges.values()):
                with suppress(KeyError):  # of `other` there is only one
                    gauge.remove(*labels)
        self._shown = set(spreads)
        for labels, spread in spreads.items():
            self._agents.labels(*labels).set(spread.count)
            if labels[1] != OTHER:
                for name, gauge in self._gauges.items():
                    gauge.labels(*labels).set(getattr(spread, name))
        self._chosen = self._ranking.first() if self._ranking is not None and self._are_too_many else None
        self._ranking = _Ranking(self._most) if self._are_too_many else None
        self._are_too_many = False


class _Ranking:
    """Finds the commonest among any number of pairs, and keeps only so many in mind: those met once make room."""

    KEPT: Final = 16
    """For each that is looked for: an arbitrary number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts = Counter[_Pair]()

    def add(self, pairs: Iterable[_Pair]) -> None:
        self._counts.update(pairs)
        if len(self._counts) > self.KEPT * self._most:
            left = Counter({pair: count for pair, count in self._counts.items() if count > 1})
            self._counts = Counter(dict(left.most_common(self.KEPT * self._most // 2)))

    def first(self) -> frozenset[_Pair]:
        ranked = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return frozenset(pair for pair, _ in ranked[: self._most])


class _Spread:
    __slots__ = ("count", "least", "most", "total")

    def __init__(self) -> None:
        self.count, self.total, self.least, self.most = 0, 0.0, inf, -inf

    @property
    def mean(self) -> float:
        return self.total / self.count

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        # All values of all agents pass here: min() and max() cost three times as much.
        if value < self.least:  # noqa: PLR1730
            self.least = value
        if value > self.most:  # noqa: PLR1730
            self.most = value
