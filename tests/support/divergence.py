"""A fleet in memory whose divergences are checked."""

from typing import Any, Final

from aism_engine.domain.agents.activity import AbsentHeartbeat, observe_heartbeat
from aism_engine.domain.agents.agent import AgentSnapshot
from aism_engine.domain.agents.divergence import RULES, ObservationWindow, decide_divergences, may_have_changes
from aism_engine.domain.agents.liveness import decide_first_heartbeat, decide_lost
from aism_engine.domain.decision import Decision
from aism_engine.domain.policy import DivergenceSettings
from tests.support.model import NOW, World

LONG: Final = 100_000.0
"""Longer than any threshold."""


class CheckedWorld(World):
    """A fleet, with the evidence and the checks of its agent `a`."""

    def __init__(self, *rules: str, **limits: Any) -> None:  # noqa: ANN401 - settings of [divergence]
        switches: dict[str, Any] = {rule: rule in (rules or RULES) for rule in RULES}
        super().__init__(divergence=DivergenceSettings(**switches, **limits), ack_timeout=30.0)
        self.observed_from = NOW
        self.unread_s = 0.0
        """Age of the oldest unread response."""
        self.heartbeats: dict[str, AbsentHeartbeat] = {}

    def begin(self, *states: str, capabilities: tuple[str, ...] = ()) -> None:
        self.respond("register", type="scribe", capabilities=capabilities)
        for state in states:
            self.respond("state_transition", target=state)
        self.snapshots["a"] = AgentSnapshot(score=1.0)
        self.decide(decide_first_heartbeat, "a", {"a": 1.0})

    def observe_heartbeat(self, score: float) -> None:
        agent = self.agent()
        if agent.declared == agent.state == "offline":
            observe_heartbeat(self.heartbeats, "a", score, self.now, self.now, agent.since)

    def check(self) -> Decision:
        """Check the agent. `may_have_changes` is true whenever the rules change anything."""
        window = ObservationWindow(self.observed_from, self.now - self.unread_s)
        may_change = may_have_changes(self.agent(), self.fleet.activity.get("a"), self.policy.divergence)
        decision = self.decide(decide_divergences, "a", window, self.heartbeats.get("a"))
        assert may_change or decision.outcome == "unchanged"
        return decision

    def lose(self) -> None:
        self.decide(decide_lost, "a", 1.0, 45.0)

    def open_later(self) -> set[str]:
        """Let a long time pass, and return the divergences that are open then."""
        self.now += LONG
        self.check()
        return set(self.agent().divergences)

    def publish(self, state: str) -> None:
        self.respond("state_transition", target=state, via="channel")

    def miss_deadline(self, command_id: str, *, ack: bool) -> None:
        """Let the agent take a command, acknowledge it if `ack`, and miss its deadline."""
        self.now += 1
        self.send(command_id)
        while self.pop()["type"] == "cancel":
            pass
        self.poll_list()
        if ack:
            self.respond("ack", command_id=command_id)
        self.pass_time(3601)

    @property
    def reported(self) -> list[tuple[str, str]]:
        return [
            (fact["event"].removeprefix("divergence_"), fact["code"])
            for fact in self.facts_of("divergence_opened", "divergence_closed")
        ]
