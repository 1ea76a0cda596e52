"""The protocol of sd_notify(3), for a systemd service of `Type=notify`.

Without NOTIFY_SOCKET nothing is sent. If the socket is missing or full, a call logs a warning. No call raises or
blocks.
"""

import os
import socket
from collections.abc import Mapping
from typing import Self

import structlog

log = structlog.get_logger(component="notify")


class Notifier:
    """Sends the state of the engine to the service manager."""

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID. A watchdog for another process is ignored."""
        is_ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        watchdog_s = int(usec) / 1e6 if is_ours and usec.isascii() and usec.isdigit() else 0
        return cls(environ.get("NOTIFY_SOCKET"), watchdog_s or None)

    @property
    def watchdog_interval_s(self) -> float | None:
        """Interval between two WATCHDOG messages: half of the timeout, as sd_watchdog_enabled(3) advises."""
        return self._watchdog_s / 2 if self._watchdog_s else None

    def send(self, field: str, value: str = "1") -> None:
        """Send READY, STOPPING or WATCHDOG, or STATUS with the line that `systemctl status` shows."""
        if not self._address:
            return
        message = f"{field}={' '.join(value.split())}"  # a line break would start another field
        # "@" stands for the zero byte at the start of an abstract address on Linux.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(0)
                sender.sendto(message.encode(errors="replace"), address)
        except OSError as error:
            log.warning("notify_failed", address=self._address, error=str(error))
