"""Acceptance of commands: which agents a `send` addresses, whether they may get the command, and its first status.

`accept_group` splits a request for many agents into targets; fanout.py decides on each of them.
"""

from typing import Any
from zlib import crc32

from aism_engine.clock import from_iso, iso
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.membership import admit
from aism_engine.domain.commands.command import COMMAND_TABLE, Command, Status
from aism_engine.domain.commands.delivery import may_dispatch
from aism_engine.domain.commands.group import GROUP_TABLE, Group, quorum
from aism_engine.domain.commands.lifecycle import record_command
from aism_engine.domain.commands.selector import Selector
from aism_engine.domain.decision import DecisionContext, ErrorReply, transition_error
from aism_engine.domain.machines.machine import TransitionCase
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.durations import MAX_DURATION_S


def send(ctx: DecisionContext, request: m.Send, raw: bytes) -> dict[str, Any] | ErrorReply:
    """Accept a command for one agent, for any one of the selected agents, or for all of them."""
    payload = request.payload
    if (known := ctx.draft.command(request.id) or ctx.draft.group(request.id)) is not None:
        return _accepted_before(ctx, request, known)  # the saved reply has expired, the record has not
    if abs(_start_at(ctx.draft.now, payload.options) - ctx.draft.now) > MAX_DURATION_S:
        message = f"the start {payload.options.start_at} is not within a year of now, {ctx.draft.at}"
        return ErrorReply("send_refused", "invalid_start", message)
    if (error := _invalid(payload.command)) is not None:
        return error
    if payload.agent_id is not None:
        agent = find_agent(ctx, payload.agent_id)
        return agent if isinstance(agent, ErrorReply) else accept(ctx, request.id, agent, request)
    found = select(ctx, payload.select or "", "send_refused")
    if isinstance(found, ErrorReply):
        return found
    return _send_to_any(ctx, request, found) if payload.any else _send_to_all(ctx, request, found, raw)


