"""docs/metrics.md lists the metrics that are exported, and their number is bounded."""

from typing import Any

import pytest

from aism_engine.domain.agents.divergence import RULES
from aism_engine.domain.commands.command import Status, StatusChange
from aism_engine.domain.decision import Decision
from aism_engine.metric_labels import OTHER, PAIRS_PER_VALUE
from aism_engine.metrics import Metrics
from tests.docs.reading import DOCS, names

PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
LABEL_VALUES = 50


def exported() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Return type, labels and help of each of our metrics, by name."""
    collectors: list[Any] = [each for each in Metrics().registry._collector_to_names if hasattr(each, "_labelnames")]
    return {
        each._name + ("_total" if each._type == "counter" else ""): (
            each._type,
            tuple(each._labelnames),
            each._documentation,
        )
        for each in collectors
    }


def test_the_page_lists_every_metric_with_type_labels_and_help() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `aism_")]
    listed = {names(row[0])[0]: (row[1].strip(), names(row[2]), row[3].strip()) for row in rows}
    assert listed == exported()


def test_names_follow_the_conventions_of_prometheus() -> None:
    """All names have one prefix and base units. No id is a label."""
    for name, (_, labels, _) in exported().items():
        assert name.startswith("aism_")
        assert not any(unit in name for unit in ("_ms", "_milli", "_minutes", "_hours", "_kb"))
        assert {"id", "agent", "agent_id", "command", "command_id"} & set(labels) == set()


@pytest.mark.parametrize("what", ["agents", "commands", "divergences", "measurements"])
def test_a_million_names_give_a_bounded_number_of_series(what: str) -> None:
    """Agents invent types, states and measurements, operators commands. Beyond the bound all are `other`."""
    metrics, name, limit = Metrics(label_values=LABEL_VALUES), "aism_command_status_changes", LABEL_VALUES
    count = 100_000 if what == "commands" else 1_000_000
    pairs = ((f"one-{n // 1000}", f"two-{n % 1000}") for n in range(count))
    if what == "agents":
        metrics.agents_in_state.set(dict.fromkeys(pairs, 1))
        name, limit = "aism_agents_in_state", PAIRS_PER_VALUE * LABEL_VALUES
    elif what == "divergences":
        metrics.divergences_open.set({("never_acks", f"type-{n}"): 1 for n in range(count)})
        name = "aism_divergences_open"
    elif what == "measurements":
        for kind, measurement in pairs:
            metrics.measurements.add(kind, {measurement: 1})
        metrics.measurements.export()
        name, limit = "aism_measurement_agents", PAIRS_PER_VALUE * LABEL_VALUES
    else:
        status_changes = [StatusChange(f"type-{n}", "", "queued", None, 0.0) for n in range(count)]
        metrics.committed([Decision("send", status_changes=status_changes)], [], 0.001, "applied")
    (family,) = (metric for metric in metrics.registry.collect() if metric.name == name)
    assert sum(sample.value for sample in family.samples) == count
    assert len(family.samples) == limit + 1
    assert any(OTHER in sample.labels.values() for sample in family.samples)


def test_the_number_of_series_is_bounded() -> None:
    """With every label at its bound there are fewer than 3,500 series."""
    metrics = Metrics(label_values=LABEL_VALUES)
    pairs = [(f"one-{n % 1000}", f"two-{n // 1000}") for n in range(100_000)]
    metrics.agents_in_state.set(dict.fromkeys(pairs, 1))
    metrics.divergences_open.set({(rule, f"one-{n}"): 1 for rule in RULES for n in range(1000)})
    for kind, measurement in pairs:
        metrics.measurements.add(kind, {measurement: 1})
    metrics.measurements.export()
    status_changes = [StatusChange(f"type-{n}", "", status.value, None, 0.0) for status in Status for n in range(1000)]
    metrics.committed([Decision("send", status_changes=status_changes)], [], 0.001, "applied")
    assert sum(len(metric.samples) for metric in metrics.registry.collect()) < 3500


def test_a_state_that_every_agent_has_left_is_zero() -> None:
    metrics = Metrics()
    metrics.agents_in_state.set({("scribe", "inbox"): 3})
    metrics.agents_in_state.set({("scribe", "idle"): 3})
    values = [
        metrics.registry.get_sample_value("aism_agents_in_state", {"type": "scribe", "state": state})
        for state in ("inbox", "idle")
    ]
    assert values == [0, 3]


def test_restarts_and_failures_are_counted_apart() -> None:
    """A service that waits for its restart has one failure more than restarts. The first start is no restart."""
    metrics = Metrics()

    def counts() -> list[float | None]:
        value = metrics.registry.get_sample_value
        return [value(f"aism_service_{event}_total", {"service": "registrar"}) for event in ("failures", "restarts")]

    metrics.started("registrar")
    assert counts() == [0, 0]
    metrics.failed("registrar", RuntimeError())
    assert counts() == [1, 0]
    metrics.started("registrar")
    assert counts() == [1, 1]


def test_measurements_are_exported_by_type_and_name() -> None:
    """Count, mean, minimum and maximum are exported. A name that no agent measures any more is removed, not zero."""
    metrics = Metrics()

    def exported(statistic: str, kind: str, name: str) -> float | None:
        return metrics.registry.get_sample_value(f"aism_measurement_{statistic}", {"type": kind, "name": name})

    for kind, values in (
        ("scribe", {"tokens": 2.0}),
        ("scribe", {"tokens": -4.0, "cpu": 1.0}),
        ("smith", {"cpu": 0.5}),
    ):
        metrics.measurements.add(kind, values)
    metrics.measurements.export()
    assert [exported(each, "scribe", "tokens") for each in ("agents", "mean", "min", "max")] == [2, -1, -4, 2]
    assert [exported("max", kind, "cpu") for kind in ("scribe", "smith")] == [1, 0.5]

    metrics.measurements.add("scribe", {"cpu": 3.0})
    metrics.measurements.export()
    assert [exported(each, "scribe", "tokens") for each in ("agents", "mean", "min", "max")] == [None] * 4
    assert [exported(each, "scribe", "cpu") for each in ("agents", "mean")] == [1, 3]
