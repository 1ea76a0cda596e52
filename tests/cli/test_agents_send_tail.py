"""Laws of the commands that stand beside a running engine: `agents`, `send`, `tail`."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from aism_engine.agent.client import AgentClient
from aism_engine.clock import from_iso
from aism_engine.store.embedded import EmbeddedServer
from tests.cli.conftest import Call
from tests.support.engine import Running, eventually, running_engine

AGENT = "scribe-1"


@pytest.fixture
async def engine(server: EmbeddedServer, prefix: str) -> AsyncIterator[Running]:
    with capture_logs():  # what a command prints is looked at here, not what the engine beside it logs
        async with running_engine(server, prefix) as engine:
            yield engine


@pytest.fixture
async def agent(server: EmbeddedServer, prefix: str, engine: Running) -> AsyncIterator[AgentClient]:
    """An agent that has registered, beats, and is in its inbox."""
    async with AgentClient(AGENT, url=server.url, prefix=prefix, answer_timeout_s=5) as client:
        await client.register("scribe", labels={"team": "a"})
        await client.heartbeat()
        await client.transition("inbox")
        await eventually(lambda: engine.engine.writer.fleet.agents[AGENT].liveness == "fresh")
        yield client


# --- agents -----------------------------------------------------------------------------------------------------------


async def test_agents_are_listed_with_what_is_known_of_them(fleet: Call, agent: AgentClient) -> None:
    """State, liveness, age of the heartbeat, open commands, measurements and queue are there for programs."""
    await agent.measure({"tokens": 12.5}, reply=True)
    await fleet("send", AGENT, "work", "--id", "work-1")
    (found,) = (await fleet("agents", "list", "--json")).json
    assert (found["agent_id"], found["type"], found["state"], found["liveness"]) == (AGENT, "scribe", "inbox", "fresh")
    assert found["measurements"] == {"tokens": 12.5}
    assert found["queued"] == 1
    assert [(each["command_id"], each["status"]) for each in found["open_commands"]] == [("work-1", "queued")]
    assert 0 <= found["heartbeat_age_s"] < 60
    assert (await fleet("agents", "show", AGENT, "--json")).json["labels"] == {"team": "a"}


@pytest.mark.usefixtures("agent")
async def test_people_get_a_table(fleet: Call) -> None:
    """One line an agent, under one of headings."""
    header, row = (await fleet("agents", "list")).out.splitlines()
    assert header.split() == ["AGENT", "TYPE", "STATE", "SINCE", "WAITS", "LIVENESS", "HEARTBEAT", "OPEN", "QUEUED"]
    assert row.split()[:3] == [AGENT, "scribe", "inbox"]
    assert f"agent         {AGENT}\n" in (await fleet("agents", "show", AGENT)).out


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--state", "inbox"], 1),
        (["--state", "idle"], 0),
        (["--type", "scribe", "--liveness", "fresh"], 1),
        (["--type", "clerk"], 0),
        (["--liveness", "lost"], 0),
    ],
)
async def test_a_list_can_be_narrowed(fleet: Call, flags: list[str], count: int) -> None:
    """All that is asked for has to fit."""
    assert len((await fleet("agents", "list", "--json", *flags)).json) == count


async def test_who_is_silent_is_listed_as_such_and_not_as_fresh(
    fleet: Call, server: EmbeddedServer, prefix: str
) -> None:
    """For people and for programs, with since when; its clock is an hour ahead, and has no say in it."""
    with capture_logs():
        async with running_engine(server, prefix, liveness__silent_after=0.3, liveness__lost_after=60.0) as engine:
            await engine.call("ZADD", engine.keys.heartbeats, time.time() + 3600, AGENT)
            await eventually(lambda: AGENT in engine.engine.writer.fleet.silent)
            (found,) = (await fleet("agents", "list", "--json", "--liveness", "silent")).json
            assert (found["agent_id"], found["liveness"]) == (AGENT, "silent")
            assert abs(from_iso(found["silent_since"]) - time.time()) < 30
            assert (await fleet("agents", "list", "--json", "--liveness", "fresh")).json == []
            assert "silent, for " in (await fleet("agents", "show", AGENT)).out
            assert (await fleet("top", "--once", "--json")).json["by_liveness"] == {"silent": 1}


async def test_an_operator_can_say_that_the_silent_are_gone(fleet: Call, server: EmbeddedServer, prefix: str) -> None:
    """It says how many that means, for people and for programs, and that there is nobody where there is none."""
    with capture_logs():
        async with running_engine(server, prefix, liveness__silent_after=0.3, liveness__lost_after=60.0) as engine:
            none = await fleet("agents", "confirm-losses")
            assert (none.code, none.out) == (0, "nobody is silent: there is nothing to confirm\n")
            await engine.call("ZADD", engine.keys.heartbeats, time.time() + 3600, AGENT)
            await eventually(lambda: AGENT in engine.engine.writer.fleet.silent)
            assert (await fleet("agents", "confirm-losses", "--reason", "gone", "--json")).json["silent"] == 1
            assert (await fleet("agents", "confirm-losses")).out.startswith("1 agent is silent: ")


@pytest.mark.usefixtures("agent")
async def test_an_agent_can_be_forgotten(fleet: Call) -> None:
    """It is gone from the list; to forget or show it again is refused."""
    assert (await fleet("agents", "forget", AGENT)).code == 0
    assert (await fleet("agents", "list", "--json")).json == []
    assert (await fleet("agents", "forget", AGENT)).code == 1
    assert (await fleet("agents", "show", AGENT)).code == 1


# --- send -------------------------------------------------------------------------------------------------------------


async def test_a_command_sent_is_accepted_and_lies_with_its_agent(fleet: Call, agent: AgentClient) -> None:
    """Code 0 means that the engine has it; its id is what is printed."""
    done = await fleet("send", AGENT, "work", "--payload", '{"n": 1}', "--id", "work-1")
    assert (done.code, done.out) == (0, "work-1 queued\n")
    command = await agent.next_command(1)
    assert command is not None
    assert (command.id, command.type, command.payload) == ("work-1", "work", {"n": 1})


@pytest.mark.usefixtures("agent")
async def test_a_command_that_is_not_allowed_is_refused_with_what_would_be(fleet: Call) -> None:
    """Code 1, and the engine's own reason and suggestions."""
    done = await fleet("send", AGENT, "state_transition", "--payload", '{"target": "deep_wok"}')
    assert (done.code, done.out) == (1, "")
    assert "deep_work" in done.err
    done = await fleet("send", "nobody", "work", "--json")
    assert (done.code, done.json["error"]["code"]) == (1, "unknown_agent")