def accept(
    ctx: DecisionContext,
    command_id: str,
    agent: AgentRecord,
    request: m.Send,
    group_id: str | None = None,
    **record_fields: str,
) -> dict[str, Any] | ErrorReply:
    """Accept one command for one agent: push it at once, or let it wait for credit or for its start.

    `record_fields` are written to its record as well, such as `replay_of` by a replay.
    """
    draft, limits, spec, options = ctx.draft, ctx.policy.commands, request.payload.command, request.payload.options
    if draft.command(command_id) is not None:
        return ErrorReply("send_refused", "id_taken", f"command {command_id} exists already; use another id")
    if (error := _refusal(ctx, agent, request)) is not None:
        return error
    start_at = max(_start_at(draft.now, options), draft.now)
    command = Command(
        command_id=command_id,
        agent_id=agent.agent_id,
        type=spec.type,
        target=spec.payload["target"] if spec.type == "state_transition" else None,
        priority=options.priority,
        seq=draft.next_seq(),
        accepted_at=draft.now,
        start_at=start_at if start_at > draft.now else 0.0,
        expires_at=start_at + (options.seconds("ttl") or limits.ttl),
        ack_timeout_s=options.seconds("ack_timeout") or limits.ack_timeout,
        timeout_s=options.seconds("timeout") or limits.timeout,
        max_attempts=options.max_attempts or limits.max_attempts,
        on_lost=options.on_lost or limits.on_lost,
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
    if command.start_at:
        command.status, command.step_at = Status.SCHEDULED, start_at
    elif not draft.commands_of(agent.agent_id).waiting and may_dispatch(ctx, agent):
        queued = command.queue(draft.now, command.seq)
        ctx.add(fx.PushCommand(agent.agent_id, body))
    draft.add_command(command)
    ctx.decision.status_changes.append(command.status_change("", draft.now))
    contents: dict[str, str | bytes] = {"payload": encode(spec.payload), "body": body, **record_fields}
    ctx.add(fx.SaveCommand(command_id, {**COMMAND_TABLE.encode(command), **queued, **contents}))
    ctx.add(fx.SetDeadline(command.deadline, command.due_at))
    record_command(ctx, command, command.status)
    return _accepted(command)


def find_agent(ctx: DecisionContext, agent_id: str, error_type: str = "send_refused") -> AgentRecord | ErrorReply:
    """Return the agent that a request names. An agent that has written to its own keys in Redis is admitted."""
    agent = ctx.draft.agent(agent_id)
    if agent is not None:
        return agent
    seen = ctx.draft.lookups.snapshots.get(agent_id)
    if seen is not None and seen.exists:
        return admit(ctx, agent_id, "request", error_type=error_type)
    message = f"there is no agent {agent_id}: no registration, response or heartbeat of it is known"
    return ErrorReply(error_type, "unknown_agent", message, suggestions=("aism-engine agents list",))


def select(ctx: DecisionContext, text: str, error_type: str) -> list[AgentRecord] | ErrorReply:
    """Return the agents that a selector matches. Lost and left agents match only if it names `liveness`."""
    try:
        selector = Selector.parse(text)
    except ValueError as error:
        return ErrorReply(error_type, "invalid_selector", str(error))
    found = [agent for agent in ctx.draft.agents() if selector.selects(agent)]
    if not found:
        message = f"no {'' if selector.names_liveness else 'present '}agent matches {text}"
        return ErrorReply(error_type, "no_match", message, suggestions=("aism-engine agents list",))
    return found


def accept_group(
    ctx: DecisionContext,
    request: m.Request,
    raw: bytes,
    targets: list[dict[str, str]],
    selector: str = "",
    needed: int | None = None,
    ends_at: float = 0.0,
) -> dict[str, Any]:
    """Accept a request for many agents or commands: write its targets to the fan-out queue, and create its group.

    `needed` targets must succeed, by default all. `ends_at` is the instant by which all of them have ended.
    """
    draft, total = ctx.draft, len(targets)
    group = Group(group_id=request.id, kind=request.kind, total=total, needed=needed or total)
    draft.add_group(group)
    ends_at = max(ends_at, draft.now)
    accepted: dict[str, str | bytes] = {"selector": selector, "accepted_at": draft.at, "request": raw}
    accepted["expires_at"] = iso(ends_at)
    ctx.add(fx.SaveGroup(group.group_id, {**GROUP_TABLE.encode(group), **accepted}))
    ctx.add(fx.SetDeadline(group.deadline, ends_at + ctx.policy.commands.retention))
    ctx.add(fx.AddFanoutTargets([encode({"group_id": request.id, **target}) for target in targets]))
    ctx.record("group_accepted", type=request.kind, details={"group_id": group.group_id, "total": total})
    return _group_accepted(group)


def _send_to_any(ctx: DecisionContext, request: m.Send, found: list[AgentRecord]) -> dict[str, Any] | ErrorReply:
    able = [agent for agent in found if _refusal(ctx, agent, request) is None and not ctx.draft.is_paused(agent)]
    if not able:
        reasons = "paused, draining, lost, at commands.max_queued, or in a state that does not allow the transition"
        message = f"none of the {len(found)} selected agents can take the command: each is {reasons}"
        return ErrorReply("send_refused", "none_available", message, {"selected": len(found)})

    def busyness(agent: AgentRecord) -> tuple[int, int, int]:
        """Return commands in flight, then waiting ones. The checksum spreads requests over equally busy agents."""
        index = ctx.draft.commands_of(agent.agent_id)
        return index.in_flight(acks=agent.acks), len(index.waiting), crc32(f"{request.id} {agent.agent_id}".encode())

    chosen = min(able, key=busyness)
    return accept(ctx, request.id, ctx.draft.agent(chosen.agent_id) or chosen, request)


def _send_to_all(
    ctx: DecisionContext, request: m.Send, found: list[AgentRecord], raw: bytes
) -> dict[str, Any] | ErrorReply:
    options = request.payload.options
    try:
        needed = quorum(options.quorum, len(found))
    except ValueError as error:
        return ErrorReply("send_refused", "invalid_quorum", str(error), {"targets": len(found)})
    targets = [{"agent_id": agent.agent_id} for agent in found]
    ttl_s = options.seconds("ttl") or ctx.policy.commands.ttl
    ends_at = max(_start_at(ctx.draft.now, options), ctx.draft.now) + ttl_s
    return accept_group(ctx, request, raw, targets, request.payload.select or "", needed, ends_at)


def _refusal(ctx: DecisionContext, agent: AgentRecord, request: m.Send) -> ErrorReply | None:
    """Return why an agent may not get this command now."""
    limits, spec, agent_id = ctx.policy.commands, request.payload.command, agent.agent_id
    if (error := _invalid(spec)) is not None:  # a replayed command has not passed the check in `send`
        return error
    if agent.liveness is Liveness.LOST and (request.payload.options.on_lost or limits.on_lost) == "fail":
        message = f"{agent_id} is lost, and on_lost is `fail`: the command does not wait for the agent to return"
        return ErrorReply("send_refused", "agent_lost", message)
    if ctx.draft.is_draining(agent):
        return ErrorReply("send_refused", "draining", f"{agent_id} is draining and takes no new commands")
    if (count := len(ctx.draft.commands_of(agent_id))) >= limits.max_queued:
        message = f"{agent_id} has {count} open commands: commands.max_queued is reached"
        return ErrorReply("send_refused", "queue_full", message, {"max_queued": limits.max_queued})
    return _transition_refusal(ctx, agent, request) if spec.type == "state_transition" else None


def _invalid(spec: m.CommandSpec) -> ErrorReply | None:
    """Return why no agent may get this command."""
    if spec.type == "cancel":
        message = "only the engine sends commands of type `cancel`; to cancel a command, send the request `cancel`"
    elif spec.type == "state_transition" and not isinstance(spec.payload.get("target"), str):
        message = "the payload of a state_transition needs the field `target`, a string"
    else:
        return None
    return ErrorReply("send_refused", "invalid_message", message)


def _transition_refusal(ctx: DecisionContext, agent: AgentRecord, request: m.Send) -> ErrorReply | None:
    """Check a transition from the current state of the agent, or from the target of one of its open commands.

    What depends on the moment of the transition is not checked here: `min_stay`, `cooldown`, `max_agents`, the context.
    """
    if _start_at(ctx.draft.now, request.payload.options) > ctx.draft.now:
        return None  # the state at the scheduled start is not known
    machine, case, target = ctx.machine(agent), TransitionCase("operator"), request.payload.command.payload["target"]
    refusal = machine.check(agent.state, target, case)
    pending = (ctx.draft.command(command_id) for command_id in ctx.draft.commands_of(agent.agent_id))
    if refusal is None or any(c and c.target and machine.check(c.target, target, case) is None for c in pending):
        return None
    return transition_error(refusal)


def _start_at(now: float, options: m.SendOptions) -> float:
    """Return when a command starts: its scheduled start, which may lie in the past, or now if it has none."""
    return now + (options.seconds("start_in") or 0.0) if options.start_at is None else from_iso(options.start_at)


def _accepted_before(ctx: DecisionContext, request: m.Send, known: Command | Group) -> dict[str, Any] | ErrorReply:
    """Reply to a repeated request as before. Refuse it if its targets or its type differ: then the id was reused."""
    payload, to_all = request.payload, request.payload.select is not None and not request.payload.any
    if isinstance(known, Group):
        repeats = to_all and known.kind == "send"
    else:
        repeats = payload.agent_id in {None, known.agent_id} and payload.command.type == known.type and not to_all
    if not repeats:
        return id_reused(request)
    ctx.decision.outcome = "duplicate"
    return _accepted(known) if isinstance(known, Command) else _group_accepted(known)


def id_reused(request: m.Request) -> ErrorReply:
    """Refuse a request under an id that another request has used."""
    message = f"another request had the id {request.id}: give each request a new id"
    return ErrorReply(f"{request.kind}_refused", "id_reused", message)


def _accepted(command: Command) -> dict[str, Any]:
    return {"ok": True, "command_id": command.command_id, "agent_id": command.agent_id, "status": command.status}


def _group_accepted(group: Group) -> dict[str, Any]:
    return {"ok": True, "group_id": group.group_id, "targets": group.total, "status": group.status}
