"""docs/liveness.md says of settings, words, metrics, events and alerts what the code does."""

import re
from typing import Final, get_args

from aism_engine.domain.agents.agent import Liveness, ShownLiveness
from aism_engine.domain.agents.liveness import Mode
from aism_engine.domain.policy import LivenessSettings
from tests.docs.reading import DOCS, PROTOCOL, ROOT, fields_of, first_column, names, table
from tests.docs.test_logs import logged
from tests.docs.test_metrics import exported

PAGE: Final = (DOCS / "liveness.md").read_text(encoding="utf-8")


def told(what: str) -> set[str]:
    """Read one row of what is seen."""
    return {name for row in table("What you see", PAGE) if row[0] == what for name in names(row[1])}


def test_every_word_and_every_mode_is_there() -> None:
    """The five words are what is shown, the record has all of them but one; so with the modes."""
    assert set(first_column("The five words", PAGE)) >= {each.value for each in ShownLiveness}
    assert [names(row[0])[0] for row in table("The five words", PAGE)] == [each.value for each in ShownLiveness]
    assert {each.value for each in ShownLiveness} - {each.value for each in Liveness} == {"silent"}
    assert [names(row[0])[0] for row in table("When many fall silent at once", PAGE)] == list(get_args(Mode))


def test_every_setting_is_there_with_its_default() -> None:
    """Each of the section, once, and those that the text names exist."""
    defaults = LivenessSettings()
    rows = {names(row[0])[0]: row[1] for row in table("The settings", PAGE)}
    fields = fields_of(LivenessSettings)
    assert rows == {
        f"liveness.{name}": f"{value:g}" if isinstance(value := getattr(defaults, name), int | float) else ""
        for name in sorted(fields, key=[name.removeprefix("liveness.") for name in rows].index)
    }
    assert {name.removeprefix("liveness.") for name in re.findall(r"`(liveness\.\w+)`", PAGE)} <= fields.keys()


def test_the_example_is_reckoned_with_the_settings_that_are_shipped() -> None:
    """Silent, and lost, so many seconds after the last beat; after the stop so many seconds after its end."""
    limits = LivenessSettings()
    instants = [row[0] for row in table("An example", PAGE)][:2]
    assert instants == [f"12:00:{limits.silent_after:02.0f}", f"12:00:{limits.lost_after:02.0f}"]
    again = re.findall(r"begun to watch at (\S+): silent again from (\S+), lost at (\S+)\.", PAGE)
    assert [[_seconds(each) for each in found] for found in again] == [
        [50, 50 + limits.silent_after, 50 + limits.lost_after]
    ]


def _seconds(instant: str) -> int:
    hours, minutes, seconds = map(int, instant.split(":"))
    return (hours - 12) * 3600 + minutes * 60 + seconds


def test_what_is_seen_is_what_is_shown() -> None:
    """Each metric, event, fact and alert that is named exists."""
    alerts = (ROOT / "deploy/prometheus/aism-alerts.yml").read_text(encoding="utf-8")
    assert told("metrics") <= exported().keys()
    assert told("log") <= {event for event, _, _ in logged()}
    assert told("audit") <= set(first_column("Facts", PROTOCOL))
    assert told("alert") <= set(re.findall(r"alert: (\w+)", alerts))
    assert all((told("metrics"), told("log"), told("audit"), told("alert")))
