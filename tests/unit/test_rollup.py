"""The laws of summing up what agents measured: nothing is left out or counted twice, and no part of it takes long."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from aism_engine.labels import OTHER, Few, Pairs, Rollup
from aism_engine.services.sampler import _VALUES_AT_A_TIME, _in_parts

KINDS = ["scribe", "judge", "clerk", OTHER]
NAMES = ["tokens", "cpu", "heat", OTHER]


@given(st.lists(st.integers(0, _VALUES_AT_A_TIME // 2), max_size=20))
def test_a_part_is_as_long_as_its_values_are_many(sizes: list[int]) -> None:
    """A thousand agents with sixty values each are sixty times as much as with one."""
    measured = [(f"a{number}", {f"n{n}": 1.0 for n in range(size)}) for number, size in enumerate(sizes)]
    parts = [list(part) for part in _in_parts(measured)]
    assert [each for part in parts for each in part] == measured
    for part in parts:
        assert sum(1 + len(values) for _, values in part[:-1]) < _VALUES_AT_A_TIME


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES), st.integers(-9, 9)))))
def test_each_value_counts_once_under_the_labels_that_it_has(said: list[tuple[str, Mapping[str, float]]]) -> None:
    """The first names keep their own, all others together are `other`: of these, only how many is shown."""
    registry = CollectorRegistry()
    rollup, expected = Rollup(Pairs(Few(2), Few(2)), registry), dict[tuple[str, str], list[float]]()
    label = Pairs(Few(2), Few(2))
    for kind, values in said:
        rollup.add(kind, values)
        for name, value in values.items():
            expected.setdefault(label(kind, name), []).append(value)
    rollup.show()
    for (kind, name), counted in expected.items():
        found = [
            registry.get_sample_value(f"aism_measurement_{what}", {"type": kind, "name": name})
            for what in ("agents", "min", "max", "mean")
        ]
        spread = [min(counted), max(counted), sum(counted) / len(counted)]
        assert found == [len(counted), *([None] * 3 if name == OTHER else spread)]
