"""The agents of the load: they behave as the protocol allows, and note what they did.

Each pushes its next message when the last one was accepted, and pushes it again where it does not know; that is what
makes the order of its journal the order that counts. Some also push an older message a second time on purpose.
"""

import asyncio
import json
import random
from collections import deque
from contextlib import suppress
from typing import Any, Final

from aism_engine.store.keys import Keys
from tests.chaos.journal import Journal, Said
from tests.chaos.law import JOURNEY, LETTER, Mind
from tests.chaos.line import BROKEN, Line
from tests.chaos.schedule import Plan

HUBS: Final = ("hub-0", "hub-1")
"""Agents that are there before the load begins, to write to."""
_RECENT: Final = 24
"""How many messages back a second copy may be: well within `protocol.recent_ids`."""


class Agent:
    """Speaks at random, by its kind: `journey`, `open`, `soldier` (moves by command alone), `hub` (registers, no more),
    `wrong_type_keys` (its state key has the wrong type), `voice` (only publishes).
    """

    def __init__(self, agent_id: str, kind: str, line: Line, keys: Keys, plan: Plan, *, beats: bool) -> None:
        self.kind = kind
        self.beats = beats
        self._leaves = kind == "journey" and not beats  # a heartbeat would bring it back, nobody knows when
        self.journal = Journal(agent_id, Mind("journey" if kind in {"journey", "soldier", "hub"} else "open"))
        self._line = line
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
        expected = (LETTER,) if self.kind == "wrong_type_keys" else journal.mind.hear(kind, subject, command_id)
        said = Said(message_id, kind, json.dumps(body).encode(), expected)
        journal.said.append(said)
        await self._push(said)
        if self.kind != "wrong_type_keys":  # what was buried may be pushed again: that is how it is replayed
            self._recent.append(said)

    async def _push(self, said: Said) -> None:
        keys = self._keys
        said.attempts += await self._line.write("LPUSH", keys.response_queue, said.raw)
        said.pushes += 1
        if self._rng.random() < 0.7:
            try:
                await self._line.client.publish(keys.responses, said.raw)
            except BROKEN:
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
        body = await self._line.read("LINDEX", commands, -1)
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
        await self._line.write("LREM", commands, 0, body)

    async def _publish(self, stopping: asyncio.Event) -> None:
        """Only publish one's states, as the channel design has it: s1, s2, …"""
        while not stopping.is_set():
            self.journal.published += 1
            event = {"agent_id": self.journal.agent_id, "new_state": f"s{self.journal.published}"}
            with suppress(*BROKEN):  # said to nobody
                await self._line.client.publish(self._keys.state_changes, json.dumps(event))
            await asyncio.sleep(self._rng.uniform(0, 2 * self._pace_s))
