"""Compare docs/liveness.md with the code: values, modes, settings, metrics, log events, facts and alerts."""

import re
from typing import Final, get_args

from aism_engine.domain.agents.agent import Liveness
from aism_engine.domain.agents.silence import Mode
from aism_engine.domain.policy import LivenessSettings
from tests.docs.reading import DOCS, PROTOCOL, ROOT, fields_of, first_column, names, table
from tests.docs.test_logs import logged
from tests.docs.test_metrics import exported

PAGE: Final = (DOCS / "liveness.md").read_text(encoding="utf-8")


def listed(what: str) -> set[str]:
    """Return the names in one row of the table on where to see liveness."""
    return {name for row in table("Where to see it", PAGE) if row[0] == what for name in names(row[1])}


def test_every_liveness_value_and_mode_is_documented() -> None:
    assert [names(row[0])[0] for row in table("Liveness values", PAGE)] == [each.value for each in Liveness]
    assert [names(row[0])[0] for row in table("Fleet modes", PAGE)] == list(get_args(Mode))


def test_every_setting_is_documented_with_its_default() -> None:
    """And the text names no setting that does not exist."""
    defaults = LivenessSettings()
    rows = {names(row[0])[0]: row[1] for row in table("Settings", PAGE)}
    fields = fields_of(LivenessSettings)
    assert rows == {
        f"liveness.{name}": f"{value:g}" if isinstance(value := getattr(defaults, name), int | float) else ""
        for name in sorted(fields, key=[name.removeprefix("liveness.") for name in rows].index)
    }
    assert {name.removeprefix("liveness.") for name in re.findall(r"`(liveness\.\w+)`", PAGE)} <= fields.keys()


def test_the_example_uses_the_default_settings() -> None:
    limits = LivenessSettings()
    instants = [row[0] for row in table("Example", PAGE)][:2]
    assert instants == [f"12:00:{limits.silent_after:02.0f}", f"12:00:{limits.lost_after:02.0f}"]
    again = re.findall(r"observes afresh at (\S+): silent from (\S+), lost at (\S+)\.", PAGE)
    assert [[_seconds(each) for each in found] for found in again] == [
        [50, 50 + limits.silent_after, 50 + limits.lost_after]
    ]


def _seconds(instant: str) -> int:
    hours, minutes, seconds = map(int, instant.split(":"))
    return (hours - 12) * 3600 + minutes * 60 + seconds


def test_every_name_in_the_overview_exists() -> None:
    alerts = (ROOT / "deploy/prometheus/aism-alerts.yml").read_text(encoding="utf-8")
    assert listed("metrics") <= exported().keys()
    assert listed("log") <= {event for event, _, _ in logged()}
    assert listed("audit") <= set(first_column("Facts", PROTOCOL))
    assert listed("alerts") <= set(re.findall(r"alert: (\w+)", alerts))
    assert all((listed("metrics"), listed("log"), listed("audit"), listed("alerts")))
