"""The commands of `aism`: the help of each, its arguments, and the call that it makes."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from typing import Any, Final, TypeAlias

from aism_engine.agent import arguments as types
from aism_engine.agent.sync_client import SyncAgentClient

Call: TypeAlias = Callable[[SyncAgentClient, argparse.Namespace], "dict[str, Any] | None"]
Argument: TypeAlias = Callable[[argparse.ArgumentParser], Any]


def _sends(kind: str, *fields: str) -> Call:
    """Build a call that sends these arguments as payload, and the id of the command if one is given."""

    def call(client: SyncAgentClient, options: argparse.Namespace) -> dict[str, Any]:
        given = {name: getattr(options, name) for name in fields}
        payload = {name: value for name, value in given.items() if value is not None}
        return client.send(kind, payload, getattr(options, "id", None), options.timeout)

    return call


def _register(client: SyncAgentClient, options: argparse.Namespace) -> dict[str, Any]:
    payload = {"type": options.type, "labels": dict(options.label), "capabilities": options.capability}
    return client.send("register", payload, None, options.timeout)


def _heartbeat(client: SyncAgentClient, _: argparse.Namespace) -> dict[str, Any]:
    client.heartbeat()
    return {"ok": True}


def _state(client: SyncAgentClient, _: argparse.Namespace) -> dict[str, Any]:
    return {"agent_id": client.agent_id, "state": client.state()}


def _run_executable(client: SyncAgentClient, options: argparse.Namespace) -> dict[str, Any]:
    from aism_engine.agent.agent import Agent  # noqa: PLC0415  slow to import, and only this call needs it
    from aism_engine.agent.executable import run as run_program  # noqa: PLC0415

    program = options.program[1:] if options.program[:1] == ["--"] else options.program
    if not program:
        raise ValueError("the program is missing. Example: aism run --type builder -- make -s report")
    agent = Agent(
        client.agent_id,
        type=options.type,
        labels=dict(options.label),
        url=options.redis,
        prefix=options.prefix,
        concurrency=options.concurrency,
    )
    return run_program(agent, program, timeout_s=options.limit)


_argument = partial(methodcaller, "add_argument")
_REPEATABLE: Final[Mapping[str, Any]] = {"action": "append", "default": []}
_TYPE = _argument("--type", required=True, type=types.type_name, help="type of the agent; determines its state machine")
_LABEL = _argument(
    "--label", metavar="NAME=VALUE", type=types.label, help="lets operators select you; repeatable", **_REPEATABLE
)
_REASON = _argument("--reason", metavar="TEXT", help="recorded in the audit")
_WAIT = _argument(
    "--wait", metavar="DURATION", type=types.duration, default=0.0, help="longest wait; default: 0, do not wait"
)
_ID = _argument("id", metavar="ID", type=types.identifier, help="id of the command")

GROUPS: Final = {
    "state": "read or declare your state",
    "message": "write to other agents",
    "command": "take commands and answer them",
}
COMMANDS: Final[Mapping[str, tuple[str, Call, *tuple[Argument, ...]]]] = {
    "register": (
        "join the fleet: aism register --type scribe --label team=a",
        _register,
        _TYPE,
        _LABEL,
        _argument(
            "--capability",
            metavar="NAME",
            type=types.type_name,
            **_REPEATABLE,
            help="ack: you acknowledge commands, and unacknowledged ones are delivered again; repeatable",
        ),
    ),
    "heartbeat": ("show that you are alive: send one every few seconds", _heartbeat),
    "whoami": ("print your id and your state according to the engine", _state),
    "measure": (
        "report measurements: aism measure context_used=0.7",
        lambda client, options: client.send("measurement", dict(options.values), None, options.timeout),
        _argument("values", metavar="NAME=VALUE", type=types.measurement, nargs="+", help="value: a number"),
    ),
    "goodbye": ("leave the fleet: you are then not marked as lost", _sends("goodbye", "reason"), _REASON),
    "state current": ("print your state according to the engine", _state),
    "state transition": (
        "declare a new state: aism state transition deep_work",
        _sends("state_transition", "target", "context", "reason"),
        _argument("target", type=types.state_name, help="the new state"),
        _argument(
            "--context",
            metavar="JSON",
            type=types.json_object,
            default={},
            help="fields that the state machine requires, as an object",
        ),
        _REASON,
    ),
    "inbox": (
        "take the next message from another agent: aism inbox --wait 60",
        lambda client, options: client.pop(client.keys.inbox(client.agent_id), options.wait, "malformed_message"),
        _WAIT,
    ),
    "message send": (
        "send a message: aism message send scribe-2 'the draft is ready' --thread t1",
        _sends("message", "to", "content", "thread_id"),
        _argument("to", metavar="TO", type=types.identifier, help="id of the recipient"),
        _argument("content", metavar="TEXT", help="the message"),
        _argument("--thread", dest="thread_id", metavar="ID", type=types.identifier, help="thread of the message"),
    ),
    "command next": (
        "take the next command: aism command next --wait 60",
        lambda client, options: client.pop(client.keys.commands(client.agent_id), options.wait, "malformed_command"),
        _WAIT,
    ),
    "command ack": ("acknowledge a command: aism command ack ID", _sends("ack"), _ID),
    "command progress": (
        "report progress: aism command progress ID --percent 40",
        _sends("progress", "percent", "note"),
        _ID,
        _argument("--percent", metavar="0-100", type=types.percent, help="how much of the work is done"),
        _argument("--note", metavar="TEXT", help="what you are doing now, for people"),
    ),
    "command result": (
        """report success: aism command result ID --payload '{"lines": 12}'""",
        lambda client, options: client.send("result", options.payload, options.id, options.timeout),
        _ID,
        _argument("--payload", metavar="JSON", type=types.json_object, default={}, help="the result, an object"),
    ),
    "command error": (
        "report failure: aism command error ID --code no_access",
        _sends("error", "code", "message", "retryable"),
        _ID,
        _argument("--code", required=True, type=types.type_name, help="short name of the error"),
        _argument("--message", metavar="TEXT", help="description of the error"),
        _argument("--final", dest="retryable", action="store_const", const=False, help="do not deliver it again"),
    ),
    "run": (
        "let a program execute your commands: aism run --type builder -- ./build.sh",
        _run_executable,
        _TYPE,
        _LABEL,
        _argument(
            "--concurrency", metavar="1-10000", type=types.count, default=1, help="commands at a time; default: 1"
        ),
        _argument("--limit", metavar="DURATION", type=types.duration, help="end the program after this time"),
        _argument(
            "program",
            metavar="-- PROGRAM [ARGUMENT…]",
            nargs=argparse.REMAINDER,
            help="started once for each command, with the payload on its standard input",
        ),
    ),
}
"""The help, the call and the arguments of each command. In a name of two words, the first word is the group."""
