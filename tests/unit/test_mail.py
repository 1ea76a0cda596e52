"""The laws of messages between agents: when they come, when they wait, when they are refused; and that no loop is
endless.
"""

import json
from collections import Counter, deque
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aism_engine.domain import mail
from aism_engine.domain.decision import Decision
from aism_engine.domain.machines.loader import parse
from aism_engine.domain.machines.machine import Machines
from tests.support.model import World, machines

TALK: Final = """\
[machine]
name = "talk"
initial = "open"

[states.open]
to = ["later", "shut"]

[states.later]
accepts_messages = "later"
to = ["open", "shut", "busy"]

[states.busy]
accepts_messages = "later"
to = ["open", "shut"]

[states.shut]
accepts_messages = false
to = ["open", "later"]
"""


class Talk(World):
    """Agents of a machine that has a state of each kind."""

    def __init__(self, *agents: str, **rules: Any) -> None:  # noqa: ANN401
        super().__init__(**rules)
        self.sent = 0
        talk = parse(TALK, "talk.toml")
        named = {**machines().machines, talk.name: talk}
        self.policy = replace(self.policy, machines=Machines(named, "journey", "open", {"talker": "talk"}))
        for agent_id in agents or ("a", "b", "c"):
            self.respond("register", agent_id, type="talker")

    def tell(self, sender: str, to: str, content: object = None, thread: str | None = None) -> Decision:
        """One agent sends another a message, and asks for a reply."""
        self.sent += 1
        threaded = {} if thread is None else {"thread_id": thread}
        return self.respond("message", sender, id=f"m{self.sent}", reply=True, to=to, content=content, **threaded)

    def go(self, agent_id: str, state: str) -> None:
        self.respond("state_transition", agent_id, target=state)

    def inbox(self, agent_id: str) -> list[Any]:
        """What lies in the agent's inbox: contents, the oldest first."""
        return [json.loads(body)["payload"]["content"] for body in reversed(self.inboxes[agent_id])]

    def refused(self, decision: Decision, sender: str = "a") -> str:
        """The code with which the last message was refused, as its sender was told and as the audit has it."""
        answer = self.reply(f"m{self.sent}", sender)
        assert (decision.outcome, answer["ok"], answer["error"]["type"]) == ("refused", False, "message_refused")
        assert self.facts_of("message_refused")[-1]["code"] == answer["error"]["code"] == decision.code
        return str(decision.code)


def test_a_message_comes_where_it_is_accepted() -> None:
    """With its sender, and the thread that it was sent in."""
    talk = Talk()
    talk.tell("a", "b", "hello", "t-1")
    (body,) = talk.inboxes["b"]
    assert json.loads(body)["payload"] == {"from": "a", "content": "hello", "thread_id": "t-1"}
    assert talk.reply("m1", "a")["ok"] is True


def test_a_message_waits_where_it_is_accepted_later() -> None:
    """And comes in the commit that changes the state, in order; what is sent after that comes behind it."""
    talk = Talk()
    talk.go("b", "later")
    for content in (1, 2, 3):
        assert talk.tell("a", "b", content).outcome == "applied"
    assert (talk.inbox("b"), talk.records["b"]["mail_waiting"]) == ([], "3")
    for state in ("busy", "shut"):
        talk.go("b", state)
    assert (talk.inbox("b"), talk.reloaded().agents["b"].mail_waiting) == ([], 3)
    talk.fleet = talk.reloaded()
    talk.go("b", "open")
    talk.tell("a", "b", 4)
    assert (talk.inbox("b"), talk.records["b"]["mail_waiting"]) == ([1, 2, 3, 4], "")
    assert [(fact["agent_id"], fact["details"]) for fact in talk.facts_of("messages_released")] == [("b", {"count": 3})]


def test_a_message_is_refused_where_none_is_accepted() -> None:
    """Its sender is told in which state its recipient is."""
    talk = Talk()
    talk.go("b", "shut")
    assert talk.refused(talk.tell("a", "b")) == "not_accepting"
    assert talk.reply("m1", "a")["error"]["details"] == {"state": "shut"}
    assert (talk.inboxes["b"], talk.dead_letters) == ([], [])


@pytest.mark.parametrize("state", ["open", "later"])
def test_an_inbox_has_a_bound_and_nothing_is_dropped(state: str) -> None:
    """What lies there and what waits count together, so that what was accepted always fits."""
    talk = Talk(max_unread=3)
    talk.tell("a", "b", 1)
    talk.go("b", state)
    talk.tell("a", "b", 2)
    draft = talk.draft()  # two in one batch: the second sees the first
    talk.commit(draft, talk.decide_on(draft, "message", "a", to="b", content=3))
    assert talk.refused(talk.tell("a", "b", 4)) == "inbox_full"
    talk.go("b", "open")
    assert talk.inbox("b") == [1, 2, 3]
    talk.inboxes["b"].pop()
    assert talk.tell("a", "b", 5).outcome == "applied"


