"""docs/logs.md lists every event that the engine logs, with its level and its fields."""

import ast
from collections.abc import Iterator

from tests.docs.reading import DOCS, SOURCES, names, table

PAGE = (DOCS / "logs.md").read_text(encoding="utf-8")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LOGGED_BY_LOGS = {"event_repeated": {"of", "where", "count", "seconds"}, "log_lines_dropped": {"count"}}
"""Events of the logs themselves, which are not written by a call with a literal event and level."""
NO_FIELDS = {"component", "exc_info", None}


def logged() -> Iterator[tuple[str, str, set[str]]]:
    """Yield event, level and fields of every call of a logger with a literal event."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            if "log" in ast.unparse(node.func.value) and node.args and isinstance(node.args[0], ast.Constant):
                level = node.func.attr.replace("exception", "error")
                fields = {keyword.arg for keyword in node.keywords} - NO_FIELDS
                yield str(node.args[0].value), level, {str(each) for each in fields}


def test_every_event_is_listed_with_its_level_and_fields() -> None:
    expected: dict[str, tuple[set[str], set[str]]] = {}
    for event, level, fields in logged():
        levels, known = expected.setdefault(event, (set(), set()))
        levels.add(level)
        known |= fields
    rows = {names(row[0])[0]: (row[1], set(names(row[2]))) for row in table("Events", PAGE)}
    assert rows.keys() == expected.keys() | LOGGED_BY_LOGS.keys()
    assert {event: fields for event, (_, fields) in rows.items()} == {
        event: LOGGED_BY_LOGS.get(event) or expected[event][1] for event in rows
    }
    assert {event for event, (levels, _) in expected.items() if levels != set(rows[event][0].split(", "))} == set()
