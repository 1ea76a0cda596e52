"""Laws of `aism-engine history`: the archive and the audit as one, filtered, followed, and played back."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from aism_engine.agent.client import AgentClient
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.output import ProgressLine
from aism_engine.ops.archive.directory import ArchiveError
from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call, Completed, Start
from tests.support.engine import Running, eventually, running_engine

AGENT: Final = "scribe-1"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str, archive: Path) -> AsyncIterator[Running]:
    with capture_logs():
        keep: dict[str, object] = {"retention__audit_entries": 3, "retention__trim_interval": 0.02}
        dirs: dict[str, object] = {"archive__directory": str(archive), "archive__poll_interval": 0.02}
        async with running_engine(server, prefix, **keep, **dirs) as engine:

            async def announced() -> bool:  # before that nothing is kept for the archive
                return bool(await engine.call("EXISTS", engine.keys.archives))

            await eventually(announced)
            yield engine


@pytest.fixture
async def agent(server: EmbeddedServer, prefix: str, engine: Running) -> AsyncIterator[AgentClient]:
    """An agent that has lived a while, and whose past is in the archive alone: the audit keeps three entries."""
    async with AgentClient(AGENT, url=server.url, prefix=prefix, reply_timeout_s=5) as client:
        await client.register("scribe")
        for state in ("inbox", "distill", "inbox", "deep_work", "inbox"):
            await client.transition(state)

        async def trimmed() -> bool:
            return bool(await engine.call("XLEN", engine.keys.audit) == 3)

        await eventually(trimmed)
        yield client


def facts(done: Completed) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.usefixtures("agent")
async def test_the_archive_and_the_audit_are_one(fleet: Call, archive: Path) -> None:
    """Every fact once, in order, with the entry that it stands in: no hole and no double where the two meet."""
    done = await fleet("history", AGENT, "--archive", str(archive), "--json")
    assert (done.code, done.err) == (0, "")
    told = facts(done)
    changes = [(fact["old_state"], fact["new_state"]) for fact in told if fact["event"] == "state_changed"]
    states = [old for old, _ in changes] + [changes[-1][1]]
    assert states[-5:] == ["inbox", "distill", "inbox", "deep_work", "inbox"]
    assert all(new == following for (_, new), (following, _) in pairwise(changes))
    assert len({(fact["entry"], fact["event"]) for fact in told}) == len(told)
    assert [fact["entry"] for fact in told] == sorted(fact["entry"] for fact in told)
    alone = facts(await fleet("history", AGENT, "--json"))
    assert alone == told[-len(alone) :]
    assert len(alone) < len(told)


async def test_the_setting_names_the_archive_too(
    fleet: Call, agent: AgentClient, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a file or the environment, as for the engine."""
    expected = facts(await fleet("history", AGENT, "--archive", str(archive), "--json"))
    file = tmp_path / "engine.toml"
    await asyncio.to_thread(file.write_text, f'[archive]\ndirectory = "{archive}"\n')
    assert facts(await fleet("history", AGENT, "--config", str(file), "--json")) == expected
    monkeypatch.setenv("AISM_ARCHIVE__DIRECTORY", str(archive))
    assert facts(await fleet("history", agent.agent_id, "--json")) == expected


async def test_a_command_has_a_history_of_its_own(fleet: Call, agent: AgentClient) -> None:
    """An id is looked for among commands and among agents."""
    await fleet("send", AGENT, "work", "--id", "work-1")
    command = await agent.next_command(5)
    assert command is not None
    await agent.ack("work-1", reply=True)
    await agent.result("work-1", reply=True)
    told = facts(await fleet("history", "work-1", "--json"))
    events = [fact["event"] for fact in told]
    assert events[0] == "command_queued"
    assert events[-2:] == ["command_acked", "command_succeeded"]
    assert {fact["command_id"] for fact in told} == {"work-1"}


