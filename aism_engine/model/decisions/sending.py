"""What it means to give an agent a command: whether it is allowed, and where the command goes first."""

from hashlib import sha1
from typing import Any, Final
from zlib import crc32

from aism_engine.clock import from_iso, iso
from aism_engine.model import effects as fx
from aism_engine.model import messages as m
from aism_engine.model.agent import Agent, Liveness
from aism_engine.model.codec import encode
from aism_engine.model.commands import Command, Status
from aism_engine.model.decisions.common import Scope
from aism_engine.model.decisions.faults import Fault, transition_fault
from aism_engine.model.groups import Group, quorum
from aism_engine.model.machine import Case, Refusal
from aism_engine.model.selector import Selector

_AWAY: Final = frozenset({Liveness.LOST, Liveness.LEFT})
_LONGEST_ID: Final = 128


def send(scope: Scope, request: m.Send, raw: bytes) -> dict[str, Any] | Fault:
    """Decide on a request to send: to one agent, to one of those selected, or to all of them."""
    payload = request.payload
    if (known := scope.draft.command(request.id) or scope.draft.group(request.id)) is not None:
        scope.decision.outcome = "duplicate"  # its answer has gone, its record has not
        return _accepted(known) if isinstance(known, Command) else _accepted_for_many(known)
    if payload.agent_id is not None:
        agent = find_agent(scope, payload.agent_id)
        return agent if isinstance(agent, Fault) else accept(scope, request.id, agent, request)
    found = select(scope, payload.select or "", "send_refused")
    if isinstance(found, Fault):
        return found
    if not payload.any:
        return _send_to_all(scope, request, found, raw)
    able = [agent for agent in found if _refusal(scope, agent, request) is None and not scope.draft.is_paused(agent)]
    if not able:
        message = f"none of the {len(found)} agents that fit can take it now: they are held, full, or in another state"
        return Fault("send_refused", "none_available", message, {"fitting": len(found)})
    chosen = min(able, key=lambda agent: (*_busy(agent), crc32(f"{request.id} {agent.agent_id}".encode())))
    return accept(scope, request.id, scope.draft.agent(chosen.agent_id) or chosen, request)


def _busy(agent: Agent) -> tuple[int, int]:
    """How much an agent has in flight, and how much waits for it. What is for later keeps nobody busy now."""
    return agent.in_flight, len(agent.waiting)


def accept(
    scope: Scope, command_id: str, agent: Agent, request: m.Send, group_id: str | None = None, **links: str
) -> dict[str, Any] | Fault:
    """Accept one command for one agent: it is pushed at once, waits for credit, or for its time."""
    draft, rules, spec, options = scope.draft, scope.rules, request.payload.command, request.payload.options
    if draft.command(command_id) is not None:
        return Fault("send_refused", "id_taken", f"there is another command {command_id}: choose another id")
    if (fault := _refusal(scope, agent, request)) is not None:
        return fault
    start_at = _start_at(draft.now, options)
    ttl_s = options.ttl or rules.command_ttl_s
    command = Command(
        command_id=command_id,
        agent_id=agent.agent_id,
        type=spec.type,
        target=spec.payload["target"] if spec.type == "state_transition" else None,
        priority=options.priority,
        turn=draft.next_turn(),
        accepted_at=draft.now,
        expires_at=max(start_at, draft.now) + ttl_s,
        ack_timeout_s=options.ack_timeout or rules.ack_timeout_s,
        timeout_s=options.timeout or rules.timeout_s,
        max_attempts=options.max_attempts or rules.max_attempts,
        on_lost=options.on_lost or rules.on_lost,
        group_id=group_id,
    )
    body = encode(
        m.Command(
            id=command_id,
            type=spec.type,
            payload=spec.payload,
            timestamp=draft.at,
            deadline=iso(command.expires_at) if options.ttl is not None else None,
            traceparent=request.traceparent,
        ),
        agent.codec,
    )
    queued: dict[str, str] = {}
    if start_at > draft.now:
        command.status, command.step_at = Status.SCHEDULED, start_at
    elif not agent.waiting and scope.may_be_handed_out(agent):
        queued = command.queue(draft.now, command.turn)
        scope.add(fx.PushCommand(agent.agent_id, body))
    draft.add_command(command)
    scope.decision.steps.append(command.stepped("", draft.now))
    contents = {"payload": encode(spec.payload), "body": body}
    scope.add(fx.SaveCommand(command_id, {**command.record(), **queued, **contents, **links}))
    scope.add(fx.SetDeadline(command.deadline, command.due_at))
    scope.tell_command(command)
    return _accepted(command)


def find_agent(scope: Scope, agent_id: str, kind: str = "send_refused") -> Agent | Fault:
    """Find the agent a request means; one that has left any trace in Redis is taken in."""
    agent = scope.draft.agent(agent_id)
    if agent is not None:
        return agent
    seen = scope.draft.lookups.sightings.get(agent_id)
    if seen is None or not seen.exists or not scope.rules.auto_register:
        message = f"there is no agent {agent_id}: it has never beaten, spoken or registered"
        return Fault(kind, "unknown_agent", message, suggestions=("aism-engine agents list",))
    if scope.draft.size >= scope.rules.max_agents:
        return Fault(kind, "fleet_full", f"the fleet is full: agents.max_agents = {scope.rules.max_agents}")
    return scope.take_in(agent_id)


