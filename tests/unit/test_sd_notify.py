"""Laws of the notifier, tested with real datagram sockets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from aism_engine.runtime.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket in place of systemd, and its address as in NOTIFY_SOCKET."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@aism-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1) if request.param == "abstract" else address)
        listener.settimeout(0)
        yield listener, address


def test_each_message_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    notifier.send("READY")
    notifier.send("STATUS", "leading, 12 agents")
    notifier.send("WATCHDOG")
    notifier.send("STOPPING")
    received = [listener.recv(1024) for _ in range(4)]
    assert received == [b"READY=1", b"STATUS=leading, 12 agents", b"WATCHDOG=1", b"STOPPING=1"]


def test_status_is_one_line_and_one_field(manager: tuple[socket.socket, str]) -> None:
    """Line breaks become spaces, and surrogates become question marks."""
    listener, address = manager
    Notifier.from_environ({"NOTIFY_SOCKET": address}).send("STATUS", "wait\nREADY=1\r\n \ud800é")
    assert listener.recv(1024) == "STATUS=wait READY=1 ?é".encode()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_sent(environ: dict[str, str]) -> None:
    """Nothing is logged, either."""
    with capture_logs() as logs:
        Notifier.from_environ(environ).send("READY")
    assert logs == []


@pytest.mark.parametrize("address", ["nobody-there", "x" * 500, "@nobody-there", "@" + "x" * 500])
def test_broken_socket_is_only_logged(tmp_path: Path, address: str) -> None:
    where = address if address.startswith("@") else str(tmp_path / address)
    with capture_logs() as logs:
        Notifier.from_environ({"NOTIFY_SOCKET": where}).send("READY")
    assert [line["event"] for line in logs] == ["notify_failed"]


def test_full_socket_never_blocks(manager: tuple[socket.socket, str]) -> None:
    _, address = manager
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    with capture_logs() as logs:
        for _ in range(100_000):
            notifier.send("WATCHDOG")
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
def test_watchdog_interval_is_half_of_its_timeout(environ: dict[str, str], interval_s: float | None) -> None:
    """There is none if WATCHDOG_USEC is not set, is invalid, or is for another process."""
    assert Notifier.from_environ(environ).watchdog_interval_s == interval_s
