"""A judge who never convicts proves nothing: each thing that can go wrong is put into the evidence, and is found."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aism_engine.store.keys import Keys
from tests.chaos.charges import DUPLICATED, LEFT_OVER, LOST, REORDERED, STALE, WRONG
from tests.chaos.evidence import Commit, Evidence, Fact, Letter, commits
from tests.chaos.journal import Asked, Journal, Order, Said
from tests.chaos.law import LETTER, Effect, Mind
from tests.chaos.schedule import BESIDE, FAILOVERS, KINDS, plan
from tests.chaos.verdict import judge


def fact(event: str, cause: str = "", by: str = "agent", **fields: str) -> Fact:
    return Fact(0, event, by, cause, **({"agent_id": "a", "old_state": "", "new_state": "", "command_id": ""} | fields))


def in_order() -> Evidence:
    """What is left of a trial in which all went well: one agent, one command, one piece of garbage."""
    said = [
        Said("a-0", "register", b"0", (Effect("agent_registered"), Effect("state_changed", "bootstrap")), 1, 1),
        Said("a-1", "state_transition", b"1", (Effect("state_changed", "inbox"),), 3, 2),
        Said("a-2", "measurement", b"2", (), 1, 1),
        Said("a-3", "result", b"3", (LETTER,), 1, 1),
        Said("a-4", "result", b"4", (Effect("command_succeeded", "c"),), 1, 1),
        Said("a-5", "message", b"5", (Effect("message_delivered"),), 1, 1),
    ]
    facts = [
        fact("agent_first_seen", "a-0", new_state="offline"),
        fact("agent_registered", "a-0"),
        fact("state_changed", "a-0", old_state="offline", new_state="bootstrap"),
        fact("state_changed", "a-1", old_state="bootstrap", new_state="inbox"),
        fact("dead_letter_added", "a-3"),
        fact("command_queued", "c", by="operator", command_id="c"),
        fact("command_succeeded", "a-4", command_id="c"),
        fact("message_delivered", "a-5"),
        fact("command_queued", "order-0", by="operator", command_id="order-0", agent_id="w"),
        fact("command_waiting", "order-1", by="operator", command_id="order-1.w", agent_id="w"),
        fact("command_succeeded", "w-1", command_id="order-0", agent_id="w"),
        fact("agent_held", "order-2", by="operator", agent_id="w"),
        fact("agent_resumed", "order-3", by="operator", agent_id="w"),
        fact("command_queued", "", by="engine", command_id="order-1.w", agent_id="w"),
        fact("command_dead", "", by="engine", command_id="order-1.w", agent_id="w"),
    ]
    return Evidence(
        journals=[Journal("a", Mind("journey", "inbox"), said, {"c": 1}, measured=1)],
        garbage=[Said("garbage-0", "garbage", b"no message", (LETTER,), 1, 1)],
        asked=[Asked("c", "a", "command_queued", b"", attempts=1, pushes=1)],
        facts=[each._replace(place=place) for place, each in enumerate(facts)],
        epochs=[1, 1, 2],
        entries=["0", "1", "2"],
        letters=[Letter(b"3", "unknown_command", 1), Letter(b"no message", "invalid_json", 10)],
        states={"a": "inbox"},
        records={"a": {"state": "inbox"}},
        measurements={"a": {"last": 1.0, "m1": 1.0}},
        inboxes={"a": ["a-5"]},
        commands={
            "c": {"status": "succeeded"},
            "order-0": {"status": "succeeded", "attempt": "1"},
            "order-1.w": {"status": "dead", "code": "no_ack", "attempt": "1"},
        },
        orders=[
            Order("order-0", "send", b"", attempts=2, pushes=1),
            Order("order-1", "send", b"", to_many=True, attempts=1, pushes=1),
        ],
        taken=Counter({"order-0": 2}),
        done={"order-0"},
        groups={"order-1": {"status": "failed", "dead": "1", "refused": "1"}},
        replies={"c": [{}], "order-0": [{"ok": True}, {"ok": True}], "order-1": [{"ok": True, "targets": 2}]},
        left={"response queue": 0},
        commits=[Commit("1", 1, 1, (("a", 1),)), Commit("2", 2, 2, ())],
    )


def drop(event: str) -> Callable[[Evidence], object]:
    def do(evidence: Evidence) -> None:
        evidence.facts = [each for each in evidence.facts if each.event != event]

    return do


def double(event: str) -> Callable[[Evidence], object]:
    def do(evidence: Evidence) -> None:
        evidence.facts += [each for each in evidence.facts if each.event == event]

    return do


def swap(evidence: Evidence) -> None:
    """Apply the last message of the agent before all others."""
    evidence.facts = [each._replace(place=-1) if each.cause == "a-5" else each for each in evidence.facts]
    evidence.facts.sort()


def forget_order(evidence: Evidence) -> None:
    evidence.facts = [each for each in evidence.facts if each.command_id != "order-0"]


CRIMES: list[tuple[str, str, Callable[[Evidence], object]]] = [
    ("a response without a trace", LOST, drop("message_delivered")),
    ("a transition that was applied twice", DUPLICATED, double("message_delivered")),
    ("a response that came to something else", WRONG, drop("agent_registered")),
    ("a response that is in no dead letter", LOST, lambda found: found.letters.pop(0)),
    ("a response that was buried twice", DUPLICATED, lambda found: found.letters.append(found.letters[0])),
    ("a response that was buried and should not be", WRONG, lambda found: found.letters.append(Letter(b"1", "", 1))),
    ("garbage that is nowhere", LOST, lambda found: found.letters.pop(1)),
    ("garbage that was buried twice", DUPLICATED, lambda found: found.letters.append(found.letters[1])),
    ("an order that was turned round", REORDERED, swap),
    ("an older epoch after a newer one", STALE, lambda found: found.epochs.append(1)),
    ("a commit under an epoch that leads no more", STALE, lambda found: found.commits.append(Commit("3", 2, 1, ()))),
    ("a commit that was written twice", DUPLICATED, lambda found: found.commits.append(found.commits[1])),
    ("a commit that the audit has twice", DUPLICATED, lambda found: found.entries.append("1")),
    (
        "a measurement that was written twice",
        DUPLICATED,
        lambda found: found.commits.append(Commit("3", 2, 2, (("a", 1),))),
    ),
    ("a measurement that was never written", LOST, lambda found: found.commits.pop(0)),
    ("a measurement that was not kept", LOST, lambda found: found.measurements["a"].pop("m1")),
    ("an older measurement that stands", WRONG, lambda found: found.measurements["a"].update(last=0.0)),
    ("a message that lies in no inbox", LOST, lambda found: found.inboxes["a"].clear()),
    ("a message that lies there twice", DUPLICATED, lambda found: found.inboxes["a"].append("a-5")),
    ("a state that is not the record's", WRONG, lambda found: found.states.update(a="idle")),
    ("a record that is not the model's", WRONG, lambda found: found.records["a"].update(state="idle")),
    ("an agent that was called lost", WRONG, lambda found: found.facts.append(fact("agent_lost", by="engine"))),
    ("an agent that was met twice", WRONG, double("agent_first_seen")),
    ("a request without an answer", WRONG, lambda found: found.replies["c"].clear()),
    ("a request that was not accepted", LOST, drop("command_queued")),
    ("a command that was queued twice", DUPLICATED, double("command_queued")),
    ("a command that never reached its agent", LOST, lambda found: found.journals[0].popped.clear()),
    ("a command that reached it twice", DUPLICATED, lambda found: found.journals[0].popped.update(c=2)),
    ("a command that has not ended", WRONG, lambda found: found.commands["c"].update(status="queued")),
    ("a command with two ends", WRONG, lambda found: found.facts.append(fact("command_expired", command_id="c"))),
    ("an order that was accepted twice", DUPLICATED, double("command_waiting")),
    ("an order without an answer", WRONG, lambda found: found.replies["order-0"].clear()),
    ("an order with two answers", DUPLICATED, lambda found: found.replies["order-0"][1].update(ok=False)),
    ("an order that left no command", LOST, forget_order),
    ("one of many that is nowhere", LOST, lambda found: found.groups["order-1"].update(refused="0")),
    ("one of many that is there twice", DUPLICATED, lambda found: found.replies["order-1"][0].update(targets=1)),
    ("a group that was not decided", LOST, lambda found: found.groups["order-1"].update(status="open")),
    ("an ordered command without an end", LOST, drop("command_dead")),
    ("an ordered command with two ends", DUPLICATED, double("command_dead")),
    ("an end that is not the record's", WRONG, lambda found: found.commands["order-1.w"].update(status="failed")),
    ("an end without a reason", LOST, lambda found: found.commands["order-1.w"].pop("code")),
    ("a success that nobody has reported", WRONG, lambda found: found.done.clear()),
    ("a success of one who never had it", WRONG, lambda found: found.taken.clear()),
    ("a command that was given too often", DUPLICATED, lambda found: found.commands["order-0"].update(attempt="4")),
    ("a command that was given to one who is held", WRONG, drop("agent_resumed")),
    ("something that is left over", LEFT_OVER, lambda found: found.left.update({"response queue": 1})),
    ("an engine that complains", WRONG, lambda found: found.complaints.append("ended by itself")),
]


def test_what_is_in_order_is_found_so() -> None:
    """No violation; otherwise nothing below means anything."""
    assert judge(in_order()) == []


@pytest.mark.parametrize(("charge", "commit"), [pytest.param(*crime[1:], id=crime[0]) for crime in CRIMES])
def test_each_crime_is_found(charge: str, commit: Callable[[Evidence], object]) -> None:
    """With its charge, whatever else it is found guilty of."""
    evidence = in_order()
    commit(evidence)
    assert charge in {violation.charge for violation in judge(evidence)}


def test_a_file_that_begins_late_excuses_what_was_before_it_and_nothing_else() -> None:
    """After a failover it tells only of what came after: there, a measurement must have been kept, once written."""
    began_late = replace(in_order(), from_the_start=False, commits=[Commit("2", None, 2, ())])
    assert judge(began_late) == []
    measured = Commit("3", 2, 2, (("a", 1),))
    twice = replace(began_late, commits=[measured, measured._replace(commit_id="4")])
    stale = replace(began_late, commits=[measured._replace(claimed=1)])
    missing = replace(began_late, measurements={"a": {"last": 1.0}})
    charges = [{violation.charge for violation in judge(evidence)} for evidence in (twice, stale, missing)]
    assert charges == [{DUPLICATED}, {STALE}, {LOST}]


def test_what_was_only_published_may_be_lost_but_not_turned_round() -> None:
    """A voice is heard in order, and each of its states at most once."""
    said = [fact("state_changed", by="agent", agent_id="v", new_state=state) for state in ("s1", "s4", "s9")]
    evidence = replace(in_order(), voices=frozenset(("v",)))
    charges = []
    for order in ((0, 1, 2), (0, 2, 1), (0, 1, 1)):
        heard = replace(evidence, facts=[*evidence.facts, *(said[place] for place in order)])
        charges.append({violation.charge for violation in judge(heard) if violation.subject == "v"} - {WRONG})
    assert charges == [set(), {REORDERED}, {DUPLICATED}]


def test_the_append_only_file_tells_every_commit(tmp_path: Path) -> None:
    """Its epoch, the one it claims, and what it measured; what a crash has left half written is none."""
    keys = Keys("t")

    def call(*words: str) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)

    def commit(number: int, epoch: int, measured: int) -> bytes:
        return b"".join(
            (
                call("MULTI"),
                call("SET", keys.ledger, f"commit-{number}"),
                call("HSET", keys.agent_measurements("a:b"), "last", f"{measured}.0", f"m{measured}", f"{measured}.0"),
                call("XADD", keys.audit, "MAXLEN", "~", "10", "*", "commit", "x", "epoch", str(epoch), "facts", "[]"),
                call("EXEC"),
            )
        )

    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    first = (
        call("SELECT", "0") + call("SET", keys.epoch, "7:me") + commit(1, 7, 1) + call("SET", keys.ledger, "commit-2")
    )
    (folder / "appendonly.aof.2.incr.aof").write_bytes(first)
    (folder / "appendonly.aof.10.incr.aof").write_bytes(
        call("SET", keys.epoch, "8:you") + commit(3, 7, 2) + commit(4, 8, 3)[:-5]
    )
    (folder / "appendonly.aof.1.incr.aof").write_bytes(commit(0, 6, 1))  # of a past that a failover has made void
    (folder / "appendonly.aof.manifest").write_text(
        "file appendonly.aof.2.base.rdb seq 2 type b\nfile appendonly.aof.1.incr.aof seq 1 type h\n"
        "file appendonly.aof.2.incr.aof seq 2 type i\nfile appendonly.aof.10.incr.aof seq 10 type i\n"
    )
    assert list(commits(tmp_path, keys)) == [
        Commit("commit-1", 7, 7, (("a:b", 1),)),
        Commit("commit-2", 7, None, ()),
        Commit("commit-3", 8, 7, (("a:b", 2),)),
    ]
    (folder / "appendonly.aof.2.incr.aof").write_bytes(commit(1, 7, 1))
    assert next(commits(tmp_path, keys)) == Commit("commit-1", None, 7, (("a:b", 1),))


def test_a_seed_is_a_plan() -> None:
    """The same one each time; and all plans together know every fault."""
    assert plan(7) == plan(7)
    kinds = {made.sentinels: {fault.kind for fault in made.faults} for made in map(plan, range(10))}
    for made in map(plan, range(200)):
        kinds[made.sentinels] |= {fault.kind for fault in made.faults}
    assert kinds == {False: set(KINDS), True: {*FAILOVERS, *BESIDE}}


def test_any_twenty_trials_have_failovers_of_every_kind() -> None:
    """Four of them stand on a primary, a replica and sentinels, and each of those loses its primary at least once."""
    for seed in range(40):
        lost = [
            [fault.kind for fault in made.faults if fault.kind in FAILOVERS]
            for made in map(plan, range(seed, seed + 20))
            if made.sentinels
        ]
        assert len(lost) == 4
        assert all(lost)
        assert {kind for kinds in lost for kind in kinds} == set(FAILOVERS)
