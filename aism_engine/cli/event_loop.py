"""Runs `run`, `dev` and `scenario` in an event loop, uvloop if installed. The process ends even if a task hangs."""

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from aism_engine.cli.exit_codes import ExitCode, report_error
from aism_engine.logs import LogWriter
from aism_engine.terminal import OutputError

_CANCEL_TIMEOUT_S: Final = 1.0
"""Longest wait for tasks that still run after `main` has ended. The supervisor has already waited for its own tasks."""


def run_in_event_loop(main: Coroutine[Any, Any, None], writer: LogWriter) -> ExitCode:
    """Run `main`, write the remaining log lines, and return the exit code.

    Cancels the tasks that remain. If one of them does not end, exits the process without waiting longer;
    `asyncio.Runner` alone would wait forever.
    """
    tune_garbage_collector()
    runner = asyncio.Runner(loop_factory=_loop_factory())
    code = ExitCode.DONE
    try:
        runner.run(main)
    except Exception as error:  # noqa: BLE001  report_error re-raises bugs
        code = report_error(error)
    finally:
        stuck = _cancel_remaining(runner.get_loop())
        if not stuck:
            runner.close()
        writer.close()
    if stuck:
        with suppress(OutputError):
            sys.stdout.flush()
        os._exit(code)
    return code


def tune_garbage_collector() -> None:
    """Make garbage collection rare: a fleet is a million long-lived objects.

    With Python's default thresholds, loading a fleet takes a quarter longer. With 100,000 agents, each full collection
    stalls the event loop for 160 to 350 ms. Nearly all other objects are freed by reference counting.
    """
    gc.set_threshold(50_000, 5, 400)


def _cancel_remaining(loop: asyncio.AbstractEventLoop) -> bool:
    """Cancel all tasks that are left; return whether one of them did not end."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        _, tasks = loop.run_until_complete(asyncio.wait(tasks, timeout=_CANCEL_TIMEOUT_S))
    return bool(tasks)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415  optional

        return uvloop.new_event_loop
    return None
