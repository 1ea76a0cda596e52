"""`aism`: the agent's own tool, for agents that work through a shell.

Each call is one message, or one look. It waits for the engine's answer, prints JSON on standard output and, where
something is amiss, one line on standard error. It has to start fast: whatever is slow to import, is imported once the
arguments are known to be good.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

if TYPE_CHECKING:
    from aism_engine.agent.client import AgentClient, Answer

Call: TypeAlias = "Callable[[AgentClient, argparse.Namespace], Awaitable[Any]]"

DONE, REFUSED, TIMED_OUT, USAGE, UNAVAILABLE = 0, 1, 2, 64, 69
_EXIT_CODES: Final = "Exit codes: 0 done, 1 refused or failed, 2 timed out, 64 wrong usage, 69 Redis not reachable."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; try {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.agent:
        parser.error("who are you? say --agent ID or set AISM_AGENT_ID")
    try:
        code = asyncio.run(_run(options))
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


async def _run(options: argparse.Namespace) -> int:
    from aism_engine.agent.client import AgentClient, Answer, MalformedError  # noqa: PLC0415  slow
    from aism_engine.errors import ServerUnavailableError  # noqa: PLC0415
    from aism_engine.redact import redacted  # noqa: PLC0415

    try:
        async with AgentClient(
            options.agent, url=options.redis, prefix=options.prefix, answer_timeout_s=options.timeout
        ) as client:
            found = await options.call(client, options)
    except ServerUnavailableError as error:
        return _complain(f"Redis cannot serve us: {redacted(str(error))}", UNAVAILABLE)
    except TimeoutError as error:
        return _complain(f"{error}; it may still do so", TIMED_OUT)
    except (MalformedError, ValueError) as error:
        return _complain(redacted(str(error)), USAGE)
    if found is None:
        return _complain(f"nothing within {options.wait:g} s", TIMED_OUT)
    _print(found)
    return _complain(_reason(found), REFUSED) if isinstance(found, Answer) and not found.ok else DONE


def _print(value: object) -> None:
    import msgspec  # noqa: PLC0415

    print(msgspec.json.encode(value).decode(), flush=True)  # noqa: T201  this is what it is for


def _complain(reason: str, code: int) -> int:
    print(f"aism: {reason}", file=sys.stderr)  # noqa: T201
    return code


def _reason(answer: "Answer") -> str:
    error = answer.error or {}
    hints = "; ".join(error.get("suggestions", ()))
    return f"refused: {error.get('message', 'no reason given')}" + (f" (try: {hints})" if hints else "")


# --- the commands -----------------------------------------------------------------------------------------------------


async def _heartbeat(client: "AgentClient", _: argparse.Namespace) -> object:
    await client.heartbeat()
    return {"ok": True}


async def _state(client: "AgentClient", _: argparse.Namespace) -> object:
    return {"agent_id": client.agent_id, "state": await client.state()}


_CALLS: Final[dict[str, Call]] = {
    "register": lambda client, o: client.register(o.type, labels=dict(o.label), capabilities=o.capability),
    "heartbeat": _heartbeat,
    "whoami": _state,
    "goodbye": lambda client, o: client.goodbye(o.reason, reply=True),
    "measure": lambda client, o: client.measure(dict(o.values), reply=True),
    "current": _state,
    "transition": lambda client, o: client.transition(o.target, context=o.context, reason=o.reason),
    "next": lambda client, o: client.next_command(o.wait),
    "ack": lambda client, o: client.ack(o.id, reply=True),
    "progress": lambda client, o: client.progress(o.id, percent=o.percent, note=o.note, reply=True),
    "done": lambda client, o: client.result(o.id, o.payload, reply=True),
    "fail": lambda client, o: client.error(o.code, o.message, command_id=o.id, retryable=o.retryable, reply=True),
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
    add("--timeout", metavar="S", type=float, default=30, help="longest wait for the engine's answer (30)")
    commands = _commands(parser)

    register = _command(commands, "register", "join the fleet: aism register --type scribe --label team=a")
    register.add_argument("--type", required=True, help="what kind of agent you are; decides your state machine")
    register.add_argument("--label", metavar="NAME=VALUE", type=_pair, action="append", default=[])
    register.add_argument("--capability", metavar="NAME", action="append", default=[], help="ack: you confirm commands")
    _command(commands, "heartbeat", "show that you live")
    _command(commands, "whoami", "print your id, and the state the engine holds you to be in")
    measure = _command(commands, "measure", "report figures: aism measure context_used=0.7")
    measure.add_argument("values", metavar="NAME=VALUE", type=_measurement, nargs="+")
    _command(commands, "goodbye", "leave in order").add_argument("--reason", metavar="TEXT")

    states = _commands(commands.add_parser("state", help="read or declare your state", epilog=_EXIT_CODES))
    _command(states, "current", "print the state the engine holds you to be in")
    transition = _command(states, "transition", "declare a new state: aism state transition deep_work")
    transition.add_argument("target")
    transition.add_argument("--context", metavar="JSON", type=_object, default={})
    transition.add_argument("--reason", metavar="TEXT")

    given = _commands(commands.add_parser("command", help="take commands and answer them", epilog=_EXIT_CODES))
    take = _command(given, "next", "take the next command: aism command next --wait 60")
    take.add_argument("--wait", metavar="S", type=float, default=0, help="longest wait for one (0: only look)")
    _command(given, "ack", "say that you have it").add_argument("id")
    progress = _command(given, "progress", "say how far you are: aism command progress ID --percent 40")
    progress.add_argument("id")
    progress.add_argument("--percent", metavar="0-100", type=float)
    progress.add_argument("--note", metavar="TEXT")
    done = _command(given, "done", """say that it is done: aism command done ID --payload '{"lines": 12}'""")
    done.add_argument("id")
    done.add_argument("--payload", metavar="JSON", type=_object, default={}, help="the result, an object")
    fail = _command(given, "fail", "say that it failed: aism command fail ID --code no_access")
    fail.add_argument("id")
    fail.add_argument("--code", required=True)
    fail.add_argument("--message", metavar="TEXT")
    fail.add_argument("--final", dest="retryable", action="store_const", const=False, help="to try again is no use")
    return parser


def _commands(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[Any]":
    return parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)


def _command(commands: "argparse._SubParsersAction[Any]", name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=_EXIT_CODES)
    parser.set_defaults(call=_CALLS[name])
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _measurement(text: str) -> tuple[str, float]:
    name, value = _pair(text)
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number for {name}, got {value!r}") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value
