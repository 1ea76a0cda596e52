"""Serves HTTP with uvicorn, in the event loop of the engine."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from aism_engine.settings import HttpSettings

GRACE_S = 1  # replies come from memory: a client that has not read its reply by then has gone
STOP_S = GRACE_S + 1  # uvicorn takes 0.1 s to close its connections


class HttpServer:
    """Listens from `bind()` on, replies while `run()` runs, and stops within `STOP_S` of its cancellation.

    `address` is (host, port). After `bind()` it has the real port, even if the settings say 0. A restart by the
    supervisor takes the same port again.
    """

    name = "http"

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._listener: socket.socket | None = None
        self.address = (settings.host, settings.port)

    def bind(self) -> None:
        """Bind the address, unless it is bound. Raises an OSError with the address and the reason."""
        self._listener = self._listener or self._listen()

    async def run(self) -> None:
        listener, self._listener = self._listener or self._listen(), None  # uvicorn will close it
        server = _EmbeddedServer(_uvicorn_config(self._app))
        serving = asyncio.create_task(server.serve([listener]), name="uvicorn")
        try:
            await asyncio.wait([serving])
        finally:
            server.stop()
            await asyncio.wait([serving], timeout=STOP_S)
            serving.cancel()
            listener.close()
            for connection in server.server_state.connections:  # clients that do not read their reply
                connection.transport.abort()
        await serving

    def _listen(self) -> socket.socket:
        host, port = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server(self.address, family=family, dualstack_ipv6=host == "::")
        except OSError as error:
            reason = str(error.strerror).partition(" (while")[0]
            raise OSError(error.errno, f"cannot serve HTTP at {host}:{port}: {reason}") from error
        self.address = (host, listener.getsockname()[1])
        return listener


class _EmbeddedServer(uvicorn.Server):
    """Uvicorn without its signal handlers, because the engine handles the signals, and with fewer timers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        """Update the header `Date` once a second. uvicorn's own loop wakes up ten times a second."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stopping.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )
