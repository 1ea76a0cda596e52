"""docs/logs.md names every event that is ever logged, with its level and its fields."""

import ast
from collections.abc import Iterator

from tests.docs.reading import DOCS, SOURCES, names, table

PAGE = (DOCS / "logs.md").read_text(encoding="utf-8")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
OWN = {
    "event_repeated": {"of", "where", "count", "seconds"},
    "log_lines_dropped": {"count"},
    "unloggable_line": {"error"},
}
"""What the log says of itself, past structlog."""
NO_FIELDS = {"component", "exc_info", None}


def logged() -> Iterator[tuple[str, str, set[str]]]:
    """Find every call of a logger with an event of ours: the event, its level and its fields."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if "log" in ast.unparse(node.func.value) and node.args and isinstance(node.args[0], ast.Constant):
                level = node.func.attr.replace("exception", "error")
                fields = {keyword.arg for keyword in node.keywords} - NO_FIELDS
                yield str(node.args[0].value), level, {str(each) for each in fields}


def test_every_event_is_in_the_list() -> None:
    """With its level, and with the fields that it is given by name."""
    expected: dict[str, tuple[set[str], set[str]]] = {}
    for event, level, fields in logged():
        levels, known = expected.setdefault(event, (set(), set()))
        levels.add(level)
        known |= fields
    rows = {names(row[0])[0]: (row[1], set(names(row[2]))) for row in table("Events", PAGE)}
    assert rows.keys() == expected.keys() | OWN.keys()
    assert {event: fields for event, (_, fields) in rows.items()} == {
        event: OWN.get(event) or expected[event][1] for event in rows
    }
    assert {event for event, (levels, _) in expected.items() if levels != set(rows[event][0].split(", "))} == set()
