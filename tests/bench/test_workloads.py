"""The backlogs of the benchmarks: the engine does with each response what the name of its benchmark says."""

from collections import Counter

import pytest

from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import decode_response
from aism_engine.domain.responses import decide_response
from aism_engine.policy_loader import build_policy
from aism_engine.settings import Settings
from bench import workloads
from bench.drain import Backlog, drain_by_engine, drain_by_limit, drain_by_peer
from bench.harness import KEYS, connect
from bench.peers import batches, one_by_one
from tests.support.server import OwnServer

AGENTS = 10


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build_policy(Settings(), {})


def outcomes(backlog: Backlog, policy: Policy) -> Counter[str]:
    """Decide on a backlog as one batch, and return the outcomes of its responses, without those of its preamble."""
    draft = Draft(Fleet(), now=1_800_000_000.0)
    raws = [*backlog.preamble, *backlog.responses]
    decided = [decide_response(draft, policy, decode_response(raw), raw).outcome for raw in raws]
    return Counter(decided[len(backlog.preamble) :])


def test_every_state_change_is_applied(policy: Policy) -> None:
    assert outcomes(workloads.state_changes(50, AGENTS), policy) == {"applied": 50}


def test_every_measurement_is_applied(policy: Policy) -> None:
    assert outcomes(workloads.measurements(50, AGENTS), policy) == {"applied": 50}


def test_every_refusal_is_refused(policy: Policy) -> None:
    assert outcomes(workloads.refusals(50, AGENTS), policy) == {"refused": 50}


@pytest.mark.parametrize(
    ("backlog", "expected"),
    [
        (workloads.acks_and_results(2000), {b"succeeded": 1000}),
        (workloads.mix(2000, AGENTS), {b"succeeded": 180, b"failed": 20}),
    ],
    ids=["acks and results", "mix"],
)
def test_every_command_of_a_backlog_ends(own: OwnServer, backlog: Backlog, expected: dict[bytes, int]) -> None:
    """An engine applies the backlog without a dead letter, which `drain_by_engine` asserts."""
    assert drain_by_engine(own, backlog).per_second > 0
    client = connect(own.url)
    commands = client.scan_iter(match=KEYS.command("c*"), count=1000)
    assert Counter(client.hget(key, "status") for key in commands) == expected


def test_engine_limit_and_peers_set_the_same_states(own: OwnServer) -> None:
    """Their rates can be compared, because none of them skips a response."""
    backlog, client = workloads.state_changes(600, AGENTS), connect(own.url)
    states = []
    for drained in (
        drain_by_engine(own, backlog),
        drain_by_limit(own, backlog),
        drain_by_peer(own, backlog, batches),
        drain_by_peer(own, backlog, one_by_one),
    ):
        assert drained.per_second > 0
        states.append([client.get(KEYS.state(workloads.agent_id(number))) for number in range(AGENTS)])
    assert states == [[b"inbox"] * AGENTS] * 4
