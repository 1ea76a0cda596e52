"""Reads what the pages say, and what the code publishes, so that the one can be compared with the other."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from aism_engine.domain.commands.command import Status
from aism_engine.store.keys import Keys
from aism_engine.store.writer import wrong_type

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SOURCES = sorted((ROOT / "aism_engine").rglob("*.py"))
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")
STEPS = (*(status.value for status in Status), "retried")
"""What becomes of a command."""

CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


# --- reading the pages ------------------------------------------------------------------------------------------------


def table(heading: str, page: str = PROTOCOL) -> list[list[str]]:
    """Read the first table under a heading: its rows, without the head, each a list of cells."""
    _, found, rest = page.partition(f"# {heading}\n")
    assert found, f"there is no heading {heading!r}"
    lines = iter(rest.splitlines())
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line[1:].rstrip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    return rows[2:]


def names(cell: str) -> tuple[str, ...]:
    """Give what stands in code in a cell."""
    return tuple(CODE.findall(cell))


def first_column(heading: str, page: str = PROTOCOL) -> list[str]:
    return [name for row in table(heading, page) for name in names(row[0])]


def fields_of(struct: type) -> dict[str, bool]:
    """Give the fields of a struct as they stand on the wire, and whether each is needed."""
    return {field.encode_name: field.required for field in msgspec.structs.fields(struct)}


def needed(heading: str) -> dict[str, bool]:
    """Read the fields of a table and whether each is needed."""
    return {names(row[0])[0]: row[1] == "yes" for row in table(heading)}


def payload_rows(heading: str) -> set[tuple[str, str, bool]]:
    """Read a table of payloads, in which a type stands once: type, field, whether it is needed."""
    found, type_ = set(), ""
    for row in table(heading):
        type_ = names(row[0])[0] if names(row[0]) else type_
        found |= {(type_, row[1].strip("`"), row[2] == "yes")}
    return found


# --- reading the code -------------------------------------------------------------------------------------------------


def calls(name: str, *paths: Path) -> Iterator[tuple[ast.Call, ast.AST]]:
    """Find all calls of a function or method by its name, each with the function, or module, that it stands in."""
    for path in paths or SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        places = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))]
        owner = {inner: place for place in places for inner in ast.walk(place)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                yield node, owner[node]


def literals(node: ast.expr | None, place: ast.AST) -> set[str]:
    """Give the texts that an expression may come to: a literal, a choice, a name that is given literals nearby."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return {node.value}
    if isinstance(node, ast.IfExp):
        return literals(node.body, place) | literals(node.orelse, place)
    if isinstance(node, ast.JoinedStr):
        parts = (
            [str(part.value)] if isinstance(part, ast.Constant) else STEPS  # what stands in braces is such a step
            for part in node.values
        )
        return {"".join(choice) for choice in product(*parts)}
    if isinstance(node, ast.Name):
        pairs = (
            pair
            for assignment in ast.walk(place)
            if isinstance(assignment, ast.Assign)
            for target in assignment.targets
            for pair in (
                zip(target.elts, assignment.value.elts, strict=True)
                if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple)
                else [(target, assignment.value)]
            )
        )
        return {
            text
            for target, value in pairs
            if isinstance(target, ast.Name) and target.id == node.id and isinstance(value, ast.Constant | ast.IfExp)
            for text in literals(value, place)
        }
    return set()


def argument(call: ast.Call, place: int, name: str) -> ast.expr | None:
    """Give an argument of a call by its place or its name."""
    if place < len(call.args):
        return call.args[place]
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def codes_of_dead_letters() -> set[str]:
    """Collect the codes of dead letters. A response is dead-lettered with the code of a refused admission."""
    found = set()
    for name in ("dead_letter", "MalformedError", "Failure"):
        for call, around in calls(name):
            found |= literals(argument(call, 0, "code"), around)
    for call, around in calls("ErrorReply"):
        if getattr(around, "name", "") == "admit":
            found |= literals(argument(call, 1, "code"), around)
    # A score that moved is that of a heartbeat or a deadline: no message is decided with such a precondition.
    return (found | {wrong_type("")[0]}) - {"score_moved"}


def keys_of_code() -> set[str]:
    """Build every key and channel, with the parameters' names in braces for what varies."""
    keys = Keys("aism")
    found = {value for name, value in vars(keys).items() if not name.startswith("_") and name != "prefix"}
    for name, method in inspect.getmembers(keys, inspect.ismethod):
        if not name.startswith("_"):
            found.add(method(*(f"{{{parameter}}}" for parameter in inspect.signature(method).parameters)))
    return found


# --- the pages as such ------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def examples() -> list[tuple[list[str], str]]:
    """Read the console examples of the protocol: the words of each command, and what it prints."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PROTOCOL, re.MULTILINE | re.DOTALL):
        for step in block.split("$ redis-cli ")[1:]:
            line, _, output = step.partition("\n")
            found.append((shlex.split(line), output.rstrip("\n")))
    return found


def printed(reply: Any) -> str:  # noqa: ANN401 - a reply is what the command makes it
    """Print a reply as `redis-cli --raw` does."""
    if isinstance(reply, list):
        return "\n".join(map(printed, reply))
    return reply.decode() if isinstance(reply, bytes) else "" if reply is None else str(reply)


def matches(expected: str, actual: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), actual) is not None
