"""Messages between agents: delivered, waiting or refused, and the limits that end loops."""

import json
from collections import Counter, deque
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aism_engine.domain import draft
from aism_engine.domain.decision import Decision
from aism_engine.domain.machines.machine import Machines
from tests.support.machines import parse
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
    """Agents whose machine has a state for each value of accepts_messages."""

    def __init__(self, *agents: str, **rules: Any) -> None:  # noqa: ANN401
        super().__init__(**rules)
        self.sent = 0
        talk = parse(TALK, "talk.toml")
        named = {**machines().machines, talk.name: talk}
        self.policy = replace(self.policy, machines=Machines(named, "journey", "open", {"talker": "talk"}))
        for agent_id in agents or ("a", "b", "c"):
            self.respond("register", agent_id, type="talker")

    def send_message(self, sender: str, to: str, content: object = None, thread: str | None = None) -> Decision:
        """Send a message from one agent to another, with a request for a reply."""
        self.sent += 1
        threaded = {} if thread is None else {"thread_id": thread}
        return self.respond("message", sender, id=f"m{self.sent}", reply=True, to=to, content=content, **threaded)

    def go(self, agent_id: str, state: str) -> None:
        self.respond("state_transition", agent_id, target=state)

    def inbox(self, agent_id: str) -> list[Any]:
        """Return the contents of the inbox, the oldest first."""
        return [json.loads(body)["payload"]["content"] for body in reversed(self.inboxes[agent_id])]

    def refused(self, decision: Decision, sender: str = "a") -> str:
        """The code with which the last message was refused, as its sender was told and as the audit has it."""
        answer = self.reply(f"m{self.sent}", sender)
        assert (decision.outcome, answer["ok"], answer["error"]["type"]) == ("refused", False, "message_refused")
        assert self.facts_of("message_refused")[-1]["code"] == answer["error"]["code"] == decision.code
        return str(decision.code)


def test_a_message_is_delivered_with_its_sender_and_thread() -> None:
    talk = Talk()
    talk.send_message("a", "b", "hello", "t-1")
    (body,) = talk.inboxes["b"]
    assert json.loads(body)["payload"] == {"from": "a", "content": "hello", "thread_id": "t-1"}
    assert talk.reply("m1", "a")["ok"] is True


def test_a_message_waits_until_the_recipient_accepts_it() -> None:
    """It is delivered in the commit that changes the state, in order, before later messages."""
    talk = Talk()
    talk.go("b", "later")
    for content in (1, 2, 3):
        assert talk.send_message("a", "b", content).outcome == "applied"
    assert (talk.inbox("b"), talk.record("b").mail_waiting) == ([], 3)
    for state in ("busy", "shut"):
        talk.go("b", state)
    assert (talk.inbox("b"), talk.reloaded().agents["b"].mail_waiting) == ([], 3)
    talk.fleet = talk.reloaded()
    talk.go("b", "open")
    talk.send_message("a", "b", 4)
    assert (talk.inbox("b"), talk.record("b").mail_waiting) == ([1, 2, 3, 4], 0)
    assert [(fact["agent_id"], fact["details"]) for fact in talk.facts_of("messages_released")] == [("b", {"count": 3})]


def test_a_message_is_refused_if_the_recipient_accepts_none() -> None:
    """The reply names the recipient's state."""
    talk = Talk()
    talk.go("b", "shut")
    assert talk.refused(talk.send_message("a", "b")) == "not_accepting"
    assert talk.reply("m1", "a")["error"]["details"] == {"state": "shut"}
    assert (talk.inboxes["b"], talk.dead_letters) == ([], [])


@pytest.mark.parametrize("state", ["open", "later"])
def test_max_unread_counts_inbox_and_waiting_messages_together(state: str) -> None:
    """So accepted messages always fit."""
    talk = Talk(max_unread=3)
    talk.send_message("a", "b", 1)
    talk.go("b", state)
    talk.send_message("a", "b", 2)
    draft = talk.draft()  # two in one batch: the second sees the first
    talk.commit(draft, talk.decide_on(draft, "message", "a", to="b", content=3))
    assert talk.refused(talk.send_message("a", "b", 4)) == "inbox_full"
    talk.go("b", "open")
    assert talk.inbox("b") == [1, 2, 3]
    talk.inboxes["b"].pop()
    assert talk.send_message("a", "b", 5).outcome == "applied"


def test_max_unread_holds_within_a_batch() -> None:
    talk = Talk(max_unread=2)
    draft = talk.draft()
    outcomes = [talk.decide_on(draft, "message", "a", to="b", content=number).outcome for number in range(4)]
    assert outcomes == ["applied", "applied", "refused", "refused"]


