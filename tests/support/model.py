"""A fleet without a server: decisions are made over drafts, and their effects are written into dictionaries."""

import copy
import json
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, TypeVar

from msgspec.structs import replace

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import HELD_TABLE, AgentRecord
from aism_engine.domain.commands.command import COMMAND_TABLE
from aism_engine.domain.commands.deadlines import decide_deadline
from aism_engine.domain.commands.delivery import decide_deliveries, decide_dispatch
from aism_engine.domain.commands.fanout import FanoutTarget, decide_fanout_target
from aism_engine.domain.commands.group import GROUP_TABLE
from aism_engine.domain.dead_letters import dead_letter_request, dead_letter_response
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.fleet import Fleet, Lookups
from aism_engine.domain.machines.machine import Machine, Machines
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol.codec import MalformedError, decode_as, decode_request, decode_response, encode
from aism_engine.domain.records import RecordTable
from aism_engine.domain.requests import decide_request
from aism_engine.domain.responses import decide_response
from tests.support.machines import parse
from tests.support.written import Written, as_bytes

T = TypeVar("T")

NOW = 1_800_000_000.0
AT = "2027-01-15T08:00:00.000Z"
"""The same instant, in ISO 8601."""

CLERK = """\
[machine]
name = "clerk"
initial = "waiting"
on_return = "waiting"

[states.waiting]
to = ["busy"]

[states.busy]
to = ["waiting"]
"""


def machines() -> Machines:
    """Return the two shipped machines, and one for the agent type `clerk` without any optional key."""
    shipped = files("aism_engine") / "machines"
    found = [parse((shipped / name).read_text(), name) for name in ("journey.toml", "open.toml")]
    named: dict[str, Machine] = {machine.name: machine for machine in (*found, parse(CLERK, "clerk.toml"))}
    return Machines(named, default="journey", unregistered="open", by_type={"clerk": "clerk"})


def policy_with(**settings: Any) -> Policy:  # noqa: ANN401 - the type depends on the setting
    """Build a policy from whole fields (`machines`, `handlers`, a section), or from settings by their bare names."""
    sections = {name: getattr(Policy(machines=machines()), name) for name in Policy.__struct_fields__}
    for name, value in settings.items():
        if name in sections:
            sections[name] = value
            continue
        owner = next(section for section, struct in sections.items() if hasattr(type(struct), name))
        sections[owner] = replace(sections[owner], **{name: value})
    return Policy(**sections)


