"""`aism`: the command line tool for agents that work through a shell.

Each call sends one message or reads one thing. It waits for the engine's reply, prints JSON on standard output and an
error as one line on standard error. It must start fast, so nothing here imports redis-py or msgspec.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import methodcaller
from typing import Any, Final, NoReturn, TypeAlias

import aism_engine
from aism_engine.agent import arguments as types
from aism_engine.agent.sync_client import SyncAgentClient
from aism_engine.durations import format_duration
from aism_engine.errors import ServerUnavailableError
from aism_engine.redact import redacted
from aism_engine.terminal import (
    EXIT_CODES,
    ExitCode,
    OutputError,
    check_output,
    describe_usage_error,
    invalid_argument,
    is_encodable,
    print_error_line,
    print_line,
    run,
)

Call: TypeAlias = Callable[[SyncAgentClient, argparse.Namespace], "dict[str, Any] | None"]
Argument: TypeAlias = Callable[[argparse.ArgumentParser], Any]

_COMPLETION: Final = "_AISM_COMPLETE"
"""Variable that is set while a shell completes a command line."""
_COMPLETION_OPTIONS: Final = {
    "--install-completion": "install completion for the current shell, and exit",
    "--show-completion": "show the script that completes in the current shell, and exit",
}

DONE, REFUSED, TIMED_OUT, USAGE, UNAVAILABLE = ExitCode


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:  # noqa: ANN401  as in argparse
        super().__init__(allow_abbrev=False, epilog=EXIT_CODES, **options)
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        _print_error(f"{describe_usage_error(message)}. See {self.prog} --help", USAGE)
        self.exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    run(_run, arguments, lambda message: print_error_line(f"aism: {message}"))


def _run(arguments: Sequence[str]) -> int:
    parser = _build_parser()
    if _COMPLETION in os.environ or {*arguments[:1]} & {*_COMPLETION_OPTIONS}:
        from aism_engine.agent.completion import complete  # noqa: PLC0415  slow to import and seldom needed

        return complete(parser, arguments)
    if problem := invalid_argument(arguments):
        parser.error(problem)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.version:
        print_line(aism_engine.__version__)
        return DONE
    if options.call is None:
        options.parser.print_help()
        return DONE
    if not options.agent:
        parser.error("the id of the agent is missing: give --agent ID or set AISM_AGENT_ID")
    return _call(options)


def _call(options: argparse.Namespace) -> int:
    try:
        if hasattr(options, "wait"):
            check_output()  # a message that is taken must be printed
        with closing(SyncAgentClient(options.agent, options.redis, options.prefix)) as client:
            try:
                result = options.call(client, options)
            except TimeoutError:
                _print_warnings(client)
                raise
            _print_warnings(client)
            if result is not None:
                _print_result(client, options, result)
    except ServerUnavailableError as error:
        return _print_error(error.explanation, UNAVAILABLE)
    except TimeoutError as error:
        return _print_error(f"{error}. The message stays queued and may still be applied", TIMED_OUT)
    except ValueError as error:
        return _print_error(str(error), USAGE)
    if result is None:
        waited = format_duration(options.wait)
        return _print_error(f"nothing has arrived within {waited}. Wait longer with --wait DURATION", TIMED_OUT)
    return _print_error(_format_refusal(result), REFUSED) if result.get("ok") is False else DONE


def _print_result(client: SyncAgentClient, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print a result as JSON. A message that was taken from a list and cannot be printed is put back."""
    text = json.dumps(result, separators=(",", ":"), ensure_ascii=False)
    try:
        print_line(text if is_encodable(text) else json.dumps(result, separators=(",", ":")))
    except OutputError as error:
        if not hasattr(options, "wait"):
            raise
        client.put_back()
        raise OutputError(f"{error}. The message is back in its list") from None


def _print_error(message: str, code: int) -> int:
    print_error_line(f"aism: {redacted(message)}")
    return code


def _print_warnings(client: SyncAgentClient) -> None:
    """Warn if no engine leads, or else if nobody has registered the agent: its id may be a typing error."""
    try:
        registered, lease = client.standing()
    except ServerUnavailableError:
        return
    if warning := lease.notice("states are what the last one wrote, and messages wait until one leads"):
        _print_error(f"warning: {warning}", DONE)
    elif not registered:
        fix = "check the id, or register: aism register --type TYPE"
        _print_error(f"warning: the agent {client.agent_id} is not registered; {fix}", DONE)


def _format_refusal(reply: dict[str, Any]) -> str:
    error = reply.get("error") or {}
    suggestions = "; ".join(error.get("suggestions", ()))
    return f"refused: {error.get('message', 'no reason given')}" + (f" (try: {suggestions})" if suggestions else "")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="aism", description="Talk to the AISM Engine as an agent.")
    parser.add_argument("--version", action="store_true", help="print the version")
    for option, text in _COMPLETION_OPTIONS.items():
        parser.add_argument(option, action="store_true", help=text)
    parser.set_defaults(call=None)
    types.add_shared_options(parser, with_defaults=True)
    options: dict[str, Any] = {"metavar": "COMMAND", "parser_class": _Parser}
    groups = {"": parser.add_subparsers(**options)}
    for name, (text, call, *arguments) in _COMMANDS.items():
        group, _, verb = name.rpartition(" ")
        if group not in groups:
            group_parser = groups[""].add_parser(group, help=_GROUPS[group], description=_GROUPS[group])
            types.add_shared_options(group_parser, with_defaults=False)
            groups[group] = group_parser.add_subparsers(**options)
        subparser = groups[group].add_parser(verb, help=text, description=text)
        subparser.set_defaults(call=call)
        for add_to in arguments:
            add_to(subparser)
        types.add_shared_options(subparser, with_defaults=False)
    return parser


# --- the commands -----------------------------------------------------------------------------------------------------


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
    "--label", metavar="NAME=VALUE", type=types.label, help="for selectors of operators; repeatable", **_REPEATABLE
)
_REASON = _argument("--reason", metavar="TEXT", help="recorded in the audit")
_WAIT = _argument(
    "--wait", metavar="DURATION", type=types.duration, default=0.0, help="longest wait; default: 0, do not wait"
)
_ID = _argument("id", metavar="ID", type=types.identifier, help="id of the command")

_GROUPS: Final = {
    "state": "read or declare your state",
    "message": "write to other agents",
    "command": "take commands and answer them",
}
_COMMANDS: Final[Mapping[str, tuple[str, Call, *tuple[Argument, ...]]]] = {
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
    "goodbye": (
        "leave the fleet: you are then not marked as lost",
        _sends("goodbye", "reason"),
        _REASON,
    ),
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
        lambda client, options: client.pop(client.keys.inbox(client.agent_id), options.wait),
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
        lambda client, options: client.pop(client.keys.commands(client.agent_id), options.wait),
        _WAIT,
    ),
    "command ack": ("acknowledge a command: aism command ack ID", _sends("ack"), _ID),
    "command progress": (
        "report progress: aism command progress ID --percent 40",
        _sends("progress", "percent", "note"),
        _ID,
        _argument("--percent", metavar="0-100", type=types.percent),
        _argument("--note", metavar="TEXT"),
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
        _argument("program", metavar="-- PROGRAM [ARGUMENT…]", nargs=argparse.REMAINDER),
    ),
}
"""The help of each command, what it calls, and its arguments. The first of two words names a group."""
