"""Laws of the arguments of a commit: each value belongs to its key, whatever the texts contain."""

from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import Decision
from aism_engine.store.batch import Batch, Bounds
from aism_engine.store.keys import Keys

KEYS = Keys("t")
_texts = st.text(st.sampled_from('a\n\r\v\f\0\x1c\x85\u2028\\"{'), max_size=5) | st.text(max_size=5)
_records = st.builds(
    AgentRecord,
    agent_id=st.sampled_from("abcd"),
    state=_texts,
    reason=_texts,
    context=st.dictionaries(_texts, _texts, max_size=2),
    since=st.just(1.0),
    first_seen_at=st.just(1.0),
)


def call(effects: Sequence[fx.Effect]) -> tuple[list[str], list[Any]]:
    return Batch(KEYS, Bounds(10, 10, 10), [Decision("test", effects=[*effects])]).call("1:me", "this", "last", None)


def lines_of(argument: bytes) -> list[bytes]:
    *lines, rest = argument.split(b"\n")
    assert rest == b""
    return lines


@given(st.lists(_records, min_size=1))
def test_each_state_and_record_is_written_to_its_own_key(records: list[AgentRecord]) -> None:
    """A line break separates values. So it cannot be part of a state, and becomes a space."""
    effects = [each for agent in records for each in (fx.SaveAgent(agent), fx.SetState(agent.agent_id, agent.state))]
    keys, arguments = call(effects)
    values = lines_of(arguments[-1])
    written = dict(zip(keys[-len(values) :], values, strict=True))
    last = {agent.agent_id: agent for agent in records}
    expected = {KEYS.state(agent_id): agent.state.replace("\n", " ").encode() for agent_id, agent in last.items()}
    expected |= {KEYS.agent(agent_id): msgspec.json.encode(agent) for agent_id, agent in last.items()}
    assert written == expected


@given(st.lists(_texts))
def test_each_event_is_one_line(texts: list[str]) -> None:
    """The event of a handler may contain JSON that is not compact."""
    events = [{"text": text} for text in texts] + [{"text": msgspec.Raw(b"[\n]")}]
    _, arguments = call([fx.Publish("errors", event) for event in events])
    assert arguments[-2] == KEYS.errors
    assert [msgspec.json.decode(line)["text"] for line in lines_of(arguments[-1])] == [*texts, []]
