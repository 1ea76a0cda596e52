"""Every log line has one format and no password in it, and no reader of the log can stall the engine."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from aism_engine.logs import LogWriter, configure

log = structlog.get_logger(component="reaper")  # made before anything is configured, as in every module


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def fail(error: Exception) -> None:
    raise error


class Logged:
    """A log that is written to memory."""

    def __init__(self, *, level: str = "info", layout: str = "json") -> None:
        self.stream = io.StringIO()
        self.writer = configure(level=level, format=layout, queue=1000, stream=self.stream)

    def text(self) -> str:
        self.writer.close()
        return self.stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


@pytest.fixture
def logged() -> Iterator[Logged]:
    logged = Logged()
    yield logged
    logged.writer.close()


def test_every_line_has_time_level_event_and_component_first(logged: Logged) -> None:
    """A line is one JSON object. Its time is UTC with milliseconds; its other fields follow."""
    log.warning("agent_lost", agent_id="a-1", silent_s=45.5)
    line = logged.line()
    assert list(line) == ["time", "level", "event", "component", "agent_id", "silent_s"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    expected = {"level": "warning", "event": "agent_lost", "component": "reaper", "agent_id": "a-1", "silent_s": 45.5}
    assert line == expected


def test_bound_fields_are_on_every_line(logged: Logged) -> None:
    """Fields can be bound to a logger or to the context of a task."""
    with structlog.contextvars.bound_contextvars(agent_id="a-1"):
        log.bind(command_id="c-1").info("command_acked")
    line = logged.line()
    assert (line["agent_id"], line["command_id"]) == ("a-1", "c-1")


def test_lines_below_the_level_are_not_written() -> None:
    """`level` applies to our lines and to lines of libraries."""
    logged = Logged(level="warning")
    log.info("no")
    logging.getLogger("redis").info("no")
    log.error("yes")
    logging.getLogger("redis").error("yes")
    assert [line["event"] for line in logged.lines()] == ["yes", "yes"]


def test_an_exception_is_one_field_of_one_line(logged: Logged) -> None:
    """A traceback is a value of the line, not further lines."""
    try:
        fail(LookupError("gone"))
    except LookupError:
        log.exception("commit_failed")
    line = logged.line()
    assert (line["level"], line["event"]) == ("error", "commit_failed")
    assert line["exception"].startswith("Traceback ")
    assert line["exception"].endswith("LookupError: gone")


def test_lines_of_libraries_have_the_same_format(logged: Logged) -> None:
    """A record of `logging` becomes a line like ours, with the name of its logger as the component."""
    try:
        fail(LookupError("gone"))
    except LookupError:
        logging.getLogger("a.library").log(25, "%d down at redis://u:pw@h", 2, exc_info=True)
    line = logged.line()
    assert list(line) == ["time", "level", "event", "component", "exception"]
    assert (line["level"], line["component"]) == ("info", "a.library")
    assert line["event"] == "2 down at redis://u:***@h"


def test_a_python_warning_is_a_line(logged: Logged) -> None:
    """`warnings.warn` is written to the log, not to standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)  # pytest has installed a recorder of its own
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
    line = logged.line()
    assert (line["level"], line["component"]) == ("warning", "py.warnings")
    assert "DeprecationWarning: an old name" in line["event"]


def test_no_password_is_written(logged: Logged) -> None:
    """Passwords are removed from the event, values, lists, mappings, keys and exceptions."""
    url = "redis://me:s3cret@host:6379/0"
    try:
        fail(ConnectionError(f"no answer from {url}"))
    except ConnectionError as error:
        event = f"lost {url}"
        log.exception(event, url=url, urls=[url, (url,)], by={"a": {url: url}}, error=error)
    assert "s3cret" not in (text := logged.text())
    assert text.count("redis://me:***@host:6379/0") >= 8


def test_values_with_the_name_of_a_secret_are_not_written(logged: Logged) -> None:
    """Libraries log settings and headers. An empty value is shown, since it is no secret."""
    headers = {"Authorization": "Bearer s3cret", "Accept": "*/*"}
    log.info("asked", credentials="s3cret", headers=headers, client_secret="")
    line = logged.line()
    assert (line["credentials"], line["headers"]) == ("***", {"Authorization": "***", "Accept": "*/*"})
    assert line["client_secret"] == ""


