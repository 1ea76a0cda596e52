"""The laws of the history: how an agent stood is made out from the facts, and what is not known is not claimed."""

from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.clock import from_iso, iso
from aism_engine.ops.audit_log import AuditLine, Cursor, Gap, Rollback, check_continuity, entry_day, line_from_entry
from aism_engine.ops.timeline import AgentAtInstant, AgentNow, OpenCommand, Timeline

AGENT: Final = "scribe-1"
BEGIN: Final = 1_800_000_000.0


def entry(second: float, *facts: dict[str, Any], number: int = 0) -> AuditLine:
    """An entry of the audit, so many seconds after the beginning, with these facts of our agent at that instant."""
    told = [{"at": iso(BEGIN + second), "by": "agent", "agent_id": AGENT, **fact} for fact in facts]
    fields = {b"commit": f"c{second}-{number}".encode(), b"epoch": b"1", b"facts": msgspec.json.encode(told)}
    return line_from_entry(f"{(BEGIN + second) * 1000:.0f}-{number}".encode(), fields)


def met(state: str = "offline") -> dict[str, Any]:
    return {"event": "agent_first_seen", "type": "unknown", "new_state": state}


def changed(old: str, new: str) -> dict[str, Any]:
    return {"event": "state_changed", "old_state": old, "new_state": new, "source": "agent"}


def command(what: str, command_id: str = "work-1") -> dict[str, Any]:
    return {"event": f"command_{what}", "command_id": command_id, "type": "work"}


def stood(
    at: float, *lines: AuditLine, first: AuditLine | None = None, present: AgentNow | None = None
) -> AgentAtInstant:
    timeline = Timeline(AGENT)
    for each in lines:
        timeline.add(each)
    oldest = first or next((each for each in lines if each.id), None)
    return timeline.reconstruct(BEGIN + at, oldest.id if oldest else "", present)


# --- the state --------------------------------------------------------------------------------------------------------


def test_it_is_in_the_state_that_it_went_to_last() -> None:
    """From the instant of a change on, up to the next."""
    lines = (entry(0, met()), entry(10, changed("offline", "inbox")), entry(20, changed("inbox", "idle")))
    for at, state, since in (
        (0, "offline", 0),
        (9.999, "offline", 0),
        (10, "inbox", 10),
        (15, "inbox", 10),
        (99, "idle", 20),
    ):
        standing = stood(at, *lines)
        assert (standing.state, standing.since, standing.basis) == (state, iso(BEGIN + since), "recorded")


def test_it_is_not_in_the_fleet_before_it_is_met_and_after_it_is_forgotten() -> None:
    """That is known, not unknown."""
    lines = (entry(0), entry(5, met()), entry(10, {"event": "agent_forgotten", "old_state": "offline"}))
    for at in (2, 12):
        standing = stood(at, *lines)
        assert (standing.state, standing.presence, standing.basis) == (None, "absent", "recorded")
    assert stood(7, *lines).presence == "present"


def test_a_state_from_before_what_is_kept_is_known_from_the_next_change() -> None:
    """While the record is whole from the instant to that change there is no doubt about it."""
    lines = (entry(0), entry(10, changed("inbox", "idle")))
    standing = stood(5, *lines)
    assert (standing.state, standing.since, standing.basis) == ("inbox", None, "recorded")


def test_an_instant_before_what_is_kept_is_inferred_and_says_since_when_is_kept() -> None:
    """What it was when the record begins it may not have been before."""
    standing = stood(-60, entry(0), entry(10, changed("inbox", "idle")))
    assert (standing.state, standing.basis, standing.recorded_since) == ("inbox", "inferred", iso(BEGIN))
    assert iso(BEGIN) in standing.notes[0]


def test_what_nothing_tells_of_is_unknown() -> None:
    """Neither the facts nor the records of today reach back."""
    present = AgentNow(state="idle", since=BEGIN + 50, type="scribe")
    standing = stood(5, entry(0), present=present)
    assert (standing.state, standing.basis) == (None, "unknown")
    assert stood(5).recorded_since is None


def test_the_record_of_today_tells_of_one_that_has_not_changed_since() -> None:
    """Its last change may be older than all that is kept."""
    present = AgentNow(state="idle", since=BEGIN - 1000, type="scribe")
    standing = stood(-10, entry(0), present=present)
    assert (standing.state, standing.since, standing.basis) == ("idle", iso(BEGIN - 1000), "recorded")


def test_a_gap_between_the_last_fact_and_the_instant_leaves_a_doubt() -> None:
    """Unless what comes after the gap tells of it."""
    gap = AuditLine(gap=Gap(f"{(BEGIN + 2) * 1000:.0f}-0", f"{(BEGIN + 8) * 1000:.0f}-0", 4))
    lines = (entry(0, met()), gap, entry(8))
    assert stood(1, *lines).basis == "recorded"
    standing = stood(9, *lines)
    assert (standing.state, standing.basis) == ("offline", "inferred")
    assert standing.notes
    standing = stood(9, *lines, entry(10, changed("inbox", "idle")))
    assert (standing.state, standing.basis) == ("inbox", "recorded")
    assert stood(5, *lines, entry(10, changed("inbox", "idle"))).basis == "inferred"


