"""The laws of the timeline: it reconstructs an agent, and claims nothing that a missing fact could change."""

from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.clock import iso
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.commands.command import Command, Status
from aism_engine.ops.audit_log import AuditLine, Gap, Rollback, line_from_entry
from aism_engine.ops.timeline import AgentAtInstant, OpenCommand, Timeline
from aism_engine.ops.views import AgentView

AGENT: Final = "scribe-1"
BEGIN: Final = 1_800_000_000.0


def entry_id(second: float) -> str:
    return f"{(BEGIN + second) * 1000:.0f}-0"


def entry(second: float, *facts: dict[str, Any]) -> AuditLine:
    """Return an audit entry, this many seconds after BEGIN, with facts about the agent at that instant."""
    items = [{"at": iso(BEGIN + second), "by": "agent", "agent_id": AGENT, **fact} for fact in facts]
    fields = {b"commit": f"c{second}".encode(), b"epoch": b"1", b"facts": msgspec.json.encode(items)}
    return line_from_entry(entry_id(second).encode(), fields)


def first_seen(state: str = "offline") -> dict[str, Any]:
    return {"event": "agent_first_seen", "type": "unknown", "new_state": state}


def changed(old: str, new: str) -> dict[str, Any]:
    return {"event": "state_changed", "old_state": old, "new_state": new, "source": "agent"}


def command(status: str, command_id: str = "work-1") -> dict[str, Any]:
    return {"event": f"command_{status}", "command_id": command_id, "type": "work"}


def idle_since(since: float, *commands: Command) -> AgentView:
    """Return the current records of the agent."""
    record = AgentRecord(agent_id=AGENT, type="scribe", state="idle", since=since, first_seen_at=since)
    return AgentView(agent=record, heartbeat_age_s=None, queued=None, commands=list(commands))


def reconstruct(at: float, *lines: AuditLine, now: AgentView | None = None) -> AgentAtInstant:
    timeline = Timeline(AGENT)
    for line in lines:
        timeline.add(line)
    return timeline.reconstruct(BEGIN + at, next((line.id for line in lines if line.id), ""), now)


# --- the state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "state", "since"),
    [(0, "offline", 0), (9.999, "offline", 0), (10, "inbox", 10), (15, "inbox", 10), (99, "idle", 20)],
)
def test_state_holds_from_its_change_until_the_next(at: float, state: str, since: float) -> None:
    lines = (entry(0, first_seen()), entry(10, changed("offline", "inbox")), entry(20, changed("inbox", "idle")))
    agent = reconstruct(at, *lines)
    assert (agent.state, agent.since, agent.basis) == (state, iso(BEGIN + since), "recorded")


def test_agent_is_absent_before_it_is_first_seen_and_after_it_is_forgotten() -> None:
    """That is recorded, not unknown."""
    lines = (entry(0), entry(5, first_seen()), entry(10, {"event": "agent_forgotten", "old_state": "offline"}))
    for at in (2, 12):
        agent = reconstruct(at, *lines)
        assert (agent.state, agent.presence, agent.basis) == (None, "not_in_fleet", "recorded")
    assert reconstruct(7, *lines).presence == "present"


def test_state_before_the_first_change_is_recorded_if_no_fact_is_missing() -> None:
    agent = reconstruct(5, entry(0), entry(10, changed("inbox", "idle")))
    assert (agent.state, agent.since, agent.basis) == ("inbox", None, "recorded")


def test_state_before_the_oldest_entry_is_inferred_with_a_note() -> None:
    agent = reconstruct(-60, entry(0), entry(10, changed("inbox", "idle")))
    assert (agent.state, agent.basis, agent.recorded_since) == ("inbox", "inferred", iso(BEGIN))
    assert iso(BEGIN) in agent.notes[0]


def test_state_without_any_fact_is_unknown() -> None:
    """Neither the facts nor the current record reach back to the instant."""
    agent = reconstruct(5, entry(0), now=idle_since(BEGIN + 50))
    assert (agent.state, agent.basis) == (None, "unknown")
    assert reconstruct(5).recorded_since is None


