"""A TCP proxy between an engine and its server that reproduces faults of the network.

*Conditions* hold for all traffic until they are changed: delay, throttling, black hole, a cut after a number of bytes.
Connections can be reset or forgotten. A *rule* waits for a request and acts on it or its reply.

A black hole is a partition as both ends see it: nothing arrives, and no connection ends. Nothing is read, so the
buffers of the ends fill; on Linux the SYN of a new connection stays unanswered. When the network heals, TCP delivers
late what was sent. `forget()` reproduces a network that has lost its connections: open ones stay dead, new ones work.

TCP loses no bytes from the middle of a stream. So a connection whose reply is dropped is cut (`cut=True`) or dead from
then on, and a request that is held delays everything behind it on its connection.
"""

import asyncio
import random
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Self

from tests.support.proxy_rules import Frames, Match, Request, Rule

_HOST: Final = "127.0.0.1"
_PIECE: Final = 1 << 16
_PIECES_PER_S: Final = 50
"""How often a throttled connection passes something on."""
_RESET: Final = struct.pack("ii", 1, 0)
_BACKLOG: Final = 128
_SUBSCRIBES: Final = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"})
"""After one of these commands the server no longer sends one reply for each request."""


class _Link:
    """One connection of a client, and the connection to the server that belongs to it."""

    def __init__(self, proxy: "FaultProxy") -> None:
        self.opened = asyncio.Event()
        self.is_dead = False
        """Whether nothing is passed on any more, without closing anything."""
        self._proxy = proxy
        self._writers: list[asyncio.StreamWriter] = []
        """To the client and to the server, as soon as they are connected."""
        self._pending: deque[Rule | None] = deque()
        """The rule of each request that has no reply yet."""
        self._is_subscribed = False

    async def run(self, client: socket.socket) -> None:
        from_client, to_client = await asyncio.open_connection(sock=client)
        self._writers.append(to_client)
        try:
            from_server, to_server = await asyncio.open_connection(_HOST, self._proxy.server_port)
            self._writers.append(to_server)
            self.opened.set()
            await asyncio.gather(
                self._pump(from_client, to_server, self._pass_request),
                self._pump(from_server, to_client, self._pass_reply),
            )
        except OSError:
            self.reset()
        finally:
            self.opened.set()
            for writer in self._writers:
                writer.close()

    def reset(self) -> None:
        """Send RST to both ends."""
        for writer in self._writers:
            _reset(writer)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        pass_on: Callable[[asyncio.StreamWriter, bytes, Any], Awaitable[None]],
    ) -> None:
        frames = Frames()
        try:
            while data := await source.read(_PIECE):
                if self._proxy.delay_s:
                    await asyncio.sleep(random.uniform(0, self._proxy.delay_s))
                for frame, value in frames.feed(data):
                    await pass_on(sink, frame, value)
            await self._wait_passable()
            with suppress(OSError, RuntimeError):
                sink.write_eof()
        except OSError:
            await self._wait_passable()
            self.reset()

    async def _pass_request(self, server: asyncio.StreamWriter, frame: bytes, request: Request) -> None:
        self._is_subscribed = self._is_subscribed or request[0].upper() in _SUBSCRIBES
        if not self._is_subscribed:
            rule = self._proxy.rule_for(request)
            if rule is not None and rule.action == "hold request":
                if rule.cut:
                    _reset(self._writers[0])
                await rule.released.wait()
            self._pending.append(rule)
        await self._send(server, frame)

    async def _pass_reply(self, client: asyncio.StreamWriter, frame: bytes, reply: object) -> None:
        is_push = frame.startswith(b">")
        rule = self._pending.popleft() if self._pending and not is_push else None
        if rule is not None:
            rule.answered(reply)
            if rule.action == "drop reply":
                if rule.cut:
                    raise ConnectionAbortedError
                self.is_dead = True
            elif rule.action == "hold reply":
                await rule.released.wait()
        await self._send(client, frame)

    async def _wait_passable(self) -> None:
        await self._proxy.flowing.wait()
        if self.is_dead:
            await asyncio.Event().wait()  # for ever

    async def _send(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        """Pass bytes on, under the current conditions."""
        proxy = self._proxy
        while data:
            if proxy.piece_bytes is not None:
                await asyncio.sleep(1 / _PIECES_PER_S)
            await self._wait_passable()
            piece = data[: proxy.piece_bytes][: proxy.left_bytes]
            with suppress(ConnectionError, RuntimeError):  # one end may be gone; the other direction may go on
                sink.write(piece)
                await sink.drain()
            data = data[len(piece) :]
            if proxy.left_bytes is not None:
                proxy.left_bytes -= len(piece)
                if proxy.left_bytes <= 0:
                    proxy.left_bytes = None
                    raise ConnectionAbortedError


class FaultProxy:
    """A proxy in front of a server: `async with FaultProxy(server.port) as proxy`, then `proxy.url` for the engine."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.delay_s = 0.0
        self.piece_bytes: int | None = None
        self.left_bytes: int | None = None
        self.flowing = asyncio.Event()
        self._listener = socket.create_server((_HOST, 0))
        self._listener.setblocking(False)  # noqa: FBT003
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://{_HOST}:{self.port}/0"
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._rules: list[Rule] = []
        self._stopper: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self.heal()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.black_hole()
        self._listener.close()
        self._close_stopper()
        links = dict(self._links)
        for link in links.values():
            await link.opened.wait()  # cancelling it while it opens would leak a connection
        self.reset()
        for task in links:
            task.cancel()
        if links:
            await asyncio.wait(links)

    # --- conditions ---------------------------------------------------------------------------------------------------

    def delay(self, most_s: float) -> None:
        """Delay each piece of data by a random time. Delays add up, since pieces stay in order."""
        self.delay_s = most_s

    def throttle(self, bytes_per_s: int) -> None:
        """Limit the throughput of each connection."""
        self.piece_bytes = bytes_per_s // _PIECES_PER_S

    def cut_after(self, number: int) -> None:
        """Reset one connection after this number of further bytes, counted over all connections."""
        self.left_bytes = number

    def black_hole(self) -> None:
        """Pass nothing on, end nothing, and leave SYNs unanswered, until `heal`.

        The accept queue has one place, and a connection of ours takes it.
        """
        if not self.flowing.is_set():
            return
        self.flowing.clear()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.listen(0)
        self._stopper = socket.socket()
        self._stopper.setblocking(False)  # noqa: FBT003  another connection may have taken the place, which is as good
        self._stopper.connect_ex((_HOST, self.port))

    def heal(self) -> None:
        """End all conditions: what was held up is delivered late. Rules stay."""
        self.delay_s, self.piece_bytes, self.left_bytes = 0.0, None, None
        if not self.flowing.is_set():
            self._close_stopper()
            self._listener.listen(_BACKLOG)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)
            self.flowing.set()

    # --- what happens to connections ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset every open connection at both ends. What has not arrived is lost."""
        for link in self._links.values():
            link.reset()

    def forget(self) -> None:
        """Let the open connections go dead without closing them; new ones work."""
        for link in self._links.values():
            link.is_dead = True

    # --- rules --------------------------------------------------------------------------------------------------------

    def watch(self, match: Match) -> Rule:
        """Record the requests that match, and their replies."""
        return self._add(Rule(match, "watch", float("inf")))

    def drop_reply(self, match: Match, times: float = 1, *, cut: bool = False) -> Rule:
        """Deliver the request and drop its reply. The connection is cut, or dead from then on."""
        return self._add(Rule(match, "drop reply", times, cut=cut))

    def hold_request(self, match: Match, times: float = 1, *, cut: bool = False) -> Rule:
        """Hold the request until `release`, and deliver it even if its client has gone (`cut`: reset it)."""
        return self._add(Rule(match, "hold request", times, cut=cut))

    def hold_reply(self, match: Match) -> Rule:
        """Deliver the request and hold its reply until `release`."""
        return self._add(Rule(match, "hold reply"))

    def rule_for(self, request: Request) -> Rule | None:
        """Return the oldest rule that applies to this request."""
        return next((rule for rule in self._rules if rule.takes(request)), None)

    # --- internal -----------------------------------------------------------------------------------------------------

    def _add(self, rule: Rule) -> Rule:
        self._rules.append(rule)
        return rule

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the client has gone
        connection.setblocking(False)  # noqa: FBT003
        link = _Link(self)
        task = asyncio.get_running_loop().create_task(link.run(connection))
        self._links[task] = link
        task.add_done_callback(self._links.pop)

    def _close_stopper(self) -> None:
        if self._stopper is not None:
            self._stopper.close()
            self._stopper = None


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