def select(scope: Scope, text: str, kind: str) -> list[Agent] | Fault:
    """Find the agents that a selector means. Those that are away are meant only where it speaks of liveness itself."""
    try:
        selector = Selector.parse(text)
    except ValueError as error:
        return Fault(kind, "invalid_selector", str(error))
    found = [
        agent
        for agent in scope.draft.agents()
        if (selector.names_liveness or agent.liveness not in _AWAY) and selector.matches(agent)
    ]
    if not found:
        message = f"no agent that is present fits {selector.text}"
        return Fault(kind, "no_match", message, suggestions=("aism-engine agents list",))
    return found


def to_all(
    scope: Scope, request: m.Request, group: Group, errands: list[bytes], raw: bytes, ends_at: float, **fields: str
) -> dict[str, Any]:
    """Freeze the targets of a request to many: one errand for each, and a group that counts what becomes of them."""
    scope.draft.add_group(group)
    accepted: dict[str, str | bytes] = {**group.record(), **fields, "accepted_at": scope.draft.at, "request": raw}
    scope.add(fx.SaveGroup(group.group_id, accepted))
    scope.add(fx.SetDeadline(group.deadline, ends_at + scope.rules.retention_s))
    scope.add(fx.AddErrands(errands))
    scope.record("group_accepted", type=request.kind, details={"group_id": group.group_id, "total": group.total})
    return _accepted_for_many(group)


def child_id(request_id: str, name: str) -> str:
    """Name what a request to many means for one of them: `{request_id}.{name}`, by a digest where that is too long."""
    whole = f"{request_id}.{name}"
    if len(whole) <= _LONGEST_ID:
        return whole
    tail = sha1(whole.encode(), usedforsecurity=False).hexdigest()
    return f"{whole[: _LONGEST_ID - len(tail) - 1]}.{tail}"


def _send_to_all(scope: Scope, request: m.Send, found: list[Agent], raw: bytes) -> dict[str, Any] | Fault:
    options = request.payload.options
    try:
        needed = quorum(options.quorum, len(found))
    except ValueError as error:
        return Fault("send_refused", "invalid_quorum", str(error), {"targets": len(found)})
    group = Group(group_id=request.id, kind=request.kind, total=len(found), needed=needed)
    errands = [encode({"group_id": request.id, "agent_id": agent.agent_id}) for agent in found]
    ends_at = max(_start_at(scope.draft.now, options), scope.draft.now) + (options.ttl or scope.rules.command_ttl_s)
    return to_all(scope, request, group, errands, raw, ends_at, selector=request.payload.select or "")


def _refusal(scope: Scope, agent: Agent, request: m.Send) -> Fault | None:
    """Say why an agent may not be given this command now."""
    rules, spec, agent_id = scope.rules, request.payload.command, agent.agent_id
    if agent.liveness is Liveness.LOST and (request.payload.options.on_lost or rules.on_lost) == "fail":
        return Fault("send_refused", "agent_lost", f"{agent_id} is lost, and the command is not to wait for its return")
    if scope.draft.is_draining(agent):
        return Fault("send_refused", "draining", f"{agent_id} is being drained: it takes no new commands")
    if agent.load >= rules.max_queued:
        message = f"{agent_id} has {agent.load} open commands: commands.max_queued is reached"
        return Fault("send_refused", "queue_full", message, {"max_queued": rules.max_queued})
    return _refuse_transition(scope, agent, request) if spec.type == "state_transition" else None


def _refuse_transition(scope: Scope, agent: Agent, request: m.Send) -> Fault | None:
    target = request.payload.command.payload.get("target")
    if not isinstance(target, str):
        return Fault("send_refused", "invalid_message", "a state_transition needs the field `target` in its payload")
    if _start_at(scope.draft.now, request.payload.options) > scope.draft.now:
        return None  # where it will be by then, nobody knows
    refusal = _check(scope, agent, target)
    return None if refusal is None else transition_fault(refusal)


def _check(scope: Scope, agent: Agent, target: str) -> Refusal | None:
    """Check a transition from where the agent is, or will be when the commands before this one are done."""
    machine, asked = scope.machine(agent), Case("operator")  # how long it stays till then, and with what, nobody knows
    refusal = machine.check(agent.state, target, asked)
    pending = (scope.draft.command(command_id) for command_id in agent.open_commands)
    if refusal is None or any(c and c.target and machine.check(c.target, target, asked) is None for c in pending):
        return None
    return refusal


def _start_at(now: float, options: m.SendOptions) -> float:
    if options.start_at is not None:
        return from_iso(options.start_at)
    return now + (options.start_in or 0.0)


def _accepted(command: Command) -> dict[str, Any]:
    return {"ok": True, "command_id": command.command_id, "agent_id": command.agent_id, "status": command.status}


def _accepted_for_many(group: Group) -> dict[str, Any]:
    return {"ok": True, "group_id": group.group_id, "targets": group.total, "status": group.verdict}