def test_a_batch_does_not_go_past_the_bound() -> None:
    """What one batch has pushed already counts, though nobody has looked it up."""
    talk = Talk(max_unread=2)
    draft = talk.draft()
    outcomes = [talk.decide_on(draft, "message", "a", to="b", content=number).outcome for number in range(4)]
    assert outcomes == ["applied", "applied", "refused", "refused"]


def test_a_pair_has_a_rate_and_others_are_not_held_up() -> None:
    """A burst, then as many as come back in time; the refusal says how long that takes, and it is so."""
    talk = Talk(pair_burst=3, pair_per_second=2.0)
    assert [talk.tell("a", "b").outcome for _ in range(3)] == ["applied"] * 3
    assert talk.refused(talk.tell("a", "b")) == "rate_limited"
    wait_s = talk.reply(f"m{talk.sent}", "a")["error"]["details"]["retry_after"]
    assert (wait_s, talk.tell("a", "c").outcome, talk.tell("b", "a").outcome) == (0.5, "applied", "applied")
    talk.now += wait_s
    assert [talk.tell("a", "b").outcome for _ in range(2)] == ["applied", "refused"]


def test_a_thread_told_to_many_is_one_hop() -> None:
    """Who begins it may send in it as often as it likes; who answers lies one hop further."""
    talk = Talk(max_hops=2)
    assert {talk.tell("a", to, thread="t").outcome for to in ("b", "c") * 5} == {"applied"}
    assert talk.tell("b", "a", thread="t").outcome == "applied"
    assert talk.refused(talk.tell("a", "b", thread="t")) == "too_many_hops"
    assert talk.tell("a", "b", thread="another").outcome == "applied"


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=6),
    st.integers(1, 12),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from("abcd")),
)
@settings(max_examples=60, deadline=None)
def test_no_loop_in_a_thread_gets_past_its_hops(
    starts: list[tuple[str, str]], max_hops: int, answers_to: dict[str, str]
) -> None:
    """Agents that answer every message for ever, to its sender or in a ring, come to an end."""
    talk = Talk(*"abcd", max_hops=max_hops, pair_burst=1_000_000)
    limits, passed = deque((sender, to) for sender, to in starts), 0
    while limits:
        sender, to = limits.popleft()
        if talk.tell(sender, to, thread="t").outcome == "applied":
            passed += 1
            limits.append((to, answers_to.get(to, sender)))
        assert passed <= len(starts) * max_hops


@given(st.integers(1, 20), st.floats(0.5, 20), st.lists(st.floats(0, 3), min_size=1, max_size=150))
@settings(max_examples=60, deadline=None)
def test_no_loop_outside_of_threads_gets_past_its_rate(burst: int, per_s: float, pauses: list[float]) -> None:
    """Two that answer each other for ever are slowed to the burst and the rate, however they time it."""
    talk = Talk("a", "b", pair_burst=burst, pair_per_second=per_s)
    passed, began = Counter[str](), talk.now
    for number, pause_s in enumerate(pauses):
        talk.now += pause_s
        sender, to = ("a", "b") if number % 2 else ("b", "a")
        passed[sender] += talk.tell(sender, to).outcome == "applied"
        assert passed[sender] <= burst + per_s * (talk.now - began) + 0.01


_STEPS = st.one_of(
    st.tuples(st.sampled_from("ac"), st.just("b")),
    st.tuples(st.just("go"), st.sampled_from(["open", "later", "shut"])),
    st.tuples(st.just("takeover"), st.just("")),
    st.tuples(st.just("read"), st.just("")),
)


@given(st.lists(_STEPS, max_size=60))
@settings(deadline=None)
def test_the_order_of_a_pair_is_kept_and_nothing_accepted_is_lost(status_changes: list[tuple[str, str]]) -> None:
    """Whatever its recipient does meanwhile, and whoever leads."""
    talk = Talk(max_unread=5)
    accepted: dict[str, list[int]] = {"a": [], "c": []}
    read: list[list[Any]] = []
    for number, (step, what) in enumerate(status_changes):
        match step:
            case "go":
                talk.go("b", what)
            case "takeover":
                talk.fleet = talk.reloaded()
            case "read":
                read += talk.inbox("b")[:1]
                talk.inboxes["b"] = talk.inboxes["b"][:-1]
            case _:
                if talk.tell(step, what, [step, number]).outcome == "applied":
                    accepted[step].append(number)
        assert len(talk.inboxes["b"]) + len(talk.mail["b"]) <= 5
    talk.go("b", "open")
    read += talk.inbox("b")
    assert {sender: [number for who, number in read if who == sender] for sender in accepted} == accepted


def test_what_is_counted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs and threads without end cost no memory without end: those used longest ago are forgotten."""
    monkeypatch.setattr(mail, "MAX_COUNTED", 4)
    talk = Talk()
    for number in range(10):
        talk.tell("a", "b", thread=f"t{number}")
        talk.tell("a", "b", thread="t0")
    assert [place for place, _ in talk.fleet.traffic.hops] == ["t7", "t8", "t9", "t0"]
    assert talk.fleet.traffic.buckets.keys() == {("a", "b")}
