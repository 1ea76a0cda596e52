"""A TCP proxy between an engine and its server that reproduces faults of the network.

*Conditions* hold for all traffic until they are changed: delay, throttling, black hole, a cut after a number of bytes.
Connections can be reset, half closed or forgotten. A *rule* waits for a request and acts on it or its reply; for that
the proxy splits the traffic into RESP requests and replies.

A black hole is a partition as both ends see it: nothing arrives, and no connection ends. Nothing is read, so the
buffers of the ends fill; on Linux the SYN of a new connection stays unanswered. When the network heals, TCP delivers
late what was sent. `forget()` reproduces a network that has lost its connections: open ones stay dead, new ones work.

TCP loses no bytes from the middle of a stream. So a connection whose reply is dropped is cut (`cut=True`) or dead from
then on, and a request that is held delays everything behind it on its connection.
"""

import asyncio
import itertools
import random
import socket
import struct
from collections import deque
from contextlib import suppress
from enum import Flag, auto
from types import TracebackType
from typing import Any, Final, Self

from tests.support.proxy_rules import Action, Frames, Match, Request, Rule, parsed

__all__ = ["Direction", "FaultProxy", "Match", "Request", "Rule"]

_HOST: Final = "127.0.0.1"
_PIECE: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)
_BACKLOG: Final = 128
_ENDS_DIALOGUE: Final = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"MONITOR"})
"""After one of these commands the server no longer sends one reply for each request."""


class Direction(Flag):
    """The direction in which a fault holds."""

    TO_SERVER = auto()
    """From the client to the server."""
    TO_CLIENT = auto()
    BOTH = TO_SERVER | TO_CLIENT


class _Conditions:
    """The conditions for all bytes of one direction."""

    def __init__(self) -> None:
        self.delay_s = (0.0, 0.0)
        self.bytes_per_s: float | None = None
        self.left: int | None = None
        self.flowing = asyncio.Event()
        self.flowing.set()

    def heal(self) -> None:
        self.delay_s, self.bytes_per_s, self.left = (0.0, 0.0), None, None
        self.flowing.set()


