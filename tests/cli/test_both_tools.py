"""Laws of `aism-engine` and `aism` alike: completion, closed and full outputs."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

TOOLS = {"aism-engine": "aism_engine.cli.main", "aism": "aism_engine.agent.tool"}
ENDS = {
    "aism-engine --help": 0,
    "aism-engine agents": 0,
    "aism-engine --version": 0,
    "aism-engine bogus": 64,
    "aism-engine config show": 0,
    "aism-engine config show --json": 0,
    "aism --help": 0,
    "aism state": 0,
    "aism --version": 0,
    "aism bogus": 64,
}


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A directory with both tools, as they are installed."""
    for name, module in TOOLS.items():
        (tmp_path / name).write_text(f"#!{sys.executable}\nfrom {module} import main; main()\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def run(tools: Path, command: str, **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
    name, *arguments = command.split()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.run([tools / name, *arguments], check=False, **pipes)


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ENDS)
def test_a_reader_that_closes_the_pipe_is_no_error(tools: Path, command: str) -> None:
    """As in `aism --help | head -0`, and also when the output is closed from the start."""
    reading, writing = os.pipe()
    os.close(reading)
    for options in ({"stdout": writing}, {"preexec_fn": partial(os.close, 1)}):
        ended = run(tools, command, **options)
        assert (ended.returncode, ended.stderr.count("\n")) == (ENDS[command], int(ENDS[command] != 0))


@pytest.mark.parametrize("command", [command for command, code in ENDS.items() if code == 0])
def test_a_full_disk_is_an_error(tools: Path, command: str) -> None:
    with Path("/dev/full").open("w") as full:
        ended = run(tools, command, stdout=full)
    assert (ended.returncode, ended.stderr.split(": ", 1)[1]) == (1, "standard output: No space left on device\n")


@pytest.mark.parametrize("command", ["aism-engine bogus", "aism bogus"])
def test_an_error_is_not_written_elsewhere_if_standard_error_is_closed(tools: Path, command: str) -> None:
    ended = run(tools, command, preexec_fn=partial(os.close, 2))
    assert (ended.returncode, ended.stdout) == (64, "")


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("aism-engine ag", "agents"),
        ("aism-engine agents ", "list show forget confirm-losses"),
        ("aism-engine --redis redis : //localhost : 6379 agents --json l", "list"),
        ("aism-engine agents list --live", "--liveness"),
        ("aism-engine agents list --liveness = s", "silent"),
        ("aism-engine --conf", "--config"),
        ("aism st", "state"),
        ("aism --redis = redis : //localhost state ", "current transition"),
        ("aism command result --pay", "--payload"),
        ("aism whoami ", ""),
    ],
)
def test_bash_completes(tools: Path, words: str, expected: str) -> None:
    """The words are as bash splits them: at `:` and `=` too."""
    tool = words.split(maxsplit=1)[0]
    script = f"""
        source <(_{tool.replace("-", "_").upper()}_COMPLETE=source_bash {tool})
        read -ra COMP_WORDS <<< "$1"
        [[ $1 == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        read -ra completion < <(complete -p {tool})
        ${{completion[-2]}} {tool}
        echo "${{COMPREPLY[@]}}"
    """
    environ = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["/bin/bash", "-c", script, "bash", words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert (ended.stdout.strip(), ended.stderr) == (expected, "")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_tool_prints_the_script_of_each_shell(tools: Path, tool: str, shell: str) -> None:
    variable = f"_{tool.replace('-', '_').upper()}_COMPLETE"
    shown = run(tools, tool, env=os.environ | {variable: f"source_{shell}"})
    assert (shown.returncode, f"{variable}=complete_{shell}" in shown.stdout) == (0, True)
