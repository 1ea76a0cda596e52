"""Laws of the exit codes, the help and the error messages of all commands."""

import subprocess
import sys

import pytest

from aism_engine.cli import main
from aism_engine.cli.exit_codes import EXIT_CODES, ExitCode, report_error
from aism_engine.errors import GaveUpError
from tests.cli.conftest import Call

COMMANDS = [
    *(["run"], ["dev"], ["send"], ["pause"], ["drain"], ["resume"], ["tail"], ["top"], ["history"], ["doctor"]),
    *(["divergences"], ["health"], ["scenario"], ["version"]),
    *(["commands", "list"], ["commands", "show"], ["commands", "wait"], ["commands", "cancel"]),
    *(["dead-letters", each] for each in ("list", "show", "replay", "purge")),
    *(["agents", "list"], ["agents", "show"], ["agents", "forget"], ["agents", "confirm-losses"]),
    *(["machines", "check"], ["machines", "graph"], ["machines", "list"], ["machines", "show"]),
    *(["config", "check"], ["config", "show"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_the_help_has_an_example_and_the_exit_codes(cli: Call, command: list[str]) -> None:
    shown = await cli(*command, "--help")
    assert shown.code == ExitCode.DONE
    assert EXIT_CODES in " ".join(shown.out.split())
    assert "Example" in shown.out


def test_the_list_of_commands_is_complete() -> None:
    app = main.build()
    names = [[command.name or command.callback.__name__] for command in app.registered_commands if command.callback]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands = group.typer_instance.registered_commands
        names += [[str(group.name), each.name or each.callback.__name__] for each in commands if each.callback]
    assert sorted(names) == sorted(COMMANDS)


@pytest.mark.parametrize("first", sorted(main.COMMANDS))
async def test_a_command_that_is_imported_alone_has_the_same_help(cli: Call, first: str) -> None:
    alone, among_all = await cli(first, "--help"), await cli("--help")
    assert alone.out.startswith(f"Usage: aism-engine {first} ")
    assert f"\n  {first} " in among_all.out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["agents"],
        ["bogus"],
        ["run", "--bogus"],
        ["run", "--http", "nowhere"],
        ["send", "a-1"],
        ["send", "a-1", "work", "--payload", "[1]"],
        ["send", "a-1", "work", "--payload", "{"],
        ["send", "a-1", "work", "--timeout", "soon"],
        ["agents", "list", "--redis", "http://localhost"],
        ["agents", "list", "--liveness", "sleepy"],
        ["doctor", "--max-keys", "-1"],
        ["doctor", "--prefix", "a b"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_64_and_one_line(cli: Call, arguments: list[str]) -> None:
    ended = await cli(*arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert ended.err.startswith("error: ")


@pytest.mark.parametrize(
    "command",
    [
        ["agents", "list"],
        ["agents", "show", "x"],
        ["send", "x", "work"],
        ["tail"],
        ["top"],
        ["doctor"],
        ["divergences"],
    ],
)
async def test_redis_out_of_reach_is_69_and_one_line(cli: Call, command: list[str]) -> None:
    """The line says what to do, and shows no password."""
    ended = await cli(*command, "--redis", "redis://user:hush@127.0.0.1:1")
    assert (ended.code, ended.out, ended.err.count("\n")) == (ExitCode.UNAVAILABLE, "", 1)
    assert "--redis" in ended.err
    assert "hush" not in ended.err


async def test_output_to_a_pipe_has_no_escape_sequences(cli: Call) -> None:
    assert "\x1b" not in (await cli("--help")).out + (await cli("bogus")).err


async def test_version_is_a_bare_number_or_an_object(cli: Call) -> None:
    shown = (await cli("version")).out.strip()
    assert (await cli("version", "--json")).json["version"] == shown


def test_an_engine_that_gave_up_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(GaveUpError("consumer failed 6 times")) == ExitCode.REFUSED
    assert capsys.readouterr().err == "error: consumer failed 6 times\n"


def test_a_bug_is_raised_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        report_error(ZeroDivisionError())


def test_health_imports_few_modules() -> None:
    """Container health checks run it every few seconds: importing everything would cost half a second each time."""
    script = "import sys; from aism_engine.cli.main import build; build('health'); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"asyncio", "redis", "rich", "starlette", "structlog", "prometheus_client", "uvicorn"} & set(found) == set()