class _Link:
    """One connection of a client, and the connection to the server that belongs to it."""

    def __init__(self, proxy: "FaultProxy") -> None:
        self._proxy = proxy
        self._writers: dict[Direction, asyncio.StreamWriter] = {}
        self._frames = {Direction.TO_SERVER: Frames(), Direction.TO_CLIENT: Frames()}
        self._pending: deque[list[Rule]] = deque()
        """The rules of each request that has no reply yet."""
        self._raw = False
        self._mute = asyncio.Event()
        self.opened = asyncio.Event()

    async def run(self, client: socket.socket) -> None:
        from_client, to_client = await asyncio.open_connection(sock=client)
        self._writers[Direction.TO_CLIENT] = to_client
        try:
            from_server, to_server = await asyncio.open_connection(_HOST, self._proxy.server_port)
            self._writers[Direction.TO_SERVER] = to_server
            self.opened.set()
            await asyncio.gather(
                self._pump(from_client, Direction.TO_SERVER), self._pump(from_server, Direction.TO_CLIENT)
            )
        except OSError:
            self.reset()
        finally:
            self.opened.set()
            for writer in self._writers.values():
                writer.close()

    def reset(self, direction: Direction = Direction.BOTH) -> None:
        """Send RST to the ends."""
        for each, writer in self._writers.items():
            connection = writer.get_extra_info("socket")
            if each in direction and connection is not None:
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

    def end(self, direction: Direction) -> None:
        """Send FIN in one direction."""
        with suppress(KeyError, OSError, RuntimeError):
            self._writers[direction].write_eof()

    def mute(self) -> None:
        """Pass nothing on any more, without closing anything."""
        self._mute.set()

    async def _pump(self, source: asyncio.StreamReader, direction: Direction) -> None:
        forward = self._forward_requests if direction is Direction.TO_SERVER else self._forward_replies
        ended = True
        try:
            while data := await source.read(_PIECE):
                await forward(data)
        except OSError:
            ended = False
        await self._passable(direction)
        if ended:
            self.end(direction)
        else:
            self.reset()

    async def _forward_requests(self, data: bytes) -> None:
        if self._raw:
            return await self._send(Direction.TO_SERVER, data)
        passed: list[bytes] = []
        for frame in self._frames[Direction.TO_SERVER].feed(data):
            request = parsed(frame)
            rules = self._proxy.rules_for(request)
            if request[0].upper() in _ENDS_DIALOGUE:
                self._raw = True
            if rules and rules[-1].action is Action.HOLD_REQUEST:
                await self._send(Direction.TO_SERVER, b"".join(passed))
                passed.clear()
                if rules[-1].cut:
                    self.reset(Direction.TO_CLIENT)
                await rules[-1].wait_released()
            self._pending.append(rules)
            passed.append(frame)
        if self._raw:
            passed.append(self._frames[Direction.TO_SERVER].rest())
        return await self._send(Direction.TO_SERVER, b"".join(passed))

    async def _forward_replies(self, data: bytes) -> None:
        passed: list[bytes] = []
        frames = self._frames[Direction.TO_CLIENT]
        for frame in frames.feed(data):
            rules = self._pending.popleft() if self._pending and not frame.startswith(b">") else []
            for rule in rules:
                rule.answered(frame)
            if rules and rules[-1].action in {Action.DROP_REPLY, Action.HOLD_REPLY}:
                await self._send(Direction.TO_CLIENT, b"".join(passed))
                passed.clear()
                if rules[-1].action is Action.DROP_REPLY:
                    return self.reset() if rules[-1].cut else self.mute()
                await rules[-1].wait_released()
            passed.append(frame)
        if self._raw and not self._pending:
            passed.append(frames.rest())
        return await self._send(Direction.TO_CLIENT, b"".join(passed))

    async def _passable(self, direction: Direction) -> None:
        await self._proxy.conditions[direction].flowing.wait()
        if self._mute.is_set():
            await asyncio.Event().wait()  # for ever

    async def _send(self, direction: Direction, data: bytes) -> None:
        """Pass bytes on, under the current conditions."""
        proxy, conditions, writer = self._proxy, self._proxy.conditions[direction], self._writers[direction]
        if not data:
            return
        if conditions.delay_s[1]:
            await asyncio.sleep(proxy.random.uniform(*conditions.delay_s))
        while data:
            piece = data
            if conditions.bytes_per_s is not None:
                piece = data[: max(1, int(conditions.bytes_per_s / 50))]
                await asyncio.sleep(len(piece) / conditions.bytes_per_s)
            await self._passable(direction)
            if conditions.left is not None:
                piece = piece[: conditions.left]
                conditions.left -= len(piece)
            with suppress(ConnectionError, RuntimeError):  # one end may be gone; the other direction may go on
                writer.write(piece)
                await writer.drain()
            if conditions.left == 0:
                conditions.left = None
                writer.close()  # sends what was written before
                raise ConnectionAbortedError("cut")
            data = data[len(piece) :]