def test_current_record_tells_an_unchanged_state() -> None:
    """The last change may be older than the oldest entry."""
    agent = reconstruct(-10, entry(0), now=idle_since(BEGIN - 1000))
    assert (agent.state, agent.since, agent.basis) == ("idle", iso(BEGIN - 1000), "recorded")


def test_state_behind_a_gap_is_inferred_unless_a_later_fact_tells_it() -> None:
    lines = [entry(0, first_seen()), AuditLine(gap=Gap(entry_id(2), entry_id(8), 4)), entry(8)]
    assert reconstruct(1, *lines).basis == "recorded"
    agent = reconstruct(9, *lines)
    assert (agent.state, agent.basis, len(agent.notes)) == ("offline", "inferred", 1)
    lines.append(entry(10, changed("inbox", "idle")))
    agent = reconstruct(9, *lines)
    assert (agent.state, agent.basis) == ("inbox", "recorded")
    assert reconstruct(5, *lines).basis == "inferred"


def test_facts_of_the_first_entry_count_from_their_own_instant() -> None:
    """An entry is written a moment after its facts. Nothing is missing between them, also behind a gap."""
    first = entry(0, {**first_seen(), "at": iso(BEGIN - 0.25)})
    assert reconstruct(-0.1, first).basis == "recorded"
    later = entry(9, {**changed("inbox", "idle"), "at": iso(BEGIN + 8.75)})
    agent = reconstruct(8.9, first, AuditLine(gap=Gap(first.id, later.id, None)), later)
    assert (agent.state, agent.basis) == ("idle", "recorded")


def test_rollback_undoes_facts() -> None:
    kept, lost = entry(5, changed("offline", "inbox")), entry(10, changed("inbox", "idle"))
    partial = AuditLine(rollback=Rollback(kept.id, lost.id))
    assert reconstruct(20, entry(0, first_seen()), kept, lost, partial, entry(15)).state == "inbox"
    complete = AuditLine(rollback=Rollback("0-0", lost.id))
    assert reconstruct(20, entry(0, first_seen()), kept, lost, complete, entry(15, first_seen("home"))).state == "home"


@pytest.mark.parametrize(
    ("events", "presence"),
    [
        (["agent_first_seen"], "present"),
        (["agent_first_seen", "agent_lost"], "lost"),
        (["agent_first_seen", "agent_left"], "left"),
        (["agent_first_seen", "agent_lost", "agent_returned"], "present"),
        (["agent_left", "agent_registered"], "present"),
    ],
)
def test_presence_is_that_of_the_last_fact(events: list[str], presence: str) -> None:
    assert (
        reconstruct(9, *(entry(second, {"event": event}) for second, event in enumerate(events))).presence == presence
    )


def test_type_is_that_of_the_last_fact() -> None:
    lines = (entry(0, first_seen()), entry(5, {"event": "agent_registered", "type": "scribe"}))
    assert (reconstruct(3, *lines).type, reconstruct(6, *lines).type) == ("unknown", "scribe")


# --- the commands -----------------------------------------------------------------------------------------------------


def test_command_is_open_from_acceptance_to_its_end() -> None:
    """With its status at the instant."""
    steps = ("scheduled", "waiting", "queued", "delivered", "acked", "retried", "dead")
    lines = [entry(0, first_seen()), *(entry(second, command(step)) for second, step in enumerate(steps, 1))]
    found = [[each.status for each in reconstruct(at, *lines).open_commands] for at in range(9)]
    assert found == [[], ["scheduled"], ["waiting"], ["queued"], ["delivered"], ["acked"], ["waiting"], [], []]


@pytest.mark.parametrize("status", ["succeeded", "failed", "expired", "cancelled", "dead"])
def test_every_final_status_ends_its_command_only(status: str) -> None:
    lines = (entry(0, first_seen(), command("queued"), command("queued", "work-2")), entry(5, command(status)))
    assert [each.command_id for each in reconstruct(9, *lines).open_commands] == ["work-2"]


