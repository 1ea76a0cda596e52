"""Laws of `aism-engine history`: archive and audit as one log, filtered, followed, and reconstructed at an instant."""

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
            # Until the archive has published its cursor, the audit keeps nothing for it.
            await eventually(lambda: engine.call("EXISTS", engine.keys.archives))
            yield engine


@pytest.fixture
async def agent(server: EmbeddedServer, prefix: str, engine: Running) -> AsyncIterator[AgentClient]:
    """An agent whose first facts are in the archive only: the audit keeps three entries."""
    async with AgentClient(AGENT, url=server.url, prefix=prefix, reply_timeout_s=300) as client:
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
async def test_archive_and_audit_are_one_log(fleet: Call, archive: Path) -> None:
    """Every fact once, in order, with the id of its entry, also where the two meet."""
    done = await fleet("history", AGENT, "--archive", str(archive), "--json")
    assert (done.code, done.err) == (0, "")
    found = facts(done)
    changes = [(fact["old_state"], fact["new_state"]) for fact in found if fact["event"] == "state_changed"]
    states = [old for old, _ in changes] + [changes[-1][1]]
    assert states[-5:] == ["inbox", "distill", "inbox", "deep_work", "inbox"]
    assert all(new == following for (_, new), (following, _) in pairwise(changes))
    assert len({(fact["entry"], fact["event"]) for fact in found}) == len(found)
    assert [fact["entry"] for fact in found] == sorted(fact["entry"] for fact in found)
    audit_only = facts(await fleet("history", AGENT, "--json"))
    assert audit_only == found[-len(audit_only) :]
    assert len(audit_only) < len(found)


