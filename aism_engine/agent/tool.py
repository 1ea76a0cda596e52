"""`aism`: the agent's own tool, for agents that work through a shell.

Each call is one message, or one look. It waits for the engine's answer, prints JSON on standard output and, where
something is amiss, one line on standard error. It has to start fast, so nothing here imports redis-py or msgspec.
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

DONE, REFUSED, TIMED_OUT, USAGE, UNAVAILABLE = 0, 1, 2, 64, 69
_EXIT_CODES: Final = "Exit codes: 0 done, 1 refused or failed, 2 timed out, 64 wrong usage, 69 Redis not reachable."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; try {self.prog} --help\n")


def main(words: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    parser = _parser()
    options = parser.parse_args(words)
    if not options.agent:
        parser.error("who are you? say --agent ID or set AISM_AGENT_ID")
    try:
        code = _run(options)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _run(options: argparse.Namespace) -> int:
    client = None
    try:
        client = SyncAgentClient(options.agent, options.redis, options.prefix)
        found = options.call(client, options)
    except ServerUnavailableError as error:
        return _complain(f"Redis cannot serve us: {redacted(str(error))}", UNAVAILABLE)
    except TimeoutError as error:
        return _complain(f"{error}; it may still do so", TIMED_OUT)
    except ValueError as error:
        return _complain(redacted(str(error)), USAGE)
    finally:
        if client is not None:
            client.close()
    if found is None:
        return _complain(f"nothing within {options.wait:g} s", TIMED_OUT)
    print(json.dumps(found, separators=(",", ":"), ensure_ascii=False), flush=True)  # noqa: T201  what it is for
    return _complain(_reason(found), REFUSED) if found.get("ok") is False else DONE


def _complain(reason: str, code: int) -> int:
    print(f"aism: {reason}", file=sys.stderr)  # noqa: T201
    return code


def _reason(answer: dict[str, Any]) -> str:
    error = answer.get("error") or {}
    hints = "; ".join(error.get("suggestions", ()))
    return f"refused: {error.get('message', 'no reason given')}" + (f" (try: {hints})" if hints else "")


# --- the commands -----------------------------------------------------------------------------------------------------


def _says(kind: str, *fields: str) -> Call:
    """Say something with these of the arguments in its payload, about the command with the `id` that was given."""

    def call(client: SyncAgentClient, o: argparse.Namespace) -> dict[str, Any]:
        payload = {name: getattr(o, name) for name in fields}
        return client.say(kind, payload, getattr(o, "id", None), o.timeout)

    return call


def _register(client: SyncAgentClient, o: argparse.Namespace) -> dict[str, Any]:
    payload = {"type": o.type, "labels": dict(o.label), "capabilities": o.capability}
    return client.say("register", payload, None, o.timeout)


def _heartbeat(client: SyncAgentClient, _: argparse.Namespace) -> dict[str, Any]:
    client.beat()
    return {"ok": True}


def _state(client: SyncAgentClient, _: argparse.Namespace) -> dict[str, Any]:
    return {"agent_id": client.agent_id, "state": client.state()}


def _run_executable(client: SyncAgentClient, o: argparse.Namespace) -> dict[str, Any]:
    from aism_engine.agent.agent import Agent  # noqa: PLC0415  slow to import, and this call lives long
    from aism_engine.agent.executable import run  # noqa: PLC0415

    program = o.program[1:] if o.program[:1] == ["--"] else o.program
    if not program:
        raise ValueError("what shall be run? aism run --type builder -- make -s report")
    agent = Agent(
        client.agent_id,
        type=o.type,
        labels=dict(o.label),
        url=o.redis,
        prefix=o.prefix,
        concurrency=o.concurrency,
    )
    return run(agent, program, timeout_s=o.limit)


_CALLS: Final[dict[str, Call]] = {
    "register": _register,
    "heartbeat": _heartbeat,
    "whoami": _state,
    "run": _run_executable,
    "goodbye": _says("goodbye", "reason"),
    "measure": lambda client, o: client.say("measurement", dict(o.values), None, o.timeout),
    "current": _state,
    "transition": _says("state_transition", "target", "context", "reason"),
    "inbox": lambda client, o: client.pop(client.keys.inbox(client.agent_id), o.wait),
    "send": _says("message", "to", "content", "thread_id"),
    "next": lambda client, o: client.pop(client.keys.commands(client.agent_id), o.wait),
    "ack": _says("ack"),
    "progress": _says("progress", "percent", "note"),
    "done": lambda client, o: client.say("result", o.payload, o.id, o.timeout),
    "fail": _says("error", "code", "message", "retryable"),
}


def _parser() -> argparse.ArgumentParser:
    environ = os.environ
    parser = _Parser(prog="aism", description="Speak to the AISM Engine as an agent.", epilog=_EXIT_CODES)
    add = parser.add_argument
    agent_id = environ.get("AISM_AGENT_ID") or environ.get("AGENT_ID")
    url = environ.get("AISM_REDIS_URL") or "redis://127.0.0.1:6379/0"
    add("--agent", metavar="ID", default=agent_id, help="who you are; else AISM_AGENT_ID, or AGENT_ID")
    add("--redis", metavar="URL", default=url, help="the server; else AISM_REDIS_URL, else localhost")
    add("--prefix", metavar="NAME", default=environ.get("AISM_REDIS__PREFIX") or "aism", help="the fleet's name")
    add("--timeout", metavar="S", type=types.seconds, default=30.0, help="longest wait for the engine's answer (30)")
    commands = _commands(parser)

    register = _command(commands, "register", "join the fleet: aism register --type scribe --label team=a")
    register.add_argument(
        "--type", required=True, type=types.type_name, help="what kind of agent you are; decides your state machine"
    )
    register.add_argument("--label", metavar="NAME=VALUE", type=types.label, action="append", default=[])
    register.add_argument(
        "--capability",
        metavar="NAME",
        type=types.type_name,
        action="append",
        default=[],
        help="ack: you confirm commands",
    )
    _command(commands, "heartbeat", "show that you live")
    _command(commands, "whoami", "print your id, and the state the engine holds you to be in")
    measure = _command(commands, "measure", "report figures: aism measure context_used=0.7")
    measure.add_argument("values", metavar="NAME=VALUE", type=types.measurement, nargs="+")
    _command(commands, "goodbye", "leave in order").add_argument("--reason", metavar="TEXT")
    _add_state(commands)
    _add_messages(commands)
    _add_commands(commands)
    _add_run(commands)
    return parser


def _add_state(commands: "argparse._SubParsersAction[Any]") -> None:
    states = _commands(commands.add_parser("state", help="read or declare your state", epilog=_EXIT_CODES))
    _command(states, "current", "print the state the engine holds you to be in")
    transition = _command(states, "transition", "declare a new state: aism state transition deep_work")
    transition.add_argument("target", type=types.state_name)
    transition.add_argument("--context", metavar="JSON", type=types.json_object, default={})
    transition.add_argument("--reason", metavar="TEXT")


def _add_messages(commands: "argparse._SubParsersAction[Any]") -> None:
    inbox = _command(commands, "inbox", "take the next message of another agent: aism inbox --wait 60")
    inbox.add_argument("--wait", metavar="S", type=types.seconds, default=0.0, help="longest wait (0: only look)")
    messages = _commands(commands.add_parser("message", help="write to other agents", epilog=_EXIT_CODES))
    send = _command(messages, "send", "send a message: aism message send scribe-2 'the draft is ready' --thread t1")
    send.add_argument("to", metavar="TO", type=types.identifier)
    send.add_argument("content", metavar="TEXT")
    send.add_argument("--thread", dest="thread_id", metavar="ID", type=types.identifier, help="what it belongs to")


def _add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    given = _commands(commands.add_parser("command", help="take commands and answer them", epilog=_EXIT_CODES))
    take = _command(given, "next", "take the next command: aism command next --wait 60")
    take.add_argument("--wait", metavar="S", type=types.seconds, default=0.0, help="longest wait (0: only look)")
    _command(given, "ack", "say that you have it").add_argument("id", type=types.identifier)
    progress = _command(given, "progress", "say how far you are: aism command progress ID --percent 40")
    progress.add_argument("id", type=types.identifier)
    progress.add_argument("--percent", metavar="0-100", type=types.percent)
    progress.add_argument("--note", metavar="TEXT")
    done = _command(given, "done", """say that it is done: aism command done ID --payload '{"lines": 12}'""")
    done.add_argument("id", type=types.identifier)
    done.add_argument("--payload", metavar="JSON", type=types.json_object, default={}, help="the result, an object")
    fail = _command(given, "fail", "say that it failed: aism command fail ID --code no_access")
    fail.add_argument("id", type=types.identifier)
    fail.add_argument("--code", required=True, type=types.type_name)
    fail.add_argument("--message", metavar="TEXT")
    fail.add_argument("--final", dest="retryable", action="store_const", const=False, help="to try again is no use")


def _add_run(commands: "argparse._SubParsersAction[Any]") -> None:
    text = "let a program do your commands: aism run --type builder -- ./build.sh"
    run = _command(commands, "run", text)
    run.add_argument("--type", required=True, type=types.type_name, help="what kind of agent you are")
    run.add_argument("--label", metavar="NAME=VALUE", type=types.label, action="append", default=[])
    run.add_argument("--concurrency", metavar="N", type=types.count, default=1, help="commands at a time (1)")
    run.add_argument("--limit", metavar="S", type=types.seconds, help="end the program after so many seconds")
    run.add_argument("program", metavar="-- PROGRAM [ARGUMENT…]", nargs=argparse.REMAINDER)


def _commands(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[Any]":
    return parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)


def _command(commands: "argparse._SubParsersAction[Any]", name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=_EXIT_CODES)
    parser.set_defaults(call=_CALLS[name])
    return parser
