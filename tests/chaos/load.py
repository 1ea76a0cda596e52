"""The load: agents and operators who behave as the protocol allows, and note what they did.

Each agent pushes its next message when the last one was accepted, and pushes it again where it does not know; that is
what makes the order of its journal the order that counts. Some also push an older message a second time on purpose.
"""

import asyncio
import json
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from aism_engine.store.keys import Keys
from tests.chaos.law import JOURNEY, LETTER, Effect, Mind
from tests.chaos.schedule import Plan

HUBS: Final = ("hub-0", "hub-1")
"""Agents that are there before the load begins, to write to."""
OVERSIZED: Final = 20_000
"""`consumer.max_message_bytes` of the engines."""
_RECENT: Final = 24
"""How many messages back a second copy may be: well within `consumer.recent_ids`."""
_AGAIN_S: Final = 0.02
_BROKEN: Final = (RedisError, OSError, AttributeError, TypeError)
"""What redis-py raises when a connection breaks; the last two are cpython's, see redis-py #4287."""


@dataclass
class Said:
    """One message, how often it was pushed at most and at least, and what it should come to."""

    message_id: str
    kind: str
    raw: bytes
    expected: tuple[Effect, ...]
    attempts: int = 0
    pushes: int = 0


@dataclass
class Asked:
    """One request of an operator. `expected` is `command_queued` or `request_refused`."""

    request_id: str
    agent_id: str
    expected: str
    raw: bytes
    target: str | None = None
    expires: bool = False
    attempts: int = 0
    pushes: int = 0


@dataclass
class Journal:
    """What one agent has done."""

    agent_id: str
    mind: Mind
    said: list[Said] = field(default_factory=list)
    popped: dict[str, int] = field(default_factory=dict)
    """The commands that reached it, and how often."""
    measured: int = 0
    published: int = 0


def load_client(url: str) -> Any:  # noqa: ANN401 - redis-py's annotations describe the synchronous client, too
    """A client as an agent has one: it gives up soon, and never tries again by itself."""
    return Redis.from_url(url, protocol=2, socket_timeout=0.7, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0))


async def persist(call: Callable[[], Awaitable[Any]]) -> tuple[Any, int]:
    """Call until it is answered; gives the answer and the number of attempts."""
    attempts = 0
    while True:
        attempts += 1
        try:
            return await call(), attempts
        except _BROKEN:
            await asyncio.sleep(_AGAIN_S)


