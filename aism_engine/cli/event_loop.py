"""The event loop of a command that runs an engine: uvloop where there is one, and an end in any case."""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from aism_engine.cli.exit_codes import ExitCode, report_error
from aism_engine.logs import LogWriter

_PATIENCE_S: Final = 1.0
"""For tasks that the supervisor has left behind; it has waited for them already."""


def run_in_event_loop(main: Coroutine[Any, Any, None], writer: LogWriter) -> ExitCode:
    """Run `main` and write out the logs. Where a task does not end even when cancelled, the process ends all the same:
    `asyncio.Runner` would wait for it for ever.
    """
    tune_garbage_collector()
    runner = asyncio.Runner(loop_factory=_loop_factory())
    code = ExitCode.DONE
    try:
        runner.run(main)
    except Exception as error:  # noqa: BLE001  a bug goes through
        code = report_error(error)
    finally:
        stuck = _left_behind(runner.get_loop())
        if not stuck:
            runner.close()
        writer.close()
    if stuck:
        sys.stdout.flush()
        os._exit(code)
    return code


def tune_garbage_collector() -> None:
    """Let the collector leave a fleet alone: it is a million objects that live long.

    With Python's own thresholds loading it takes a quarter longer, and each full collection stalls the loop, with
    100,000 agents for 160 to 350 ms. What the engine makes besides dies young, and needs no collector.
    """
    gc.set_threshold(50_000, 5, 400)


def _left_behind(loop: asyncio.AbstractEventLoop) -> bool:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        _, tasks = loop.run_until_complete(asyncio.wait(tasks, timeout=_PATIENCE_S))
    return bool(tasks)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415  optional

        return uvloop.new_event_loop
    return None
