"""Laws of publications: messages say what was published, and a flood becomes few messages."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from aism_engine.services.publications import Publications


def measured(agent_id: str, **values: object) -> bytes:
    return json.dumps({"agent_id": agent_id, "values": values}).encode()


def declared(agent_id: str, state: str) -> bytes:
    return json.dumps({"agent_id": agent_id, "new_state": state}).encode()


def messages_of(publications: Publications) -> list[dict[str, Any]]:
    return [json.loads(message) for message in publications.finish()]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", "z", ""]), st.integers(-9, 9))))
def test_merging_keeps_the_latest_value_of_each_name(published: list[tuple[str, str, int]]) -> None:
    """Applying the messages in order gives the values that were published last. A state change separates the
    measurements before it from those after it.
    """
    publications, expected, declarations = Publications(max_malformed=0), dict[str, dict[str, float]](), list[Any]()
    for agent_id, name, value in published:
        if name:
            publications.add_measurement(measured(agent_id, **{name: value}))
            expected.setdefault(agent_id, {})[name] = value
        else:
            publications.add_state_change(declared(agent_id, f"s{value}"))
            declarations.append((agent_id, json.loads(json.dumps(expected))))
    found: dict[str, dict[str, float]] = {}
    for message in messages_of(publications):
        if message["type"] == "measurement":
            found.setdefault(message["agent_id"], {}).update(message["payload"])
        else:
            assert (message["agent_id"], found) == declarations.pop(0)
    assert (found, declarations) == (expected, [])


def test_merged_message_respects_the_limit_of_names() -> None:
    """More names continue in the next message, in order, so that no merged message is refused."""
    publications = Publications(max_malformed=0)
    for n in range(70):
        publications.add_measurement(measured("a", **{f"n{n}": n}))
        publications.add_measurement(measured("a", n0=-n))
    messages = messages_of(publications)
    assert [len(message["payload"]) <= 32 for message in messages] == [True] * len(messages)
    assert len(messages) < 5
    merged: dict[str, float] = {}
    for message in messages:
        merged |= message["payload"]
    assert merged == {f"n{n}": n for n in range(70)} | {"n0": -69}


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(Ext(5, b"x"))
ENCODERS = {"json": msgspec.json.encode, "msgpack": msgspec.msgpack.encode}


def containing(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.tuples(st.integers())
    return st.lists(values) | st.dictionaries(keys, values)


MALFORMED = {
    "not JSON": b"\xff",
    "not an object": b"[1]",
    "no agent id": b'{"values":{"x":1}}',
    "invalid agent id": measured("a:b", x=1),
    "invalid name": measured("a", **{"a b": 1}),
    "value is not a number": measured("a", x="many"),
    "infinity": b'{"agent_id":"a","values":{"x":1e999}}',
    "too many names": measured("a", **{f"n{n}": n for n in range(33)}),
    "too deep": b'{"agent_id":"a","values":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "key that JSON cannot express": b"\x82\xa8agent_id\xa1a\xa6values\x81\xc0\x02",
    "value that JSON cannot express": b"\x82\xa8agent_id\xa1a\xa6values\xd4\x05x",
}


@given(st.dictionaries(st.sampled_from(["agent_id", "values", "new_state"]), st.recursive(SCALARS, containing)))
def test_no_publication_raises(published: dict[str, Any]) -> None:
    """On either channel and in either encoding: an exception would stop the listener, and with it the engine."""
    for codec in ("json", "msgpack"):
        try:
            body = ENCODERS[codec](published)
        except (TypeError, OverflowError):
            continue
        publications = Publications(max_malformed=1)
        publications.add_measurement(body)
        publications.add_state_change(body)
        assert len(publications.finish()) <= 2


@pytest.mark.parametrize("published", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_measurements_are_passed_on_up_to_the_limit(published: bytes) -> None:
    """The rest is only counted. Valid measurements are not affected."""
    publications = Publications(max_malformed=1)
    for each in (measured("a", x=1), published, published, measured("a", x=2)):
        publications.add_measurement(each)
    messages = publications.finish()
    assert len(messages) == 2
    assert [json.loads(each)["payload"] for each in messages if b'"x":2' in each] == [{"x": 2.0}]
    assert publications.counts == {"measurement": 1, "merged": 1, "malformed": 2}
