"""What it means to give an agent a command: whether it is allowed, and where the command goes first."""

from hashlib import sha1
from typing import Any, Final
from zlib import crc32

from aism_engine.clock import from_iso, iso
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.commands.group import Group, quorum
from aism_engine.domain.commands.selector import Selector
from aism_engine.domain.decision import DecisionContext
from aism_engine.domain.error_reply import ErrorReply, transition_error
from aism_engine.domain.machines.machine import Refusal, TransitionCase
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode

_AWAY: Final = frozenset({Liveness.LOST, Liveness.LEFT})
_LONGEST_ID: Final = 128


def send(ctx: DecisionContext, request: m.Send, raw: bytes) -> dict[str, Any] | ErrorReply:
    """Decide on a request to send: to one agent, to one of those selected, or to all of them."""
    payload = request.payload
    if (known := ctx.draft.command(request.id) or ctx.draft.group(request.id)) is not None:
        ctx.decision.outcome = "duplicate"  # its answer has gone, its record has not
        return _accepted(known) if isinstance(known, Command) else _accepted_for_many(known)
    if payload.agent_id is not None:
        agent = find_agent(ctx, payload.agent_id)
        return agent if isinstance(agent, ErrorReply) else accept(ctx, request.id, agent, request)
    found = select(ctx, payload.select or "", "send_refused")
    if isinstance(found, ErrorReply):
        return found
    if not payload.any:
        return _send_to_all(ctx, request, found, raw)
    able = [agent for agent in found if _refusal(ctx, agent, request) is None and not ctx.draft.is_paused(agent)]
    if not able:
        message = f"none of the {len(found)} agents that fit can take it now: they are held, full, or in another state"
        return ErrorReply("send_refused", "none_available", message, {"fitting": len(found)})
    chosen = min(able, key=lambda agent: (*_busy(agent), crc32(f"{request.id} {agent.agent_id}".encode())))
    return accept(ctx, request.id, ctx.draft.agent(chosen.agent_id) or chosen, request)


def _busy(agent: AgentRecord) -> tuple[int, int]:
    """How much an agent has in flight, and how much waits for it. What is for later keeps nobody busy now."""
    return agent.in_flight, len(agent.waiting)


