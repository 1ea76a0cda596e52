"""A small fleet in which every service has something to do, and the expected result."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.protocol.codec import encode
from tests.support.engine import Client, Reader, eventually

LARGEST_MESSAGE: Final = 10_000
"""`protocol.max_message_bytes` of the engine."""
OVERSIZED_MESSAGE: Final = b"m" * (LARGEST_MESSAGE + 1)
OVERSIZED_REQUEST: Final = b"r" * (LARGEST_MESSAGE + 1)
_HEAD_BYTES: Final = 4096
"""Of an oversized message, as much as is read and dead-lettered."""


class SmallFleet(Reader):
    """A fleet that sends every type of response and request, and messages that cannot be decoded.

    Only agents of the type `mortal` can be lost within the time of a test.
    """

    def __init__(self, client: Client, prefix: str) -> None:
        super().__init__(client, prefix)
        self.active = {"beater", "hand"}
        self.is_over = False
        """Ends the other tasks: a client call may swallow a cancellation (cpython#86296)."""

    async def prepare(self) -> None:
        """Leave an agent in a state that its machine does not know, and the types of the agents that can be lost."""
        now = await self.now()
        stray = AgentRecord(
            agent_id="stray",
            type="scribe",
            registered=True,
            state="nowhere",
            since=now,
            first_seen_at=now,
            liveness=Liveness.FRESH,
        )
        self.active.add("stray")
        await self.call("SADD", self.keys.index, "stray")
        await self.call("SET", self.keys.agent("stray"), encode(stray))
        for agent_id in ("silent", "returner"):
            await self.call("HSET", self.keys.metadata(agent_id), "type", "mortal")

    async def live(self) -> None:
        """Send every type of message, and wait until each has had its effects."""
        keys = self.keys
        await self.call("ZADD", keys.heartbeats, await self.now(), "silent", await self.now(), "returner")
        await self.say(
            said("b", 1, "register", type="scribe"),
            said("a", 1, "register", type="architect"),
            said("a", 2, "state_transition", target="inbox"),
            said("a", 3, "state_transition", target="logout"),
            said("a", 3, "state_transition", target="logout"),  # pushed twice
            b"no message at all",
            OVERSIZED_MESSAGE,
            said("g", 1, "register", type="scribe"),
            said("g", 2, "goodbye"),
        )
        await self.until("registered", lambda: self.state_is("a", "logout"))
        self.active.add("a")  # otherwise the engine forgets it as soon as it sends nothing more
        await self.say(
            said("a", 4, "state_transition", target="deep_work"),
            said("a", 5, "measurement", depth=1),
            said("a", 6, "measurement", depth=2),
            said("a", 5, "measurement", depth=1),
            said("a", 7, "error", code="oops"),
            said("a", 8, "message", to="b", content="hello"),
            said("a", 9, "result", command_id="never-sent"),
        )
        await self.until("responses done", self.is_drained)
        await self.ask(
            asked("c1", "send", agent_id="a", command={"type": "work"}),
            asked("c2", "send", agent_id="b", command={"type": "work"}, options={"ttl": 0.3}),
            asked("c2", "send", agent_id="b", command={"type": "work"}, options={"ttl": 0.3}),
            asked("c3", "send", agent_id="nobody", command={"type": "work"}),
            asked("f1", "forget", agent_id="b"),
            asked("l1", "confirm_losses"),
            b"no request at all",
            OVERSIZED_REQUEST,
        )
        await self.until("c1 queued", lambda: self.call("LLEN", keys.commands("a")))
        await self.call("RPOP", keys.commands("a"))
        await self.say(
            said("a", 10, "ack", command_id="c1"),
            said("a", 11, "progress", command_id="c1", percent=50),
            said("a", 12, "result", command_id="c1"),
            said("a", 13, "error", code="late", command_id="c1"),
            said("a", 14, "heartbeat"),
        )
        await self.until("all answered", self.is_drained)

        await self.until("first seen by its heartbeat", lambda: self.record("hand"))
        await self.call("SET", keys.state("hand"), "busy")
        await self.until("lost", lambda: self.audit("agent_lost", agent_id="returner"))
        self.active.add("returner")
        await self.until("returned", lambda: self.audit("agent_returned"))
        await self.until("noticed", lambda: self.audit("state_changed", agent_id="hand"))
        await self.ask(asked("c4", "send", agent_id="beater", command={"type": "work"}, options={"ttl": 0.3}))
        await self.until("expired", lambda: self.audit("command_expired"))
        await self.ask(asked("c5", "send", agent_id="beater", command={"type": "work"}, options={"ttl": 5.0}))
        await self.until("c5 queued", lambda: self.call("ZREM", keys.deadlines, "command:c5"))
        await self.until("found again", self.is_expired)
        await self.until("forgotten", lambda: self.audit("agent_forgotten", agent_id="silent"))
        await self.until("gone", lambda: self.audit("agent_forgotten", agent_id="g"))
        await self.send_mail()
        await self.diverge()
        await self.send_to_group()

    async def send_mail(self) -> None:
        """Send messages to an agent in deep work. They wait, and are delivered in order afterwards."""
        await self.say(
            said("working", 1, "register", type="scribe"),
            said("working", 2, "state_transition", target="inbox"),
            said("working", 3, "state_transition", target="deep_work"),
            *(said("writer", number, "message", to="working", content=number) for number in (1, 2, 3)),
        )
        await self.until("it waits", lambda: self.call("LLEN", self.keys.mail("working")))
        self.active |= {"working", "writer"}
        await self.until("all responses done", self.is_drained)
        await self.say(said("working", 4, "state_transition", target="inbox"))
        await self.until("it is there", lambda: self.call("LLEN", self.keys.inbox("working")))

    async def inbox(self, agent_id: str) -> list[str]:
        """Return the ids of the messages in an inbox, oldest first."""
        found = await self.call("LRANGE", self.keys.inbox(agent_id), 0, -1)
        return [json.loads(each)["id"] for each in reversed(found)]

    async def diverge(self) -> None:
        """Let an agent set a state that its machine forbids, and correct it."""
        await self.say(said("contrary", 1, "register", type="scribe"))
        await self.until("the contrary agent registered", lambda: self.state_is("contrary", "bootstrap"))
        self.active.add("contrary")
        await self.call("SET", self.keys.state("contrary"), "deep_work")
        await self.until("diverged", lambda: self.audit("divergence_opened"))
        await self.say(said("contrary", 2, "state_transition", target="inbox"))
        await self.until("agreed", lambda: self.audit("divergence_closed"))

    async def send_to_group(self) -> None:
        """Send a command to two workers. One is held, takes it twice and does it; the other's is cancelled."""
        keys, (first, second), options = self.keys, ("w1", "w2"), {"ack_timeout": 3.0, "quorum": "1"}
        await self.say(*(said(name, 1, "register", type="worker", capabilities=["ack"]) for name in (first, second)))
        await self.until("workers", lambda: self.record(second))
        self.active |= {first, second}
        await self.ask(
            asked("p1", "pause", agent_id=first),
            asked("d1", "drain", agent_id=second),
            asked("r2", "resume", agent_id=second),
            asked("g1", "send", select="type=worker", command={"type": "work"}, options=options),
        )
        await self.until("one queued", lambda: self.call("LLEN", keys.commands(second)))
        await self.ask(asked("x1", "cancel", command_id="g1.w2"), asked("r1", "resume", agent_id=first))
        for what in ("delivered", "redelivered"):
            await self.until(what, lambda: self.call("RPOP", keys.commands(first)))
        await self.say(said(first, 2, "ack", command_id="g1.w1"), said(first, 3, "result", command_id="g1.w1"))
        await self.until("the group done", lambda: self.audit("group_succeeded"))
        for number, target in enumerate(("inbox", "logout", "offline"), start=2):
            await self.say(said(second, number, "state_transition", target=target))
        found = await self.call("XRANGE", keys.dead_letters, "-", "+")
        ids = {fields[b"raw"]: dead_letter_id.decode() for dead_letter_id, fields in found}
        await self.ask(
            asked("y1", "replay", dead_letter_id=ids[b"no message at all"]),
            asked("z1", "purge", dead_letter_ids=[ids[b"no request at all"]]),
        )
        await self.until("purged", lambda: self.audit("dead_letters_purged"))

    async def until(self, what: str, condition: Callable[[], Awaitable[Any]]) -> None:
        try:
            await eventually(condition)
        except AssertionError as error:
            raise AssertionError(
                f"{what}: {error}; the audit: {[summary(fact) for fact in await self.audit()]}"
            ) from None

    async def is_expired(self) -> bool:
        return (await self.command("c5")).get("status") == "expired"

    async def send_heartbeats(self) -> None:
        """Send heartbeats, and let one agent publish its states: s1, s2, …"""
        count = 0
        while not self.is_over:
            count += 1
            now = await self.now()
            await self.call("ZADD", self.keys.heartbeats, *(word for name in self.active for word in (now, name)))
            event = {"agent_id": "publisher", "new_state": f"s{count}"}
            await self.call("PUBLISH", self.keys.state_changes, json.dumps(event))
            await asyncio.sleep(0.05)


_JOINED: Final = ("a", "b", "g", "w1", "w2", "working", "contrary")
_FACTS: Final = {
    "": (
        "dead_letter_added dead_letter_added dead_letter_added dead_letter_added request_refused/c3 "
        "group_accepted/g1 group_succeeded/w1-3 losses_confirmed/l1 request_refused/y1 dead_letters_purged/z1"
    ),
    "a": (
        "state_changed/a-2/inbox state_changed/a-3/logout transition_refused/a-4/deep_work agent_error/a-7 "
        "message_delivered/a-8 dead_letter_added/a-9 command_queued/c1 command_delivered command_acked/a-10 "
        "command_succeeded/a-12"
    ),
    "b": "command_queued/c2 command_cancelled/f1 agent_forgotten/f1",
    "g": "agent_left/g-2 state_changed/g-2/offline agent_forgotten",
    "w1": (
        "agent_held/p1 command_waiting/g1 agent_resumed/r1 command_queued command_queued command_delivered "
        "command_delivered command_retried/command:g1.w1 command_acked/w1-2 command_succeeded/w1-3"
    ),
    "w2": (
        "agent_held/d1 agent_resumed/r2 command_queued/g1 command_cancelled/x1 state_changed/w2-2/inbox "
        "state_changed/w2-3/logout state_changed/w2-4/offline"
    ),
    "working": (
        "state_changed/working-2/inbox state_changed/working-3/deep_work state_changed/working-4/inbox "
        "messages_released/working-4"
    ),
    "contrary": "transition_refused//deep_work divergence_opened state_changed/contrary-2/inbox divergence_closed",
    "stray": "state_changed//offline",
    "writer": (
        "agent_first_seen/writer-1/unknown message_waiting/writer-1 message_waiting/writer-2 message_waiting/writer-3"
    ),
    "hand": "agent_first_seen//unknown state_changed//busy",
    "beater": (
        "agent_first_seen//unknown command_queued/c4 command_expired/command:c4 command_queued/c5 "
        "command_expired/command:c5"
    ),
    "silent": "agent_first_seen//unknown agent_lost state_changed//offline agent_forgotten",
}
"""What the audit holds of each agent, besides its registration: the event, its cause and the new state."""
FACTS: Final = Counter(
    [(agent_id, fact) for agent_id, facts in _FACTS.items() for fact in facts.split()]
    + [
        (agent_id, fact.format(agent_id))
        for agent_id in _JOINED
        for fact in ("agent_first_seen/{}-1/offline", "agent_registered/{}-1", "state_changed/{}-1/bootstrap")
    ]
)
"""What the audit holds in the end, however often the engine has crashed."""
RETURNS: Final = [
    ("agent_lost", ""),
    ("state_changed", "offline"),
    ("agent_returned", ""),
    ("state_changed", "unknown"),
]
"""What happens to the agent that is lost and returns. Late heartbeats on a slow machine repeat it."""


async def problems(fleet: SmallFleet) -> list[str]:
    """Return every difference between the actual and the expected result."""
    facts = [fact for fact in await fleet.audit() if fact.get("agent_id") != "publisher"]
    returns = [(fact["event"], fact.get("new_state", "")) for fact in facts if fact.get("agent_id") == "returner"][1:]
    found = Counter(summary(fact) for fact in facts if fact.get("agent_id") != "returner")
    published = [int(fact["new_state"][1:]) for fact in await fleet.audit("state_changed", agent_id="publisher")]
    order = [fact["cause"] for fact in facts if fact["by"] == "agent" and fact.get("agent_id") == "a"]
    dead_letters = Counter(raw for _, raw in await fleet.dead_lettered())
    refused = [b"no message at all", *(each[:_HEAD_BYTES] for each in (OVERSIZED_MESSAGE, OVERSIZED_REQUEST))]
    refused.append(json.dumps(said("a", 9, "result", command_id="never-sent")).encode())
    keys = fleet.keys
    left_over = [keys.deadlines, keys.fanout, keys.mail("working"), *map(keys.commands, ("a", "beater", "w1", "w2"))]
    expected: dict[str, tuple[Any, Any]] = {
        "facts missing": (FACTS - found, Counter()),
        "facts too many": (found - FACTS, Counter()),
        "returns": (returns, (RETURNS * len(facts))[: max(len(returns), len(RETURNS))]),
        "order of a": (order, sorted(order, key=lambda cause: int(cause[2:]))),
        "order of the publisher": (published, sorted(set(published))),
        "dead letters": (dead_letters, Counter(refused)),
        "oversized": (await fleet.call("LRANGE", fleet.keys.oversized, 0, -1), [OVERSIZED_REQUEST, OVERSIZED_MESSAGE]),
        "measured": (await fleet.call("HGET", fleet.keys.agent_measurements("a"), "depth"), b"2.0"),
        "left over": (await fleet.call("EXISTS", *left_over), 0),
        "replies to c1": (await fleet.call("LLEN", fleet.keys.request_reply("c1")), 1),
        "replies to c2": (await fleet.call("LLEN", fleet.keys.request_reply("c2")), 2),
        "c1": ((await fleet.command("c1"))["status"], "succeeded"),
        "progress of c1": ((await fleet.command("c1")).get("percent"), "50"),
        "the group": (
            [(await fleet.group("g1")).get(name) for name in ("status", "succeeded", "cancelled")],
            ["succeeded", "1", "1"],
        ),
        "inbox of the working agent": (await fleet.inbox("working"), ["writer-1", "writer-2", "writer-3"]),
        "divergences of the contrary agent": ((await fleet.record("contrary"))["divergences"], {}),
        "c4": ((await fleet.command("c4"))["status"], "expired"),
        "record of silent": (await fleet.record("silent"), {}),
        "state of returner": (await fleet.state("returner"), "unknown" if len(returns) % 4 == 0 else "offline"),
    }
    return [f"{what}: {actual}, expected {wanted}" for what, (actual, wanted) in expected.items() if actual != wanted]


def summary(fact: dict[str, Any]) -> tuple[str, str]:
    """Return what is compared of a fact: its agent, and the event, the cause and the new state.

    A delivery may have a cause: what the agent sent.
    """
    cause = "" if fact["event"] == "command_delivered" else fact.get("cause", "")
    return fact.get("agent_id", ""), f"{fact['event']}/{cause}/{fact.get('new_state', '')}".rstrip("/")


def said(agent_id: str, number: int, kind: str, command_id: str | None = None, **payload: Any) -> dict[str, Any]:  # noqa: ANN401
    about = {} if command_id is None else {"command_id": command_id}
    return {"id": f"{agent_id}-{number}", "type": kind, "agent_id": agent_id, "payload": payload, **about}


def asked(request_id: str, kind: str, **payload: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"id": request_id, "type": kind, "payload": payload}
