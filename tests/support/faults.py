"""What the tests of faults share: a load whose every effect is known in advance, and matches for the proxy."""

import json
from collections import defaultdict
from typing import Any, Final

from aism_engine.store.scripts import ACQUIRE_LEASE, COMMIT, Script
from tests.support.engine import Reader, eventually
from tests.support.proxy_rules import Match, Request


def calls(script: Script) -> Match:
    """Return a match for the requests that call this script."""
    digest = script.digest.encode()

    def match(request: Request) -> bool:
        return request[0] == b"EVALSHA" and request[1] == digest

    return match


IS_COMMIT: Final = calls(COMMIT)
IS_LEASE: Final = calls(ACQUIRE_LEASE)


class Load:
    """Agents that move to a new state with each response.

    Each response has an id and exactly one effect, and the audit shows both.
    """

    def __init__(self, agents: int = 3) -> None:
        self._agents = agents
        self._said: list[tuple[str, str]] = []

    def more(self, count: int) -> list[dict[str, Any]]:
        """Return further responses, one agent after the other."""
        first = len(self._said)
        self._said += [(f"a{number % self._agents}", f"m{number}") for number in range(first, first + count)]
        return [
            {"type": "state_transition", "agent_id": agent, "id": name, "payload": {"target": f"s-{name}"}}
            for agent, name in self._said[first:]
        ]

    def encoded(self, count: int) -> list[bytes]:
        """Return further responses, encoded."""
        return [json.dumps(message).encode() for message in self.more(count)]

    async def say(self, reader: Reader, count: int) -> None:
        """Push further responses."""
        messages = self.more(count)
        for start in range(0, count, 1000):
            await reader.say(*messages[start : start + 1000])

    async def applied(self, reader: Reader) -> dict[str, list[str]]:
        """Return the ids of the applied responses by agent, in the order of the audit."""
        found = defaultdict(list)
        for fact in await reader.audit("state_changed"):
            assert fact["new_state"] == f"s-{fact.get('cause')}", fact
            found[fact["agent_id"]].append(fact["cause"])
        return dict(found)

    async def wait_applied_once(self, reader: Reader) -> None:
        """Wait until the queues are empty, and check that every response was applied once.

        Those of one agent were applied in order, none is dead-lettered, and each state is that of the last response.
        """
        await eventually(reader.is_drained)
        expected: dict[str, list[str]] = defaultdict(list)
        for agent, name in self._said:
            expected[agent].append(name)
        assert await self.applied(reader) == dict(expected)
        assert await reader.dead_lettered() == []
        for agent, names in expected.items():
            assert await reader.state(agent) == f"s-{names[-1]}"
            assert (await reader.record(agent))["state"] == f"s-{names[-1]}"
