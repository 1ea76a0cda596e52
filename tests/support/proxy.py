"""A TCP proxy between an engine and its server, which does on cue what networks do when they please.

It has two kinds of faults. The *weather* holds for all that passes, from now on: delay, throttle, black hole, a cut
after so many bytes, a reset, half a close, no new connections. A *cue* waits for one request and does one thing to it
or to its reply; for that the proxy understands just enough RESP to see where requests and replies begin and end.

A black hole is what a partition looks like to both ends: silence, without a word that anything has ended. Nothing is
read, so the ends' own buffers fill; a new connection finds its SYN unanswered (on Linux; elsewhere it may be accepted,
into silence). When it heals, what was sent is delivered, late, as TCP does it. Where the network has forgotten its
connections meanwhile, call `forget()`: those that are open stay mute for ever, new ones work.

TCP loses no bytes from the middle. So a connection whose reply was lost is either cut (`cut=True`) or mute ever after;
and a request that is held holds up everything behind it on its connection.
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

from tests.support.cues import Cue, Deed, Frames, Match, Request, parsed

__all__ = ["Cue", "FaultProxy", "Match", "Request", "Way"]

_HOST: Final = "127.0.0.1"
_PIECE: Final = 1 << 16
_RESET: Final = struct.pack("ii", 1, 0)
_BACKLOG: Final = 128
_ENDS_DIALOGUE: Final = frozenset({b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"MONITOR"})
"""After one of these, what comes back is no longer one reply for each request."""


class Way(Flag):
    """In which direction a fault holds."""

    THERE = auto()
    """From the client to the server."""
    BACK = auto()
    BOTH = THERE | BACK


class _Weather:
    """What holds for all bytes of one way."""

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
    """One connection: to the client, and on to the server."""

    def __init__(self, proxy: "FaultProxy") -> None:
        self._proxy = proxy
        self._writers: dict[Way, asyncio.StreamWriter] = {}
        self._frames = {Way.THERE: Frames(), Way.BACK: Frames()}
        self._asked: deque[list[Cue]] = deque()
        self._raw = False
        self._mute = asyncio.Event()
        self.opened = asyncio.Event()

    async def run(self, client: socket.socket) -> None:
        from_client, to_client = await asyncio.open_connection(sock=client)
        self._writers[Way.BACK] = to_client
        try:
            from_server, to_server = await asyncio.open_connection(_HOST, self._proxy.server_port)
            self._writers[Way.THERE] = to_server
            self.opened.set()
            await asyncio.gather(self._pump(from_client, Way.THERE), self._pump(from_server, Way.BACK))
        except OSError:
            self.reset()
        finally:
            self.opened.set()
            for writer in self._writers.values():
                writer.close()

    def reset(self, way: Way = Way.BOTH) -> None:
        """Tell the ends with a RST that it is over."""
        for each, writer in self._writers.items():
            connection = writer.get_extra_info("socket")
            if each in way and connection is not None:
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()

    def end(self, way: Way) -> None:
        """Send no more in one way, and say so (FIN)."""
        with suppress(KeyError, OSError, RuntimeError):
            self._writers[way].write_eof()

    def mute(self) -> None:
        """Pass nothing on any more, and say nothing."""
        self._mute.set()

    async def _pump(self, source: asyncio.StreamReader, way: Way) -> None:
        step = self._there if way is Way.THERE else self._back
        ended = True
        try:
            while data := await source.read(_PIECE):
                await step(data)
        except OSError:
            ended = False
        await self._passable(way)
        if ended:
            self.end(way)
        else:
            self.reset()

    async def _there(self, data: bytes) -> None:
        if self._raw:
            return await self._send(Way.THERE, data)
        passed: list[bytes] = []
        for frame in self._frames[Way.THERE].feed(data):
            request = parsed(frame)
            cues = self._proxy.cues_for(request)
            if request[0].upper() in _ENDS_DIALOGUE:
                self._raw = True
            if cues and cues[-1].deed is Deed.ANSWER:
                await self._send(Way.BACK, cues[-1].reply)
                continue
            if cues and cues[-1].deed is Deed.HOLD_REQUEST:
                await self._send(Way.THERE, b"".join(passed))
                passed.clear()
                if cues[-1].cut:
                    self.reset(Way.BACK)
                await cues[-1].wait_released()
            self._asked.append(cues)
            passed.append(frame)
        if self._raw:
            passed.append(self._frames[Way.THERE].rest())
        return await self._send(Way.THERE, b"".join(passed))

    async def _back(self, data: bytes) -> None:
        if self._raw and not self._asked:
            return await self._send(Way.BACK, self._frames[Way.BACK].rest() + data)
        passed: list[bytes] = []
        for frame in self._frames[Way.BACK].feed(data):
            cues = self._asked.popleft() if self._asked and not frame.startswith(b">") else []
            for cue in cues:
                cue.answered(frame)
            if cues and cues[-1].deed in {Deed.DROP_REPLY, Deed.HOLD_REPLY}:
                await self._send(Way.BACK, b"".join(passed))
                passed.clear()
                if cues[-1].deed is Deed.DROP_REPLY:
                    return self.reset() if cues[-1].cut else self.mute()
                await cues[-1].wait_released()
            passed.append(frame)
            if self._raw and not self._asked:
                passed.append(self._frames[Way.BACK].rest())
                break
        return await self._send(Way.BACK, b"".join(passed))

    async def _passable(self, way: Way) -> None:
        await self._proxy.weather[way].flowing.wait()
        if self._mute.is_set():
            await asyncio.Event().wait()  # for ever

    async def _send(self, way: Way, data: bytes) -> None:
        """Pass bytes on, in the weather that is."""
        proxy, weather, writer = self._proxy, self._proxy.weather[way], self._writers[way]
        if not data:
            return
        if weather.delay_s[1]:
            await asyncio.sleep(proxy.random.uniform(*weather.delay_s))
        while data:
            piece = data
            if weather.bytes_per_s is not None:
                piece = data[: max(1, int(weather.bytes_per_s / 50))]
                await asyncio.sleep(len(piece) / weather.bytes_per_s)
            await self._passable(way)
            if weather.left is not None:
                piece = piece[: weather.left]
                weather.left -= len(piece)
            with suppress(ConnectionError, RuntimeError):  # whoever is gone misses it; the other way may go on
                writer.write(piece)
                await writer.drain()
            if weather.left == 0:
                weather.left = None
                writer.close()  # which sends what was written first
                raise ConnectionAbortedError("cut")
            data = data[len(piece) :]


class FaultProxy:
    """Stands before a server. `async with FaultProxy(server.port) as proxy`, then `proxy.url` for the engine."""

    def __init__(self, server_port: int, *, seed: int = 0) -> None:
        self.server_port = server_port
        self.random = random.Random(seed)
        """What is left to chance (a delay between two bounds, a cut after some bytes) comes from here."""
        self.weather = {Way.THERE: _Weather(), Way.BACK: _Weather()}
        self.accepted = 0
        """How many connections there have been."""
        self._port = 0
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._cues: list[Cue] = []
        self._stoppers: dict[Any, socket.socket] = {}

    @property
    def url(self) -> str:
        return f"redis://{_HOST}:{self._port}/0"

    @property
    def port(self) -> int:
        return self._port

    async def __aenter__(self) -> Self:
        self.admit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    # --- the weather --------------------------------------------------------------------------------------------------

    def delay(self, least_s: float, most_s: float | None = None, way: Way = Way.BOTH) -> None:
        """Delay everything, by as much as chance says between the two. Delays add up: one piece waits for another."""
        for weather in self._of(way):
            weather.delay_s = (least_s, least_s if most_s is None else most_s)

    def throttle(self, bytes_per_s: float, way: Way = Way.BOTH) -> None:
        """Let each connection pass only so many bytes in a second."""
        for weather in self._of(way):
            weather.bytes_per_s = bytes_per_s

    def cut_after(self, least: int, most: int | None = None, way: Way = Way.THERE) -> None:
        """End the connection on which so many more bytes have passed, counted over all; it happens once."""
        for weather in self._of(way):
            weather.left = self.random.randint(least, least if most is None else most)

    def black_hole(self, way: Way = Way.BOTH) -> None:
        """Pass nothing on, and end nothing, until `heal`. For both ways: answer no new connection either."""
        for weather in self._of(way):
            weather.flowing.clear()
        if way is Way.BOTH:
            self._ignore()

    def heal(self) -> None:
        """Good weather: what was held up is delivered, late. Cues stay."""
        for weather in self.weather.values():
            weather.heal()
        self.admit()

    # --- what happens to connections ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset every open connection at both ends; what had not arrived never does."""
        for link in self._links.values():
            link.reset()

    def half_close(self, way: Way) -> None:
        """Tell one end of every connection that nothing more will come; the other way stays open."""
        for link in self._links.values():
            link.end(way)

    def forget(self) -> None:
        """Pass on nothing more of what belongs to the open connections, without a word; new ones work."""
        for link in self._links.values():
            link.mute()

    def refuse(self) -> None:
        """Refuse new connections until `admit`. The port stays ours."""
        self._stop_accepting()
        self._listen()

    def admit(self) -> None:
        """Take new connections (again)."""
        if self._accepting is None:
            listener = self._listener if self._listener and self._stoppers else self._listen()
            listener.listen(_BACKLOG)
            self._port = listener.getsockname()[1]
            self._accepting = asyncio.get_running_loop().create_task(self._accept(listener))

    # --- cues ---------------------------------------------------------------------------------------------------------

    def watch(self, match: Match) -> Cue:
        """Only look at the requests that match, and at their replies."""
        return self._on(Cue(match, Deed.WATCH, nth=1, times=float("inf"), cut=False))

    def drop_reply(self, match: Match, *, nth: int = 1, times: float = 1, cut: bool = False) -> Cue:
        """Let the request through and lose its reply. The connection is cut, or is mute from there on."""
        return self._on(Cue(match, Deed.DROP_REPLY, nth=nth, times=times, cut=cut))

    def hold_request(self, match: Match, *, nth: int = 1, times: float = 1, cut: bool = False) -> Cue:
        """Hold the request until `release`, and deliver it even if its client is gone by then (`cut`: sent away)."""
        return self._on(Cue(match, Deed.HOLD_REQUEST, nth=nth, times=times, cut=cut))

    def hold_reply(self, match: Match, *, nth: int = 1, times: float = 1) -> Cue:
        """Let the request through and hold its reply until `release`."""
        return self._on(Cue(match, Deed.HOLD_REPLY, nth=nth, times=times, cut=False))

    def answer(self, match: Match, reply: bytes, *, nth: int = 1, times: float = float("inf")) -> Cue:
        """Answer in the server's place, which does not see the request, with these bytes of RESP, until `lift`."""
        return self._on(Cue(match, Deed.ANSWER, nth=nth, times=times, cut=False, reply=reply))

    def cues_for(self, request: Request) -> list[Cue]:
        """Find whose turn it is at this request: all that only watch, and last the first of those that act, if any."""
        watching = [cue for cue in self._cues if cue.deed is Deed.WATCH and cue.takes(request)]
        acting = (cue for cue in self._cues if cue.deed is not Deed.WATCH and cue.takes(request))
        return watching + list(itertools.islice(acting, 1))

    # --- within -------------------------------------------------------------------------------------------------------

    def _on(self, cue: Cue) -> Cue:
        self._cues.append(cue)
        return cue

    def _of(self, way: Way) -> list[_Weather]:
        return [weather for each, weather in self.weather.items() if each in way]

    def _listen(self) -> socket.socket:
        """Take the port; until `listen` is called, whoever connects to it is refused."""
        if self._listener is not None:
            self._listener.close()
        self._listener = listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)  # noqa: FBT003
        listener.bind((_HOST, self._port))
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, address = await loop.sock_accept(listener)
            if (stopper := self._stoppers.pop(address, None)) is not None:
                stopper.close()
                connection.close()
                continue
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            link = _Link(self)
            task = loop.create_task(link.run(connection))
            self._links[task] = link
            task.add_done_callback(self._links.pop)

    def _ignore(self) -> None:
        """Leave SYNs unanswered: the queue of those who wait to be accepted has one place, and we take it ourselves."""
        if self._accepting is not None and self._listener is not None:
            self._stop_accepting()
            self._listener.listen(0)
            stopper = socket.socket()
            stopper.setblocking(False)  # noqa: FBT003  somebody else may have taken the place: as good
            stopper.connect_ex((_HOST, self._port))
            self._stoppers[stopper.getsockname()] = stopper

    def _stop_accepting(self) -> None:
        if self._accepting is not None and self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)  # at once: its number may soon be another's
            self._accepting.cancel()
            self._accepting = None

    async def _close(self) -> None:
        self._stop_accepting()
        for open_socket in (*self._stoppers.values(), *([self._listener] if self._listener else [])):
            open_socket.close()
        links = dict(self._links)
        for link in links.values():
            await link.opened.wait()  # to be cancelled while it opens would leave a connection to nobody
        self.reset()
        for task in links:
            task.cancel()
        if links:
            await asyncio.wait(links)
