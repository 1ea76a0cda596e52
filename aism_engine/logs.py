"""Logs: one shape for every line, and no line that can stall the engine.

What we log through structlog, and libraries through `logging` or `warnings`, becomes one line with time, level, event
and component: JSON, or readable text on a terminal. It waits in a bounded queue for a thread that writes it. When the
reader of the stream stands still, the queue fills, further lines are dropped, and a line `log_lines_dropped` says in
their place how many. A line that cannot be rendered is replaced by one that says so: logging never raises. What is
logged after `LogWriter.close`, or still waits when its time is up, is lost.
"""

import atexit
import logging
import os
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import UnsupportedOperation
from typing import TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from aism_engine.clock import iso
from aism_engine.log_rate_limit import WINDOW_S, LogRateLimit
from aism_engine.redact import redacted

_LONGEST_TEXT = 16_384  # characters of one value: a queue that is bounded in lines has to be bounded in bytes too
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # steers a terminal, or is no Unicode
_SECRET = re.compile(r"passw|secret|authorization|credential", re.IGNORECASE)
_NOTICE = {"level": "warning", "event": "log_lines_dropped", "component": "logs"}
_UNLOGGABLE = {"level": "error", "event": "unloggable_line", "component": "logs"}


def get_logger(component: str) -> FilteringBoundLogger:
    """Return a logger whose lines carry `component`. It may be made at import: it obeys the latest `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(component=component))


def configure(
    *,
    level: str,
    format: str,  # noqa: A002  the name of the setting
    queue: int,
    repeats: int = sys.maxsize,
    stream: TextIO | None = None,
    file: str = "",
) -> "LogWriter":
    """Send all logs of this process to `file`, or to `stream` (default: standard error). Close a former writer first.
    Of the same event at most so many `repeats` are written in ten seconds. OSError where the file cannot be opened.

    `level` is debug, info, warning or error; `format` is json, console, or auto (console on a terminal, else json).
    """
    if file:
        stream = _opened(file)
    stream = sys.stderr if stream is None else stream
    line = _Line(_json if format == "json" or (format == "auto" and not stream.isatty()) else _console(stream))
    undo = ExitStack()
    writer = LogWriter(stream, queue, line, undo, repeats, file)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            writer.flood,
            structlog.processors.format_exc_info,
            line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=False,
    )
    root, bridge = logging.getLogger(), _Bridge()
    undo.callback(root.setLevel, root.level)
    root.setLevel(level.upper())
    undo.callback(root.removeHandler, bridge)
    root.addHandler(bridge)
    undo.callback(logging.captureWarnings, capture=False)
    logging.captureWarnings(capture=True)
    undo.callback(atexit.unregister, writer.close)
    atexit.register(writer.close)
    return writer


class LogWriter:
    """Writes lines to a stream from a thread of its own. `dropped` counts those that were not written."""

    def __init__(self, stream: TextIO, bound: int, line: "_Line", undo: ExitStack, repeats: int, file: str) -> None:
        self.dropped = 0
        self.flood = LogRateLimit(repeats, lambda event: self.put(line(None, "", event)))
        self._stream = stream
        self._file = file
        self._bound = bound
        self._line = line
        self._undo = undo
        self._lines: deque[tuple[str, int]] = deque()  # each with the number of lines dropped before it
        self._changed = threading.Condition()
        self._closed = False
        self._old: list[TextIO] = []
        # A daemon: at exit nobody waits for a stream that is blocked, beyond the patience of `close`.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue a line, or drop it. Never waits."""
        with self._changed:
            if self._closed or len(self._lines) >= self._bound:
                self.dropped += 1
            else:
                self._lines.append((line, self.dropped))
                self._changed.notify()

    debug = info = warning = error = critical = put  # what structlog calls

    def reopen(self) -> None:
        """Open the file anew, under the same name: the old one was moved away, to be kept or deleted.

        Where that fails, it is written to as before, and a line says so.
        """
        if not self._file:
            return
        try:
            new = _opened(self._file)
        except OSError as error:
            get_logger("logs").error("log_not_reopened", file=self._file, error=str(error))
            return
        with self._changed:
            old, self._stream = self._stream, new
            self._old.append(old)
        get_logger("logs").info("log_reopened", file=self._file)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most so long, and undo what `configure` did to `logging`. Twice is as once."""
        self.flood.finish()
        self._undo.close()
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        told = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed, timeout=WINDOW_S)
                line, dropped = self._lines.popleft() if self._lines else (None, self.dropped)
                closed = self._closed
                while self._old:  # nobody writes to them any more but this thread
                    self._old.pop().close()
            self.flood.turn()
            if dropped > told and self._written(self._line(None, "", {**_NOTICE, "count": dropped - told})):
                told = dropped
            if line is None and closed:
                return
            if line is not None and not self._written(line):
                with self._changed:
                    self.dropped += 1

    def _written(self, line: str) -> bool:
        try:
            self._write(line + "\n")
        except (OSError, ValueError):  # its reader has gone, or it is closed: there is nobody left to tell
            return False
        return True

    def _write(self, text: str) -> None:
        """Write past the stream's own buffer: whoever is stuck in there holds its lock, and Python can't exit."""
        try:
            descriptor = self._stream.fileno()
        except UnsupportedOperation:  # it is no file
            self._stream.write(text)
            return
        rest = memoryview(text.encode())
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:  # somebody who shares the stream has made it so
                select.select((), (descriptor,), ())


def _opened(file: str) -> TextIO:
    return open(file, "a", encoding="utf-8")  # noqa: PTH123  it is closed when it is reopened, or at the end


class _Bridge(logging.Handler):
    """Hands on to structlog what libraries tell `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage().rstrip()
        except Exception:  # noqa: BLE001  arguments that don't fit raise anything; the template still says something
            event = record.msg
        level = min(record.levelno // 10 * 10, logging.CRITICAL)  # structlog knows no levels between
        get_logger(record.name).log(level, event, exc_info=record.exc_info)


class _Line:
    """The last processor: gives an event its shape and renders it. Never raises."""

    def __init__(self, render: Callable[[EventDict], str]) -> None:
        self._render = render

    def __call__(self, _logger: object, _method: str, event: EventDict) -> str:
        try:
            return self._render(_shaped(event))
        except Exception as error:  # noqa: BLE001  a value's own __str__ can raise anything
            return self._render(_shaped({**_UNLOGGABLE, "error": type(error).__name__}))


def _shaped(event: EventDict) -> EventDict:
    head = {"time": iso(time.time()), "level": event["level"], "event": event["event"]}
    head["component"] = event.get("component", "unknown")
    return {key: _named(key, value) for key, value in {**head, **event, **head}.items()}


def _named(name: str, value: object) -> object:
    """Hide what is called a secret, wherever it comes from: libraries log settings and headers."""
    return "***" if value and _SECRET.search(name) else _plain(value)


def _plain(value: object) -> object:
    """Reduce a value to what JSON knows, with no password, nothing that steers a terminal, and no endless text."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(_plain(str(key))): _named(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in value]
    text = redacted(repr(value) if isinstance(value, BaseException) else str(value))
    text = text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _json(event: EventDict) -> str:
    return msgspec.json.encode(event).decode()


def _console(stream: TextIO) -> Callable[[EventDict], str]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=stream.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
        timestamp_key="time",
        sort_keys=False,
    )
    return lambda event: renderer(None, "", event)