def test_logging_never_raises(logged: Logged) -> None:
    """Values that JSON does not know become text. A line that cannot be rendered is replaced."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    endless: list[object] = []
    endless.append(endless)
    log.info("odd", path=Path("a"), lone="\ud800", bell="\x1b[2J", raw=b"x", big=2**70, none=float("nan"), a={1: {2}})
    log.info("broken", value=Broken())
    log.info("endless", value=endless)
    event: Any = Broken()
    log.info(event)
    # Not through the root logger: handlers of pytest raise.
    logged.writer.handle(logging.LogRecord("x", logging.ERROR, "", 0, "%d", ("no number",), None))
    odd, *others = logged.lines()
    assert [odd[key] for key in ("path", "lone", "bell", "raw", "big", "none", "a")] == [
        *("a", "\\ud800", "\\x1b[2J", "b'x'", 2**70, None, {"1": [2]})
    ]
    assert [(line["event"], line["of"], line["error"]) for line in others] == [
        ("unloggable_line", "broken", "RuntimeError"),
        ("unloggable_line", "endless", "RecursionError"),
        ("unloggable_line", "", "RuntimeError"),
        ("unloggable_line", "%d", "TypeError"),
    ]


def test_a_value_is_truncated(logged: Logged) -> None:
    """A queue that is bounded in lines is bounded in bytes as well."""
    log.info("long", text="x" * 1_000_000)
    assert len(logged.text()) < 20_000


def test_a_terminal_gets_readable_text_with_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` means console on a terminal. NO_COLOR turns colors off."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = on_terminal()
    assert "\x1b[" in colored
    assert "agent_lost" in colored
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal()
    assert "\x1b[" not in plain
    assert re.search(r"Z \[info +\] agent_lost +component=reaper agent_id=a-1\s+Traceback .*gone", plain, re.DOTALL)


def on_terminal() -> str:
    master, slave = os.openpty()
    with os.fdopen(master, "rb") as screen, os.fdopen(slave, "w") as stream:
        writer = configure(level="info", format="auto", queue=10, stream=stream)
        try:
            fail(LookupError("gone"))
        except LookupError:
            log.info("agent_lost", agent_id="a-1", exc_info=True)
        writer.close()
        return screen.read1(65_536).decode()


def test_a_file_or_a_pipe_gets_json() -> None:
    """`auto` means JSON where there is no terminal."""
    logged = Logged(layout="auto")
    log.info("started")
    assert logged.line()["event"] == "started"


class Pipe:
    """A log that is written to a pipe, which is read only by `read`."""

    def __init__(self, queue: int) -> None:
        read_end, write_end = os.pipe()
        self.reader: TextIO = os.fdopen(read_end)
        self.stream: TextIO = os.fdopen(write_end, "w")
        self.writer: LogWriter = configure(level="info", format="json", queue=queue, stream=self.stream)

    def fill(self, count: int) -> None:
        for number in range(count):
            log.info("filler", number=number, text="x" * 1024)

    def read(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(self.reader.readline())
        return line


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe(queue=10)
    yield pipe
    pipe.reader.close()  # unblocks the writer
    pipe.writer.close(10.0)
    pipe.stream.close()


def test_a_blocked_stream_does_not_block_the_caller_and_gaps_are_reported_in_place(pipe: Pipe) -> None:
    """A full queue drops lines and counts them. The next line is preceded by one that reports the count."""
    pipe.fill(1000)  # the pipe holds 64 KiB, the queue 10 lines, the thread one: a write in this thread would block
    dropped = pipe.writer.dropped
    assert dropped >= 1000 - 64 - 10 - 1
    lines = [pipe.read()]
    written = 1
    while written < 1000 - dropped:
        lines.append(pipe.read())
        written += lines[-1]["event"] == "filler"
    log.info("filler", number=1000)
    while lines[-1].get("number") != 1000:
        lines.append(pipe.read())
    assert pipe.writer.dropped == dropped
    gaps = [line for line in lines if line["event"] == "log_lines_dropped"]
    assert [(gap["level"], gap["component"]) for gap in gaps] == [("warning", "logs")] * len(gaps)
    assert sum(gap["count"] for gap in gaps) == dropped
    numbers = [line["number"] for line in lines if line["event"] == "filler"]
    assert [right - left - 1 for left, right in pairwise(numbers) if right > left + 1] == [gap["count"] for gap in gaps]


def test_close_reports_lines_dropped_at_the_end(pipe: Pipe) -> None:
    """`close` reports a gap that no line follows."""
    pipe.fill(1000)
    closing = threading.Thread(target=pipe.writer.close, args=(60.0,))
    closing.start()
    written = reported = 0
    while written + reported < 1000:  # read to the end: `close` waits for the reader
        line = pipe.read()
        written += line["event"] == "filler"
        reported += line.get("count", 0)
    closing.join(60.0)
    assert not closing.is_alive()
    assert (written + reported, reported) == (1000, pipe.writer.dropped)


def test_close_gives_up_on_a_blocked_stream(pipe: Pipe) -> None:
    """`close` returns when its timeout is over. Lines that come later are dropped and counted."""
    pipe.fill(1000)
    pipe.writer.close(0.01)
    log.info("too late")
    assert pipe.writer.dropped > 900


def test_a_reader_that_has_gone_does_not_stop_the_writer(pipe: Pipe) -> None:
    """A write that fails with EPIPE loses that line and nothing else."""
    pipe.reader.close()
    log.info("lost")
    log.info("lost")
    pipe.writer.close(60.0)
    assert pipe.writer.dropped == 2


def test_a_closed_stream_does_not_stop_the_writer(logged: Logged) -> None:
    """Lines to a stream that its owner closed too early are dropped and counted."""
    logged.stream.close()
    log.info("lost")
    logged.writer.close(60.0)
    assert logged.writer.dropped == 1


def test_a_non_blocking_stream_loses_nothing(pipe: Pipe) -> None:
    """The thread waits on EAGAIN, so that every line arrives whole."""
    os.set_blocking(pipe.stream.fileno(), False)
    pipe.fill(1000)
    written = 1000 - pipe.writer.dropped
    lines = [pipe.read()]
    while sum(line["event"] == "filler" for line in lines) < written:
        lines.append(pipe.read())
    assert written > 10


def test_close_drains_the_queue_and_is_idempotent(tmp_path: Path) -> None:
    """Every line logged before `close` is in the file when it returns, in order."""
    path = tmp_path / "log"
    with path.open("w") as stream:
        writer = configure(level="info", format="json", queue=10_000, stream=stream)
        for number in range(5000):
            log.info("filler", number=number)
        writer.close(60.0)
        writer.close()
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == list(range(5000))
    assert writer.dropped == 0


def test_a_rotated_file_is_opened_anew_and_no_line_is_lost(tmp_path: Path) -> None:
    """A file that was moved away keeps its lines. Further lines go to a new file, as soon as one can be opened."""
    folder, moved = tmp_path / "log", tmp_path / "moved"
    folder.mkdir()
    writer = configure(level="info", format="json", queue=10, file=str(folder / "a"))
    log.info("before")
    written(folder / "a", "before")
    folder.rename(moved)
    log.info("lost")  # its directory does not exist
    log.info("lost")
    while writer.dropped < 2:
        threading.Event().wait(0.001)
    folder.mkdir()
    writer.reopen()
    log.info("after")
    writer.close(60.0)
    assert written(moved / "a", "before") == ["before"]
    assert written(folder / "a", "after") == ["log_lines_dropped", "log_reopened", "after"]


def written(file: Path, last: str) -> list[str]:
    """Wait until `last` is the last event of a file, and return all events."""
    while not (file.exists() and f'"event":"{last}"' in file.read_text()):
        threading.Event().wait(0.001)
    return [json.loads(line)["event"] for line in file.read_text().splitlines()]


def test_close_restores_the_root_logger() -> None:
    """After `close`, lines of libraries go where they went before `configure`."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    logged = Logged(level="debug")
    assert (root.level, list(root.handlers)) != before
    logged.writer.close()
    assert (root.level, list(root.handlers)) == before


def test_queued_lines_are_written_at_exit() -> None:
    """A process that does not call `close` loses no line."""
    script = "configure(level='info', format='auto', queue=10); structlog.get_logger().info('last')"
    with run(script) as ended:
        _, errors = ended.communicate(timeout=300)
    assert ended.returncode == 0
    assert json.loads(errors)["event"] == "last"


def test_a_process_can_exit_while_its_standard_error_is_blocked() -> None:
    """A thread that is blocked in a write holds no lock that the interpreter needs at exit."""
    script = (
        "w = configure(level='info', format='auto', queue=1000);"
        "[structlog.get_logger().info('filler', text='x' * 1024) for _ in range(500)]; w.close(0.01)"
    )
    with run(script) as ended:
        assert ended.wait(300) == 0


def run(script: str) -> "subprocess.Popen[str]":
    script = f"from aism_engine.logs import *\n{script}"
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.PIPE, text=True)