def test_the_facts_of_the_first_entry_count_from_when_they_were_so() -> None:
    """It was written a moment later: behind that moment nothing is missing, whether it is the first or behind a gap."""
    written = entry(0, {**met(), "at": iso(BEGIN - 0.25)})
    assert stood(-0.1, written).basis == "recorded"
    later = entry(9, {**changed("inbox", "idle"), "at": iso(BEGIN + 8.75)})
    gap = AuditLine(gap=Gap(written.id, later.id, None))
    assert (stood(8.9, written, gap, later).state, stood(8.9, written, gap, later).basis) == ("idle", "recorded")


def test_what_was_undone_did_not_happen() -> None:
    """A server that goes back takes the agent back with it."""
    kept, lost = entry(5, changed("offline", "inbox")), entry(10, changed("inbox", "idle"))
    back = AuditLine(rollback=Rollback(kept.id, lost.id))
    assert stood(20, entry(0, met()), kept, lost, back, entry(15)).state == "inbox"
    anew = AuditLine(rollback=Rollback("0-0", lost.id))
    assert stood(20, entry(0, met()), kept, lost, anew, entry(15, met("home"))).state == "home"


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
def test_whether_it_was_there_is_told(events: list[str], presence: str) -> None:
    """By the last that was said of it."""
    assert stood(9, *(entry(second, {"event": event}) for second, event in enumerate(events))).presence == presence


def test_its_type_is_the_last_that_was_told() -> None:
    """By meeting, registering, or a change of its metadata."""
    lines = (entry(0, met()), entry(5, {"event": "agent_registered", "type": "scribe"}))
    assert (stood(3, *lines).type, stood(6, *lines).type) == ("unknown", "scribe")


# --- its commands -----------------------------------------------------------------------------------------------------


def test_a_command_is_open_from_its_acceptance_to_its_end() -> None:
    """With the status that it had come to."""
    status_changes = ("scheduled", "waiting", "queued", "delivered", "acked", "retried", "dead")
    lines = [entry(0, met()), *(entry(second, command(step)) for second, step in enumerate(status_changes, 1))]
    told = [[each.status for each in stood(at, *lines).open_commands] for at in range(9)]
    assert told == [[], ["scheduled"], ["waiting"], ["queued"], ["delivered"], ["acked"], ["waiting"], [], []]


@pytest.mark.parametrize("end", ["succeeded", "failed", "expired", "cancelled", "dead"])
def test_every_end_ends_it(end: str) -> None:
    """And only its own."""
    lines = (entry(0, met(), command("queued"), command("queued", "work-2")), entry(5, command(end)))
    assert [each.command_id for each in stood(9, *lines).open_commands] == ["work-2"]


def test_a_command_that_ends_without_a_beginning_was_open_before() -> None:
    """It was accepted before what is kept: from then on that is certain, how far it had come is not."""
    lines = (entry(0), entry(10, command("succeeded")))
    expected = OpenCommand(command_id="work-1", type="work", status=None, since=None, basis="recorded")
    assert stood(5, *lines).open_commands == [expected]
    assert [each.basis for each in stood(-5, *lines).open_commands] == ["inferred"]


def test_a_command_of_today_that_nothing_tells_of_was_open_since_it_was_accepted() -> None:
    """The records reach back further than the facts."""
    commands = [("old", "work", "acked", BEGIN - 50), ("new", "work", "queued", BEGIN + 50)]
    present = AgentNow(state="idle", since=BEGIN - 90, type="scribe", commands=commands)
    assert [(each.command_id, each.status) for each in stood(5, entry(0), present=present).open_commands] == [
        ("old", "acked")
    ]
    assert [each.status for each in stood(-5, entry(0), present=present).open_commands] == [None]


def test_what_others_have_written_into_the_audit_is_passed_over() -> None:
    """No input stops a replay."""
    facts = [
        b"[1,2]",
        b'[{"event":1}]',
        b'[{"event":"x","at":"soon","by":"agent"}]',
        b"{",
        b"\xff",
        b"[" * 5000,
        b"null",
    ]
    strange = [line_from_entry(b"1-0", {b"commit": b"c", b"facts": each}) for each in facts]
    assert stood(5, entry(0, met()), *strange).state == "offline"


# --- properties -------------------------------------------------------------------------------------------------------

STATES: Final = ("offline", "inbox", "idle", "deep_work")
STEPS: Final = st.lists(st.tuples(st.sampled_from(STATES), st.sampled_from(["", *"abcdef"])), max_size=30)


