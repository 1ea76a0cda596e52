"""Logs: one format for every line, and no line can stall the engine.

Our lines come through structlog, lines of libraries through `logging` and `warnings`. The thread that logs renders the
line, as JSON or as readable text, and puts it into a bounded queue. A thread of its own writes the queue to a file or a
stream.

Guarantees: logging never waits and never raises. If the queue is full, a line is dropped, and `log_lines_dropped` says
in its place how many are missing. A line that cannot be rendered is replaced by `unloggable_line`. Lines that are
logged after `LogWriter.close`, or are still queued when its time is over, are lost.
"""

import atexit
import copy
import logging
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from io import UnsupportedOperation
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from queue import Empty, SimpleQueue
from typing import Any, Final, TextIO, cast

import msgspec
import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, FilteringBoundLogger

from aism_engine.clock import iso
from aism_engine.log_rate_limit import WINDOW_S, LoggedEvent, LogRateLimit
from aism_engine.redact import redacted

_VALUE_MAX_CHARS: Final = 16_384  # a queue that is bounded in lines has to be bounded in bytes, too
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # terminal control, or invalid Unicode
_SECRET_NAME: Final = re.compile(r"passw|secret|authorization|credential", re.IGNORECASE)


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
    """Send all logs of this process to `file`, or else to `stream` (default: standard error).

    `level` is debug, info, warning or error. `format` is json, console, or auto (console on a terminal, else json).
    `queue` is the number of lines that may wait, `repeats` the number of lines per event in ten seconds. Raises
    OSError if the file cannot be opened. Close the previous writer first.
    """
    watched = WatchedFileHandler(file, encoding="utf-8") if file else None
    output: TextIO = cast("TextIO", watched.stream) if watched else stream or sys.stderr
    render = _render_json if format == "json" or (format == "auto" and not output.isatty()) else _console(output)
    handler = _BoundedQueueHandler(queue, repeats)
    context, exceptions = structlog.contextvars.merge_contextvars, structlog.processors.format_exc_info
    handler.setFormatter(ProcessorFormatter(processors=[context, exceptions, _clean_event, render]))
    ours, root, undo = logging.getLogger("aism_engine"), logging.getLogger(), ExitStack()
    ours.handlers, ours.propagate = [handler], False  # also after `close`: it counts the lines that come too late
    ours.setLevel(level.upper())
    structlog.configure(
        processors=[ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: ours,
        cache_logger_on_first_use=False,
    )
    undo.callback(root.setLevel, root.level)
    root.setLevel(level.upper())
    undo.callback(root.removeHandler, handler)
    root.addHandler(handler)
    undo.callback(logging.captureWarnings, capture=False)
    logging.captureWarnings(capture=True)
    writer = LogWriter(handler, watched or output, undo)
    undo.callback(atexit.unregister, writer.close)
    atexit.register(writer.close)
    writer.start()
    return writer


class _BoundedQueueHandler(QueueHandler):
    """Renders each record in the calling thread and queues the line, or drops it if the queue is full."""

    queue: "SimpleQueue[Any]"

    def __init__(self, capacity: int, repeats: int) -> None:
        super().__init__(SimpleQueue())  # `Queue` can deadlock when a finalizer logs
        self.capacity = capacity
        self.dropped = 0
        self.rate_limit = LogRateLimit(repeats, _log_repeated)

    def handle(self, record: logging.LogRecord) -> bool:
        try:
            if isinstance(record.msg, dict) and hasattr(record, "_logger"):  # from structlog
                event, component = str(record.msg["event"]), str(record.msg.get("component", record.name))
            else:  # its level becomes the next lower one of the standard levels
                record = copy.copy(record)
                event, component = record.getMessage().rstrip(), record.name
                record.msg, record.args, record.levelno = event, None, min(record.levelno // 10 * 10, logging.CRITICAL)
        except Exception:  # noqa: BLE001  arguments that do not fit, and a value's own __str__, can raise anything
            self.handleError(record)
            return False
        is_allowed = event == "event_repeated" or self.rate_limit.allows(LoggedEvent(event, component, record.levelno))
        return is_allowed and super().handle(record)

    def enqueue(self, record: logging.LogRecord) -> None:
        if self.queue.qsize() >= self.capacity:
            self.dropped += 1
        else:
            record.__dict__["dropped_before"] = self.dropped
            self.queue.put(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is logging's
        event = record.msg["event"] if isinstance(record.msg, dict) and "event" in record.msg else record.msg
        of, error = event if isinstance(event, str) else "", type(sys.exc_info()[1]).__name__
        get_logger("logs").error("unloggable_line", of=of, error=error)


def _log_repeated(of: LoggedEvent, count: int) -> None:
    fields = {"of": of.event, "where": of.component, "count": count, "seconds": WINDOW_S}
    get_logger("logs").log(of.level, "event_repeated", **fields)


class LogWriter(QueueListener):
    """Writes the queued lines to a file or a stream from a thread of its own."""

    def __init__(self, handler: _BoundedQueueHandler, output: WatchedFileHandler | TextIO, undo: ExitStack) -> None:
        super().__init__(handler.queue)
        self._queue = handler.queue
        self._handler = handler
        self._output = output
        self._undo = undo
        self._unwritten = 0
        self._reported = 0
        self._has_ended = threading.Event()

    @property
    def dropped(self) -> int:
        """Number of lines that were not written: the queue was full, the stream failed, or they came too late."""
        return self._handler.dropped + self._unwritten

    def reopen(self) -> None:
        """Begin a new file if the present one was moved away. Its first line is `log_reopened`."""
        if isinstance(self._output, WatchedFileHandler):
            get_logger("logs").info("log_reopened", file=self._output.baseFilename)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued, for at most `timeout_s`, and undo what `configure` did to `logging`. Idempotent."""
        self._handler.rate_limit.report()
        self._undo.close()
        self._handler.capacity = 0
        self.enqueue_sentinel()
        self._has_ended.wait(timeout_s)  # not `stop`, which waits without limit

    def dequeue(self, block: bool) -> logging.LogRecord:  # noqa: FBT001  as in QueueListener
        while True:
            try:
                record: logging.LogRecord | None = self._queue.get(block, WINDOW_S)
            except Empty:
                self._handler.rate_limit.report_if_due()
                self._report_dropped(self._handler.dropped)
                continue
            if record is None:  # the sentinel: the thread ends
                self._report_dropped(self._handler.dropped)
                if isinstance(self._output, WatchedFileHandler):
                    self._output.close()
                self._has_ended.set()
            return cast("logging.LogRecord", record)

    def handle(self, record: logging.LogRecord) -> None:
        self._report_dropped(record.__dict__["dropped_before"])
        self._unwritten += not self._write(record.msg)

    def _report_dropped(self, dropped: int) -> None:
        missing = dropped + self._unwritten - self._reported
        if missing:
            fields = {"event": "log_lines_dropped", "count": missing}
            level = {"levelno": logging.WARNING, "_logger": None, "_name": "warning"}
            notice = self._handler.format(logging.makeLogRecord({"name": "logs", "msg": fields, **level}))
            self._reported += missing * self._write(notice)

    def _write(self, line: str) -> bool:
        """Write a line. Return False if the reader has gone, the stream is closed, or the file cannot be opened.

        It bypasses the buffer of the stream: a write that blocks in there holds a lock that Python needs to exit.
        """
        try:
            stream = self._stream()
            try:
                descriptor = stream.fileno()
            except UnsupportedOperation:  # a stream in memory
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
        if self._output.stream is None:  # it could not be opened for the line before
            self._output = WatchedFileHandler(self._output.baseFilename, encoding="utf-8")
        return cast("TextIO", self._output.stream)


def _clean_event(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Put time, level, event and component first, and make every value safe to write."""
    record, _ = event.pop("_record"), event.pop("_from_structlog")
    level, component = logging.getLevelName(record.levelno).lower(), event.get("component", record.name)
    head = {"time": iso(record.created), "level": level, "event": event["event"], "component": component}
    return {key: _clean_field(key, value) for key, value in {**head, **event, **head}.items()}


def _clean_field(name: str, value: object) -> object:
    """Hide a value whose name says that it is a secret: libraries log settings and headers."""
    return "***" if value and _SECRET_NAME.search(name) else _clean(value)


def _clean(value: object) -> object:
    """Reduce a value to what JSON knows, without passwords and control characters, and bounded in length."""
    match value:
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {str(_clean(str(key))): _clean_field(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in value]
    text = redacted(repr(value) if isinstance(value, BaseException) else str(value))
    text = text if len(text) <= _VALUE_MAX_CHARS else f"{text[:_VALUE_MAX_CHARS]}…"
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def _render_json(_logger: object, _method: str, event: EventDict) -> str:
    return msgspec.json.encode(event).decode()


def _console(stream: TextIO) -> Callable[[object, str, EventDict], str]:
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=structlog.dev.plain_traceback,
        timestamp_key="time",
        sort_keys=False,
    )
