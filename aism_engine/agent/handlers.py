"""Calls handlers: coroutine functions on the event loop, plain functions in threads of their own.

A thread cannot be cancelled. Therefore a call of a plain function lasts until the function returns, even if its command
is cancelled or the agent stops. Until then its slot stays taken, and no outcome of its command is sent.
"""

import asyncio
import contextvars
import inspect
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class HandlerCaller:
    """Calls handlers; at most `threads` plain functions at a time."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="aism-handler")

    async def call(self, handler: Callable[[T], Any], argument: T) -> Any:  # noqa: ANN401  what the handler returns
        """Call a handler and return its result. Raises what the handler raises."""
        if _is_async(handler):
            return await handler(argument)
        context, loop = contextvars.copy_context(), asyncio.get_running_loop()
        call = loop.run_in_executor(self._threads, context.run, _call_plain, handler, argument)
        while not call.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(call)
        result, error = call.result()
        if error is not None:
            raise error
        return await result if inspect.isawaitable(result) else result


def _is_async(handler: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004  `callable` does not tell whether it is async


def _call_plain(handler: Callable[[T], Any], argument: T) -> tuple[Any, BaseException | None]:
    """Call a handler; return its result or its error. A future could not hold every error, such as StopIteration."""
    try:
        return handler(argument), None
    except BaseException as error:  # noqa: BLE001
        return None, error


def describe(error: BaseException) -> str:
    """Describe an error in text that can be sent, whatever the error is."""
    try:
        text = repr(error)
    except Exception:  # noqa: BLE001  its __repr__ may raise anything
        text = type(error).__name__
    return text.encode(errors="replace").decode()


def format_traceback(error: BaseException) -> str:
    """Format a traceback without local variables, which may be secrets. Other formatters would show them."""
    return "".join(traceback.format_exception(error)).encode(errors="replace").decode().rstrip()
