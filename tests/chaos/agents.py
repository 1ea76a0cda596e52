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

from tests.chaos.agent_model import DEAD_LETTER, FAULTY, JOURNEY, AgentModel, Sent
from tests.chaos.retrying_client import BROKEN, RetryingClient
from tests.chaos.schedule import Plan
from tests.chaos.system import KEYS

RECIPIENTS: Final = ("recipient-0", "recipient-1")
"""The agents that receive messages."""
LARGEST_MESSAGE: Final = 20_000
"""`protocol.max_message_bytes` of the engines."""
WORKERS: Final = tuple(f"worker-{number}" for number in range(4))
_RECENT: Final = 24
"""How many messages back a repeated one may be: well within `protocol.recent_ids`."""


class Agent:
    """An agent that behaves at random, within its kind.

    `journey` follows the machine of that name, `open` never registers, `recipient` only registers, and `publisher` only
    publishes. The state key of `wrong-type` is a list, and `invalid` sends what cannot be decoded. `worker` pops
    commands, and does each of them, fails, or forgets it; once the faults are over it does all of them. A pop may lose
    its reply, and a failover may take an outcome back, so nobody can predict how the commands of a worker end.
    """

    def __init__(self, agent_id: str, client: RetryingClient, plan: Plan) -> None:
        self.id = agent_id
        self.model = AgentModel(agent_id)
        self.kind = self.model.kind
        is_even = int(agent_id[-1]) % 2 == 0
        self.beats = self.kind in {"recipient", "worker"} or (self.kind not in FAULTY and is_even)
        self._client = client
        self._rng = random.Random(f"{plan.seed} {agent_id}")
        self._recent: deque[Sent] = deque(maxlen=_RECENT)
        self._pause_s = (
            0.015 if self.kind == "worker" else plan.pause_factor * self._rng.choice((0.02, 0.04, 0.06, 0.1))
        )

    async def run(self, stopping: asyncio.Event, drained: asyncio.Event) -> None:
        """Send messages until `stopping`, and answer commands until `drained`."""
        while not drained.is_set():
            if self.kind == "worker":
                await self._work(1.0 if stopping.is_set() else self._rng.random())
            elif self.kind == "journey":
                await self._do_command()
            if self.kind in {"journey", "open", "wrong-type"} and not stopping.is_set():
                await self._send_any()
            elif self.kind == "publisher" and not stopping.is_set():
                await self._publish()
            elif self.kind == "invalid" and not stopping.is_set():
                await self._send_invalid()
            await asyncio.sleep(self._rng.uniform(0, 2 * self._pause_s))

    async def send(self, kind: str, subject: str = "", command_id: str | None = None, **payload: Any) -> None:  # noqa: ANN401
        """Send a message, and record its expected effects."""
        name = f"{self.id}-{len(self.model.messages)}"
        body: dict[str, Any] = {"id": name, "type": kind, "agent_id": self.id, "payload": payload}
        if command_id is not None:
            body["command_id"] = command_id
        message = Sent(name, kind, json.dumps(body).encode())
        if self.kind == "wrong-type":
            message.expected = (DEAD_LETTER,)
        elif self.kind != "worker" or kind == "register":
            message.expected = self.model.apply(kind, subject, command_id)
        self.model.messages.append(message)
        await self._push(message)
        if self.kind != "wrong-type":  # a dead-lettered message may be pushed again: that is how it is replayed
            self._recent.append(message)

    async def _push(self, message: Sent) -> None:
        await self._client.push(KEYS.response_queue, message)
        if self._rng.random() < 0.7:  # agents need not notify the engine
            with suppress(*BROKEN):
                await self._client.client.publish(KEYS.responses, message.raw)

    async def _send_any(self) -> None:
        rng, model = self._rng, self.model
        kind = rng.choices(
            ("state_transition", "error", "measurement", "message", "result", "register"), (60, 5, 10, 10, 3, 2)
        )[0]
        if self.kind != "journey" and kind == "register":
            kind = "state_transition"
        match kind:
            case "state_transition":
                allowed = sorted(JOURNEY[model.state]) if self.kind == "journey" else [f"s{len(model.messages)}"]
                target = rng.choice(allowed if rng.random() < 0.8 else sorted(JOURNEY))
                await self.send(kind, target, target=target)
            case "error":
                await self.send(kind, code="oops", message="no matter")
            case "measurement":
                model.measurements += 1
                values: dict[str, Any] = {"last": model.measurements, f"m{model.measurements}": model.measurements}
                await self.send(kind, **values)
            case "message":
                to = rng.choice((*RECIPIENTS, "nobody-at-all"))
                await self.send(kind, to.removeprefix("nobody-at-all"), to=to, content={"n": "x"})
            case "result":
                await self.send(kind, command_id=f"never-sent-{rng.getrandbits(40)}")
            case _:
                await self.send(kind, type=rng.choice(("architect", "scribe")))
        if self._recent and rng.random() < 0.1:
            await self._push(rng.choice(self._recent))

    async def _send_invalid(self) -> None:
        """Push a message that cannot be decoded, unlike any other."""
        name = f"{self.id}-{len(self.model.messages)}".encode()
        raw = self._rng.choice(
            (
                self._rng.randbytes(20) + name,
                b'{"id":"%s","type":"state_transition","agent_id":"a"' % name,
                b'{"id":"%s","type":"no_such_type","agent_id":"a"}' % name,
                b'{"id":"%s","type":"heartbeat","agent_id":"../%s"}' % (name, name),
                b'{"id":"%s","type":"measurement","agent_id":"a","payload":{"x":"y"}}' % name,
                b'["%s"]' % name,
                b'["%s",' % name + b"[" * 5000,
                b'{"id":"%s","x":"%s"}' % (name, b"x" * LARGEST_MESSAGE),
            )
        )
        self.model.messages.append(message := Sent(name.decode(), "invalid", raw, (DEAD_LETTER,)))
        await self._push(message)

    async def _do_command(self) -> None:
        """Do the oldest command, if there is one. It is removed from the list after its outcome was reported."""
        rng, commands = self._rng, KEYS.commands(self.id)
        body = await self._client.read("LINDEX", commands, -1)
        if body is None:
            return
        command_id = json.loads(body)["id"]
        self.model.taken[command_id] += 1
        self.model.commands.setdefault(command_id, "queued")
        if rng.random() < 0.5:
            await self.send("ack", command_id=command_id)
        if rng.random() < 0.2:
            await self.send("error", command_id=command_id, code="failed")
        else:
            self.model.succeeded.add(command_id)
            await self.send("result", command_id=command_id, answer=42)
        if rng.random() < 0.1:  # a second outcome, which changes nothing
            await self.send("error", command_id=command_id, code="late")
        await self._client.write("LREM", commands, 0, body)

    async def _publish(self) -> None:
        """Publish the next state: s1, s2, …"""
        self.model.publications += 1
        event = {"agent_id": self.id, "new_state": f"s{self.model.publications}"}
        with suppress(*BROKEN):
            await self._client.client.publish(KEYS.state_changes, json.dumps(event))

    async def _work(self, luck: float) -> None:
        """Pop a command; do it, let it fail, or die before or at work."""
        body = await self._client.read("RPOP", KEYS.commands(self.id))
        if body is None or (command := json.loads(body))["type"] == "cancel":
            return
        command_id = command["id"]
        self.model.taken[command_id] += 1
        if 0.1 < luck < 0.3 or luck > 0.4:
            await self.send("ack", command_id=command_id)
        if 0.2 < luck < 0.4:
            await self.send("error", command_id=command_id, code="oops", retryable=self._rng.random() < 0.7)
        elif luck > 0.4:
            self.model.succeeded.add(command_id)
            await self.send("result", command_id=command_id, answer=42)