async def test_nobody_answering_is_2(fleet: Call) -> None:
    """Without an engine the request stays queued, and the message says so and how to ask again."""
    done = await fleet("send", AGENT, "work", "--id", "work-1", "--wait-for", "0.1")
    assert (done.code, done.out) == (2, "")
    assert "stays queued" in done.err
    assert "--id work-1" in done.err


@pytest.mark.parametrize(("fails", "code", "status"), [(False, 0, "succeeded"), (True, 1, "failed")])
async def test_waiting_tells_the_outcome(
    fleet: Call, agent: AgentClient, *, fails: bool, code: int, status: str
) -> None:
    """The code is that of the outcome, and the record has the result."""
    sending = asyncio.create_task(fleet("send", AGENT, "work", "--wait", "--json"))
    command = await agent.next_command(5)
    assert command is not None
    if fails:
        await agent.error("no_luck", command_id=command.id)
    else:
        await agent.result(command.id, {"lines": 3})
    done = await sending
    assert (done.code, done.json["status"]) == (code, status)
    assert done.json.get("result") == (None if fails else {"lines": 3})


@pytest.mark.usefixtures("agent")
async def test_waiting_has_an_end(fleet: Call) -> None:
    """A command that has not ended in time is 2; one that has expired is 1."""
    done = await fleet("send", AGENT, "work", "--wait", "--wait-for", "0.5")
    assert done.code == 2
    assert "still" in done.err
    done = await fleet("send", AGENT, "work", "--wait", "--ttl", "0.1")
    assert (done.code, done.out.split()[1]) == (1, "expired")


# --- tail -------------------------------------------------------------------------------------------------------------


async def test_tail_follows_what_happens(fleet: Call, agent: AgentClient) -> None:
    """Each event is a line of JSON, of the kinds and the agent that are asked for, and it stops after so many."""
    flags = ("--type", "state_changed", "--type", "measurement", "--agent", AGENT, "--count", "2", "--json")
    following = asyncio.create_task(fleet("tail", *flags))

    async def stir() -> bool:
        state = await agent.state()
        await agent.transition("deep_work" if state == "inbox" else "inbox")
        await agent.measure({"tokens": 1})
        return following.done()

    await eventually(stir)
    events = [json.loads(line) for line in (await following).out.splitlines()]
    assert len(events) == 2
    assert {event["event"] for event in events} <= {"state_changed", "measurement"}
    assert {event["agent_id"] for event in events} == {AGENT}


async def test_open_divergences_are_listed_and_shown_with_their_agent(
    server: EmbeddedServer, prefix: str, cli: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said and what is seen, for people and for programs; a rule that does not exist is a wrong usage."""
    where = ("--redis", server.url, "--prefix", prefix)
    quick = {"divergence__poll_interval": 0.02, "divergence__idle_evidence_after": 0.05}
    async with running_engine(server, prefix, **quick) as engine:
        moves = ({"type": "state_transition", "payload": {"target": state}} for state in ("inbox", "deep_work"))
        await engine.say(
            *(each | {"agent_id": "a"} for each in ({"type": "register", "payload": {"type": "scribe"}}, *moves))
        )
        await eventually(lambda: engine.audit("divergence_opened"))
    capsys.readouterr()  # what the engine has said
    (found,) = (await cli("divergences", *where, "--json")).json
    assert (found["agent_id"], found["type"], found["rule"]) == ("a", "scribe", "idle_at_work")
    assert (found["confidence"], found["declared"]["state"]) == ("possible", "deep_work")
    assert found["declared"]["via"] == "queue"
    assert found["reason"] in (await cli("divergences", *where, "--rule", "idle_at_work")).out
    assert (await cli("divergences", *where, "--rule", "never_acks", "--json")).json == []
    assert (await cli("divergences", *where, "--type", "clerk", "--json")).json == []
    assert (await cli("agents", "show", "a", *where, "--json")).json["divergences"] == [found]
    assert f"{found['reason']} (possible)" in (await cli("agents", "show", "a", *where)).out
    wrong = await cli("divergences", *where, "--rule", "never_sleeps")
    assert (wrong.code, "never_acks" in wrong.err) == (64, True)
