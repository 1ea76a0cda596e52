"""The laws of summing up what agents measured: nothing is left out or counted twice, and no part of it takes long."""

from collections.abc import Iterable, Mapping

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from aism_engine.metric_labels import OTHER, BoundedLabel, MeasurementStats
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


class Board:
    """A roll-up, and what is shown of it."""

    def __init__(self, most: int) -> None:
        self.registry = CollectorRegistry()
        self.rollup = MeasurementStats(BoundedLabel(50), most, self.registry)

    def show(self, said: Iterable[tuple[str, Mapping[str, float]]]) -> None:
        for kind, values in said:
            self.rollup.add(kind, values)
        self.rollup.show()

    def of(self, kind: str, name: str) -> list[float | None]:
        labels = {"type": kind, "name": name}
        value = self.registry.get_sample_value
        return [value(f"aism_measurement_{what}", labels) for what in ("agents", "min", "max", "mean")]

    def pairs(self) -> dict[tuple[str, str], float]:
        (agents,) = (each for each in self.registry.collect() if each.name == "aism_measurement_agents")
        return {(each.labels["type"], each.labels["name"]): each.value for each in agents.samples}


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(NAMES), st.integers(-9, 9)))))
def test_each_value_counts_once_and_what_has_a_name_is_exact(said: list[tuple[str, Mapping[str, float]]]) -> None:
    """Of what is `other` only how many is shown; no more keep their names than may."""
    board, most = Board(most=3), 3
    for _ in range(4):
        board.show(said)
        shown = board.pairs()
        assert sum(shown.values()) == sum(len(values) for _, values in said)
        assert len(shown.keys() - {(OTHER, OTHER)}) <= most
        for kind, name in shown:
            if name == OTHER:
                assert board.of(kind, name)[1:] == [None] * 3
            else:
                counted = [values[name] for each, values in said if each == kind and name in values]
                assert board.of(kind, name) == [
                    len(counted),
                    min(counted),
                    max(counted),
                    sum(counted) / len(counted),
                ]


def test_who_invents_names_takes_none_from_what_many_measure() -> None:
    """They may have come first, and be far more than are kept in mind: what most agents measure has its name in the
    third round, and keeps it; with the inventors gone everything has its own.
    """
    board = Board(most=4)
    inventors = [("smith", {f"junk-{n}-{m}": 1.0 for m in range(64)}) for n in range(100)]
    honest = [("scribe", {"tokens": float(n), "cpu": 0.5}) for n in range(3)]
    for _ in range(6):
        board.show([*inventors[:50], *honest, *inventors[50:]])
        told = board.of("scribe", "tokens")
    assert told == [3, 0, 2, 1]
    assert {("scribe", "tokens"), ("scribe", "cpu")} <= board.pairs().keys()
    assert len(board.pairs()) <= 5
    board.show(honest)
    assert board.pairs() == {("scribe", "tokens"): 3, ("scribe", "cpu"): 3}
