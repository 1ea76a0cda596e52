"""Laws of the exit codes, the help and the error messages of all commands."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from aism_engine.cli import main
from aism_engine.cli.exit_codes import EXIT_CODES, ExitCode, FailedError, report_error
from aism_engine.errors import GaveUpError
from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call, Start

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
    app = main.build(import_all=True)
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
        ["bogus"],
        ["agents", "lists"],
        ["--bogus", "agents", "list"],
        ["send", "a-1", "work", "--reason\udcff"],
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
    ("arguments", "message"),
    [
        ("bogus", "there is no command bogus. Choose from: 'run', 'dev', "),
        ("agents bogus", "there is no command bogus. Choose from: 'list', 'show', 'forget', 'confirm-losses'. See "),
        ("agents list --bogus", "there is no option --bogus. See aism-engine agents list --help"),
        ("commands list --lim", "there is no option --lim. Choose from: --limit. See "),
        ("commands list --limit x", "--limit: expected a whole number of at least 1, got 'x'. See "),
        ("dev --agents 2001", "--agents: expected a whole number from 1 to 2000, got '2001'. See "),
        ("commands list --limit", "--limit needs a value. See aism-engine commands list --help"),
        ("agents --redis", "--redis needs a value. See aism-engine agents --help"),
        ("agents list --json=1", "--json takes no value. See "),
        ("agents list --liveness x", "--liveness: expected one of 'unknown', 'fresh', 'silent', 'lost', 'left', got"),
        ("scenario", "missing: NAME. Choose from: ping-pong, coordination, "),
        ("commands show", "missing: ID. See aism-engine commands show --help"),
        ("commands show x y", "unexpected: y. See "),
        ("send x work --id a%b", "--id: expected an id of at most 128 letters, digits, "),
        ("send x work --wait-for 2y", "--wait-for: expected a duration like 500ms, 30s, 10m, 2h or 1d, or a number"),
        ("send x work --quorum 1", "--quorum needs --select"),
    ],
)
async def test_wrong_usage_is_explained_in_our_words(cli: Call, arguments: str, message: str) -> None:
    assert (await cli(*arguments.split())).err.startswith(f"error: {message}")


async def test_a_long_argument_is_shortened_in_a_message(cli: Call) -> None:
    for arguments in (["x" * 5000], ["send", "x", "work", "--payload", "[" * 5000]):
        assert len((await cli(*arguments)).err) < 1000


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


@pytest.mark.parametrize("words", sorted(main.COMMANDS))
async def test_the_line_in_the_help_of_all_commands_begins_the_help_of_the_command(cli: Call, words: str) -> None:
    shown = " ".join((await cli(words, "--help")).out.split())
    assert main.COMMANDS[words][1].rstrip(".") in shown


@pytest.mark.parametrize(
    "group", ["", *sorted(name for name, each in main.COMMANDS.items() if each[0].endswith(":app"))]
)
async def test_no_line_in_the_list_of_commands_is_cut(cli: Call, group: str) -> None:
    shown = (await cli(*group.split(), "--help")).out
    assert [line for line in shown.split("Commands:")[1].splitlines() if line.endswith("...")] == []


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["agents"], ["agents", "-h"], ["agents", "list", "-h"]])
async def test_a_group_alone_and_help_options_print_help(cli: Call, arguments: list[str]) -> None:
    shown = await cli(*arguments)
    words = [each for each in arguments if each[0] != "-"]
    assert (shown.code, shown.err) == (ExitCode.DONE, "")
    assert shown.out.startswith(" ".join(["Usage: aism-engine", *words]))


@pytest.mark.parametrize(
    "arguments",
    ["--config {} config show --json", "config --config={} show --json", "--json config show --config {}"],
)
async def test_options_may_stand_before_each_word_of_the_command(cli: Call, tmp_path: Path, arguments: str) -> None:
    file = tmp_path / "engine.toml"
    file.write_text('[redis]\nprefix = "ours"\n')
    shown = await cli(*arguments.format(file).split())
    assert shown.json["redis.prefix"]["value"] == "ours"


async def test_output_to_a_pipe_has_no_escape_sequences(cli: Call) -> None:
    assert "\x1b" not in (await cli("--help")).out + (await cli("bogus")).err


async def test_version_is_a_bare_number_or_an_object(cli: Call) -> None:
    shown = (await cli("version")).out.strip()
    assert (await cli("version", "--json")).json["version"] == shown
    assert [(await cli(*words)).out.strip() for words in (["--version"], ["agents", "--version"])] == [shown, shown]
    assert "\n  --version " in (await cli("--help")).out


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("dev", "--agents N Number of simulated agents. Allowed: 1 to 2000. [default: 12]"),
        ("dev", "0: any free port. Allowed: 0 to 65535. [default: 0]"),
        ("tail", "--count N Stop after N events. Allowed: at least 1."),
    ],
)
async def test_the_help_of_a_number_says_what_is_allowed(cli: Call, command: str, line: str) -> None:
    assert line in " ".join((await cli(command, "--help")).out.split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_the_help_names_no_python_type(cli: Call, command: list[str]) -> None:
    shown = (await cli(*command, "--help")).out
    assert [each for each in ("<str>", "<int>", "<path>", "<list[") if each in shown] == []


def test_an_engine_that_gave_up_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(GaveUpError("consumer failed 6 times")) == ExitCode.REFUSED
    assert capsys.readouterr().err == "error: consumer failed 6 times\n"


def test_an_error_of_the_system_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(FileNotFoundError(2, "No such file or directory", "/none")) == ExitCode.REFUSED
    assert capsys.readouterr().err == "error: /none: No such file or directory\n"


def test_text_of_an_agent_in_an_error_cannot_control_the_terminal_nor_forge_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report_error(FailedError("refused: \x1b[31mred\nerror: forged \u202etxet\ud800"))
    assert capsys.readouterr().err == "error: refused: \\x1b[31mred\\nerror: forged \\u202etxet\\ud800\n"


def test_a_bug_is_raised_with_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        report_error(ZeroDivisionError())


def test_output_that_cannot_be_encoded_is_escaped(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "größe.toml"
    file.write_text("")
    text, document = (
        start("config", "check", str(file), *flags, env=os.environ | {"PYTHONIOENCODING": "ascii"})
        for flags in ((), ("--json",))
    )
    assert text.communicate()[0].startswith(f"{tmp_path}/gr\\xf6\\xdfe.toml: ok")
    assert json.loads(document.communicate()[0])["ok"]


_SLOW: Final = {
    *("asyncio", "redis", "pydantic", "rich", "starlette", "structlog", "prometheus_client", "uvicorn", "uvloop"),
    "importlib.metadata",
}
"""Modules that are slow to import."""


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], ""),
        (["health"], ""),
        (["agents", "list"], ""),
        (["commands", "list", "--limit", "7", "--json"], ""),
        (["dead-letters", "list"], ""),
        (["send", "a-1", "greet", "--priority", "high", "--wait-for", "0.1s"], "asyncio redis importlib.metadata"),
        (["top", "--once"], "asyncio redis rich importlib.metadata"),
    ],
)
def test_a_command_imports_only_what_it_needs(
    server: EmbeddedServer, prefix: str, arguments: list[str], needed: str
) -> None:
    """Importing everything would cost half a second: more than a command that reads a fleet takes."""
    script = (
        "import sys\nfrom aism_engine.cli.main import main\n"
        "try: main(sys.argv[1:])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    fleet = {"AISM_REDIS_URL": server.url, "AISM_REDIS__PREFIX": prefix, "AISM_HTTP__PORT": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | fleet,
    )
    assert ended.returncode in {0, 1, 2}
    assert _SLOW & set(ended.stderr.splitlines()[-1].split()) == set(needed.split())
