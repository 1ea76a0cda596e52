"""`aism-engine scenario`: runs a scenario, which checks one promise of AISM."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Final, Literal, TypeAlias

import typer

from aism_engine import logs
from aism_engine.cli.event_loop import run_in_event_loop
from aism_engine.cli.exit_codes import ExitCode, FailedError
from aism_engine.cli.output import Output
from aism_engine.runtime import signals
from aism_engine.scenarios import byzantine, context_pressure, coordination, ping_pong
from aism_engine.scenarios.environment import ScenarioResult

_Name: TypeAlias = Literal["ping-pong", "coordination", "byzantine", "context-pressure"]

_SCENARIOS: Final[Mapping[_Name, Callable[[], Coroutine[None, None, ScenarioResult]]]] = {
    "ping-pong": ping_pong.run,
    "coordination": coordination.run,
    "byzantine": byzantine.run,
    "context-pressure": context_pressure.run,
}


def scenario(
    name: Annotated[_Name, typer.Argument(metavar="NAME", help="One of those above.")], *, output: Output
) -> ExitCode:
    """Run a scenario and print its result. Each has a server and an engine of its own.

    \b
    ping-pong         two agents increment a counter in turns, 1,000 times, synchronized only by their states
    coordination      three agents count to 100 together; one is killed half way
    byzantine         one of ten agents declares that it works, but does nothing
    context-pressure  six agents condense their context when the engine advises it

    The exit code is 1 if the result is not the expected one. docs/scenarios.md explains each field.

    \b
    Example:
      aism-engine scenario ping-pong --json
    """

    async def run() -> None:
        running = asyncio.ensure_future(_SCENARIOS[name]())

        def cancel(_signal: str) -> None:
            running.cancel()

        with signals.install(asyncio.get_running_loop(), cancel):
            await asyncio.wait([running])
        if running.cancelled():
            raise FailedError(f"scenario {name} was interrupted")
        result = running.result()
        output.print_fields(result)
        if not result.passed:
            raise FailedError(f"scenario {name} has failed: docs/scenarios.md lists the expected values")

    return run_in_event_loop(run(), logs.configure(level="warning", format="auto", queue=10_000))