class Agent:
    """Speaks at random, by its kind: `journey`, `open`, `soldier` (moves by command alone), `hub` (registers, no more),
    `spoilt` (its state key has the wrong type), `voice` (only publishes).
    """

    def __init__(self, agent_id: str, kind: str, client: Any, keys: Keys, plan: Plan, *, beats: bool) -> None:  # noqa: ANN401
        self.kind = kind
        self.beats = beats
        self._leaves = kind == "journey" and not beats  # a heartbeat would bring it back, nobody knows when
        self.journal = Journal(agent_id, Mind("journey" if kind in {"journey", "soldier", "hub"} else "open"))
        self._client = client
        self._keys = keys
        self._rng = random.Random(f"{plan.seed} {agent_id}")
        self._recent: deque[Said] = deque(maxlen=_RECENT)
        self._pace_s = plan.leisure * self._rng.choice((0.02, 0.04, 0.06, 0.1))

    async def run(self, stopping: asyncio.Event, drained: asyncio.Event) -> None:
        """Speak until `stopping`, and go on to answer commands until `drained`."""
        if self.kind == "voice":
            return await self._publish(stopping)
        while not drained.is_set():
            if self.kind in {"journey", "soldier"}:
                await self._obey()
            if not stopping.is_set() and self.kind != "soldier":
                await self._speak()
                if self._recent and self._rng.random() < 0.1:
                    await self._push(self._rng.choice(self._recent))
            await asyncio.sleep(self._rng.uniform(0, 2 * self._pace_s))
        return None

    async def say(
        self, kind: str, subject: str = "", *, command_id: str | None = None, payload: dict[str, Any] | None = None
    ) -> None:
        """Say something, and note what it should come to."""
        journal = self.journal
        message_id = f"{journal.agent_id}-{len(journal.said)}"
        body: dict[str, Any] = {"id": message_id, "type": kind, "agent_id": journal.agent_id, "payload": payload or {}}
        if command_id is not None:
            body["command_id"] = command_id
        expected = (LETTER,) if self.kind == "spoilt" else journal.mind.hear(kind, subject, command_id)
        said = Said(message_id, kind, json.dumps(body).encode(), expected)
        journal.said.append(said)
        await self._push(said)
        if self.kind != "spoilt":  # what was buried may be pushed again: that is how it is replayed
            self._recent.append(said)

    async def _push(self, said: Said) -> None:
        keys = self._keys
        _, attempts = await persist(lambda: self._client.lpush(keys.response_queue, said.raw))
        said.pushes += 1
        said.attempts += attempts
        if self._rng.random() < 0.7:
            try:
                await self._client.publish(keys.responses, said.raw)
            except _BROKEN:
                return  # a hint, no more

    async def _speak(self) -> None:
        rng, mind = self._rng, self.journal.mind
        kind = rng.choices(
            ("state_transition", "error", "measurement", "message", "heartbeat", "unknown", "goodbye", "register"),
            (60, 5, 10, 10, 5, 3, 2, 2),
        )[0]
        if (self.kind != "journey" and kind == "register") or (not self._leaves and kind == "goodbye"):
            kind = "state_transition"
        match kind:
            case "state_transition":
                states = sorted(JOURNEY[mind.state]) if mind.machine == "journey" else [f"s{len(self.journal.said)}"]
                target = rng.choice(states if rng.random() < 0.8 else sorted(JOURNEY))
                await self.say(kind, target, payload={"target": target})
            case "error":
                await self.say(kind, payload={"code": "oops", "message": "no matter"})
            case "measurement":
                self.journal.measured += 1
                n = self.journal.measured
                await self.say(kind, payload={"last": n, f"m{n}": n})
            case "message":
                to = rng.choice((*HUBS, "nobody-at-all"))
                await self.say(kind, to.removeprefix("nobody-at-all"), payload={"to": to, "content": {"n": "x"}})
            case "unknown":
                await self.say("result", command_id=f"never-sent-{rng.getrandbits(40)}")
            case "register":
                await self.say(kind, payload={"type": rng.choice(("architect", "scribe"))})
            case _:
                await self.say(kind)

    async def _obey(self) -> None:
        """Do the oldest command, if there is one. It is taken off the list after it was answered."""
        rng, mind, commands = self._rng, self.journal.mind, self._keys.commands(self.journal.agent_id)
        body, _ = await persist(lambda: self._client.lindex(commands, -1))
        if body is None:
            return
        command = json.loads(body)
        command_id, target = command["id"], command["payload"].get("target")
        self.journal.popped[command_id] = self.journal.popped.get(command_id, 0) + 1
        mind.have(command_id, target)
        if rng.random() < 0.5:
            await self.say("ack", command_id=command_id)
        if rng.random() < 0.2:
            await self.say("progress", command_id=command_id, payload={"percent": 50})
        if target is None and rng.random() < 0.2:
            await self.say("error", command_id=command_id, payload={"code": "failed"})
        else:
            await self.say("result", command_id=command_id, payload={"answer": 42})
        if rng.random() < 0.1:  # its outcome is recorded: this one is late
            await self.say("error", command_id=command_id, payload={"code": "late"})
        await persist(lambda: self._client.lrem(commands, 0, body))

    async def _publish(self, stopping: asyncio.Event) -> None:
        """Only publish one's states, as the channel design has it: s1, s2, …"""
        while not stopping.is_set():
            self.journal.published += 1
            event = {"agent_id": self.journal.agent_id, "new_state": f"s{self.journal.published}"}
            with suppress(*_BROKEN):  # said to nobody
                await self._client.publish(self._keys.state_changes, json.dumps(event))
            await asyncio.sleep(self._rng.uniform(0, 2 * self._pace_s))


