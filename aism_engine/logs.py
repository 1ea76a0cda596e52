"""Logs: one format for every line, and no line can stall the engine.

Our lines come through structlog, lines of libraries through `logging` and `warnings`. The thread that logs renders the
line, as JSON or as readable text, and puts it into a bounded queue. A thread of its own writes the queue to a file or a
stream.

Guarantees: logging never waits and never raises. If the queue is full, a line is dropped, and `log_lines_dropped` says
in its place how many are missing. A line that cannot be rendered is replaced by `unloggable_line`. Lines that are
logged after `LogWriter.close`, or that it cannot write within its timeout, are lost.
"""

import atexit
import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import UnsupportedOperation
from logging.handlers import WatchedFileHandler
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Final, NoReturn, TextIO, TypeAlias, cast

import msgspec
import structlog
from structlog.typing import EventDict

from aism_engine.clock import iso
from aism_engine.log_rate_limit import WINDOW_S, LoggedEvent, LogRateLimit
from aism_engine.redact import redacted

log = structlog.get_logger(component="logs")

Renderer: TypeAlias = Callable[[None, str, EventDict], str]
_VALUE_MAX_CHARS: Final = 16_384  # a queue that is bounded in lines has to be bounded in bytes, too
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # terminal control, or invalid Unicode
_SECRET_NAME: Final = re.compile(r"passw|secret|authorization|credential", re.IGNORECASE)


def configure(
    *,
    level: str,
    format: str,  # noqa: A002  the name of the setting
    queue: int,
    repeats: int = sys.maxsize,
    stream: TextIO | None = None,
    file: str = "",
) -> "LogWriter":
    """Send all logs of this process to `file`, or else to `stream` (default: standard error).

    `level` is debug, info, warning or error. `format` is json, console, or auto (console on a terminal, else json).
    `queue` is the number of lines that may wait, `repeats` the number of lines per event in ten seconds. Raises
    OSError if the file cannot be opened. Close the previous writer first.
    """
    output = WatchedFileHandler(file, encoding="utf-8") if file else stream or sys.stderr
    is_terminal = not isinstance(output, WatchedFileHandler) and output.isatty()
    is_json = format == "json" or (format == "auto" and not is_terminal)
    writer = LogWriter(queue, repeats, output, _render_json if is_json else _console_renderer(colors=is_terminal))
    root, undo = logging.getLogger(), writer.undo
    structlog.configure(
        processors=[writer.process],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: None,
        cache_logger_on_first_use=False,  # a logger that is made at import obeys the latest `configure`
    )
    undo.callback(root.setLevel, root.level)
    root.setLevel(level.upper())
    undo.callback(root.removeHandler, writer)
    root.addHandler(writer)
    undo.callback(logging.captureWarnings, capture=False)
    logging.captureWarnings(capture=True)
    undo.callback(atexit.unregister, writer.close)
    atexit.register(writer.close)
    return writer