def accept(
    ctx: DecisionContext,
    command_id: str,
    agent: AgentRecord,
    request: m.Send,
    group_id: str | None = None,
    **links: str,
) -> dict[str, Any] | ErrorReply:
    """Accept one command for one agent: it is pushed at once, waits for credit, or for its time."""
    draft, policy, spec, options = ctx.draft, ctx.policy, request.payload.command, request.payload.options
    if draft.command(command_id) is not None:
        return ErrorReply("send_refused", "id_taken", f"there is another command {command_id}: choose another id")
    if (error := _refusal(ctx, agent, request)) is not None:
        return error
    start_at = _start_at(draft.now, options)
    ttl_s = options.ttl or policy.commands.ttl
    command = Command(
        command_id=command_id,
        agent_id=agent.agent_id,
        type=spec.type,
        target=spec.payload["target"] if spec.type == "state_transition" else None,
        priority=options.priority,
        seq=draft.next_seq(),
        accepted_at=draft.now,
        expires_at=max(start_at, draft.now) + ttl_s,
        ack_timeout_s=options.ack_timeout or policy.commands.ack_timeout,
        timeout_s=options.timeout or policy.commands.timeout,
        max_attempts=options.max_attempts or policy.commands.max_attempts,
        on_lost=options.on_lost or policy.commands.on_lost,
        group_id=group_id,
    )
    body = encode(
        m.CommandMessage(
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
    elif not agent.waiting and ctx.may_dispatch(agent):
        queued = command.queue(draft.now, command.seq)
        ctx.add(fx.PushCommand(agent.agent_id, body))
    draft.add_command(command)
    ctx.decision.status_changes.append(command.status_change("", draft.now))
    contents = {"payload": encode(spec.payload), "body": body}
    ctx.add(fx.SaveCommand(command_id, {**command.record(), **queued, **contents, **links}))
    ctx.add(fx.SetDeadline(command.deadline, command.due_at))
    ctx.record_command(command)
    return _accepted(command)


def find_agent(ctx: DecisionContext, agent_id: str, kind: str = "send_refused") -> AgentRecord | ErrorReply:
    """Find the agent a request means; one that has left any trace in Redis is taken in."""
    agent = ctx.draft.agent(agent_id)
    if agent is not None:
        return agent
    seen = ctx.draft.lookups.snapshots.get(agent_id)
    if seen is None or not seen.exists or not ctx.policy.agents.auto_register:
        message = f"there is no agent {agent_id}: it has never beaten, spoken or registered"
        return ErrorReply(kind, "unknown_agent", message, suggestions=("aism-engine agents list",))
    if ctx.draft.size >= ctx.policy.agents.max_agents:
        return ErrorReply(kind, "fleet_full", f"the fleet is full: agents.max_agents = {ctx.policy.agents.max_agents}")
    return ctx.admit(agent_id)


def select(ctx: DecisionContext, text: str, kind: str) -> list[AgentRecord] | ErrorReply:
    """Find the agents that a selector means. Those that are away are meant only where it speaks of liveness itself."""
    try:
        selector = Selector.parse(text)
    except ValueError as error:
        return ErrorReply(kind, "invalid_selector", str(error))
    found = [
        agent
        for agent in ctx.draft.agents()
        if (selector.names_liveness or agent.liveness not in _AWAY) and selector.matches(agent)
    ]
    if not found:
        message = f"no agent that is present fits {selector.text}"
        return ErrorReply(kind, "no_match", message, suggestions=("aism-engine agents list",))
    return found


def to_all(
    ctx: DecisionContext,
    request: m.Request,
    group: Group,
    fanout: list[bytes],
    raw: bytes,
    ends_at: float,
    **fields: str,
) -> dict[str, Any]:
    """Freeze the targets of a request to many: one errand for each, and a group that counts what becomes of them."""
    ctx.draft.add_group(group)
    accepted: dict[str, str | bytes] = {**group.record(), **fields, "accepted_at": ctx.draft.at, "request": raw}
    ctx.add(fx.SaveGroup(group.group_id, accepted))
    ctx.add(fx.SetDeadline(group.deadline, ends_at + ctx.policy.commands.retention))
    ctx.add(fx.AddFanoutTargets(fanout))
    ctx.record("group_accepted", type=request.kind, details={"group_id": group.group_id, "total": group.total})
    return _accepted_for_many(group)


def child_id(request_id: str, name: str) -> str:
    """Name what a request to many means for one of them: `{request_id}.{name}`, by a digest where that is too long."""
    whole = f"{request_id}.{name}"
    if len(whole) <= _LONGEST_ID:
        return whole
    tail = sha1(whole.encode(), usedforsecurity=False).hexdigest()
    return f"{whole[: _LONGEST_ID - len(tail) - 1]}.{tail}"


def _send_to_all(
    ctx: DecisionContext, request: m.Send, found: list[AgentRecord], raw: bytes
) -> dict[str, Any] | ErrorReply:
    options = request.payload.options
    try:
        needed = quorum(options.quorum, len(found))
    except ValueError as error:
        return ErrorReply("send_refused", "invalid_quorum", str(error), {"targets": len(found)})
    group = Group(group_id=request.id, kind=request.kind, total=len(found), needed=needed)
    fanout = [encode({"group_id": request.id, "agent_id": agent.agent_id}) for agent in found]
    ends_at = max(_start_at(ctx.draft.now, options), ctx.draft.now) + (options.ttl or ctx.policy.commands.ttl)
    return to_all(ctx, request, group, fanout, raw, ends_at, selector=request.payload.select or "")


def _refusal(ctx: DecisionContext, agent: AgentRecord, request: m.Send) -> ErrorReply | None:
    """Say why an agent may not be given this command now."""
    policy, spec, agent_id = ctx.policy, request.payload.command, agent.agent_id
    if agent.liveness is Liveness.LOST and (request.payload.options.on_lost or policy.commands.on_lost) == "fail":
        return ErrorReply(
            "send_refused", "agent_lost", f"{agent_id} is lost, and the command is not to wait for its return"
        )
    if ctx.draft.is_draining(agent):
        return ErrorReply("send_refused", "draining", f"{agent_id} is being drained: it takes no new commands")
    if agent.load >= policy.commands.max_queued:
        message = f"{agent_id} has {agent.load} open commands: commands.max_queued is reached"
        return ErrorReply("send_refused", "queue_full", message, {"max_queued": policy.commands.max_queued})
    return _refuse_transition(ctx, agent, request) if spec.type == "state_transition" else None


def _refuse_transition(ctx: DecisionContext, agent: AgentRecord, request: m.Send) -> ErrorReply | None:
    target = request.payload.command.payload.get("target")
    if not isinstance(target, str):
        return ErrorReply(
            "send_refused", "invalid_message", "a state_transition needs the field `target` in its payload"
        )
    if _start_at(ctx.draft.now, request.payload.options) > ctx.draft.now:
        return None  # where it will be by then, nobody knows
    refusal = _check(ctx, agent, target)
    return None if refusal is None else transition_error(refusal)


def _check(ctx: DecisionContext, agent: AgentRecord, target: str) -> Refusal | None:
    """Check a transition from where the agent is, or will be when the commands before this one are done."""
    machine, asked = (
        ctx.machine(agent),
        TransitionCase("operator"),
    )  # how long it stays till then, and with what, nobody knows
    refusal = machine.check(agent.state, target, asked)
    pending = (ctx.draft.command(command_id) for command_id in agent.open_commands)
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
    return {"ok": True, "group_id": group.group_id, "targets": group.total, "status": group.status}