class Operator:
    """Sends commands, and the same request again where it does not know."""

    def __init__(self, client: Any, keys: Keys, seed: str) -> None:  # noqa: ANN401
        self.asked: list[Asked] = []
        self._client = client
        self._keys = keys
        self._rng = random.Random(seed)
        self._seed = seed

    async def run(self, agents: list[str], stopping: asyncio.Event) -> None:
        """Send work to these agents, now and then to one that pops nothing, or to one that is not there."""
        rng = self._rng
        while not stopping.is_set():
            where = rng.random()
            if where < 0.1:
                await self.ask("no-such-agent", "work", expected="request_refused")
            elif where < 0.2:
                await self.ask(rng.choice(HUBS), "work", ttl=rng.uniform(0.3, 2.0))
            else:
                await self.ask(rng.choice(agents), "work")
            if rng.random() < 0.1:
                await self._push(rng.choice(self.asked[-5:]))
            await asyncio.sleep(rng.uniform(0, 0.1))

    async def drill(self, agent_id: str, stopping: asyncio.Event) -> None:
        """Lead one agent through the journey, each command after the one before it has ended."""
        state = "bootstrap"
        while not stopping.is_set():
            state = self._rng.choice(sorted(JOURNEY[state]))
            asked = await self.ask(agent_id, "state_transition", target=state)
            status = None
            while status not in {b"succeeded", b"failed", b"expired", b"cancelled"}:
                await asyncio.sleep(0.02)
                record = self._keys.command(asked.request_id)
                status, _ = await persist(lambda key=record: self._client.hget(key, "status"))  # type: ignore[misc]

    async def ask(
        self,
        agent_id: str,
        kind: str,
        *,
        expected: str = "command_queued",
        target: str | None = None,
        ttl: float | None = None,
    ) -> Asked:
        request_id = f"{self._seed}-{len(self.asked)}"
        payload = {"n": len(self.asked)} if target is None else {"target": target}
        body = {
            "id": request_id,
            "type": "send",
            "payload": {
                "agent_id": agent_id,
                "command": {"type": kind, "payload": payload},
                "options": {} if ttl is None else {"ttl": ttl},
            },
        }
        asked = Asked(request_id, agent_id, expected, json.dumps(body).encode(), target, ttl is not None)
        self.asked.append(asked)
        await self._push(asked)
        return asked

    async def _push(self, asked: Asked) -> None:
        _, attempts = await persist(lambda: self._client.lpush(self._keys.request_queue, asked.raw))
        asked.pushes += 1
        asked.attempts += attempts


async def litter(client: Any, keys: Keys, seed: str, garbage: list[Said], stopping: asyncio.Event) -> None:  # noqa: ANN401
    """Push what is no message, each piece unlike any other."""
    rng = random.Random(seed)
    while not stopping.is_set():
        mark = f"garbage-{len(garbage)}"
        raw = rng.choice(
            (
                rng.randbytes(20) + mark.encode(),
                b'{"id":"%s","type":"state_transition","agent_id":"a"' % mark.encode(),
                b'{"id":"%s","type":"no_such_type","agent_id":"a"}' % mark.encode(),
                b'{"id":"%s","type":"heartbeat","agent_id":"../%s"}' % (mark.encode(), mark.encode()),
                b'{"id":"%s","type":"measurement","agent_id":"a","payload":{"x":"y"}}' % mark.encode(),
                b'["%s"]' % mark.encode(),
                b'["%s",' % mark.encode() + b"[" * 5000,
                b'{"id":"%s","x":"%s"}' % (mark.encode(), b"x" * OVERSIZED),
            )
        )
        said = Said(mark, "garbage", raw, (LETTER,))
        garbage.append(said)
        _, said.attempts = await persist(lambda raw=raw: client.lpush(keys.response_queue, raw))  # type: ignore[misc]
        said.pushes = 1
        await asyncio.sleep(rng.uniform(0, 0.1))


async def beat(client: Any, keys: Keys, agents: list[str], stopping: asyncio.Event) -> None:  # noqa: ANN401
    """Heartbeats for these agents, in one go. Their clock is the server's."""
    while not stopping.is_set():
        try:
            seconds, _ = await client.time()
            await client.zadd(keys.heartbeats, dict.fromkeys(agents, seconds))
        except _BROKEN:
            pass
        await asyncio.sleep(0.2)
