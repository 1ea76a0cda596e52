"""What systemd wants to hear from a service of `Type=notify`: sd_notify(3), spoken without a library.

It is a courtesy, never a duty: without NOTIFY_SOCKET nothing is sent, and a socket that is gone or full costs a line
in the log. No call raises or blocks.
"""

import os
import socket
from collections.abc import Mapping
from typing import Self

import structlog

log = structlog.get_logger(component="notify")


class Notifier:
    """Tells the service manager how we are."""

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Self:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; a watchdog meant for another process is not ours."""
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environ.get("WATCHDOG_USEC", "")
        watchdog_s = int(usec) / 1e6 if ours and usec.isascii() and usec.isdigit() else 0
        return cls(environ.get("NOTIFY_SOCKET"), watchdog_s or None)

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to call `watchdog()`: twice as often as it is needed, as sd_watchdog_enabled(3) advises."""
        return self._watchdog_s / 2 if self._watchdog_s else None

    def ready(self) -> None:
        """Say that the start is complete."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Say in one line how things are; `systemctl status` shows it."""
        self._send(f"STATUS={' '.join(text.split())}")  # a line break would begin another field

    def watchdog(self) -> None:
        """Say that we are alive and making progress."""
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # "@" stands for the zero byte with which Linux marks an abstract address.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(0)
                sender.sendto(message.encode(errors="replace"), address)
        except OSError as error:
            log.warning("notify_failed", address=self._address, error=str(error))