class FaultProxy:
    """A proxy in front of a server: `async with FaultProxy(server.port) as proxy`, then `proxy.url` for the engine."""

    def __init__(self, server_port: int, *, seed: int = 0) -> None:
        self.server_port = server_port
        self.random = random.Random(seed)
        """Decides random delays and cuts."""
        self.conditions = {Direction.TO_SERVER: _Conditions(), Direction.TO_CLIENT: _Conditions()}
        self._port = 0
        self._listener: socket.socket | None = None
        self._accepting = False
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._rules: list[Rule] = []
        self._stoppers: dict[Any, socket.socket] = {}

    @property
    def url(self) -> str:
        return f"redis://{_HOST}:{self._port}/0"

    @property
    def port(self) -> int:
        return self._port

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    # --- conditions ---------------------------------------------------------------------------------------------------

    def delay(self, least_s: float, most_s: float) -> None:
        """Delay each piece of data by a random time between the two. Delays add up, since pieces stay in order."""
        for conditions in self.conditions.values():
            conditions.delay_s = (least_s, most_s)

    def throttle(self, bytes_per_s: float) -> None:
        """Limit the throughput of each connection."""
        for conditions in self.conditions.values():
            conditions.bytes_per_s = bytes_per_s

    def cut_after(self, least: int, most: int, direction: Direction = Direction.TO_SERVER) -> None:
        """Cut one connection after a random number of further bytes, counted over all connections."""
        self.conditions[direction].left = self.random.randint(least, most)

    def black_hole(self) -> None:
        """Pass nothing on, end nothing, and leave SYNs unanswered, until `heal`."""
        for conditions in self.conditions.values():
            conditions.flowing.clear()
        self._ignore()

    def heal(self) -> None:
        """End all conditions: what was held up is delivered late. Rules stay."""
        for conditions in self.conditions.values():
            conditions.heal()
        self._listen()

    # --- what happens to connections ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset every open connection at both ends. What has not arrived is lost."""
        for link in self._links.values():
            link.reset()

    def half_close(self, direction: Direction) -> None:
        """Close one direction of every connection; the other stays open."""
        for link in self._links.values():
            link.end(direction)

    def forget(self) -> None:
        """Let the open connections go dead without closing them; new ones work."""
        for link in self._links.values():
            link.mute()

    # --- rules --------------------------------------------------------------------------------------------------------

    def watch(self, match: Match) -> Rule:
        """Record the requests that match, and their replies."""
        return self._add(Rule(match, Action.WATCH, times=float("inf")))

    def drop_reply(self, match: Match, *, nth: int = 1, times: float = 1, cut: bool = False) -> Rule:
        """Deliver the request and drop its reply. The connection is cut, or dead from then on."""
        return self._add(Rule(match, Action.DROP_REPLY, nth=nth, times=times, cut=cut))

    def hold_request(self, match: Match, *, nth: int = 1, times: float = 1, cut: bool = False) -> Rule:
        """Hold the request until `release`, and deliver it even if its client has gone (`cut`: reset it)."""
        return self._add(Rule(match, Action.HOLD_REQUEST, nth=nth, times=times, cut=cut))

    def hold_reply(self, match: Match) -> Rule:
        """Deliver the request and hold its reply until `release`."""
        return self._add(Rule(match, Action.HOLD_REPLY))

    def rules_for(self, request: Request) -> list[Rule]:
        """Return the rules that apply to this request: those that watch, and last the first one that acts, if any."""
        watching = [rule for rule in self._rules if rule.action is Action.WATCH and rule.takes(request)]
        acting = (rule for rule in self._rules if rule.action is not Action.WATCH and rule.takes(request))
        return watching + list(itertools.islice(acting, 1))

    # --- internal ----------------------------------------------------------------------------------------------------

    def _add(self, rule: Rule) -> Rule:
        self._rules.append(rule)
        return rule

    def _listen(self) -> None:
        """Accept connections (again)."""
        if not self._accepting:
            if self._listener is None:
                self._listener = socket.create_server((_HOST, 0))
                self._listener.setblocking(False)  # noqa: FBT003
                self._port = self._listener.getsockname()[1]
            self._listener.listen(_BACKLOG)
            self._accepting = True
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except OSError:
            return  # the client has gone
        if (stopper := self._stoppers.pop(address, None)) is not None:
            stopper.close()
            connection.close()
            return
        connection.setblocking(False)  # noqa: FBT003
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(self)
        task = asyncio.get_running_loop().create_task(link.run(connection))
        self._links[task] = link
        task.add_done_callback(self._links.pop)

    def _ignore(self) -> None:
        """Leave SYNs unanswered: the accept queue has one place, and a connection of ours takes it."""
        if self._accepting and self._listener is not None:
            self._stop_accepting()
            self._listener.listen(0)
            stopper = socket.socket()
            stopper.setblocking(False)  # noqa: FBT003  another connection may have taken the place, which is as good
            stopper.connect_ex((_HOST, self._port))
            self._stoppers[stopper.getsockname()] = stopper

    def _stop_accepting(self) -> None:
        if self._accepting and self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)  # at once: its number may soon be reused
            self._accepting = False

    async def _close(self) -> None:
        self._stop_accepting()
        for open_socket in (*self._stoppers.values(), *([self._listener] if self._listener else [])):
            open_socket.close()
        links = dict(self._links)
        for link in links.values():
            await link.opened.wait()  # cancelling it while it opens would leak a connection
        self.reset()
        for task in links:
            task.cancel()
        if links:
            await asyncio.wait(links)
