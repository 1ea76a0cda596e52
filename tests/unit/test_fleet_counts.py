"""The counts and sets that a fleet keeps equal those of a fleet that is built anew, after any batches of decisions."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.liveness import (
    decide_first_heartbeat,
    decide_heartbeat_removed,
    decide_lost,
    decide_returned,
)
from aism_engine.domain.agents.membership import decide_expired_agent
from aism_engine.domain.commands.delivery import decide_deliveries, decide_dispatch
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import decode_request
from aism_engine.domain.requests import decide_request
from tests.support.model import World

AGENTS = ("a", "b")

_RESPONSES: dict[str, dict[str, Any]] = {
    "register": {"type": "clerk", "id": "m1"},
    "register as an acking scribe": {"type": "scribe", "capabilities": ["ack"]},
    "heartbeat": {"id": "m2"},
    "goodbye": {},
    "state_transition": {"target": "inbox"},
    "state_transition to busy": {"target": "busy"},
    "measurement": {"cpu": 1},
    "message": {"to": "b", "content": 1, "id": "m3"},
    "ack": {"command_id": "c1"},
    "result": {"command_id": "c2"},
    "error": {"command_id": "c1", "code": "broken", "retryable": True},
}
_REQUESTS: dict[str, dict[str, Any]] = {
    "forget": {},
    "pause": {},
    "drain": {},
    "resume": {},
    "send": {"command": {"type": "work"}},
    "send later": {"command": {"type": "work"}, "options": {"start_in": 5}},
    "send urgently": {"command": {"type": "work"}, "options": {"priority": "high"}},
}
_ENGINE: dict[str, Callable[[Draft, Policy, str], Decision]] = {
    "beat": lambda draft, policy, agent_id: decide_first_heartbeat(draft, policy, agent_id, {agent_id: 1.0}),
    "no beat": decide_heartbeat_removed,
    "lose": lambda draft, policy, agent_id: decide_lost(draft, policy, agent_id, 1.0, 45.0),
    "return": decide_returned,
    "expire": decide_expired_agent,
    "dispatch": lambda draft, policy, agent_id: decide_dispatch(draft, policy, agent_id, 2),
    "all taken": lambda draft, policy, agent_id: decide_deliveries(draft, policy, agent_id, b"", draft.next_seq()),
}
_kinds = st.sampled_from([*_RESPONSES, *_REQUESTS, *_ENGINE])
_batches = st.lists(st.lists(st.tuples(_kinds, st.sampled_from(AGENTS)), max_size=6), max_size=8)


def decide(world: World, draft: Draft, step: str, agent_id: str, number: int) -> Decision:
    kind, policy = step.partition(" ")[0], world.policy
    if step in _RESPONSES:
        return world.decide_on(draft, kind, agent_id, **_RESPONSES[step])
    if step in _REQUESTS:
        request_id = f"c{number}" if kind == "send" else f"r{number}"
        raw = json.dumps(
            {"type": kind, "id": request_id, "payload": {"agent_id": agent_id, **_REQUESTS[step]}}
        ).encode()
        return decide_request(draft, policy, decode_request(raw), raw)
    return _ENGINE[step](draft, policy, agent_id)


def counts(fleet: Fleet) -> dict[str, Any]:
    return {
        "occupants": fleet.occupants,
        "liveness": +fleet.liveness,
        "holds": +fleet.holds,
        "absent": fleet.absent,
        "awaiting_heartbeat": fleet.awaiting_heartbeat,
        "waiting_for_human": fleet.waiting_for_human,
        "waiting": fleet.waiting,
        "queued": fleet.queued,
        "commands": {agent_id: fleet.command_index(agent_id) for agent_id in AGENTS},
    }


@given(_batches)
def test_the_counts_of_a_fleet_equal_a_recount(batches: list[list[tuple[str, str]]]) -> None:
    """A batch may forget an agent, and admit it again. Nothing is kept of an agent that is forgotten."""
    world, number = World(max_in_flight=1), 0
    for batch in batches:
        world.now += 1
        for agent_id in AGENTS:
            world.snapshots[agent_id] = AgentSnapshot(score=1.0)
        draft, effects = world.draft(), []
        for step, agent_id in batch:
            number += 1
            decided = decide(world, draft, step, agent_id, number).effects
            effects += [each for each in decided if not isinstance(each, fx.ExpectScore)]  # checked before the batch
        world.commit(draft, Decision("batch", effects=effects))
        fleet = world.fleet
        agents = fleet.agents.keys()
        assert counts(fleet) == counts(Fleet(fleet.agents.values(), fleet.commands.values()))
        assert fleet.dispatchable <= fleet.waiting <= agents
        kept = (fleet.last_message_at, fleet.acted_at, fleet.activity, fleet.measurements, fleet._recent)
        assert [set(each) - agents for each in kept] == [set()] * len(kept)
        assert world.reloaded().agents == fleet.agents
