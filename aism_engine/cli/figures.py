"""What an engine in this process has done so far, in figures: read from its metrics."""

from msgspec import Struct

from aism_engine.metrics import Metrics


class Figures(Struct, frozen=True):
    """The summary of `aism-engine dev`. Its names are published, and so for ever."""

    responses_applied: int
    commands_dispatched: int
    commands_succeeded: int
    state_changes: int
    agents_lost: int
    dead_letters: int
    responses_per_second: float
    """Responses applied, by the seconds they took in all."""


def figures(metrics: Metrics, seconds: float) -> Figures:
    """Read the figures of an engine that has worked for so many seconds."""
    applied = _count(metrics, "aism_work_total", service="response_consumer", outcome="applied")
    return Figures(
        responses_applied=applied,
        commands_dispatched=_count(metrics, "aism_facts_total", event="command_queued"),
        commands_succeeded=_count(metrics, "aism_facts_total", event="command_succeeded"),
        state_changes=_count(metrics, "aism_facts_total", event="state_changed"),
        agents_lost=_count(metrics, "aism_facts_total", event="agent_lost"),
        dead_letters=_count(metrics, "aism_dead_letters_total"),
        responses_per_second=round(applied / seconds, 1) if seconds > 0 else 0.0,
    )


def depths(metrics: Metrics) -> dict[str, int]:
    """Read how many lie in each queue, stream and index, as last sampled."""
    return {
        sample.labels["where"]: int(sample.value) for family in metrics.depth.collect() for sample in family.samples
    }


def _count(metrics: Metrics, name: str, **labels: str) -> int:
    """Add up all samples of this name that have these labels."""
    return int(
        sum(
            sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    )
