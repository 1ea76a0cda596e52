"""Read the pages and the sources, so that tests can compare them."""

import ast
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from aism_engine.store.keys import Keys

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SOURCES = sorted((ROOT / "aism_engine").rglob("*.py"))
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")

CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"(?<!== )f?'([a-z_0-9]+)['{]")


# --- pages ------------------------------------------------------------------------------------------------------------


def table(heading: str, page: str = PROTOCOL) -> list[list[str]]:
    """Return the cells of the first table under a heading, row by row, without the head."""
    _, found, rest = page.partition(f"# {heading}\n")
    assert found, f"there is no heading {heading!r}"
    rows = []
    for line in rest.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line[1:].rstrip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    return rows[2:]


def names(cell: str) -> tuple[str, ...]:
    """Return the words that are marked as code."""
    return tuple(CODE.findall(cell))


def first_column(heading: str, page: str = PROTOCOL) -> list[str]:
    return [name for row in table(heading, page) for name in names(row[0])]


def required(heading: str) -> dict[str, bool]:
    """Return whether each field in a table is required."""
    return {names(row[0])[0]: row[1] == "yes" for row in table(heading)}


def payload_rows(heading: str) -> set[tuple[str, str, bool]]:
    """Return type, field and whether it is required. A table of payloads names each type only in its first row."""
    found, type_ = set(), ""
    for row in table(heading):
        type_ = names(row[0])[0] if names(row[0]) else type_
        found.add((type_, row[1].strip("`"), row[2] == "yes"))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub generates them."""
    headings = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- sources ----------------------------------------------------------------------------------------------------------


def fields_of(struct: type) -> dict[str, bool]:
    """Return the encoded fields of a struct, and whether each is required."""
    return {field.encode_name: field.required for field in msgspec.structs.fields(struct)}


def calls(function: Callable[..., Any], *, within: Callable[..., Any] | None = None) -> Iterator[dict[str, str]]:
    """Yield the arguments of each call of a function or class, as source, by parameter.

    A variable is replaced by the expressions that the same function or module assigns to it. A private function is
    called only in its own module.
    """
    parameters = [name for name in inspect.signature(function).parameters if name != "self"]
    if within is not None:
        sources = [textwrap.dedent(inspect.getsource(within))]
    elif function.__name__.startswith("_"):
        sources = [Path(inspect.getfile(function)).read_text(encoding="utf-8")]
    else:
        sources = [path.read_text(encoding="utf-8") for path in SOURCES]
    for source in sources:
        if f"{function.__name__}(" not in source:
            continue
        tree = ast.parse(source)
        constants = ast.Module([node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)], [])
        scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))]
        scope_of = {node: scope for scope in scopes for node in ast.walk(scope)}
        for node, scope in scope_of.items():
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == function.__name__:
                given = dict(zip(parameters, node.args, strict=False))
                given |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
                yield {name: _source(value, scope) or _source(value, constants) for name, value in given.items()}


def _source(value: ast.expr, scope: ast.AST) -> str:
    if not isinstance(value, ast.Name):
        return ast.unparse(value)
    return " ".join(
        ast.unparse(node.value)
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for name in (target.elts if isinstance(target, ast.Tuple) else [target])
        if isinstance(name, ast.Name) and name.id == value.id
    )


def words(source: str) -> set[str]:
    """Return the names in quotes, such as codes and events. A prefix of an f-string counts, a comparison does not."""
    return set(_WORD.findall(source))


def keys_of_code() -> set[str]:
    """Return every key and channel, with the names of parameters in braces."""
    found = {name: value for name, value in vars(Keys("aism")).items() if name != "prefix"}
    return {
        value(*(f"{{{parameter}}}" for parameter in inspect.signature(value).parameters)) if callable(value) else value
        for value in found.values()
    }


# --- examples ---------------------------------------------------------------------------------------------------------


def examples() -> list[tuple[list[str], str]]:
    """Return the words and the output of each console example of the protocol."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PROTOCOL, re.MULTILINE | re.DOTALL):
        for step in block.split("$ redis-cli ")[1:]:
            line, _, output = step.partition("\n")
            found.append((shlex.split(line), output.rstrip("\n")))
    return found


def printed(reply: Any) -> str:  # noqa: ANN401 - the type of a reply depends on the command
    """Format a reply like `redis-cli --raw`."""
    if isinstance(reply, list):
        return "\n".join(map(printed, reply))
    return reply.decode() if isinstance(reply, bytes) else "" if reply is None else str(reply)


def matches(expected: str, actual: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, expected.split("…"))), actual) is not None
