"""Laws of `agents` and `divergences`."""

import re
import time

import pytest
from structlog.testing import capture_logs

from aism_engine.agent.client import AgentClient
from aism_engine.clock import from_iso
from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call, response
from tests.support.engine import Running, eventually, running_engine


async def test_list_has_everything_for_programs(
    fleet: Call, engine: Running, server: EmbeddedServer, prefix: str
) -> None:
    async with AgentClient("w-0", url=server.url, prefix=prefix) as agent:
        await agent.heartbeat()
        await agent.transition("inbox")
        await agent.call("measurement", {"tokens": 12.5})
    assert (await fleet("send", "w-0", "work", "--id", "work-1")).code == 0
    await eventually(lambda: engine.engine.writer.fleet.agents["w-0"].liveness == "fresh")
    found = (await fleet("agents", "list", "--json")).json[0]
    assert (found["agent_id"], found["type"], found["state"], found["liveness"]) == ("w-0", "worker", "inbox", "fresh")
    assert found["measurements"] == {"tokens": 12.5}
    assert found["queued"] == 1
    assert [(each["command_id"], each["status"]) for each in found["open_commands"]] == [("work-1", "queued")]
    assert found["heartbeat_age_s"] >= 0
    assert from_iso(found["first_seen_at"]) <= from_iso(found["since"])
    assert (await fleet("agents", "show", "w-0", "--json")).json["labels"] == {"team": "a"}


@pytest.mark.usefixtures("engine")
async def test_list_is_a_table_for_people(fleet: Call) -> None:
    """One header and one line for each agent. A column that is empty for all agents is left out."""
    header, row, *_ = (await fleet("agents", "list")).out.splitlines()
    assert header.split("  ")[0] == "AGENT"
    assert " ".join(header.split()) == "AGENT TYPE STATE SINCE LIVENESS QUEUED"
    assert row.split()[:3] == ["w-0", "worker", "bootstrap"]
    assert "agent_id         w-0\n" in (await fleet("agents", "show", "w-0")).out


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--state", "bootstrap"], 3),
        (["--state", "idle"], 0),
        (["--type", "worker", "--liveness", "unknown"], 3),
        (["--type", "clerk"], 0),
        (["--liveness", "lost"], 0),
    ],
)
async def test_list_filters_by_all_flags(fleet: Call, flags: list[str], count: int) -> None:
    assert len((await fleet("agents", "list", "--json", *flags)).json) == count


async def test_silent_agents_are_shown_and_losses_confirmed(fleet: Call, server: EmbeddedServer, prefix: str) -> None:
    """A silent agent is not listed as fresh; its own clock, an hour ahead, does not matter."""
    with capture_logs():
        async with running_engine(server, prefix, liveness__silent_after=0.3, liveness__lost_after=600.0) as engine:
            none = await fleet("agents", "confirm-losses")
            assert (none.code, none.out) == (0, "no agent is silent: there is nothing to confirm\n")
            await engine.call("ZADD", engine.keys.heartbeats, time.time() + 3600, "a-1")
            await eventually(lambda: "a-1" in engine.engine.writer.fleet.silent)
            (found,) = (await fleet("agents", "list", "--json", "--liveness", "silent")).json
            assert (found["agent_id"], found["liveness"]) == ("a-1", "silent")
            assert abs(from_iso(found["silent_since"]) - time.time()) < 300
            assert (await fleet("agents", "list", "--json", "--liveness", "fresh")).json == []
            assert re.search(r"silent_since +\S+Z \(\S+ ago\)", (await fleet("agents", "show", "a-1")).out)
            assert (await fleet("top", "--once", "--json")).json["by_liveness"] == {"silent": 1}
            assert (await fleet("agents", "confirm-losses", "--reason", "gone", "--json")).json["silent"] == 1
            assert (await fleet("agents", "confirm-losses")).out.startswith("1 agent is silent. ")


async def test_a_heartbeat_score_that_is_no_time_has_no_age(fleet: Call, engine: Running) -> None:
    """It breaks neither the table nor the JSON; a clock that is ahead is shown as such."""
    scores = {"w-0": "inf", "w-1": "1e308", "w-2": str(time.time() + 9000)}
    for worker, score in scores.items():
        await engine.call("ZADD", engine.keys.heartbeats, score, worker)
    ages = [each["heartbeat_age_s"] for each in (await fleet("agents", "list", "--json")).json]
    assert (ages[:2], round(ages[2] / 9000)) == ([None, None], -1)
    _, *rows = (await fleet("agents", "list")).out.splitlines()
    assert [row.split()[-2] for row in rows] == ["-", "-", "-2h"]


@pytest.mark.usefixtures("engine")
async def test_a_forgotten_agent_is_gone(fleet: Call) -> None:
    """It is not listed, and cannot be shown or forgotten again."""
    assert (await fleet("agents", "forget", "w-0")).out == "agent w-0 is forgotten\n"
    assert [each["agent_id"] for each in (await fleet("agents", "list", "--json")).json] == ["w-1", "w-2"]
    assert (await fleet("agents", "forget", "w-0")).code == 1
    assert (await fleet("agents", "show", "w-0")).code == 1


async def test_open_divergences_are_listed_and_shown_with_their_agent(
    fleet: Call, server: EmbeddedServer, prefix: str
) -> None:
    with capture_logs():
        fast = {"divergence__poll_interval": 0.02, "divergence__idle_evidence_after": 0.05}
        async with running_engine(server, prefix, **fast) as engine:
            await engine.say(
                response("a", "register", type="scribe"),
                response("a", "state_transition", target="inbox"),
                response("a", "state_transition", target="deep_work") | {"id": "to-deep-work"},
            )
            await eventually(lambda: engine.audit("divergence_opened"))
    (found,) = (await fleet("divergences", "--json")).json
    assert (found["agent_id"], found["type"], found["rule"]) == ("a", "scribe", "idle_at_work")
    assert (found["confidence"], found["declared"]["state"]) == ("possible", "deep_work")
    assert found["declared"]["via"] == "queue"
    header, row = (await fleet("divergences", "--rule", "idle_at_work")).out.splitlines()
    assert " ".join(header.split()) == "AGENT TYPE RULE CONFIDENCE SINCE REASON"
    assert found["reason"] in row
    assert (await fleet("divergences", "--rule", "never_acks", "--json")).json == []
    assert (await fleet("divergences", "--type", "clerk", "--json")).json == []
    assert (await fleet("agents", "show", "a", "--json")).json["divergences"] == [found]
    assert found["reason"] in (await fleet("agents", "show", "a")).out
    unknown = await fleet("divergences", "--rule", "never_sleeps")
    assert (unknown.code, "never_acks" in unknown.err) == (64, True)
