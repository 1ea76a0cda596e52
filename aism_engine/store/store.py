"""The commit path and the lease: the one way in which a fleet is written.

Each method raises `ServerUnavailableError` while the server cannot serve; none retries.
"""

from collections.abc import Sequence
from typing import NamedTuple

from aism_engine.clock import Clock
from aism_engine.domain.text import message_digest
from aism_engine.store import scripts
from aism_engine.store.batch import Argument, SourceTrim
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.loader import LoadedFleet, load_fleet
from aism_engine.store.reads import FleetReader
from aism_engine.store.scripts import CommitCode, LeaseCode


class Peek(NamedTuple):
    """The oldest messages of a queue, which are still in it."""

    queue: str
    messages: list[bytes]
    oversized: str
    """Digest of the oldest message if that is too large to read; otherwise empty.

    Then `messages` has one element: the first 4 KiB of that message.
    """
    length: int
    """Length of the whole queue."""
    ledger: str = ""
    """Id of the last commit before the peek.

    The caller uses it to check a prefetch. A prefetch is a peek that skips the messages of the current batch, because
    they are in the queue until the batch is committed. If the server applies a commit before the prefetch, the batch
    may have left the queue already. The prefetch then skips newer messages, which no peek has returned. In that case
    this id differs from the id that the caller expects, and the caller drops the prefetch.
    """

    @property
    def trim(self) -> SourceTrim:
        oldest, newest = (self.oversized or message_digest(self.messages[end]) for end in (0, -1))
        return SourceTrim(self.queue, len(self.messages), oldest, newest, oversized=bool(self.oversized))


class CommitReply(NamedTuple):
    code: CommitCode
    details: list[int]


class Store(FleetReader):
    """Reads and writes one fleet."""

    def __init__(self, client: Client, keys: Keys, clock: Clock) -> None:
        super().__init__(client, keys, clock)
        scripts.load_all()  # now, because an upgrade may replace the files before this engine first calls a script
        self.lease_left_s = 0.0

    # --- commit path --------------------------------------------------------------------------------------------------

    async def load_fleet(self, recent_ids: int) -> LoadedFleet:
        """Read the whole fleet. Only a leader may call it: no other engine writes meanwhile."""
        loaded = await load_fleet(self._client, self.keys, recent_ids)
        loaded.fleet.silent = await self.silent_agents()
        return loaded

    async def peek(
        self, queue: str, *, max_messages: int, max_bytes: int, max_message_bytes: int, skip: int = 0
    ) -> Peek:
        """Read the oldest messages of a queue except the first `skip`, without removing them."""
        asked_at = self._clock.monotonic()
        seconds, microseconds, length, oversized, ledger, messages = await scripts.PEEK(
            self._client, [queue, self.keys.ledger], [max_messages, max_bytes, max_message_bytes, skip]
        )
        self._observe_time(seconds, microseconds, asked_at)
        return Peek(queue, messages, oversized.decode(), length, ledger.decode())

    async def commit(self, keys: Sequence[str], arguments: Sequence[Argument]) -> CommitReply:
        code, details = await scripts.COMMIT(self._client, keys, arguments)
        return CommitReply(CommitCode(code), details)

    async def probe_permissions(self) -> None:
        """Raise `ServerUnavailableError`, with the outage `noperm`, unless the user may do all that a commit needs."""
        keys = self.keys
        channels = [keys.state_changes, keys.errors, keys.measurements]
        await scripts.PROBE_PERMISSIONS(self._client, [f"{keys.prefix}:engine:probe"], channels)

    async def push_published(self, token: str, number: int, messages: Sequence[bytes]) -> None:
        """Push published messages to the response queue, oldest first; `number` counts the pushes under this token.

        Nothing is pushed if a later push came first: published messages may be lost, but never change their order.
        """
        keys = [self.keys.response_queue, self.keys.publication_cursor]
        await scripts.PUSH_PUBLISHED(self._client, keys, [token.partition(":")[0], number, *messages])

    # --- lease --------------------------------------------------------------------------------------------------------

    async def acquire_lease(self, holder: str, ttl_s: float, token: str | None) -> tuple[LeaseCode, str]:
        """Take or renew the lease; return the token of its holder. `lease_left_s` is set to its remaining time."""
        keys = self.keys
        code, current, left_ms = await scripts.ACQUIRE_LEASE(
            self._client, [keys.lease, keys.epoch, keys.led_at], [holder, int(ttl_s * 1000), token or ""]
        )
        self.lease_left_s = int(left_ms) / 1000
        return LeaseCode(code), current.decode()

    async def release_lease(self, token: str) -> bool:
        """Release the lease; return whether this token held it."""
        return bool(await scripts.RELEASE_LEASE(self._client, [self.keys.lease], [token]))
