"""A leader that calls scripts by itself."""

from collections.abc import AsyncIterator

import pytest

from aism_engine.clock import SystemClock
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import Decision
from aism_engine.domain.text import message_digest
from aism_engine.settings import RedisSettings
from aism_engine.store.batch import Batch, Bounds, SourceTrim
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import CommitCode
from aism_engine.store.store import CommitReply, Peek, Store
from tests.support.engine import Client, Reader
from tests.support.server import Cli

TOKEN, LEDGER = "1:me", "L0"
BOUNDS = Bounds(audit=1000, dead_letters=1000, oversized=3)
AGENT = AgentRecord(agent_id="a", state="inbox", since=1.5, first_seen_at=1.5)
FACT = fx.Fact(event="tested", by="engine", at="2027-01-15T08:00:00.000Z", agent_id="a")


class Leader(Reader):
    """Calls scripts as the newest leader, whose last commit is L0."""

    def __init__(self, client: Client, store: Store) -> None:
        super().__init__(client, store.keys.prefix)
        self.store = store

    async def commit(
        self,
        *effects: fx.Effect,
        token: str = TOKEN,
        commit_id: str = "L1",
        previous: str = LEDGER,
        trim: SourceTrim | None = None,
    ) -> CommitReply:
        batch = Batch(self.keys, BOUNDS, [Decision("test", effects=list(effects))])
        return await self.store.commit(*batch.call(token, commit_id, previous, trim))

    async def refusal(self, *effects: fx.Effect, trim: SourceTrim | None = None) -> CommitCode:
        """Return the code of a commit that must neither change a key nor publish anything."""
        before = await self.dump()
        with Cli(self.client.connection_pool.connection_kwargs["port"]) as subscriber:
            subscriber("PSUBSCRIBE", f"{self.keys.prefix}:*")
            reply = await self.commit(*effects, trim=trim)
            await self.call("PUBLISH", f"{self.keys.prefix}:the-end", "")
            received = subscriber.read()[2]
        assert await self.dump() == before
        assert received == f"{self.keys.prefix}:the-end".encode()
        return reply.code

    async def push(self, *messages: bytes) -> None:
        """Push messages to the response queue, oldest first."""
        await self.call("LPUSH", self.keys.response_queue, *messages)

    async def queue(self) -> list[bytes]:
        """Return the messages in the response queue, oldest first."""
        found: list[bytes] = await self.call("LRANGE", self.keys.response_queue, 0, -1)
        return found[::-1]

    async def peek(self, **bounds: int) -> Peek:
        defaults = {"max_messages": 100, "max_bytes": 10**7, "max_message_bytes": 5000}
        return await self.store.peek(self.keys.response_queue, **(defaults | bounds))

    async def peeked_lengths(self, **bounds: int) -> list[int]:
        """Peek, and return the lengths of the messages."""
        return [len(message) for message in (await self.peek(**bounds)).messages]

    def trim(self, *messages: bytes) -> SourceTrim:
        return SourceTrim(
            self.keys.response_queue, len(messages), message_digest(messages[0]), message_digest(messages[-1])
        )


@pytest.fixture
async def leader(server: EmbeddedServer, redis_client: Client, prefix: str) -> AsyncIterator[Leader]:
    client = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    leader = Leader(redis_client, Store(client, Keys(prefix), SystemClock()))
    await redis_client.set(leader.keys.epoch, TOKEN)
    await redis_client.set(leader.keys.ledger, LEDGER)
    yield leader
    await client.aclose()


CHANGE = (
    fx.SaveAgent(AGENT),
    fx.SetState("a", "inbox"),
    fx.Publish("state_changes", {}),
    FACT,
)
