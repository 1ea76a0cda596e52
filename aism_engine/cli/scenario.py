"""`aism-engine scenario`: does the protocol keep its word? On a server of one's own, for anyone to see."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from enum import StrEnum
from typing import Annotated, Final

import msgspec
import typer

from aism_engine import logs
from aism_engine.cli import options
from aism_engine.cli.event_loop import run_in_event_loop
from aism_engine.cli.exit_codes import ExitCode, RefusedError
from aism_engine.cli.output import print_fields, print_json
from aism_engine.runtime import signals
from aism_engine.scenarios import byzantine, context_pressure, coordination, ping_pong
from aism_engine.scenarios.environment import Outcome


class Name(StrEnum):
    """What can be played."""

    PING_PONG = "ping-pong"
    COORDINATION = "coordination"
    BYZANTINE = "byzantine"
    CONTEXT_PRESSURE = "context-pressure"


_PLAYS: Final[Mapping[Name, Callable[[], Coroutine[None, None, Outcome]]]] = {
    Name.PING_PONG: ping_pong.play,
    Name.COORDINATION: coordination.play,
    Name.BYZANTINE: byzantine.play,
    Name.CONTEXT_PRESSURE: context_pressure.play,
}


def scenario(
    name: Annotated[Name, typer.Argument(metavar="NAME", show_default=False, help="Which one: see above.")],
    *,
    json: options.Json = False,
) -> ExitCode:
    """Play a scenario of the AISM literature on a server of its own, and print what it came to.

    \b
    ping-pong         two agents alternate 1,000 increments, by nothing but their states
    coordination      three count to 100 together while one is killed half way
    byzantine         one of ten says that it works, and does not
    context-pressure  six agents distill their context when the engine tells them to

    The exit code is 1 where a figure is not what it should be. docs/scenarios.md tells how to read them.

    \b
    Example:
      aism-engine scenario ping-pong --json
    """  # noqa: D301  \b keeps the lines apart

    async def run() -> None:
        playing = asyncio.ensure_future(_PLAYS[name]())

        def break_off(_signal: str) -> None:
            playing.cancel()

        with signals.install(asyncio.get_running_loop(), break_off):
            await asyncio.wait([playing])
        if playing.cancelled():
            raise RefusedError("broken off")
        figures = playing.result()
        if json:
            print_json(figures)
        else:
            print_fields(msgspec.structs.asdict(figures).items())
        if not figures.holds:
            raise RefusedError(f"{name} does not come out as it should: see docs/scenarios.md")

    return run_in_event_loop(run(), logs.configure(level="warning", format="auto", queue=10_000))
