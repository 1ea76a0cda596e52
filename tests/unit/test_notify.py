"""Laws of the notifier, against real datagram sockets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aism_engine.runtime.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """What systemd is to us: a socket that listens, and its address as NOTIFY_SOCKET has it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@aism-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        listener.settimeout(0)
        yield listener, address


def test_each_message_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    """The manager hears, each by itself and in order, what was said."""
    listener, address = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.status("leading, 12 agents")
    notifier.watchdog()
    notifier.stopping()
    heard = [listener.recv(1024) for _ in range(4)]
    assert heard == [b"READY=1", b"STATUS=leading, 12 agents", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_status_is_one_line_and_one_field(manager: tuple[socket.socket, str]) -> None:
    """No text can say more than a status: line breaks become spaces, what UTF-8 can't carry a question mark."""
    listener, address = manager
    Notifier.from_environ({"NOTIFY_SOCKET": address}).status("wait\nREADY=1\r\n \ud800é")
    assert listener.recv(1024) == "STATUS=wait READY=1 ?é".encode()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_said(environ: dict[str, str]) -> None:
    """Where nobody listens, the calls do nothing, and do not log it."""
    with capture_logs() as logs:
        Notifier.from_environ(environ).ready()
    assert logs == []


@pytest.mark.parametrize("address", ["nobody-there", "x" * 500, "@nobody-there", "@" + "x" * 500])
def test_a_broken_socket_costs_a_line_in_the_log(tmp_path: Path, address: str) -> None:
    """A socket that is not there, or can't be, never raises."""
    where = address if address.startswith("@") else str(tmp_path / address)
    with capture_logs() as logs:
        Notifier.from_environ({"NOTIFY_SOCKET": where}).ready()
    assert [line["event"] for line in logs] == ["notify_failed"]


def test_a_full_socket_never_blocks(manager: tuple[socket.socket, str]) -> None:
    """A manager that does not read loses messages; we lose no time."""
    _, address = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    with capture_logs() as logs:
        for _ in range(100_000):
            notifier.watchdog()
            if logs:
                break
    assert [line["event"] for line in logs] == ["notify_failed"]


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_patience(environ: dict[str, str], interval_s: float | None) -> None:
    """The interval is half of WATCHDOG_USEC; there is none where it is not set, is nonsense, or is another's."""
    assert Notifier.from_environ(environ).watchdog_interval_s == interval_s