def lived(status_changes: list[tuple[str, str]]) -> tuple[list[AuditLine], list[tuple[str, frozenset[str]]]]:
    """A life: at each second it goes to a state, and a command begins or ends; and how it stood after each second.

    An id is that of one command for ever.
    """
    state, begun, lines, stood_so = "offline", frozenset[str](), [entry(0, met())], [("offline", frozenset[str]())]
    ended = set[str]()
    for second, (target, command_id) in enumerate(status_changes, 1):
        facts = [changed(state, target)] if target != state else []
        if command_id and command_id not in ended:
            ended |= begun & {command_id}
            facts.append(command("succeeded" if command_id in begun else "queued", command_id))
            begun ^= {command_id}
        state = target
        lines.append(entry(second, *facts))
        stood_so.append((state, begun))
    return lines, stood_so


@given(STEPS, st.data())
def test_every_instant_is_as_it_was(status_changes: list[tuple[str, str]], data: st.DataObject) -> None:
    """With all facts at hand the answer is the truth, at whatever instant one asks."""
    lines, truth = lived(status_changes)
    at = data.draw(st.integers(0, len(status_changes)))
    standing = stood(at + 0.5, *lines)
    assert (standing.state, standing.basis) == (truth[at][0], "recorded")
    assert {each.command_id for each in standing.open_commands} == truth[at][1]


@given(STEPS, st.data())
def test_what_is_called_recorded_is_so_whatever_is_missing(
    status_changes: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Trim any beginning, tear any gap: an answer is true, or it does not claim to be."""
    lines, truth = lived(status_changes)
    kept_from = data.draw(st.integers(0, len(status_changes)))
    torn_from = data.draw(st.integers(kept_from, len(status_changes)))
    torn_to = data.draw(st.integers(torn_from, len(status_changes)))
    kept = lines[kept_from : torn_from + 1]
    if torn_to > torn_from + 1:
        kept.append(AuditLine(gap=Gap(lines[torn_from].id, lines[torn_to].id, None)))
    kept += lines[max(torn_to, torn_from + 1) :]
    at = data.draw(st.integers(0, len(status_changes)))
    standing = stood(at + 0.5, *kept)
    if standing.basis == "recorded":
        assert standing.state == truth[at][0]
    sure = {each.command_id for each in standing.open_commands if each.basis == "recorded"}
    assert sure <= truth[at][1]


# --- the log ----------------------------------------------------------------------------------------------------------

HERE: Final = Cursor("5-0", "c5", 5)


@pytest.mark.parametrize(
    ("found", "first", "first_number", "expected"),
    [
        ("c5", "1-0", 1, ("intact", 0)),
        ("c5", "5-0", 5, ("intact", 0)),
        (None, "6-0", 6, ("intact", 0)),
        (None, "9-0", 9, ("gap", 3)),
        (None, "9-0", None, ("gap", None)),
        (None, "9-0", 2, ("gap", None)),
        (None, "1-0", 1, ("rollback", None)),
        ("other", "5-0", 5, ("rollback", None)),
    ],
)
def test_what_is_missing_is_judged_by_the_entry_at_the_cursor(
    found: str | None, first: str, first_number: int | None, expected: tuple[str, int | None]
) -> None:
    """It is there: nothing. It is gone: trimmed where all that is left is younger, else it went back."""
    assert check_continuity(HERE, found, first, first_number) == expected


def test_a_mere_place_misses_nothing() -> None:
    """Nobody has said that there was an entry."""
    assert check_continuity(Cursor("5-0"), None, "9-0", 9) == ("intact", 0)


def test_a_line_survives_its_file() -> None:
    """It is one line, whatever whitespace somebody put into the facts, and reads as it was written."""
    fields = {b"commit": b"c", b"epoch": b"3", b"facts": b'[{"event":\n"x"}]', b"message_ids": b'[["a","m1"]]'}
    written = msgspec.json.encode(line_from_entry(b"1-0", fields, 7))
    assert written == b'{"id":"1-0","n":7,"commit":"c","epoch":"3","facts":[{"event":"x"}],"message_ids":[["a","m1"]]}'
    assert msgspec.json.encode(msgspec.json.decode(written, type=AuditLine)) == written


def test_an_entry_of_a_strangers_is_kept_in_text() -> None:
    """With every field; it has no facts, and a mark in place of a commit."""
    found = line_from_entry(b"1-0", {b"who": b"\xff\n"})
    assert (found.foreign, found.commit, found.decoded_facts()) == ({"who": "\\xff\n"}, "-", [])
    assert b"\n" not in msgspec.json.encode(found)


def test_the_day_of_an_entry_is_that_of_its_id() -> None:
    """In UTC; a time that is in no calendar has the day before all."""
    at = from_iso("2026-11-22T23:59:59.999Z")
    assert (entry_day(f"{at * 1000:.0f}-0"), entry_day(f"{at * 1000 + 1:.0f}-0")) == ("2026-11-22", "2026-11-23")
    assert entry_day("18446744073709551615-0") == "0001-01-01"
