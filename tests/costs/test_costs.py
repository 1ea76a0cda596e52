"""A batch costs what the table says: calls of functions, commands of the server, and the size of the commit.

No time is measured, so that the figures are the same on every machine and in every version of Python.
"""

from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest

from aism_engine.store.embedded import EmbeddedServer
from tests.costs import table
from tests.costs.calls import Calls
from tests.costs.measure import measure
from tests.costs.workloads import WORKLOADS
from tests.support.server import OwnServer

EXPECTED = table.read()
FIGURES: table.Figures = {
    "functions": {"a:f": [512, 1024], "a:g": [512, 0]},
    "server": {"hset": [512]},
    "commit": {"keys": [517]},
}


@pytest.fixture(scope="module")
def quiet_server() -> Iterator[EmbeddedServer]:
    """A server that nothing else uses, because it counts the commands of all clients."""
    with OwnServer(append_only=False) as server:
        yield server


@pytest.mark.parametrize("name", WORKLOADS)
async def test_batch_costs_what_the_table_says(quiet_server: EmbeddedServer, name: str) -> None:
    if changes := table.changes(EXPECTED[name], await measure(quiet_server, name)):
        title = f"the costs of a batch of {name} have changed; if this is intended, run `{table.COMMAND}`"
        pytest.fail("\n  ".join([title, *changes]), pytrace=False)


def test_table_has_each_workload_and_no_other() -> None:
    assert list(EXPECTED) == list(WORKLOADS)


def test_changes_name_what_got_dearer_before_what_got_cheaper() -> None:
    actual: table.Figures = {
        "functions": {"a:f": [512, 512], "a:new": [1024, 0], "a:g": [512, 0]},
        "server": {"hset": [513]},
        "commit": {"keys": [517]},
    }
    assert table.changes(FIGURES, actual) == [
        "functions: a:new: calls rose from 0 to 1024",
        "server: hset: calls rose from 512 to 513",
        "functions: a:f: calls of C functions in it fell from 1024 to 512",
    ]
    assert table.changes(FIGURES, FIGURES) == []


def counted(source: str, module: str = "aism_engine.example") -> dict[str, list[int]]:
    """Return the calls in a function `work` of a module, which is called 100 times."""
    namespace: dict[str, Any] = {"__name__": module}
    exec(source, namespace)  # noqa: S102 - a function of a module of the engine
    work, calls = namespace["work"], Calls()
    assert isinstance(work, FunctionType)
    with calls.counting():
        for _ in range(100):
            work()
    return calls.frequent()


def test_comprehension_is_a_part_of_its_function() -> None:
    """Python 3.11 calls it as a function of its own, later versions inline it."""
    expected = {"example:work": [100, 300]}
    assert counted("def work(): return [len(each) for each in ('a', 'b', 'c')]") == expected


def test_each_step_of_a_generator_counts() -> None:
    source = "def work(): return sum(each for each in (1, 2, 3))"
    assert counted(source) == {"example:work": [100, 100], "example:work.<genexpr>": [400, 0]}


def test_steps_of_a_coroutine_are_not_counted_but_its_calls_are() -> None:
    source = """
from types import coroutine
@coroutine
def wait(times): yield from range(times)
async def load(text): await wait(len(text))
def work(): list(load('abc').__await__())
"""
    assert counted(source) == {"example:work": [100, 0], "example:load": [0, 100], "example:wait": [400, 0]}


def test_functions_outside_the_engine_are_not_counted() -> None:
    assert counted("def work(): return len('a')", "json") == {}
