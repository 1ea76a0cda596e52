"""`aism`: the command line tool for agents that work through a shell.

Each call sends one message or reads one thing, except `aism run`, which runs an agent until a signal stops it. A call
waits for the engine's reply, prints JSON on standard output and an error as one line on standard error. It must start
fast, so redis-py and msgspec are imported only by the calls that need them.
"""

import argparse
import json
import os
from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final, NoReturn

import aism_engine
from aism_engine.agent.arguments import add_shared_options
from aism_engine.agent.sync_client import SyncAgentClient
from aism_engine.agent.tool_commands import COMMANDS, GROUPS
from aism_engine.durations import format_duration
from aism_engine.errors import RefusalError, ServerUnavailableError
from aism_engine.redact import redacted
from aism_engine.terminal import (
    EXIT_CODES,
    ExitCode,
    OutputError,
    check_output,
    describe_usage_error,
    invalid_argument,
    print_error_line,
    print_json,
    print_line,
    run,
)

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
            check_output()  # take no message while standard output is closed: it could not be printed
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
    if result.get("ok") is False:
        return _print_error(RefusalError(result.get("error") or {}).explanation, REFUSED)
    return DONE


def _print_result(client: SyncAgentClient, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print a result as JSON. A message that was taken from a list and cannot be printed is put back."""
    try:
        print_json(json.dumps(result, separators=(",", ":"), ensure_ascii=False))
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
        registered, lease = client.registration_and_lease()
    except ServerUnavailableError:
        return
    if warning := lease.notice("states were written by the last leader, and messages wait until one leads"):
        _print_error(f"warning: {warning}", DONE)
    elif not registered:
        fix = "check the id, or register: aism register --type TYPE"
        _print_error(f"warning: the agent {client.agent_id} is not registered; {fix}", DONE)


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="aism", description="Talk to the AISM Engine as an agent.")
    parser.add_argument("--version", action="store_true", help="print the version")
    for option, text in _COMPLETION_OPTIONS.items():
        parser.add_argument(option, action="store_true", help=text)
    parser.set_defaults(call=None)
    add_shared_options(parser, with_defaults=True)
    options: dict[str, Any] = {"metavar": "COMMAND", "parser_class": _Parser}
    groups = {"": parser.add_subparsers(**options)}
    for name, (text, call, *arguments) in COMMANDS.items():
        group, _, verb = name.rpartition(" ")
        if group not in groups:
            group_parser = groups[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            add_shared_options(group_parser, with_defaults=False)
            groups[group] = group_parser.add_subparsers(**options)
        subparser = groups[group].add_parser(verb, help=text, description=text)
        subparser.set_defaults(call=call)
        for add_to in arguments:
            add_to(subparser)
        add_shared_options(subparser, with_defaults=False)
    return parser
