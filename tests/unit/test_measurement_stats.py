"""Statistics of measurements count every value once, have bounded labels, and never hold up the event loop for long."""

from collections.abc import Iterable, Mapping

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge

from aism_engine.metric_labels import OTHER, BoundedLabel, MeasurementStats
from aism_engine.services.sampler import _VALUES_PER_BATCH, _batches

TYPES = ["scribe", "judge", "clerk", OTHER]
NAMES = ["tokens", "cpu", "heat", OTHER]


@given(st.lists(st.integers(0, _VALUES_PER_BATCH // 2), max_size=20))
def test_the_size_of_a_batch_is_bounded_by_its_values(sizes: list[int]) -> None:
    """A thousand agents with sixty values each take sixty times as long as with one."""
    measurements = [(f"a{number}", {f"n{n}": 1.0 for n in range(size)}) for number, size in enumerate(sizes)]
    batches = [list(batch) for batch in _batches(measurements)]
    assert [each for batch in batches for each in batch] == measurements
    for batch in batches:
        assert sum(1 + len(values) for _, values in batch[:-1]) < _VALUES_PER_BATCH


class Exported:
    """Statistics, and the samples that they export."""

    def __init__(self, limit: int) -> None:
        self.registry = CollectorRegistry()
        count, mean, low, high = (
            Gauge(f"aism_measurement_{statistic}", "help", ["type", "name"], registry=self.registry)
            for statistic in ("agents", "mean", "min", "max")
        )
        self.stats = MeasurementStats(BoundedLabel(50, OTHER), limit, count=count, mean=mean, low=low, high=high)

    def export(self, measurements: Iterable[tuple[str, Mapping[str, float]]]) -> None:
        for kind, values in measurements:
            self.stats.add(kind, values)
        self.stats.export()

    def of(self, kind: str, name: str) -> list[float | None]:
        labels = {"type": kind, "name": name}
        value = self.registry.get_sample_value
        return [value(f"aism_measurement_{statistic}", labels) for statistic in ("agents", "min", "max", "mean")]

    def counts(self) -> dict[tuple[str, str], float]:
        (agents,) = (each for each in self.registry.collect() if each.name == "aism_measurement_agents")
        return {(each.labels["type"], each.labels["name"]): each.value for each in agents.samples}


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(NAMES), st.integers(-9, 9)))))
def test_every_value_counts_once_and_labelled_statistics_are_exact(
    measurements: list[tuple[str, Mapping[str, float]]],
) -> None:
    """Of `other` only the count is exported. At most `limit` pairs keep their labels."""
    exported, limit = Exported(limit=3), 3
    for _ in range(4):
        exported.export(measurements)
        counts = exported.counts()
        assert sum(counts.values()) == sum(len(values) for _, values in measurements)
        assert len(counts.keys() - {(OTHER, OTHER)}) <= limit
        for kind, name in counts:
            if name == OTHER:
                assert exported.of(kind, name)[1:] == [None] * 3
            else:
                expected = [values[name] for each, values in measurements if each == kind and name in values]
                assert exported.of(kind, name) == [
                    len(expected),
                    min(expected),
                    max(expected),
                    sum(expected) / len(expected),
                ]


def test_invented_names_do_not_displace_common_ones() -> None:
    """The names that most agents measure have their label in the third export and keep it, even if invented ones came
    first and are more than can be remembered. Without the invented names, every name has its own label.
    """
    exported = Exported(limit=4)
    inventors = [("smith", {f"junk-{n}-{m}": 1.0 for m in range(64)}) for n in range(100)]
    honest = [("scribe", {"tokens": float(n), "cpu": 0.5}) for n in range(3)]
    for _ in range(6):
        exported.export([*inventors[:50], *honest, *inventors[50:]])
        tokens = exported.of("scribe", "tokens")
    assert tokens == [3, 0, 2, 1]
    assert {("scribe", "tokens"), ("scribe", "cpu")} <= exported.counts().keys()
    assert len(exported.counts()) <= 5
    exported.export(honest)
    assert exported.counts() == {("scribe", "tokens"): 3, ("scribe", "cpu"): 3}