class World(Written):
    """The fleet in memory, with everything that was written to Redis."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - the type depends on the setting
        super().__init__()
        self.policy = policy_with(**settings)
        self.now = NOW
        self.fleet = Fleet()

    # --- events -------------------------------------------------------------------------------------------------------
    def respond(self, kind: str, agent_id: str = "a", **fields: Any) -> Decision:  # noqa: ANN401
        """Decide on a response and commit it. Fields that are not in the envelope go into the payload."""
        return self.commit(*self.decide_response(kind, agent_id, **fields))

    def decide_response(self, kind: str, agent_id: str = "a", **fields: Any) -> tuple[Draft, Decision]:  # noqa: ANN401
        """Decide on a response without a commit."""
        draft = self.draft()
        return draft, self.decide_on(draft, kind, agent_id, **fields)

    def decide_on(self, draft: Draft, kind: str, agent_id: str = "a", **fields: Any) -> Decision:  # noqa: ANN401
        """Decide on a response over a draft that may have other changes."""
        raw = json.dumps(_message({"type": kind, "agent_id": agent_id}, fields)).encode()
        return decide_response(draft, self.policy, decode_response(raw, self.policy.handlers), raw)

    def decide(self, decide: Callable[..., Decision], agent_id: str = "a", *arguments: Any) -> Decision:  # noqa: ANN401
        """Make a decision of the engine about an agent, and commit it."""
        draft = self.draft()
        return self.commit(draft, decide(draft, self.policy, agent_id, *arguments))

    def request(self, kind: str, request_id: str, agent_id: str | None = "a", **fields: Any) -> Decision:  # noqa: ANN401
        """Decide on a request and commit it. Fields that are not in the envelope go into the payload."""
        target = {} if agent_id is None else {"agent_id": agent_id}
        message = _message(
            {"type": kind, "id": request_id, "payload": {}}, target | fields, ("reply", "traceparent", "operator")
        )
        raw, draft = json.dumps(message).encode(), self.draft()
        return self.commit(draft, decide_request(draft, self.policy, decode_request(raw), raw))

    def send(self, command_id: str, agent_id: str = "a", kind: str = "work", **payload: Any) -> Decision:  # noqa: ANN401
        return self.request("send", command_id, agent_id, command={"type": kind, "payload": payload})

    def pop(self, agent_id: str = "a") -> dict[str, Any]:
        """Pop the oldest command from an agent's list."""
        found: dict[str, Any] = decode_as(dict[str, Any], self.lists[agent_id].pop())
        return found

    def poll_list(self, agent_id: str = "a") -> Decision:
        """Detect which commands have left an agent's list."""
        commands = [body for body in self.lists[agent_id] if not re.search(rb"type(\xa6|\":\")cancel", body)]
        draft, head = self.draft(), (commands or [b""])[-1]
        return self.commit(draft, decide_deliveries(draft, self.policy, agent_id, head, self.fleet.last_seq))

    def dispatch(self, agent_id: str = "a", most: int = 100) -> Decision:
        """Dispatch the waiting commands of an agent."""
        draft = self.draft()
        return self.commit(draft, decide_dispatch(draft, self.policy, agent_id, most))

    def run_fanout(self) -> list[Decision]:
        """Decide on all targets in the fan-out queue."""
        return [self._run_fanout_target(self.fanout.pop(0)) for _ in range(len(self.fanout))]

    def _run_fanout_target(self, raw: bytes) -> Decision:
        draft, target = self.draft(), decode_as(FanoutTarget, raw)
        request = decode_request(as_bytes(self.group_records[target.group_id]["request"]))
        draft.lookups.group_requests[target.group_id] = request
        return self.commit(draft, decide_fanout_target(draft, self.policy, target, raw))

    def dead_letter(self, code: str, raw: bytes, *, request: bool = False, **known: Any) -> Decision:  # noqa: ANN401
        draft, error = self.draft(), MalformedError(code, "because", **known)
        return self.commit(
            draft, (dead_letter_request if request else dead_letter_response)(draft, self.policy, error, raw)
        )

    def pass_time(self, seconds: float) -> list[Decision]:
        """Advance the clock, and decide on the deadlines that are due."""
        self.now += seconds
        due = sorted((at, member) for member, at in self.deadlines.items() if at <= self.now)
        return [self.decide_deadline(member, at) for at, member in due]

    def decide_deadline(self, member: str, at: float) -> Decision:
        draft = self.draft()
        return self.commit(draft, decide_deadline(draft, self.policy, member, at))

    # --- state --------------------------------------------------------------------------------------------------------
    def draft(self) -> Draft:
        """Return a draft with all lookups."""
        ended = {
            command_id: decode_record(COMMAND_TABLE, command_id, _texts(record))
            for command_id, record in self.command_records.items()
        }
        bodies = {command_id: as_bytes(record["body"]) for command_id, record in self.command_records.items()}
        return Draft(
            self.fleet,
            self.now,
            Lookups(
                dict(self.snapshots),
                ended,
                bodies,
                dict(self.request_replies),
                dict(self.stream),
                {each: len(self.inboxes.get(each, ())) + len(self.mail.get(each, ())) for each in self.fleet.agents},
                measurements={each: self.measurements.get(each, {}) for each in self.fleet.unloaded_measurements},
                applied_until=self.now,
            ),
        )

    def commit(self, draft: Draft, decision: Decision) -> Decision:
        """Write the effects of a decision, or fail as the store would, and apply the draft."""
        for effect in decision.effects:
            self.write(effect)
        draft.apply()
        return decision

    @property
    def dead_letters(self) -> list[fx.DeadLetter]:
        return list(self.stream.values())

    def agent(self, agent_id: str = "a") -> AgentRecord:
        return self.fleet.agents[agent_id]

    def status(self, command_id: str) -> str:
        return str(self.command_records[command_id]["status"])

    def events(self, channel: str) -> list[dict[str, Any]]:
        return [event for where, event in self.published if where == channel]

    def facts_of(self, *events: str) -> list[dict[str, Any]]:
        """Return the facts of these events as they are written to the audit, without `at` and `by`."""
        found = [json.loads(encode(fact)) for fact in self.facts if fact.event in events]
        return [{name: value for name, value in fact.items() if name not in {"at", "by"}} for fact in found]

    def reply(self, message_id: str, agent_id: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.replies[agent_id, message_id])
        return found

    def snapshot(self) -> object:
        """Return a copy of the fleet in memory, to compare."""
        fleet = self.fleet
        return copy.deepcopy((fleet.agents, fleet.commands, fleet.last_message_at, fleet._recent, fleet.measurements))

    def reloaded(self) -> Fleet:
        """Return the fleet as the next leader would load it."""
        commands = (
            decode_record(COMMAND_TABLE, command_id, _texts(record))
            for command_id, record in self.command_records.items()
            if f"command:{command_id}" in self.deadlines
        )
        agents = [self.record(agent_id) for agent_id in self.index]
        for agent in agents:
            agent.stay_until = self.deadlines.get(f"stay:{agent.agent_id}", 0.0)
        groups = (
            decode_record(GROUP_TABLE, group_id, _texts(record))
            for group_id, record in self.group_records.items()
            if f"group:{group_id}" in self.deadlines
        )
        return Fleet(
            agents,
            (command for command in commands if command.open),
            groups,
            held=decode_record(HELD_TABLE, "", self.held),
        )


def registered_world(**settings: Any) -> World:  # noqa: ANN401 - the type depends on the setting
    """Return a world with a registered agent `a` in its inbox, without facts and events."""
    world = World(**settings)
    world.respond("register", type="scribe")
    world.respond("state_transition", target="inbox")
    world.published.clear()
    world.facts.clear()
    return world


def queue_of(world: World, agent_id: str = "a") -> list[str]:
    """Return the ids of the commands in an agent's list, the oldest first."""
    return [json.loads(body)["id"] for body in reversed(world.lists[agent_id])]


_ENVELOPE = ("id", "command_id", "reply", "traceparent", "payload", "timestamp", "instance", "via")


def _message(message: dict[str, Any], fields: dict[str, Any], names: tuple[str, ...] = _ENVELOPE) -> dict[str, Any]:
    payload = {name: value for name, value in fields.items() if name not in names}
    envelope = {name: value for name, value in fields.items() if name in names}
    return {**message, **({"payload": payload} if payload else {}), **envelope}


def _texts(record: dict[str, str | bytes]) -> dict[str, str]:
    return {name: value for name, value in record.items() if isinstance(value, str)}


def decode_record(table: RecordTable[T], key: str, record: Mapping[str, str]) -> T:
    """Read a record back from its hash."""
    return table.from_values(key, [record.get(name, "") for name in table.fields])
