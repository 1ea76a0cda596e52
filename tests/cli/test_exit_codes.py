"""Laws of how commands end."""

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
async def test_the_help_of_every_command_tells_its_exit_codes(cli: Call, command: list[str]) -> None:
    """`--help` ends with the exit codes, and has an example where there is more than one way to call it."""
    done = await cli(*command, "--help")
    assert done.code == ExitCode.DONE
    assert EXIT_CODES in " ".join(done.out.split())
    assert "Example" in done.out or command == ["version"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["agents"],
        ["bogus"],
        ["run", "--bogus"],
        ["run", "--http", "nowhere"],
        ["send", "somebody"],
        ["send", "somebody", "work", "--payload", "[1]"],
        ["send", "somebody", "work", "--payload", "{"],
        ["send", "somebody", "work", "--timeout", "soon"],
        ["agents", "list", "--redis", "http://localhost"],
        ["agents", "list", "--liveness", "sleepy"],
        ["doctor", "--max-keys", "-1"],
        ["doctor", "--prefix", "a b"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_64(cli: Call, arguments: list[str]) -> None:
    """Whatever is wrong with the arguments: one line on standard error, nothing on standard output."""
    done = await cli(*arguments)
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert done.err.startswith("error: ")


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
async def test_redis_out_of_reach_is_69(cli: Call, command: list[str]) -> None:
    """One line says so, and what to do; the password stays a secret."""
    done = await cli(*command, "--redis", "redis://user:hush@127.0.0.1:1")
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.UNAVAILABLE, "", 1)
    assert "--redis" in done.err
    assert "hush" not in done.err


async def test_no_colour_is_ever_written_to_a_pipe(cli: Call) -> None:
    """Neither help nor errors steer a terminal."""
    assert "\x1b" not in (await cli("--help")).out + (await cli("bogus")).err


async def test_version(cli: Call) -> None:
    """For people it is the bare number, for programs an object."""
    told = (await cli("version")).out.strip()
    assert (await cli("version", "--json")).json["version"] == told


def test_an_engine_that_gave_up_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    """Its reason is the message."""
    assert report_error(GaveUpError("consumer failed 6 times")) == ExitCode.REFUSED
    assert capsys.readouterr().err == "error: consumer failed 6 times\n"


def test_a_bug_is_not_dressed_up_as_an_answer() -> None:
    """What is no error of ours goes through, traceback and all."""
    with pytest.raises(ZeroDivisionError):
        report_error(ZeroDivisionError())


def test_all_commands_are_tested() -> None:
    """The list above is complete."""
    app = main.build()
    names = [[command.name or command.callback.__name__] for command in app.registered_commands if command.callback]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands = group.typer_instance.registered_commands
        names += [[str(group.name), each.name or each.callback.__name__] for each in commands if each.callback]
    assert sorted(names) == sorted(COMMANDS)


@pytest.mark.parametrize("first", sorted(main.COMMANDS))
async def test_a_command_is_the_same_by_itself(cli: Call, first: str) -> None:
    """Each is imported alone where it is named, and is there, with the same words, among all."""
    alone, among_all = await cli(first, "--help"), await cli("--help")
    assert alone.out.startswith(f"Usage: aism-engine {first} ")
    assert f"\n  {first} " in among_all.out


def test_health_imports_next_to_nothing() -> None:
    """It is called every few seconds for as long as a container lives: it must not cost half a second of a core."""
    script = "import sys; from aism_engine.cli.main import build; build('health'); print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"asyncio", "redis", "rich", "starlette", "structlog", "prometheus_client", "uvicorn"} & set(found) == set()