class LogWriter(logging.Handler):
    """Renders lines in the threads that log, and writes them from a thread of its own."""

    def __init__(self, capacity: int, repeats: int, output: WatchedFileHandler | TextIO, render: Renderer) -> None:
        super().__init__()
        self.undo = ExitStack()
        """Undoes what `configure` did to `logging`."""
        self._capacity = capacity
        self._rate_limit = LogRateLimit(repeats, self._log_repeated)
        self._output = output
        self._render = render
        self._queue: SimpleQueue[tuple[str, int] | None] = SimpleQueue()  # `Queue` can deadlock when a finalizer logs
        """Lines, each with the number of lines that were dropped before it; None ends the thread."""
        self._refused = 0
        self._unwritten = 0
        self._reported = 0
        self._thread = Thread(target=self._write_queue, name="logs", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Number of lines that were not written: the queue was full, the stream failed, or they came too late."""
        return self._refused + self._unwritten

    def reopen(self) -> None:
        """Begin a new file if the present one was moved away. Its first line is `log_reopened`."""
        if isinstance(self._output, WatchedFileHandler):
            log.info("log_reopened", file=self._output.baseFilename)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most `timeout_s`, and restore `logging`. Idempotent."""
        self._rate_limit.report()
        self.undo.close()
        self._capacity = 0
        self._queue.put(None)
        self._thread.join(timeout_s)

    # --- in the threads that log --------------------------------------------------------------------------------------

    def process(self, _logger: None, level: str, event: EventDict) -> NoReturn:
        """Log a line of structlog. This is its only processor."""
        self._log(level, structlog.contextvars.merge_contextvars(None, level, event))
        raise structlog.DropEvent

    def handle(self, record: logging.LogRecord) -> bool:
        """Log a record of `logging`.

        This method does not take the lock of `Handler`: a finalizer may log while its thread holds another lock, and
        the two locks together could cause a deadlock.
        """
        level = logging.getLevelName(min(record.levelno // 10 * 10, logging.CRITICAL)).lower()
        try:
            event = record.getMessage().rstrip()
        except Exception as error:  # noqa: BLE001  arguments that do not fit, and a value's own __str__, can raise anything
            _log_unloggable(record.msg, error)
        else:
            self._log(level, {"event": event, "component": record.name, "exc_info": record.exc_info})
        return True

    def _log(self, level: str, event: EventDict) -> None:
        try:
            logged = LoggedEvent(str(event["event"]), str(event.get("component", "")), level)
            if logged.event != "event_repeated" and not self._rate_limit.allows(logged):
                return
            line = self._line(level, event)
        except Exception as error:  # noqa: BLE001  a value's own __str__ can raise anything
            _log_unloggable(event["event"], error)
            return
        if self._queue.qsize() >= self._capacity:
            self._refused += 1
        else:
            self._queue.put((line, self._refused))

    def _log_repeated(self, of: LoggedEvent, count: int) -> None:
        fields = {"of": of.event, "where": of.component, "count": count, "seconds": WINDOW_S}
        self._log(of.level, {"event": "event_repeated", "component": "logs", **fields})

    def _line(self, level: str, event: EventDict) -> str:
        """Render a line: time, level, event and component first, and every value safe to write."""
        event = structlog.processors.format_exc_info(None, level, event)
        head = {"time": iso(time.time()), "level": level, "event": event["event"], "component": event.get("component")}
        fields = {key: _clean_field(key, value) for key, value in {**head, **event, **head}.items()}
        return self._render(None, level, fields)

    # --- in the thread of the writer ----------------------------------------------------------------------------------

    def _write_queue(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=WINDOW_S)
            except Empty:
                self._rate_limit.report_if_due()
                self._report_dropped(self._refused)
                continue
            if item is None:
                break
            line, refused_before = item
            self._report_dropped(refused_before)
            self._unwritten += not self._write(line)
        self._report_dropped(self._refused)
        if isinstance(self._output, WatchedFileHandler):
            self._output.close()

    def _report_dropped(self, refused: int) -> None:
        missing = refused + self._unwritten - self._reported
        if missing:
            notice = {"event": "log_lines_dropped", "component": "logs", "count": missing}
            self._reported += missing * self._write(self._line("warning", notice))

    def _write(self, line: str) -> bool:
        """Write a line. Return False if the reader has gone, the stream is closed, or the file cannot be opened.

        The line is not written to the buffer of the stream: if that write blocked, it would hold a lock that Python
        needs to exit.
        """
        try:
            stream = self._stream()
            try:
                descriptor = stream.fileno()
            except UnsupportedOperation:  # a stream without a file, such as the live table of `aism-engine dev`
                stream.write(line + "\n")
                return True
            rest = memoryview((line + "\n").encode())
            while rest:
                try:
                    rest = rest[os.write(descriptor, rest) :]
                except BlockingIOError:  # another process that shares the stream has made it non-blocking
                    select.select((), (descriptor,), ())
        except (OSError, ValueError):
            return False
        return True

    def _stream(self) -> TextIO:
        if not isinstance(self._output, WatchedFileHandler):
            return self._output
        self._output.reopenIfNeeded()
        if self._output.stream is None:  # the file could not be opened for the previous line
            self._output = WatchedFileHandler(self._output.baseFilename, encoding="utf-8")
        return cast("TextIO", self._output.stream)


def _log_unloggable(event: object, error: Exception) -> None:
    log.error("unloggable_line", of=event if isinstance(event, str) else "", error=type(error).__name__)


def _clean_field(name: str, value: object) -> object:
    """Hide a value whose name says that it is a secret: libraries log settings and headers."""
    return "***" if value and _SECRET_NAME.search(name) else _clean(value)


def _clean(value: object) -> object:
    """Reduce a value to what JSON knows, without passwords and control characters, and bounded in length."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            text = value
        case Mapping():
            return {str(_clean(str(key))): _clean_field(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
        case _:
            text = repr(value) if isinstance(value, BaseException) else str(value)
    text = redacted(text)
    text = text if len(text) <= _VALUE_MAX_CHARS else f"{text[:_VALUE_MAX_CHARS]}…"
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _render_json(_logger: None, _level: str, event: EventDict) -> str:
    return msgspec.json.encode(event).decode()


def _console_renderer(*, colors: bool) -> Renderer:
    return structlog.dev.ConsoleRenderer(
        colors=colors and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
        timestamp_key="time",
        sort_keys=False,
    )
