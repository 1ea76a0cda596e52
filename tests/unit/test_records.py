"""Records: every struct is read back as it was written, also from records of other versions."""

import pytest
from msgspec import structs, to_builtins

from aism_engine.domain.agents.agent import AgentRecord, Divergence, Hold, Liveness, decode_agent
from aism_engine.domain.commands.command import COMMAND_TABLE, Command, Status
from aism_engine.domain.commands.group import GROUP_TABLE, Group
from aism_engine.domain.protocol.codec import encode
from tests.support.model import decode_record

AGENT = AgentRecord(
    agent_id="a",
    type="scribe",
    registered=True,
    labels={"team": "x"},
    capabilities=("ack",),
    codec="msgpack",
    state="inbox",
    since=1_800_000_000.125,
    declared="idle",
    declared_at=1_800_000_001.0,
    declared_via="channel",
    liveness=Liveness.LOST,
    lost_from="idle",
    lost_score="inf",
    lost_at=1_800_000_002.0,
    first_seen_at=1_700_000_000.0,
    hold=Hold.PAUSE,
    waits_for="human",
    cooldowns={"idle": 1_800_000_009.0},
    mail_waiting=3,
    divergences={"never_acks": Divergence(since="2027-01-15T08:00:00.000Z", confidence="likely", reason="because")},
)
COMMAND = Command(
    command_id="c",
    agent_id="a",
    type="state_transition",
    target="inbox",
    status=Status.ACKED,
    priority="high",
    seq=7,
    attempt=2,
    failures=1,
    accepted_at=1_800_000_000.0,
    start_at=1_800_000_001.0,
    expires_at=1_800_003_600.0,
    step_at=1_800_000_030.0,
    ack_timeout_s=2.5,
    timeout_s=60.0,
    max_attempts=3,
    on_lost="fail",
    group_id="g",
)
GROUP = Group(
    group_id="g", kind="send", total=5, needed=4, status="failed", cancel_requested=True, succeeded=1, refused=2
)


def test_records_are_read_back_as_they_were_written() -> None:
    assert decode_agent("a", encode(AGENT)) == AGENT
    assert decode_record(COMMAND_TABLE, "c", COMMAND_TABLE.encode(COMMAND)) == COMMAND
    assert decode_record(GROUP_TABLE, "g", GROUP_TABLE.encode(GROUP)) == GROUP


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3600.0, "3600"), (2.5, "2.5"), (0.1, "0.1"), (1_234_567.0, "1234567"), (86_400.125, "86400.125")],
)
def test_number_is_stored_with_all_its_digits(seconds: float, text: str) -> None:
    record = COMMAND_TABLE.encode(structs.replace(COMMAND, timeout_s=seconds))
    assert (record["timeout"], decode_record(COMMAND_TABLE, "c", record).timeout_s) == (text, seconds)


def test_missing_field_has_its_default() -> None:
    """A record that another version has written may lack any field that is not required."""
    now, at = 1_800_000_000.0, "2027-01-15T08:00:00Z"
    agent = {"agent_id": "a", "state": "s", "since": now, "first_seen_at": now, "of another version": 1}
    assert decode_agent("a", encode(agent)) == AgentRecord(agent_id="a", state="s", since=now, first_seen_at=now)
    command = {"agent_id": "a", "type": "x", "status": "waiting", "accepted_at": at, "expires_at": at}
    expected = Command(command_id="c", agent_id="a", type="x", accepted_at=now, expires_at=now)
    assert decode_record(COMMAND_TABLE, "c", command) == expected
    group = {"kind": "send", "total": "2", "needed": "1", "status": "open"}
    assert decode_record(GROUP_TABLE, "g", group) == Group(group_id="g", kind="send", total=2, needed=1)


@pytest.mark.parametrize("name", ["agent_id", "state", "since", "first_seen_at"])
def test_missing_required_field_raises(name: str) -> None:
    record = {each: value for each, value in to_builtins(AGENT).items() if each != name}
    with pytest.raises(ValueError, match=name):
        decode_agent("a", encode(record))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agent_id", "b"),
        ("liveness", "?"),
        ("liveness", "silent"),
        ("hold", "?"),
        ("labels", []),
        ("since", "yesterday"),
        ("lost_score", 1.5),
        ("cooldowns", []),
        ("codec", "yaml"),
        ("state", "in\nbox"),
        ("lost_from", "in\nbox"),
    ],
)
def test_damaged_value_raises(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_agent("a", encode({**to_builtins(AGENT), name: value}))


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[]", b'{"context":{"x":' + b"[" * 9999])
def test_a_record_that_is_not_json_raises(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_agent("a", raw)
