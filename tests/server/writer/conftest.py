"""A writer that leads."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any
from unittest.mock import Mock

import pytest

from aism_engine.clock import SystemClock
from aism_engine.domain.dead_letters import dead_letter_response
from aism_engine.domain.decision import Decision
from aism_engine.domain.draft import Draft
from aism_engine.domain.policy import Policy
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError
from aism_engine.domain.responses import decide_response
from aism_engine.domain.text import message_digest
from aism_engine.errors import ServerUnavailableError
from aism_engine.metrics import Metrics
from aism_engine.settings import RedisSettings
from aism_engine.store.batch import Bounds, SourceTrim
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.leadership import Leadership
from aism_engine.store.scripts import COMMIT
from aism_engine.store.store import Store
from aism_engine.store.writer import Decide, Failures, Writer
from tests.support.clock import FakeClock
from tests.support.engine import Client, Reader
from tests.support.model import machines

POLICY = Policy(machines=machines())


class FaultyClient:
    """A client whose next commits have these `faults`: `hold` until released, `request lost`, or `reply lost`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.faults: list[str] = []
        self.held = asyncio.Event()
        self.release = asyncio.Event()
        self.lost: list[Sequence[Any]] = []
        """The commits that were not sent. A test can deliver them late."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a client has
        return getattr(self._client, name)

    async def execute_command(self, *words: Any, **options: Any) -> Any:  # noqa: ANN401 - as redis-py has it
        fault = self.faults.pop(0) if self.faults and words[:2] == ("EVALSHA", COMMIT.digest) else ""
        if fault == "hold":
            self.held.set()
            await self.release.wait()
        if fault == "request lost":
            self.lost.append(words)
            raise ServerUnavailableError("connection", "the request is lost")
        reply = await self._client.execute_command(*words, **options)
        if fault == "reply lost":
            raise ServerUnavailableError("connection", "the reply is lost")
        return reply


class RecordingMetrics(Metrics):
    """Records the code of each commit."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[str] = []

        self.commits = Mock(labels=Mock(side_effect=self._record))

    def _record(self, code: str) -> Mock:
        self.codes.append(code)
        return Mock()


class Leader(Reader):
    """A writer that leads, and what it depends on."""

    def __init__(self, client: Client, faulty: FaultyClient, prefix: str) -> None:
        super().__init__(client, prefix)
        self.faulty = faulty
        self.clock = FakeClock()
        self.metrics = RecordingMetrics()
        self.leadership = Leadership(self.clock)
        self.writer = self.new_writer()

    def new_writer(self, leadership: Leadership | None = None) -> Writer:
        store, bounds = Store(self.faulty, self.keys, SystemClock()), Bounds(1000, 1000, 3)
        return Writer(store, leadership or self.leadership, bounds, self.clock, self.metrics, recent_ids=64)

    async def lead(self, token: str = "1:me") -> None:  # noqa: S107 - no password
        await self.call("SET", self.keys.epoch, token)
        self.leadership.hold(token, self.clock.monotonic() + 60)

    async def commit(self, *messages: m.Response, trim: SourceTrim | None = None) -> list[Decision]:
        return await self.writer.commit(decide_responses(*messages), trim=trim)

    async def push(self, *messages: bytes) -> SourceTrim:
        """Push messages; return the trim with which a commit removes them."""
        await self.call("LPUSH", self.keys.response_queue, *messages)
        return SourceTrim(
            self.keys.response_queue, len(messages), message_digest(messages[0]), message_digest(messages[-1])
        )


@pytest.fixture
async def leader(server: EmbeddedServer, redis_client: Client, prefix: str) -> AsyncIterator[Leader]:
    client = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    await client.script_load(COMMIT.text)  # otherwise the first commit is sent twice, and a fault meets only the first
    leader = Leader(redis_client, FaultyClient(client), prefix)
    await leader.lead()
    yield leader
    await client.aclose()


def decide_responses(*messages: m.Response) -> Decide:
    """Decide on responses as the consumer does: dead-letter those that failed before."""

    def decide(draft: Draft, failures: Failures) -> list[Decision]:
        return [
            decide_response(draft, POLICY, message, b"raw")
            if number not in failures
            else dead_letter_response(draft, POLICY, MalformedError(*failures[number][:2]), b"raw")
            for number, message in enumerate(messages)
        ]

    return decide


def heartbeat(agent_id: str, message_id: str | None = None) -> m.Heartbeat:
    return m.Heartbeat(agent_id=agent_id, id=message_id)


def transition(agent_id: str, target: str, message_id: str | None = None) -> m.StateTransition:
    return m.StateTransition(agent_id=agent_id, id=message_id, payload=m.TransitionPayload(target))
