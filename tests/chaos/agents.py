"""The agents of the load. They follow the protocol, and record what they send.

An agent pushes its next message when the last one was accepted, and repeats a push of which it does not know the
outcome: its record is in the order in which the messages must be applied. It also pushes some recent messages twice.
"""

import asyncio
import json
import random
from collections import deque
from contextlib import suppress
from typing import Any, Final

from aism_engine.store.keys import Keys
from tests.chaos.agent_model import DEAD_LETTER, JOURNEY, AgentModel
from tests.chaos.records import AgentRecord, Message
from tests.chaos.retrying_client import BROKEN, RetryingClient
from tests.chaos.schedule import Plan

RECIPIENTS: Final = ("recipient-0", "recipient-1")
"""Agents that have registered before the load begins, and receive messages."""
_RECENT: Final = 24
"""How many messages back a repeated one may be: well within `protocol.recent_ids`."""


class Agent:
    """An agent that behaves at random, within its kind.

    `journey` follows the machine of that name, `open` never registers, `recipient` only registers, `publisher` only
    publishes, and the state key of `wrong-type` is a list.
    """

    def __init__(
        self, agent_id: str, kind: str, client: RetryingClient, keys: Keys, plan: Plan, *, beats: bool
    ) -> None:
        self.kind = kind
        self.beats = beats
        self.record = AgentRecord(agent_id, AgentModel("journey" if kind in {"journey", "recipient"} else "open"))
        self._leaves = kind == "journey" and not beats  # a heartbeat would bring it back at an unknown time
        self._client = client
        self._keys = keys
        self._rng = random.Random(f"{plan.seed} {agent_id}")
        self._recent: deque[Message] = deque(maxlen=_RECENT)
        self._pause_s = plan.pause_factor * self._rng.choice((0.02, 0.04, 0.06, 0.1))

    async def run(self, stopping: asyncio.Event, drained: asyncio.Event) -> None:
        """Send messages until `stopping`, and answer commands until `drained`."""
        while not (stopping if self.kind == "publisher" else drained).is_set():
            if self.kind == "publisher":
                await self._publish()
            if self.kind == "journey":
                await self._do_command()
            if self.kind != "publisher" and not stopping.is_set():
                await self._send_any()
                if self._recent and self._rng.random() < 0.1:
                    await self._push(self._rng.choice(self._recent))
            await asyncio.sleep(self._rng.uniform(0, 2 * self._pause_s))

    async def send(
        self, kind: str, subject: str = "", *, command_id: str | None = None, payload: dict[str, Any] | None = None
    ) -> None:
        """Send a message, and record its expected effects."""
        record = self.record
        message_id = f"{record.agent_id}-{len(record.messages)}"
        body: dict[str, Any] = {"id": message_id, "type": kind, "agent_id": record.agent_id, "payload": payload or {}}
        if command_id is not None:
            body["command_id"] = command_id
        is_refused = self.kind == "wrong-type"
        expected = (DEAD_LETTER,) if is_refused else record.model.apply(kind, subject, command_id)
        message = Message(message_id, kind, json.dumps(body).encode(), expected)
        record.messages.append(message)
        await self._push(message)
        if not is_refused:  # a dead-lettered message may be pushed again: that is how it is replayed
            self._recent.append(message)

    async def _push(self, message: Message) -> None:
        message.attempts += await self._client.write("LPUSH", self._keys.response_queue, message.raw)
        message.pushes += 1
        if self._rng.random() < 0.7:
            with suppress(*BROKEN):
                await self._client.client.publish(self._keys.responses, message.raw)

    async def _send_any(self) -> None:
        rng, model = self._rng, self.record.model
        kind = rng.choices(
            ("state_transition", "error", "measurement", "message", "heartbeat", "unknown", "goodbye", "register"),
            (60, 5, 10, 10, 5, 3, 2, 2),
        )[0]
        if (self.kind != "journey" and kind == "register") or (not self._leaves and kind == "goodbye"):
            kind = "state_transition"
        match kind:
            case "state_transition":
                allowed = [f"s{len(self.record.messages)}"]
                if model.machine == "journey":
                    allowed = sorted(JOURNEY[model.state])
                target = rng.choice(allowed if rng.random() < 0.8 else sorted(JOURNEY))
                await self.send(kind, target, payload={"target": target})
            case "error":
                await self.send(kind, payload={"code": "oops", "message": "no matter"})
            case "measurement":
                self.record.measurements += 1
                n = self.record.measurements
                await self.send(kind, payload={"last": n, f"m{n}": n})
            case "message":
                to = rng.choice((*RECIPIENTS, "nobody-at-all"))
                await self.send(kind, to.removeprefix("nobody-at-all"), payload={"to": to, "content": {"n": "x"}})
            case "unknown":
                await self.send("result", command_id=f"never-sent-{rng.getrandbits(40)}")
            case "register":
                await self.send(kind, payload={"type": rng.choice(("architect", "scribe"))})
            case _:
                await self.send(kind)

    async def _do_command(self) -> None:
        """Do the oldest command, if there is one. It is removed from the list after its outcome was reported."""
        rng, commands = self._rng, self._keys.commands(self.record.agent_id)
        body = await self._client.read("LINDEX", commands, -1)
        if body is None:
            return
        command_id = json.loads(body)["id"]
        self.record.received[command_id] = self.record.received.get(command_id, 0) + 1
        self.record.model.commands.setdefault(command_id, "queued")
        if rng.random() < 0.5:
            await self.send("ack", command_id=command_id)
        if rng.random() < 0.2:
            await self.send("progress", command_id=command_id, payload={"percent": 50})
        if rng.random() < 0.2:
            await self.send("error", command_id=command_id, payload={"code": "failed"})
        else:
            await self.send("result", command_id=command_id, payload={"answer": 42})
        if rng.random() < 0.1:  # a second outcome, which changes nothing
            await self.send("error", command_id=command_id, payload={"code": "late"})
        await self._client.write("LREM", commands, 0, body)

    async def _publish(self) -> None:
        """Publish the next state: s1, s2, …"""
        self.record.publications += 1
        event = {"agent_id": self.record.agent_id, "new_state": f"s{self.record.publications}"}
        with suppress(*BROKEN):
            await self._client.client.publish(self._keys.state_changes, json.dumps(event))
