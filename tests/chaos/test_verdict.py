"""The verdict finds each kind of violation: each is put into the observations of a good trial."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aism_engine.store.keys import Keys
from tests.chaos.agent_model import DEAD_LETTER, AgentModel, Effect
from tests.chaos.observations import Commit, DeadLetter, Fact, Observations, commits
from tests.chaos.records import AgentRecord, Message, Request
from tests.chaos.schedule import BESIDE, FAILOVERS, FAULTS, plan
from tests.chaos.test_chaos import SEEDS
from tests.chaos.verdict import violations_of
from tests.chaos.violations import DUPLICATED, LEFT_OVER, LOST, REORDERED, STALE, WRONG


def fact(event: str, cause: str = "", by: str = "agent", **fields: str) -> Fact:
    return Fact(0, event, by, cause, **({"agent_id": "a", "old_state": "", "new_state": "", "command_id": ""} | fields))


def good_trial() -> Observations:
    """Return what is left of a good trial: one agent, one command, one message that cannot be decoded, two requests."""
    said = [
        Message("a-0", "register", b"0", (Effect("agent_registered"), Effect("state_changed", "bootstrap")), 1, 1),
        Message("a-1", "state_transition", b"1", (Effect("state_changed", "inbox"),), 3, 2),
        Message("a-2", "measurement", b"2", (), 1, 1),
        Message("a-3", "result", b"3", (DEAD_LETTER,), 1, 1),
        Message("a-4", "result", b"4", (Effect("command_succeeded", "c"),), 1, 1),
        Message("a-5", "message", b"5", (Effect("message_delivered"),), 1, 1),
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
        fact("command_queued", "work-0", by="operator", command_id="work-0", agent_id="w"),
        fact("command_waiting", "work-1", by="operator", command_id="work-1.w", agent_id="w"),
        fact("command_succeeded", "w-1", command_id="work-0", agent_id="w"),
        fact("agent_held", "work-2", by="operator", agent_id="w"),
        fact("agent_resumed", "work-3", by="operator", agent_id="w"),
        fact("command_queued", "", by="engine", command_id="work-1.w", agent_id="w"),
        fact("command_dead", "", by="engine", command_id="work-1.w", agent_id="w"),
    ]
    return Observations(
        agents=[AgentRecord("a", AgentModel("journey", "inbox"), said, {"c": 1}, measurements=1)],
        invalid=[Message("invalid-0", "invalid", b"no message", (DEAD_LETTER,), 1, 1)],
        requests=[Request("c", "send", b"", "command_queued", attempts=1, pushes=1)],
        facts=[each._replace(position=position) for position, each in enumerate(facts)],
        epochs=[1, 1, 2],
        entries=["0", "1", "2"],
        dead_letters=[DeadLetter(b"3", "unknown_command", 1), DeadLetter(b"no message", "invalid_json", 10)],
        states={"a": "inbox"},
        records={"a": {"state": "inbox"}},
        measurements={"a": {"last": 1.0, "m1": 1.0}},
        inboxes={"a": ["a-5"]},
        commands={
            "c": {"status": "succeeded"},
            "work-0": {"status": "succeeded", "attempt": "1"},
            "work-1.w": {"status": "dead", "code": "no_ack", "attempt": "1"},
        },
        work_requests=[
            Request("work-0", "send", b"", attempts=2, pushes=1),
            Request("work-1", "send", b"", is_group=True, attempts=1, pushes=1),
        ],
        taken=Counter({"work-0": 2}),
        succeeded={"work-0"},
        groups={"work-1": {"status": "failed", "dead": "1", "refused": "1"}},
        replies={"c": [{}], "work-0": [{"ok": True}, {"ok": True}], "work-1": [{"ok": True, "targets": 2}]},
        left={"response queue": 0},
        commits=[Commit("1", 1, 1, (("a", 1),)), Commit("2", 2, 2, ())],
    )


def drop(event: str) -> Callable[[Observations], object]:
    def do(observed: Observations) -> None:
        observed.facts = [each for each in observed.facts if each.event != event]

    return do


def double(event: str) -> Callable[[Observations], object]:
    def do(observed: Observations) -> None:
        observed.facts += [each for each in observed.facts if each.event == event]

    return do


def swap(observed: Observations) -> None:
    """Let the last message of the agent be applied first."""
    observed.facts = [each._replace(position=-1) if each.cause == "a-5" else each for each in observed.facts]
    observed.facts.sort()


def drop_request(observed: Observations) -> None:
    observed.facts = [each for each in observed.facts if each.command_id != "work-0"]


CASES: list[tuple[str, str, Callable[[Observations], object]]] = [
    ("a response without effects", LOST, drop("message_delivered")),
    ("a transition that was applied twice", DUPLICATED, double("message_delivered")),
    ("a response with other effects", WRONG, drop("agent_registered")),
    ("a response that is in no dead dead_letter", LOST, lambda found: found.dead_letters.pop(0)),
    ("a response dead-lettered twice", DUPLICATED, lambda found: found.dead_letters.append(found.dead_letters[0])),
    (
        "a valid response dead-lettered",
        WRONG,
        lambda found: found.dead_letters.append(DeadLetter(b"1", "", 1)),
    ),
    ("an invalid message missing in the dead letters", LOST, lambda found: found.dead_letters.pop(1)),
    (
        "an invalid message dead-lettered twice",
        DUPLICATED,
        lambda found: found.dead_letters.append(found.dead_letters[1]),
    ),
    ("responses applied in another order", REORDERED, swap),
    ("an older epoch after a newer one", STALE, lambda found: found.epochs.append(1)),
    ("a commit under an epoch that does not lead", STALE, lambda found: found.commits.append(Commit("3", 2, 1, ()))),
    ("a commit that was written twice", DUPLICATED, lambda found: found.commits.append(found.commits[1])),
    ("a commit that the audit has twice", DUPLICATED, lambda found: found.entries.append("1")),
    (
        "a measurement that was written twice",
        DUPLICATED,
        lambda found: found.commits.append(Commit("3", 2, 2, (("a", 1),))),
    ),
    ("a measurement never written", LOST, lambda found: found.commits.pop(0)),
    ("a measurement that was not kept", LOST, lambda found: found.measurements["a"].pop("m1")),
    ("an older measurement that is kept", WRONG, lambda found: found.measurements["a"].update(last=0.0)),
    ("a message in no inbox", LOST, lambda found: found.inboxes["a"].clear()),
    ("a message twice in an inbox", DUPLICATED, lambda found: found.inboxes["a"].append("a-5")),
    ("a state that is not the record's", WRONG, lambda found: found.states.update(a="idle")),
    ("a record that is not the model's", WRONG, lambda found: found.records["a"].update(state="idle")),
    ("an agent marked as lost", WRONG, lambda found: found.facts.append(fact("agent_lost", by="engine"))),
    ("an agent first seen twice", WRONG, double("agent_first_seen")),
    ("a request without an answer", WRONG, lambda found: found.replies["c"].clear()),
    ("a request that was not accepted", LOST, drop("command_queued")),
    ("a command that was queued twice", DUPLICATED, double("command_queued")),
    ("a command that never reached its agent", LOST, lambda found: found.agents[0].received.clear()),
    ("a command that reached it twice", DUPLICATED, lambda found: found.agents[0].received.update(c=2)),
    ("a command that has not ended", WRONG, lambda found: found.commands["c"].update(status="queued")),
    ("a command with two ends", WRONG, lambda found: found.facts.append(fact("command_expired", command_id="c"))),
    ("a work request accepted twice", DUPLICATED, double("command_waiting")),
    ("a work request without an answer", WRONG, lambda found: found.replies["work-0"].clear()),
    ("a work request with two answers", DUPLICATED, lambda found: found.replies["work-0"][1].update(ok=False)),
    ("a work request without a command", LOST, drop_request),
    ("a command missing in a group", LOST, lambda found: found.groups["work-1"].update(refused="0")),
    ("a command too many in a group", DUPLICATED, lambda found: found.replies["work-1"][0].update(targets=1)),
    ("a group left open", LOST, lambda found: found.groups["work-1"].update(status="open")),
    ("a work command without an end", LOST, drop("command_dead")),
    ("a work command with two ends", DUPLICATED, double("command_dead")),
    ("a status that differs from the audit", WRONG, lambda found: found.commands["work-1.w"].update(status="failed")),
    ("a failure without a reason", LOST, lambda found: found.commands["work-1.w"].pop("code")),
    ("a success that no worker reported", WRONG, lambda found: found.succeeded.clear()),
    ("a success without a delivery", WRONG, lambda found: found.taken.clear()),
    ("a command delivered too often", DUPLICATED, lambda found: found.commands["work-0"].update(attempt="4")),
    ("a command queued for an agent on hold", WRONG, drop("agent_resumed")),
    ("a queue that is not empty", LEFT_OVER, lambda found: found.left.update({"response queue": 1})),
    ("an engine that logged an error", WRONG, lambda found: found.complaints.append("ended by itself")),
]


def test_good_trial_has_no_violations() -> None:
    """Otherwise the cases below would mean nothing."""
    assert violations_of(good_trial()) == []


@pytest.mark.parametrize(("kind", "spoil"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_each_violation_is_found(kind: str, spoil: Callable[[Observations], object]) -> None:
    """With its kind, among others that follow from it."""
    observed = good_trial()
    spoil(observed)
    assert kind in {violation.kind for violation in violations_of(observed)}


def test_late_append_only_file_excuses_what_it_lacks_and_nothing_else() -> None:
    """After a failover the file has only later commits: a measurement may be missing there if it is stored."""
    late = replace(good_trial(), has_all_commits=False, commits=[Commit("2", None, 2, ())])
    assert violations_of(late) == []
    measured = Commit("3", 2, 2, (("a", 1),))
    twice = replace(late, commits=[measured, measured._replace(commit_id="4")])
    stale = replace(late, commits=[measured._replace(claimed=1)])
    missing = replace(late, measurements={"a": {"last": 1.0}})
    kinds = [{violation.kind for violation in violations_of(observed)} for observed in (twice, stale, missing)]
    assert kinds == [{DUPLICATED}, {STALE}, {LOST}]


def test_publications_may_be_lost_but_not_reordered_or_applied_twice() -> None:
    facts = [fact("state_changed", agent_id="p", new_state=state) for state in ("s1", "s4", "s9")]
    observed = replace(good_trial(), publishers=frozenset(("p",)))
    kinds = []
    for order in ((0, 1, 2), (0, 2, 1), (0, 1, 1)):
        received = replace(observed, facts=[*observed.facts, *(facts[position] for position in order)])
        kinds.append({each.kind for each in violations_of(received) if each.subject == "p"} - {WRONG})
    assert kinds == [set(), {REORDERED}, {DUPLICATED}]


def test_every_commit_is_read_from_the_append_only_file(tmp_path: Path) -> None:
    """With its epochs and measurements. An incomplete commit at the end is ignored."""
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


def test_same_seed_gives_the_same_plan() -> None:
    assert plan(7) == plan(7) != plan(8)


def test_trials_of_the_gate_have_every_fault_of_one_server() -> None:
    assert {fault.kind for seed in SEEDS for fault in plan(seed).faults} == set(FAULTS)


def test_twenty_trials_have_every_fault() -> None:
    """Wherever they begin: four of them have failovers, of every kind, and each has at least one."""
    for seed in range(40):
        plans = [plan(each) for each in range(seed, seed + 20)]
        failovers = [{fault.kind for fault in each.faults} & {*FAILOVERS} for each in plans if each.sentinels]
        assert len(failovers) == 4
        assert all(failovers)
        assert set().union(*failovers) == {*FAILOVERS}
        assert {fault.kind for each in plans if not each.sentinels for fault in each.faults} == {*FAULTS}
        assert {fault.kind for each in plans if each.sentinels for fault in each.faults} <= {*FAILOVERS, *BESIDE}
