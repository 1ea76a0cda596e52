"""The laws of what is only published: nothing is made of it that was not said, and a flood of it stays small."""

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


def told(publications: Publications) -> list[dict[str, Any]]:
    return [json.loads(message) for message in publications.finish()]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", "z", ""]), st.integers(-9, 9))))
def test_the_latest_value_of_each_name_is_what_counts(said: list[tuple[str, str, int]]) -> None:
    """However measurements are merged, whoever applies the messages in order ends with what was published last; a state
    change stands between what was measured before and after it.
    """
    publications, expected, declarations = Publications(max_malformed=0), dict[str, dict[str, float]](), list[Any]()
    for agent_id, name, value in said:
        if name:
            publications.add_measurement(measured(agent_id, **{name: value}))
            expected.setdefault(agent_id, {})[name] = value
        else:
            publications.add_state_change(declared(agent_id, f"s{value}"))
            declarations.append((agent_id, json.loads(json.dumps(expected))))
    found: dict[str, dict[str, float]] = {}
    for message in told(publications):
        if message["type"] == "measurement":
            found.setdefault(message["agent_id"], {}).update(message["payload"])
        else:
            assert (message["agent_id"], found) == declarations.pop(0)
    assert (found, declarations) == (expected, [])


def test_a_message_has_no_more_names_than_it_may() -> None:
    """What is too much for one goes on in the next one, in order: none is refused for having been merged."""
    publications = Publications(max_malformed=0)
    for n in range(70):
        publications.add_measurement(measured("a", **{f"n{n}": n}))
        publications.add_measurement(measured("a", n0=-n))
    messages = told(publications)
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


NONSENSE = {
    "no JSON": b"\xff",
    "no object": b"[1]",
    "no agent": b'{"values":{"x":1}}',
    "an id that is none": measured("a:b", x=1),
    "a name that is none": measured("a", **{"a b": 1}),
    "a value that is no number": measured("a", x="many"),
    "an infinity": b'{"agent_id":"a","values":{"x":1e999}}',
    "too many names": measured("a", **{f"n{n}": n for n in range(33)}),
    "too deep": b'{"agent_id":"a","values":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a key that JSON has not": b"\x82\xa8agent_id\xa1a\xa6values\x81\xc0\x02",
    "a value that JSON has not": b"\x82\xa8agent_id\xa1a\xa6values\xd4\x05x",
}


@given(st.dictionaries(st.sampled_from(["agent_id", "values", "new_state"]), st.recursive(SCALARS, containing)))
def test_whatever_is_published_raises_nothing(published: dict[str, Any]) -> None:
    """On either channel, in either format: what raised would end the listener, and with it the engine."""
    for codec in ("json", "msgpack"):
        try:
            body = ENCODERS[codec](published)
        except (TypeError, OverflowError):
            continue
        publications = Publications(max_malformed=1)
        publications.add_measurement(body)
        publications.add_state_change(body)
        assert len(publications.finish()) <= 2


@pytest.mark.parametrize("published", NONSENSE.values(), ids=NONSENSE.keys())
def test_of_nonsense_as_much_is_passed_on_as_may_be(published: bytes) -> None:
    """It spoils nothing that was published beside it, and the rest of it is only counted."""
    publications = Publications(max_malformed=1)
    for each in (measured("a", x=1), published, published, measured("a", x=2)):
        publications.add_measurement(each)
    messages = publications.finish()
    assert len(messages) == 2
    assert [json.loads(each)["payload"] for each in messages if b'"x":2' in each] == [{"x": 2.0}]
    assert publications.counts == {"measurement": 1, "merged": 1, "malformed": 2}