def test_command_whose_acceptance_is_missing_was_open_before_its_end() -> None:
    """Since the oldest entry that is certain, though not its status."""
    lines = (entry(0), entry(10, command("succeeded")))
    expected = OpenCommand(command_id="work-1", type="work", status=None, since=None, basis="recorded")
    assert reconstruct(5, *lines).open_commands == [expected]
    assert [each.basis for each in reconstruct(-5, *lines).open_commands] == ["inferred"]


def test_current_command_without_facts_was_open_since_its_acceptance() -> None:
    accepted = {"old": (Status.ACKED, BEGIN - 50), "new": (Status.QUEUED, BEGIN + 50)}
    commands = [
        Command(command_id=name, agent_id=AGENT, type="work", status=status, accepted_at=at, expires_at=at + 3600)
        for name, (status, at) in accepted.items()
    ]
    now = idle_since(BEGIN - 90, *commands)
    found = reconstruct(5, entry(0), now=now).open_commands
    assert [(each.command_id, each.status) for each in found] == [("old", "acked")]
    assert [each.status for each in reconstruct(-5, entry(0), now=now).open_commands] == [None]


@pytest.mark.parametrize(
    "facts",
    [b"[1,2]", b'[{"event":1}]', b'[{"event":"x","at":"soon","by":"agent"}]', b"{", b"\xff", b"[" * 5000, b"null"],
)
def test_foreign_entries_are_ignored(facts: bytes) -> None:
    foreign = line_from_entry(b"1-0", {b"commit": b"c", b"facts": facts})
    assert reconstruct(5, entry(0, first_seen()), foreign).state == "offline"


# --- properties -------------------------------------------------------------------------------------------------------

STATES: Final = ("offline", "inbox", "idle", "deep_work")
STEPS: Final = st.lists(st.tuples(st.sampled_from(STATES), st.sampled_from(["", *"abcdef"])), max_size=30)


def simulated(steps: list[tuple[str, str]]) -> tuple[list[AuditLine], list[tuple[str, frozenset[str]]]]:
    """Return the entries of an agent's life, and its state and open commands after each second.

    In each second the agent changes to a state, and a command begins or ends. Each id is used for one command.
    """
    state, open_ids, ended_ids = "offline", frozenset[str](), set[str]()
    lines, truth = [entry(0, first_seen())], [(state, open_ids)]
    for second, (target, command_id) in enumerate(steps, 1):
        facts = [changed(state, target)] if target != state else []
        if command_id and command_id not in ended_ids:
            ended_ids |= open_ids & {command_id}
            facts.append(command("succeeded" if command_id in open_ids else "queued", command_id))
            open_ids ^= {command_id}
        state = target
        lines.append(entry(second, *facts))
        truth.append((state, open_ids))
    return lines, truth


@given(STEPS, st.data())
def test_complete_facts_give_the_truth_at_every_instant(steps: list[tuple[str, str]], data: st.DataObject) -> None:
    lines, truth = simulated(steps)
    at = data.draw(st.integers(0, len(steps)))
    agent = reconstruct(at + 0.5, *lines)
    assert (agent.state, agent.basis) == (truth[at][0], "recorded")
    assert {each.command_id for each in agent.open_commands} == truth[at][1]


@given(STEPS, st.data())
def test_what_is_recorded_is_true_whatever_is_missing(steps: list[tuple[str, str]], data: st.DataObject) -> None:
    """Any beginning may be trimmed, and any gap torn."""
    lines, truth = simulated(steps)
    first = data.draw(st.integers(0, len(steps)))
    gap_begin = data.draw(st.integers(first, len(steps)))
    gap_end = data.draw(st.integers(gap_begin, len(steps)))
    kept = lines[first : gap_begin + 1]
    if gap_end > gap_begin + 1:
        kept.append(AuditLine(gap=Gap(lines[gap_begin].id, lines[gap_end].id, None)))
    kept += lines[max(gap_end, gap_begin + 1) :]
    at = data.draw(st.integers(0, len(steps)))
    agent = reconstruct(at + 0.5, *kept)
    if agent.basis == "recorded":
        assert agent.state == truth[at][0]
    assert {each.command_id for each in agent.open_commands if each.basis == "recorded"} <= truth[at][1]
