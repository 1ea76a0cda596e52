"""`aism`: the command line tool for agents that work through a shell.

Each call sends one message or reads one thing. It waits for the engine's reply, prints JSON on standard output and an
error as one line on standard error. It must start fast, so nothing here imports redis-py or msgspec.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

from aism_engine.agent import argument_types as types
from aism_engine.agent.sync_client import SyncAgentClient
from aism_engine.errors import ServerUnavailableError
from aism_engine.redact import redacted

Call: TypeAlias = Callable[[SyncAgentClient, argparse.Namespace], "dict[str, Any] | None"]
_Commands: TypeAlias = "argparse._SubParsersAction[Any]"  # noqa: SLF001  argparse has no public name for it

DONE, REFUSED, TIMED_OUT, USAGE, UNAVAILABLE = 0, 1, 2, 64, 69
_EXIT_CODES: Final = "Exit codes: 0 done, 1 refused or failed, 2 timed out, 64 wrong usage, 69 Redis not reachable."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}. See {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    parser = _build_parser()
    options = parser.parse_args(arguments)
    if not options.agent:
        parser.error("the id of the agent is missing: give --agent ID or set AISM_AGENT_ID")
    try:
        code = _run(options)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run(options: argparse.Namespace) -> int:
    client = None
    try:
        client = SyncAgentClient(options.agent, options.redis, options.prefix)
        result = options.call(client, options)
    except ServerUnavailableError as error:
        message = f"Redis is not available: {redacted(str(error))}. Name the server with --redis URL or AISM_REDIS_URL"
        return _print_error(message, UNAVAILABLE)
    except TimeoutError as error:
        return _print_error(f"{error}. The message stays queued and may still be applied", TIMED_OUT)
    except ValueError as error:
        return _print_error(redacted(str(error)), USAGE)
    finally:
        if client is not None:
            client.close()
    if result is None:
        return _print_error(f"nothing has arrived within {options.wait:g} s. Wait longer with --wait S", TIMED_OUT)
    print(json.dumps(result, separators=(",", ":"), ensure_ascii=False), flush=True)  # noqa: T201  the result
    return _print_error(_format_refusal(result), REFUSED) if result.get("ok") is False else DONE


def _print_error(message: str, code: int) -> int:
    print(f"aism: {message}", file=sys.stderr)  # noqa: T201
    return code


def _format_refusal(reply: dict[str, Any]) -> str:
    error = reply.get("error") or {}
    suggestions = "; ".join(error.get("suggestions", ()))
    return f"refused: {error.get('message', 'no reason given')}" + (f" (try: {suggestions})" if suggestions else "")


# --- the commands -----------------------------------------------------------------------------------------------------


def _sends(kind: str, *fields: str) -> Call:
    """Build a call that sends these arguments as payload, about the command `id` if there is one."""

    def call(client: SyncAgentClient, options: argparse.Namespace) -> dict[str, Any]:
        payload = {name: getattr(options, name) for name in fields}
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
    from aism_engine.agent.executable import run  # noqa: PLC0415

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
    return run(agent, program, timeout_s=options.limit)


_CALLS: Final[dict[str, Call]] = {
    "register": _register,
    "heartbeat": _heartbeat,
    "whoami": _state,
    "run": _run_executable,
    "goodbye": _sends("goodbye", "reason"),
    "measure": lambda client, options: client.send("measurement", dict(options.values), None, options.timeout),
    "current": _state,
    "transition": _sends("state_transition", "target", "context", "reason"),
    "inbox": lambda client, options: client.pop(client.keys.inbox(client.agent_id), options.wait),
    "send": _sends("message", "to", "content", "thread_id"),
    "next": lambda client, options: client.pop(client.keys.commands(client.agent_id), options.wait),
    "ack": _sends("ack"),
    "progress": _sends("progress", "percent", "note"),
    "done": lambda client, options: client.send("result", options.payload, options.id, options.timeout),
    "fail": _sends("error", "code", "message", "retryable"),
}


def _build_parser() -> argparse.ArgumentParser:
    environ = os.environ
    parser = _Parser(prog="aism", description="Talk to the AISM Engine as an agent.", epilog=_EXIT_CODES)
    add = parser.add_argument
    agent_id = environ.get("AISM_AGENT_ID") or environ.get("AGENT_ID")
    url = environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
    prefix = environ.get("AISM_REDIS__PREFIX") or "aism"
    add("--agent", metavar="ID", default=agent_id, help="id of the agent; default: AISM_AGENT_ID, then AGENT_ID")
    add("--redis", metavar="URL", default=url, help="Redis server; default: AISM_REDIS_URL, then localhost")
    add("--prefix", metavar="NAME", default=prefix, help="prefix of every key: names the fleet; default: aism")
    add("--timeout", metavar="S", type=types.seconds, default=30.0, help="longest wait for a reply; default: 30")
    commands = _add_subcommands(parser)

    register = _add_command(commands, "register", "join the fleet: aism register --type scribe --label team=a")
    _add_type_and_labels(register)
    register.add_argument(
        "--capability",
        metavar="NAME",
        type=types.type_name,
        action="append",
        default=[],
        help="ack: you acknowledge commands, and unacknowledged ones are delivered again; repeatable",
    )
    _add_command(commands, "heartbeat", "show that you are alive: send one every few seconds")
    _add_command(commands, "whoami", "print your id and your state according to the engine")
    measure = _add_command(commands, "measure", "report measurements: aism measure context_used=0.7")
    measure.add_argument("values", metavar="NAME=VALUE", type=types.measurement, nargs="+", help="value: a number")
    goodbye = _add_command(commands, "goodbye", "leave the fleet: your silence is then no loss")
    goodbye.add_argument("--reason", metavar="TEXT", help="recorded in the audit")
    _add_state(commands)
    _add_messages(commands)
    _add_task_commands(commands)
    _add_run(commands)
    return parser


def _add_type_and_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type", required=True, type=types.type_name, help="type of the agent; determines its state machine"
    )
    parser.add_argument(
        "--label",
        metavar="NAME=VALUE",
        type=types.label,
        action="append",
        default=[],
        help="for selectors of operators; repeatable",
    )


def _add_state(commands: _Commands) -> None:
    states = _add_subcommands(commands.add_parser("state", help="read or declare your state", epilog=_EXIT_CODES))
    _add_command(states, "current", "print your state according to the engine")
    transition = _add_command(states, "transition", "declare a new state: aism state transition deep_work")
    transition.add_argument("target", type=types.state_name, help="the new state")
    transition.add_argument(
        "--context", metavar="JSON", type=types.json_object, default={}, help="what the machine requires, an object"
    )
    transition.add_argument("--reason", metavar="TEXT", help="recorded in the audit")


def _add_messages(commands: _Commands) -> None:
    inbox = _add_command(commands, "inbox", "take the next message from another agent: aism inbox --wait 60")
    _add_wait(inbox)
    messages = _add_subcommands(commands.add_parser("message", help="write to other agents", epilog=_EXIT_CODES))
    send = _add_command(messages, "send", "send a message: aism message send scribe-2 'the draft is ready' --thread t1")
    send.add_argument("to", metavar="TO", type=types.identifier, help="id of the recipient")
    send.add_argument("content", metavar="TEXT", help="the message")
    send.add_argument("--thread", dest="thread_id", metavar="ID", type=types.identifier, help="thread of the message")


def _add_task_commands(commands: _Commands) -> None:
    group = _add_subcommands(commands.add_parser("command", help="take commands and answer them", epilog=_EXIT_CODES))
    _add_wait(_add_command(group, "next", "take the next command: aism command next --wait 60"))
    _add_id(_add_command(group, "ack", "acknowledge a command: aism command ack ID"))
    progress = _add_id(_add_command(group, "progress", "report progress: aism command progress ID --percent 40"))
    progress.add_argument("--percent", metavar="0-100", type=types.percent)
    progress.add_argument("--note", metavar="TEXT")
    done = _add_id(_add_command(group, "done", """report success: aism command done ID --payload '{"lines": 12}'"""))
    done.add_argument("--payload", metavar="JSON", type=types.json_object, default={}, help="the result, an object")
    fail = _add_id(_add_command(group, "fail", "report failure: aism command fail ID --code no_access"))
    fail.add_argument("--code", required=True, type=types.type_name, help="short name of the error")
    fail.add_argument("--message", metavar="TEXT", help="description of the error")
    fail.add_argument("--final", dest="retryable", action="store_const", const=False, help="do not deliver it again")


def _add_run(commands: _Commands) -> None:
    run = _add_command(commands, "run", "let a program execute your commands: aism run --type builder -- ./build.sh")
    _add_type_and_labels(run)
    run.add_argument("--concurrency", metavar="N", type=types.count, default=1, help="commands at a time; default: 1")
    run.add_argument("--limit", metavar="S", type=types.seconds, help="end the program after this time")
    run.add_argument("program", metavar="-- PROGRAM [ARGUMENT…]", nargs=argparse.REMAINDER)


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", metavar="S", type=types.seconds, default=0.0, help="longest wait; default: 0, do not wait"
    )


def _add_id(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("id", metavar="ID", type=types.identifier, help="id of the command")
    return parser


def _add_subcommands(parser: argparse.ArgumentParser) -> _Commands:
    return parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)


def _add_command(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=_EXIT_CODES)
    parser.set_defaults(call=_CALLS[name])
    return parser
