"""docs/metrics.md is what is exported, and what is exported is bounded."""

from typing import Any

import pytest

from aism_engine.domain.agents.divergence import RULES
from aism_engine.domain.commands.command import Status, StatusChange
from aism_engine.domain.decision import Decision
from aism_engine.metric_labels import OTHER, BoundedLabelPair
from aism_engine.metrics import Metrics
from tests.docs.reading import DOCS, names

PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
NAMES = 50


def exported() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Give the type, the labels and the help of each metric of ours, by its name."""
    collectors: list[Any] = [each for each in Metrics().registry._collector_to_names if hasattr(each, "_labelnames")]
    return {
        each._name + ("_total" if each._type == "counter" else ""): (
            each._type,
            tuple(each._labelnames),
            each._documentation,
        )
        for each in collectors
    }


def test_the_page_is_what_is_exported() -> None:
    """Each metric with its type, its labels and its meaning, and no other."""
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| `aism_")]
    told = {names(row[0])[0]: (row[1].strip(), names(row[2]), row[3].strip()) for row in rows}
    assert told == exported()


def test_names_are_as_prometheus_wants_them() -> None:
    """One prefix, base units, no unit that is none, and no id among the labels."""
    for name, (_, labels, _) in exported().items():
        assert name.startswith("aism_")
        assert not any(unit in name for unit in ("_ms", "_milli", "_minutes", "_hours", "_kb"))
        assert {"id", "agent", "agent_id", "command", "command_id"} & set(labels) == set()


@pytest.mark.parametrize("what", ["agents", "commands", "divergences", "measurements"])
def test_a_million_names_do_not_grow_it(what: str) -> None:
    """Agents invent types, states, measurements, operators commands: past the bound they are one, and none is lost."""
    metrics, name, most = Metrics(names=NAMES), "aism_command_steps", NAMES
    count = 100_000 if what == "commands" else 1_000_000
    each_with_each = ((f"one-{n // 1000}", f"two-{n % 1000}") for n in range(count))
    if what == "agents":
        metrics.standing.show(dict.fromkeys(each_with_each, 1))
        name, most = "aism_agents_in_state", BoundedLabelPair.EACH * NAMES
    elif what == "divergences":
        metrics.divergences.show({("never_acks", f"type-{n}"): 1 for n in range(count)})
        name = "aism_divergences_open"
    elif what == "measurements":
        for kind, measurement in each_with_each:
            metrics.measurements.add(kind, {measurement: 1})
        metrics.measurements.show()
        name, most = "aism_measurement_agents", BoundedLabelPair.EACH * NAMES
    else:
        status_changes = [StatusChange(f"type-{n}", "", "queued", None, 0.0) for n in range(count)]
        metrics.committed([Decision("send", status_changes=status_changes)], [], 0.001, "applied")
    (shown,) = (metric for metric in metrics.registry.collect() if metric.name == name)
    assert sum(sample.value for sample in shown.samples) == count
    assert len(shown.samples) == most + 1
    assert any(OTHER in sample.labels.values() for sample in shown.samples)


def test_a_scrape_is_bounded_whatever_is_invented() -> None:
    """With all that can be told apart at once there are fewer than 3,500 series, which are written within 50 ms."""
    metrics = Metrics(names=NAMES)
    pairs = [(f"one-{n % 1000}", f"two-{n // 1000}") for n in range(100_000)]
    metrics.standing.show(dict.fromkeys(pairs, 1))
    metrics.divergences.show({(rule, f"one-{n}"): 1 for rule in RULES for n in range(1000)})
    for kind, measurement in pairs:
        metrics.measurements.add(kind, {measurement: 1})
    metrics.measurements.show()
    status_changes = [StatusChange(f"type-{n}", "", status.value, None, 0.0) for status in Status for n in range(1000)]
    metrics.committed([Decision("send", status_changes=status_changes)], [], 0.001, "applied")
    assert sum(len(metric.samples) for metric in metrics.registry.collect()) < 3500


def test_what_is_not_there_any_more_is_zero() -> None:
    """A state that everybody has left is shown as empty, not as it was."""
    metrics = Metrics()
    metrics.standing.show({("scribe", "inbox"): 3})
    metrics.standing.show({("scribe", "idle"): 3})
    values = [
        metrics.registry.get_sample_value("aism_agents_in_state", {"type": "scribe", "state": state})
        for state in ("inbox", "idle")
    ]
    assert values == [0, 3]


def test_a_restart_is_told_from_a_failure() -> None:
    """Who fails and is not started again has failed once more than it was restarted; a first start is no restart."""
    metrics = Metrics()

    def counted() -> list[float | None]:
        value = metrics.registry.get_sample_value
        return [value(f"aism_service_{what}_total", {"service": "registrar"}) for what in ("failures", "restarts")]

    metrics.started("registrar")
    assert counted() == [0, 0]
    metrics.failed("registrar", RuntimeError())
    assert counted() == [1, 0]
    metrics.started("registrar")
    assert counted() == [1, 1]


def test_what_is_measured_is_rolled_up_by_type_and_name() -> None:
    """How many, their mean, the least and the largest; what nobody has any more is gone, not zero."""
    metrics = Metrics()

    def shown(what: str, kind: str, name: str) -> float | None:
        return metrics.registry.get_sample_value(f"aism_measurement_{what}", {"type": kind, "name": name})

    for kind, values in (
        ("scribe", {"tokens": 2.0}),
        ("scribe", {"tokens": -4.0, "cpu": 1.0}),
        ("smith", {"cpu": 0.5}),
    ):
        metrics.measurements.add(kind, values)
    metrics.measurements.show()
    assert [shown(what, "scribe", "tokens") for what in ("agents", "mean", "min", "max")] == [2, -1, -4, 2]
    assert [shown("max", kind, "cpu") for kind in ("scribe", "smith")] == [1, 0.5]

    metrics.measurements.add("scribe", {"cpu": 3.0})
    metrics.measurements.show()
    assert [shown(what, "scribe", "tokens") for what in ("agents", "mean", "min", "max")] == [None] * 4
    assert [shown(what, "scribe", "cpu") for what in ("agents", "mean")] == [1, 3]
