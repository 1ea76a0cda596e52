"""The verdict finds each kind of violation: each is put into the observations of a good trial."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as fact_with

from tests.chaos.agent_model import DEAD_LETTER, AgentModel, Effect, Sent
from tests.chaos.observations import Commit, Fact, Observations, commits
from tests.chaos.schedule import BESIDE, FAILOVERS, FAULTS, plan
from tests.chaos.system import KEYS
from tests.chaos.test_chaos import SEEDS
from tests.chaos.verdict import DUPLICATED, LEFT_OVER, LOST, REORDERED, STALE, WRONG, violations_of


def fact(event: str, cause: str = "", by: str = "agent", agent_id: str = "journey-0", **fields: str) -> Fact:
    return Fact(event, cause, by, agent_id, **fields)


def said(number: int, kind: str, *expected: Effect, attempts: int = 1) -> Sent:
    return Sent(f"journey-0-{number}", kind, b"%d" % number, expected, attempts=attempts, pushes=1)


def asked(name: str, replies: int = 1, outcome: str = "", *, is_group: bool = False) -> Sent:
    return Sent(name, "send", b"", outcome=outcome, is_group=is_group, attempts=replies, pushes=1)


def good_trial() -> Observations:
    """Return what is left of a good trial: one agent, one message that cannot be decoded, three requests."""
    messages = [
        said(0, "register", Effect("agent_registered"), Effect("state_changed", "bootstrap")),
        said(1, "state_transition", Effect("state_changed", "inbox"), attempts=3),
        said(2, "measurement"),
        said(3, "result", DEAD_LETTER),
        said(4, "result", Effect("command_succeeded", "request-0")),
        said(5, "message", Effect("message_delivered")),
    ]
    agent = AgentModel("journey-0", "inbox", messages=messages, measurements=1, taken=Counter(["request-0"]))
    agent.succeeded = {"request-0"}
    worker = AgentModel("worker-0", taken=Counter({"request-1": 2}), succeeded={"request-1"})
    invalid = Sent("invalid-0-0", "invalid", b"no message", (DEAD_LETTER,), attempts=1, pushes=1)
    of_worker = {"command_id": "request-2.worker-0", "agent_id": "worker-0"}
    return Observations(
        agents=[agent, worker, AgentModel("invalid-0", messages=[invalid])],
        requests=[asked("request-0", outcome="done"), asked("request-1", 2), asked("request-2", is_group=True)],
        facts=[
            fact("agent_first_seen", "journey-0-0", new_state="offline"),
            fact("agent_registered", "journey-0-0"),
            fact("state_changed", "journey-0-0", old_state="offline", new_state="bootstrap"),
            fact("state_changed", "journey-0-1", old_state="bootstrap", new_state="inbox"),
            fact("dead_letter_added", "journey-0-3"),
            fact("command_queued", "request-0", "operator", command_id="request-0"),
            fact("command_succeeded", "journey-0-4", command_id="request-0"),
            fact("message_delivered", "journey-0-5"),
            fact("command_queued", "request-1", "operator", "worker-0", command_id="request-1"),
            fact("command_waiting", "request-2", "operator", **of_worker),
            fact("command_succeeded", "worker-0-1", agent_id="worker-0", command_id="request-1"),
            fact("command_queued", by="engine", **of_worker),
            fact("command_dead", by="engine", **of_worker),
        ],
        entries=[("0", 1), ("1", 1), ("2", 2)],
        dead_letters=[(b"3", 1), (b"no message", 10)],
        states={"journey-0": "inbox"},
        records={"journey-0": {"state": "inbox"}, "worker-0": {}},
        measurements={"journey-0": {"last": 1.0, "m1": 1.0}, "worker-0": {}},
        inboxes={"journey-0": ["journey-0-5"]},
        commands={
            "request-0": {"status": "succeeded", "attempt": "1"},
            "request-1": {"status": "succeeded", "attempt": "1"},
            "request-2.worker-0": {"status": "dead", "code": "no_ack", "attempt": "1"},
        },
        groups={"request-2": {"status": "failed", "dead": "1", "refused": "1"}},
        replies={
            "request-0": [{"ok": True}],
            "request-1": [{"ok": True}, {"ok": True}],
            "request-2": [{"ok": True, "targets": 2}],
        },
        left={"response queue": 0},
        commits=[Commit("1", 1, 1), Commit("2", 2, 2)],
    )


Change = Callable[[Observations], object]


def drop(**fields: str) -> Change:
    """Remove the facts with these fields."""

    def change(observed: Observations) -> None:
        observed.facts = [each for each in observed.facts if fact_with(each, **fields) != each]

    return change


def double(event: str) -> Change:
    return lambda observed: observed.facts.extend([each for each in observed.facts if each.event == event])


def reverse_messages(observed: Observations) -> None:
    """Let the last message of the agent be applied first."""
    observed.facts.sort(key=lambda each: each.cause != "journey-0-5")


def add(*added: Fact) -> Change:
    return lambda observed: observed.facts.extend(added)


CASES: list[tuple[str, str, Change]] = [
    ("a response without effects", LOST, drop(event="message_delivered")),
    ("a transition that was applied twice", DUPLICATED, double("message_delivered")),
    ("a response with other effects", WRONG, drop(event="agent_registered")),
    ("a response missing in the dead letters", LOST, lambda found: found.dead_letters.pop(0)),
    ("a response dead-lettered twice", DUPLICATED, lambda found: found.dead_letters.append(found.dead_letters[0])),
    ("a valid response dead-lettered", WRONG, lambda found: found.dead_letters.append((b"1", 1))),
    ("an invalid message missing in the dead letters", LOST, lambda found: found.dead_letters.pop(1)),
    ("an invalid one dead-lettered twice", DUPLICATED, lambda found: found.dead_letters.append(found.dead_letters[1])),
    ("responses applied in another order", REORDERED, reverse_messages),
    ("an older epoch after a newer one", STALE, lambda found: found.entries.append(("3", 1))),
    ("a commit under an epoch that does not lead", STALE, lambda found: found.commits.append(Commit("3", 2, 1))),
    ("a commit that was written twice", DUPLICATED, lambda found: found.commits.append(found.commits[1])),
    ("a commit that the audit has twice", DUPLICATED, lambda found: found.entries.append(("1", 2))),
    ("a measurement that was not kept", LOST, lambda found: found.measurements["journey-0"].pop("m1")),
    ("an older measurement that is kept", WRONG, lambda found: found.measurements["journey-0"].update(last=0.0)),
    ("a message in no inbox", LOST, lambda found: found.inboxes["journey-0"].clear()),
    ("a message twice in an inbox", DUPLICATED, lambda found: found.inboxes["journey-0"].append("journey-0-5")),
    ("a state that is not the record's", WRONG, lambda found: found.states.update({"journey-0": "idle"})),
    ("a record that is not the model's", WRONG, lambda found: found.records["journey-0"].update(state="idle")),
    ("an agent marked as lost", WRONG, add(fact("agent_lost", by="engine"))),
    ("an agent first seen twice", DUPLICATED, double("agent_first_seen")),
    ("a request without an answer", WRONG, lambda found: found.replies["request-0"].clear()),
    ("a request that was not accepted", LOST, drop(event="command_queued", command_id="request-0")),
    ("a command that was queued twice", DUPLICATED, double("command_queued")),
    ("a command that never reached its agent", LOST, lambda found: found.agents[0].taken.clear()),
    ("a command that reached it twice", DUPLICATED, lambda found: found.agents[0].taken.update(["request-0"])),
    ("a command that has not ended", WRONG, lambda found: found.commands["request-0"].update(status="queued")),
    ("a command with two ends", DUPLICATED, add(fact("command_expired", command_id="request-0"))),
    ("a request accepted twice", DUPLICATED, double("command_waiting")),
    ("a request with two answers", DUPLICATED, lambda found: found.replies["request-1"][1].update(ok=False)),
    ("a request without a command", LOST, lambda found: found.commands.pop("request-1")),
    ("a command missing in a group", LOST, lambda found: found.groups["request-2"].update(refused="0")),
    ("a command too many in a group", DUPLICATED, lambda found: found.replies["request-2"][0].update(targets=1)),
    ("a group left open", LOST, lambda found: found.groups["request-2"].update(status="open")),
    ("a command without an end", LOST, drop(event="command_dead")),
    ("a worker's command with two ends", DUPLICATED, double("command_dead")),
    ("a status unlike the audit", WRONG, lambda found: found.commands["request-2.worker-0"].update(status="failed")),
    ("a failure without a reason", LOST, lambda found: found.commands["request-2.worker-0"].pop("code")),
    ("a success that no agent reported", WRONG, lambda found: found.agents[1].succeeded.clear()),
    ("a success without a delivery", WRONG, lambda found: found.agents[1].taken.clear()),
    ("a command delivered too often", DUPLICATED, lambda found: found.commands["request-1"].update(attempt="4")),
    ("a queue that is not empty", LEFT_OVER, lambda found: found.left.update({"response queue": 1})),
    ("an engine that logged an error", WRONG, lambda found: found.complaints.append("ended by itself")),
]


def test_good_trial_has_no_violations() -> None:
    """Otherwise the cases below would mean nothing."""
    assert violations_of(good_trial()) == []


@pytest.mark.parametrize(("kind", "spoil"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_each_violation_is_found(kind: str, spoil: Change) -> None:
    """With its kind, among others that follow from it."""
    observed = good_trial()
    spoil(observed)
    assert kind in {violation.kind for violation in violations_of(observed)}


def test_late_append_only_file_is_no_violation() -> None:
    """After a failover the file has only later commits, and does not show when the first epochs were taken."""
    assert violations_of(replace(good_trial(), commits=[Commit("2", None, 2)])) == []


def test_publications_may_be_lost_but_not_reordered_or_applied_twice() -> None:
    facts = [fact("state_changed", agent_id="publisher-0", new_state=state) for state in ("s1", "s4", "s9")]
    observed = good_trial()
    observed.agents.append(AgentModel("publisher-0"))
    observed.records["publisher-0"], observed.measurements["publisher-0"] = {}, {}
    kinds = []
    for order in ((0, 1, 2), (0, 2, 1), (0, 1, 1)):
        received = replace(observed, facts=[*observed.facts, *(facts[position] for position in order)])
        kinds.append({each.kind for each in violations_of(received) if each.subject.startswith("publisher")} - {WRONG})
    assert kinds == [set(), {REORDERED}, {DUPLICATED}]


def test_every_commit_is_read_from_the_append_only_file(tmp_path: Path) -> None:
    """With its epochs, from the files that the manifest names, in that order."""

    def write(number: int, *commands: str) -> None:
        words = [command.split() for command in commands]
        text = "".join(f"*{len(each)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in each) for each in words)
        (tmp_path / f"appendonlydir/appendonly.aof.{number}.incr.aof").write_text(text, newline="")

    def commit(number: int, epoch: int) -> list[str]:
        audit = f"XADD {KEYS.audit} MAXLEN ~ 10 * commit x epoch {epoch} facts []"
        return [f"SET {KEYS.ledger} commit-{number}", f"MSET {KEYS.agent('a')} x", audit]

    (tmp_path / "appendonlydir").mkdir()
    write(2, "SELECT 0", f"SET {KEYS.epoch} 7:me", "MULTI", *commit(1, 7), "EXEC", f"SET {KEYS.ledger} commit-2")
    write(10, f"SET {KEYS.epoch} 8:you", *commit(3, 7))
    write(1, *commit(0, 6))  # of a past that a failover has made void
    (tmp_path / "appendonlydir/appendonly.aof.manifest").write_text(
        "file appendonly.aof.2.base.rdb seq 2 type b\nfile appendonly.aof.1.incr.aof seq 1 type h\n"
        "file appendonly.aof.2.incr.aof seq 2 type i\nfile appendonly.aof.10.incr.aof seq 10 type i\n"
    )
    first = Commit("commit-1", 7, 7)
    assert [*commits(tmp_path)] == [first, Commit("commit-2", 7), Commit("commit-3", 8, 7)]
    write(2, *commit(1, 7))
    assert next(commits(tmp_path)) == replace(first, newest=None)


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