async def test_archive_is_found_by_its_setting(
    fleet: Call, agent: AgentClient, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the settings file or in the environment, as for the engine."""
    expected = facts(await fleet("history", AGENT, "--archive", str(archive), "--json"))
    file = tmp_path / "engine.toml"
    await asyncio.to_thread(file.write_text, f'[archive]\ndirectory = "{archive}"\n')
    assert facts(await fleet("history", AGENT, "--config", str(file), "--json")) == expected
    monkeypatch.setenv("AISM_ARCHIVE__DIRECTORY", str(archive))
    assert facts(await fleet("history", agent.agent_id, "--json")) == expected


async def test_history_of_a_command(fleet: Call, agent: AgentClient) -> None:
    await fleet("send", AGENT, "work", "--id", "work-1")
    command = await agent.next_command(5)
    assert command is not None
    await agent.call("ack", {}, "work-1")
    await agent.call("result", {}, "work-1")
    found = facts(await fleet("history", "work-1", "--json"))
    events = [fact["event"] for fact in found]
    assert events[0] == "command_queued"
    assert events[-2:] == ["command_acked", "command_succeeded"]
    assert {fact["command_id"] for fact in found} == {"work-1"}


@pytest.mark.usefixtures("agent")
async def test_since_and_until_select_a_period(fleet: Call, archive: Path) -> None:
    """Both are inclusive, and either a time or an age."""
    read = ("history", AGENT, "--archive", str(archive), "--json")
    found = facts(await fleet(*read))
    middle = found[len(found) // 2]["at"]
    assert facts(await fleet(*read, "--since", middle)) == [fact for fact in found if fact["at"] >= middle]
    assert facts(await fleet(*read, "--until", middle)) == [fact for fact in found if fact["at"] <= middle]
    assert facts(await fleet(*read, "--since", "10m")) == found
    done = await fleet(*read, "--until", "1h")
    assert (done.code, done.out) == (ExitCode.REFUSED, "")
    assert f"no facts about {AGENT} are recorded" in done.err


@pytest.mark.usefixtures("agent")
async def test_text_output_is_one_line_per_fact(fleet: Call) -> None:
    line = (await fleet("history", AGENT)).out.splitlines()[-1]
    assert "state_changed  scribe-1  deep_work -> inbox" in line


async def test_follow_continues_with_new_facts(
    server: EmbeddedServer, prefix: str, agent: AgentClient, archive: Path, start: Start
) -> None:
    """After those of the archive and the audit. Ctrl-C ends it with exit code 0."""
    flags = ("--archive", str(archive), "--follow", "--json", "--redis", server.url, "--prefix", prefix)
    process = start("history", AGENT, *flags)
    assert process.stdout is not None
    seen: list[dict[str, Any]] = []
    while [fact["new_state"] for fact in seen if fact["event"] == "state_changed"][-2:] != ["deep_work", "inbox"]:
        seen.append(json.loads(await asyncio.to_thread(process.stdout.readline)))
    await agent.transition("distill")
    assert json.loads(await asyncio.to_thread(process.stdout.readline))["new_state"] == "distill"
    process.send_signal(2)
    assert await asyncio.to_thread(process.wait, 300) == ExitCode.DONE


async def test_gap_is_shown_at_its_place(fleet: Call, engine: Running, agent: AgentClient, archive: Path) -> None:
    """Between the facts around it, as text or as JSON."""
    archiver = next(each for each in engine.engine.components if each.name == "archiver")
    archiver._path = archive.parent / "elsewhere"  # type: ignore[attr-defined]
    await archiver._fail(ArchiveError("missing", "moved"))  # type: ignore[attr-defined]
    await agent.transition("distill")
    await engine.call("XTRIM", engine.keys.audit, "MAXLEN", "=", 0)
    await agent.transition("inbox")
    found = facts(await fleet("history", AGENT, "--archive", str(archive), "--json"))
    assert [*found[-2]] == ["gap"]
    assert found[-1]["new_state"] == "inbox"
    assert "entries are missing between" in (await fleet("history", AGENT, "--archive", str(archive))).out


# --- at an instant ----------------------------------------------------------------------------------------------------


async def test_agent_is_shown_as_it_was_at_an_instant(fleet: Call, agent: AgentClient, archive: Path) -> None:
    """At the instant of every state change: the state, and the open commands."""
    await fleet("send", AGENT, "work", "--id", "work-1")
    await eventually(lambda: _archived(archive, "command_queued"))
    await agent.call("result", {}, "work-1")
    found = facts(await fleet("history", AGENT, "--archive", str(archive), "--json"))
    changes = {fact["at"]: fact for fact in found if fact["event"] == "state_changed"}  # the last of each instant
    for fact in changes.values():
        shown = (await fleet("history", AGENT, "--at", fact["at"], "--archive", str(archive), "--json")).json
        assert (shown["state"], shown["since"], shown["basis"]) == (fact["new_state"], fact["at"], "recorded")
        assert shown["open_commands"] == []
    queued_at = next(fact["at"] for fact in found if fact["event"] == "command_queued")
    shown = (await fleet("history", AGENT, "--at", queued_at, "--archive", str(archive), "--json")).json
    assert [each["command_id"] for each in shown["open_commands"]] == ["work-1"]
    assert shown["type"] == "scribe"


def _archived(archive: Path, event: str) -> bool:
    return any(event in file.read_text() for file in archive.glob("*.jsonl"))


@pytest.mark.usefixtures("agent")
async def test_instant_before_the_oldest_entry_is_inferred(fleet: Call) -> None:
    """With a note that gives the reason, in both output formats."""
    done = await fleet("history", AGENT, "--at", "1d", "--json")
    assert (done.json["basis"], done.json["recorded_since"] > done.json["at"]) == ("inferred", True)
    assert done.json["notes"]
    shown = (await fleet("history", AGENT, "--at", "1d")).out
    assert "(inferred)" in shown
    assert "recorded_since" in shown


@pytest.mark.usefixtures("agent")
async def test_absent_agent_differs_from_an_unknown_one(fleet: Call, archive: Path) -> None:
    """Before it was first seen an agent was not in the fleet. An agent without any fact is refused."""
    done = await fleet("history", "nobody", "--at", "1s")
    assert (done.code, done.out) == (ExitCode.REFUSED, "")
    assert "no facts about an agent nobody are recorded" in done.err
    shown = (await fleet("history", AGENT, "--at", "1d", "--archive", str(archive))).out
    assert "not in the fleet" in shown


# --- errors -----------------------------------------------------------------------------------------------------------


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
async def test_wrong_usage_exits_with_64(fleet: Call, arguments: list[str]) -> None:
    """With one line on standard error."""
    done = await fleet("history", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (ExitCode.USAGE, "", 1)


async def test_unusable_archive_is_refused(fleet: Call, tmp_path: Path) -> None:
    """A directory without an archive, and the archive of another fleet."""
    done = await fleet("history", "a", "--archive", str(tmp_path / "nowhere"))
    assert (done.code, done.out) == (ExitCode.REFUSED, "")
    assert "nowhere" in done.err
    await asyncio.to_thread((tmp_path / "archive.json").write_text, '{"archive":"x","prefix":"other"}')
    done = await fleet("history", "a", "--archive", str(tmp_path))
    assert (done.code, "'other'" in done.err) == (ExitCode.REFUSED, True)


@pytest.mark.usefixtures("agent")
async def test_archive_is_shown_without_redis(cli: Call, archive: Path, prefix: str) -> None:
    """The exit code says that the audit is missing."""
    flags = ("--archive", str(archive), "--prefix", prefix, "--redis", "redis://127.0.0.1:1", "--json")
    done = await cli("history", AGENT, *flags)
    assert done.code == ExitCode.UNAVAILABLE
    assert "agent_registered" in [fact["event"] for fact in facts(done)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_progress_is_shown_on_a_terminal_after_a_second(stream: Callable[[], io.StringIO], *, shown: bool) -> None:
    """It is updated now and then, and cleared at the end. A pipe receives nothing."""
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
