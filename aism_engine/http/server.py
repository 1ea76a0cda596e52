"""Serves the HTTP face with uvicorn: in the engine's own loop, and as a guest in its process."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

GRACE_S = 1  # answers come from memory: what is not out by then has a reader who is gone
STOP_S = GRACE_S + 1  # uvicorn takes 0.1 s to notice that it shall stop, and as long to let its connections go


class HttpServer:
    """Listens from `bind()` on, answers while `run()` runs, and is gone within `STOP_S` of being cancelled.

    `address` is (host, port). After `bind()` the port is the real one, even where 0 was asked for, and a restart by the
    supervisor takes the same one again.
    """

    name = "http"

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._app = app
        self._listener: socket.socket | None = None
        self.address = (host, port)

    def bind(self) -> None:
        """Take the address, unless we have it. Raises an OSError that names it: in use, not ours, not allowed."""
        self._listener = self._listener or self._listen()

    async def run(self) -> None:
        listener, self._listener = self._listener or self._listen(), None  # uvicorn will close it
        server = _Guest(_config(self._app))
        serving = asyncio.create_task(server.serve([listener]), name="uvicorn")
        try:
            await asyncio.wait([serving])
        finally:
            server.should_exit = True
            await asyncio.wait([serving], timeout=STOP_S)
            serving.cancel()
            listener.close()
            for connection in server.server_state.connections:  # whoever does not read his answer
                connection.transport.abort()
        await serving

    def _listen(self) -> socket.socket:
        host, _ = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server(self.address, family=family, dualstack_ipv6=host == "::")
        except OSError as error:
            raise OSError(error.errno, f"cannot serve HTTP: {error.strerror}") from error
        self.address = (host, listener.getsockname()[1])
        return listener


class _Guest(uvicorn.Server):
    """Uvicorn, kept from the signals: they belong to the engine."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp) -> uvicorn.Config:
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