@pytest.mark.parametrize(("per_s", "expected_s"), [(2.0, 0.5), (3.0, 0.334), (7.0, 0.143)])
def test_the_rate_limits_one_pair_only(per_s: float, expected_s: float) -> None:
    """After `retry_after`, which is rounded up to milliseconds, the next message is accepted."""
    talk = Talk(pair_burst=3, pair_per_second=per_s)
    assert [talk.send_message("a", "b").outcome for _ in range(3)] == ["applied"] * 3
    assert talk.refused(talk.send_message("a", "b")) == "rate_limited"
    wait_s = talk.reply(f"m{talk.sent}", "a")["error"]["details"]["retry_after"]
    assert (wait_s, talk.send_message("a", "c").outcome, talk.send_message("b", "a").outcome) == (
        expected_s,
        "applied",
        "applied",
    )
    talk.now += wait_s
    assert [talk.send_message("a", "b").outcome for _ in range(2)] == ["applied", "refused"]


def test_sending_to_many_agents_in_a_thread_is_one_hop() -> None:
    """The sender may repeat it; a reply is one hop further."""
    talk = Talk(max_hops=2)
    assert {talk.send_message("a", to, thread="t").outcome for to in ("b", "c") * 5} == {"applied"}
    assert talk.send_message("b", "a", thread="t").outcome == "applied"
    assert talk.refused(talk.send_message("a", "b", thread="t")) == "too_many_hops"
    assert talk.send_message("a", "b", thread="another").outcome == "applied"


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=6),
    st.integers(1, 12),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from("abcd")),
)
@settings(max_examples=60, deadline=None)
def test_max_hops_ends_every_loop_in_a_thread(
    starts: list[tuple[str, str]], max_hops: int, answers_to: dict[str, str]
) -> None:
    """Agents that always reply, to the sender or in a ring."""
    talk = Talk(*"abcd", max_hops=max_hops, pair_burst=1_000_000)
    unanswered, passed = deque((sender, to) for sender, to in starts), 0
    while unanswered:
        sender, to = unanswered.popleft()
        if talk.send_message(sender, to, thread="t").outcome == "applied":
            passed += 1
            unanswered.append((to, answers_to.get(to, sender)))
        assert passed <= len(starts) * max_hops


@given(st.integers(1, 20), st.floats(0.5, 20), st.lists(st.floats(0, 3), min_size=1, max_size=150))
@settings(max_examples=60, deadline=None)
def test_the_rate_limits_every_loop_outside_of_threads(burst: int, per_s: float, pauses: list[float]) -> None:
    """Two agents that always reply to each other, with any timing."""
    talk = Talk("a", "b", pair_burst=burst, pair_per_second=per_s)
    passed, began = Counter[str](), talk.now
    for number, pause_s in enumerate(pauses):
        talk.now += pause_s
        sender, to = ("a", "b") if number % 2 else ("b", "a")
        passed[sender] += talk.send_message(sender, to).outcome == "applied"
        assert passed[sender] <= burst + per_s * (talk.now - began) + 0.01


_STEPS = st.one_of(
    st.tuples(st.sampled_from("ac"), st.just("b")),
    st.tuples(st.just("go"), st.sampled_from(["open", "later", "shut"])),
    st.tuples(st.just("takeover"), st.just("")),
    st.tuples(st.just("read"), st.just("")),
)


@given(st.lists(_STEPS, max_size=60))
@settings(deadline=None)
def test_accepted_messages_of_a_pair_arrive_in_order(steps: list[tuple[str, str]]) -> None:
    """Whatever the recipient does, and across takeovers."""
    talk = Talk(max_unread=5)
    accepted: dict[str, list[int]] = {"a": [], "c": []}
    read: list[list[Any]] = []
    for number, (step, what) in enumerate(steps):
        match step:
            case "go":
                talk.go("b", what)
            case "takeover":
                talk.fleet = talk.reloaded()
            case "read":
                read += talk.inbox("b")[:1]
                talk.inboxes["b"] = talk.inboxes["b"][:-1]
            case _:
                if talk.send_message(step, what, [step, number]).outcome == "applied":
                    accepted[step].append(number)
        assert len(talk.inboxes["b"]) + len(talk.mail["b"]) <= 5
    talk.go("b", "open")
    read += talk.inbox("b")
    assert {sender: [number for who, number in read if who == sender] for sender in accepted} == accepted


def test_the_memory_for_pairs_and_threads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used are forgotten."""
    monkeypatch.setattr(draft, "MAX_RECENT", 4)
    talk = Talk()
    for number in range(10):
        talk.send_message("a", "b", thread=f"t{number}")
        talk.send_message("a", "b", thread="t0")
    assert [place for place, _ in talk.fleet.hops] == ["t7", "t8", "t9", "t0"]
    assert talk.fleet.token_buckets.keys() == {("a", "b")}