@pytest.mark.usefixtures("agent")
async def test_a_span_narrows_it(fleet: Call, archive: Path) -> None:
    """Both ends are instants of facts; an age is as good as a time."""
    read = ("history", AGENT, "--archive", str(archive), "--json")
    told = facts(await fleet(*read))
    middle = told[len(told) // 2]["at"]
    assert facts(await fleet(*read, "--since", middle)) == [fact for fact in told if fact["at"] >= middle]
    assert facts(await fleet(*read, "--until", middle)) == [fact for fact in told if fact["at"] <= middle]
    assert facts(await fleet(*read, "--since", "10m")) == told
    done = await fleet(*read, "--until", "1h")
    assert (done.code, done.out) == (ExitCode.REFUSED, "")
    assert f"no facts about {AGENT} are recorded" in done.err


@pytest.mark.usefixtures("agent")
async def test_people_get_a_line_each(fleet: Call) -> None:
    """The time, what happened, to whom, and the change."""
    line = (await fleet("history", AGENT)).out.splitlines()[-1]
    assert "state_changed  scribe-1  deep_work -> inbox" in line


async def test_it_follows_what_happens(
    server: EmbeddedServer, prefix: str, agent: AgentClient, archive: Path, start: Start
) -> None:
    """From the archive on, through the audit, to what comes; Ctrl-C is its end, and a good one."""
    flags = ("--archive", str(archive), "--follow", "--json", "--redis", server.url, "--prefix", prefix)
    process = start("history", AGENT, *flags)
    assert process.stdout is not None
    seen: list[dict[str, Any]] = []
    while [fact["new_state"] for fact in seen if fact["event"] == "state_changed"][-2:] != ["deep_work", "inbox"]:
        seen.append(json.loads(await asyncio.to_thread(process.stdout.readline)))
    await agent.transition("distill")
    assert json.loads(await asyncio.to_thread(process.stdout.readline))["new_state"] == "distill"
    process.send_signal(2)
    assert await asyncio.to_thread(process.wait, 10) == ExitCode.DONE


async def test_a_gap_is_told_where_it_is(fleet: Call, engine: Running, agent: AgentClient, archive: Path) -> None:
    """Between the facts around it, in words or as it is written in the archive."""
    archivist = next(each for each in engine.engine.components if each.name == "archiver")
    archivist._path = archive.parent / "elsewhere"  # type: ignore[attr-defined]
    await archivist._fail(ArchiveError("missing", "moved"))  # type: ignore[attr-defined]
    await agent.transition("distill")
    await engine.call("XTRIM", engine.keys.audit, "MAXLEN", "=", 0)
    await agent.transition("inbox")
    told = facts(await fleet("history", AGENT, "--archive", str(archive), "--json"))
    assert [*told[-2]] == ["gap"]
    assert told[-1]["new_state"] == "inbox"
    assert "entries are missing between" in (await fleet("history", AGENT, "--archive", str(archive))).out


# --- at an instant ----------------------------------------------------------------------------------------------------


async def test_an_agent_is_shown_as_it_stood(fleet: Call, agent: AgentClient, archive: Path) -> None:
    """At every instant of its life: its state, and the commands that were open then."""
    await fleet("send", AGENT, "work", "--id", "work-1")
    await eventually(lambda: _archived(archive, "command_queued"))
    await agent.result("work-1", reply=True)
    told = facts(await fleet("history", AGENT, "--archive", str(archive), "--json"))
    of_instants = {fact["at"]: fact for fact in told if fact["event"] == "state_changed"}  # the last of each
    for fact in of_instants.values():
        shown = (await fleet("history", AGENT, "--at", fact["at"], "--archive", str(archive), "--json")).json
        assert (shown["state"], shown["since"], shown["basis"]) == (fact["new_state"], fact["at"], "recorded")
        assert shown["open_commands"] == []
    queued_at = next(fact["at"] for fact in told if fact["event"] == "command_queued")
    shown = (await fleet("history", AGENT, "--at", queued_at, "--archive", str(archive), "--json")).json
    assert [each["command_id"] for each in shown["open_commands"]] == ["work-1"]
    assert shown["type"] == "scribe"


def _archived(archive: Path, event: str) -> bool:
    return any(event in file.read_text() for file in archive.glob("*.jsonl"))


@pytest.mark.usefixtures("agent")
async def test_an_instant_before_what_is_kept_says_so(fleet: Call) -> None:
    """The audit alone begins late: what is inferred is called that, with the reason; people see it as well."""
    done = await fleet("history", AGENT, "--at", "1d", "--json")
    assert (done.json["basis"], done.json["recorded_since"] > done.json["at"]) == ("inferred", True)
    assert done.json["notes"]
    shown = (await fleet("history", AGENT, "--at", "1d")).out
    assert "(inferred)" in shown
    assert "recorded since" in shown


@pytest.mark.usefixtures("agent")
async def test_one_that_was_not_there_is_not_unknown(fleet: Call, archive: Path) -> None:
    """Before it was met it was not in the fleet. Of one that never was nothing is known, which is 1."""
    done = await fleet("history", "nobody", "--at", "1s")
    assert (done.code, done.out) == (ExitCode.REFUSED, "")
    assert "no facts about an agent nobody are recorded" in done.err
    shown = (await fleet("history", AGENT, "--at", "1d", "--archive", str(archive))).out
    assert "not in the fleet" in shown


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["a b"],
        ["a", "--since", "soon"],
        ["a", "--at", "2026-13-01"],
        ["a", "--at", "1h", "--since", "2h"],
        ["a", "--at", "1h", "--follow"],
        ["a", "--follow", "--until", "1h"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_64(fleet: Call, arguments: list[str]) -> None:
    """One line on standard error says what was expected."""
    done = await fleet("history", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)


async def test_an_archive_that_is_none_is_refused(fleet: Call, tmp_path: Path) -> None:
    """So is that of another fleet: one would be taken for the other."""
    done = await fleet("history", "a", "--archive", str(tmp_path / "nowhere"))
    assert (done.code, done.out) == (ExitCode.REFUSED, "")
    assert "nowhere" in done.err
    await asyncio.to_thread((tmp_path / "archive.json").write_text, '{"archive":"x","prefix":"other"}')
    done = await fleet("history", "a", "--archive", str(tmp_path))
    assert (done.code, "'other'" in done.err) == (ExitCode.REFUSED, True)


@pytest.mark.usefixtures("agent")
async def test_without_redis_the_archive_is_told_and_the_code_says_that_it_is_not_all(
    cli: Call, archive: Path, prefix: str
) -> None:
    """An archive is for bad days, too."""
    flags = ("--archive", str(archive), "--prefix", prefix, "--redis", "redis://127.0.0.1:1", "--json")
    done = await cli("history", AGENT, *flags)
    assert done.code == ExitCode.UNAVAILABLE
    assert "agent_registered" in [fact["event"] for fact in facts(done)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_progress_is_shown_from_a_second_on(stream: Callable[[], io.StringIO], *, shown: bool) -> None:
    """On a terminal, now and then, and it leaves nothing behind; a pipe sees none of it."""
    now, written = 0.0, stream()
    progress = ProgressLine(written, lambda: now)
    progress.update("early")
    now = 1.1
    progress.update("late")
    now = 1.2
    progress.update("too soon")
    progress.clear()
    text = written.getvalue()
    assert ("late" in text, text.endswith("\r")) == (shown, shown)
    assert "early" not in text
    assert "too soon" not in text
