"""The table of the benchmarks, and the options of `python -m bench`."""

from importlib import import_module
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from bench import bullmq
from bench.__main__ import GROUPS, ON_DEMAND, parse
from bench.harness import Options, interleave, medians, percentile
from bench.liveness import LAG, longest_lag_ms
from bench.table import Row, as_json, as_markdown, as_text

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


class Pair(NamedTuple):
    first: float
    second: float


@pytest.mark.parametrize(("unit", "ratio"), [("/s", 0.5), ("ms", 2.0), ("µs", 2.0), ("% of a core", 2.0)])
def test_ratio_above_one_means_better_for_rates_and_for_durations(unit: str, ratio: float) -> None:
    assert Row("row", 10, unit).ratio(20) == ratio


def test_row_has_one_line_for_each_peer() -> None:
    row = Row("rate", 25_000, "/s", 50_000, {"a": 12_500, "b": "node is not installed"}, "1000 agents")
    assert row.lines() == [
        ("rate (1000 agents)", "25,000 /s", "0.50 of 50,000 /s", "2.00 x a (12,500 /s)"),
        ("", "", "", "b: not measured: node is not installed"),
    ]


def test_row_without_limit_and_peers_has_empty_cells() -> None:
    assert Row("lease", 5.25, "s").lines() == [("lease", "5.25 s", "", "")]


def test_json_has_the_ratios() -> None:
    row = Row("rate", 10, "/s", 20, {"a": 5, "b": "missing"})
    (found,) = as_json({"CPU": "x"}, [row])["rows"]
    assert found["limit"] == {"figure": 20, "ratio": 0.5}
    assert found["peers"] == {"a": {"figure": 5, "ratio": 2.0}, "b": {"not_measured": "missing"}}


def test_text_and_markdown_have_the_same_cells() -> None:
    header, rows = {"CPU": "x"}, [Row("rate", 10, "/s", 20, {"a": 5}), Row("lease", 5.25, "s")]
    for render in (as_text, as_markdown):
        text = render(header, rows)
        assert "CPU: x" in text
        assert all(cell in text for row in rows for line in row.lines() for cell in line)


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_percentile_is_one_of_the_values(percent: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), percent) == expected


def test_contestants_take_turns_and_the_order_alternates() -> None:
    turns = count()
    contestants = {"a": lambda: next(turns), "b": lambda: next(turns)}
    assert interleave(Options(runs=3, quick=True), "title", contestants) == {"a": [0, 3, 4], "b": [1, 2, 5]}


def test_medians_are_per_field() -> None:
    assert medians({"a": [Pair(1, 9), Pair(3, 7), Pair(2, 8)]}) == {"a": Pair(2, 8)}


def test_longest_lag_is_the_bound_of_the_highest_bucket_with_an_observation() -> None:
    before = {f'{LAG}0.001"}}': 5.0, f'{LAG}0.01"}}': 6.0, f'{LAG}1.0"}}': 7.0, f'{LAG}+Inf"}}': 7.0}
    after = {f'{LAG}0.001"}}': 8.0, f'{LAG}0.01"}}': 10.0, f'{LAG}1.0"}}': 11.0, f'{LAG}+Inf"}}': 11.0}
    assert longest_lag_ms(before, after) == 10.0


def test_all_groups_but_the_ones_on_demand_run_by_default() -> None:
    assert parse([]).only == GROUPS


def test_unknown_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--only", "latency,speed"])
    assert "there is no group speed" in capsys.readouterr().err


@pytest.mark.parametrize("group", [*GROUPS, *ON_DEMAND])
def test_every_group_has_rows_and_a_description(group: str) -> None:
    assert callable(import_module(f"bench.{group}").rows)
    assert f"| `{group}` |" in PAGE.read_text(encoding="utf-8")


def test_missing_node_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    bullmq.install.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert bullmq.describe() == "not measured: node is not installed"
    bullmq.install.cache_clear()
