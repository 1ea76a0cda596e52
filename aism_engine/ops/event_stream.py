"""The events of a fleet as they happen: the facts of the audit, and the messages of three channels.

Guaranteed: every fact after the start comes once and in order, also across outages of the server, or an item says what
is missing. Not guaranteed: the messages of the channels. A message that is published while there is no connection is
lost. The channels are read only after the audit has been read to its end. If that takes long, the server may disconnect
the subscription, and then its unread messages are lost.
"""

from collections import deque
from collections.abc import AsyncGenerator, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from aism_engine.ops.audit_log import (
    BEGINNING,
    DECODE_ERRORS,
    AuditLog,
    AuditTail,
    Cursor,
    EntryKey,
    TailPage,
)
from aism_engine.ops.inspector import Report
from aism_engine.ops.reconnect import Reconnect
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.records import CHUNK
from aism_engine.store.subscription import Subscription

_INTERVAL_S: Final = 0.1
"""Time between reads of the audit."""
_PING_AFTER: Final = 20
"""Empty reads after which the server is pinged. After as many further empty reads the connection counts as lost: with
a lower number, one short delay of the server would count as an outage.
"""
_KNOWN_ENTRIES: Final = 1000
"""Latest entries that are kept, to find where to continue after the server went back in time: an arbitrary number."""


_Read: TypeAlias = tuple[list[tuple[bytes | None, bytes]], TailPage]
"""Published messages, each with its channel, and a page of the audit."""


class EventStream:
    """Yields events from now on, without end.

    `event` names the kind of an event. For the messages of the three channels it is `error`, `measurement` or
    `state_declared`. A `state_declared` event is a state that an agent published itself. Two items have no `event`:
    `gap` and `rollback`, see `AuditLine`.
    """

    def __init__(self, audit: AuditLog, pubsub: Client, keys: Keys, report: Report) -> None:
        """`report` gets a line of text when the connection is lost, and when it is back."""
        self._audit = audit
        self._kinds = {keys.state_changes: "state_declared", keys.errors: "error", keys.measurements: "measurement"}
        self._subscription = Subscription(pubsub, list(self._kinds), ping_after=_PING_AFTER)
        self._reconnect = Reconnect(report)
        self._known = deque[EntryKey](maxlen=_KNOWN_ENTRIES)
        self._more = False

    async def events(self) -> AsyncGenerator[dict[str, Any]]:
        """Raises `ServerUnavailableError` only if the server cannot serve at the start."""
        try:
            end = await self._end()
            tail = AuditTail(self._audit, end, self._find_known)
            self._known.append((end.id, end.commit))
            while True:
                messages, page = await self._reconnect.call(partial(self._read, tail), _missed)
                self._more = page.more
                for event in filter(None, (self._published(*message) for message in messages)):
                    yield event
                for line in page.lines:
                    self._known.append((line.id, line.commit))
                    for item in line.items():
                        yield item
        finally:
            await self._subscription.close()

    async def _read(self, tail: AuditTail) -> _Read:
        """Read published messages and then a page of the audit; only the page if more of the audit is waiting."""
        messages = [] if self._more else await self._subscription.read(CHUNK, timeout_s=_INTERVAL_S)
        return messages, await tail.read()

    async def _end(self) -> Cursor:
        """Return the position of the newest entry."""
        last = (await self._audit.page(BEGINNING, 1)).last or BEGINNING
        page = await self._audit.page(last)
        number = None if page.added is None or page.more else page.added - len(page.entries)
        return Cursor(last, page.commit_at_cursor or "", number)

    async def _find_known(self, entries: Collection[EntryKey]) -> set[EntryKey]:
        return set(entries).intersection(self._known)

    def _published(self, channel: bytes | None, data: bytes) -> dict[str, Any] | None:
        """Decode a published event; None if it is not a JSON object, or is a state change that the audit reports."""
        kind, event = self._kinds[channel.decode()] if channel else "", _object(data)
        if event is None or (kind == "state_declared" and event.get("source") == "engine"):
            return None
        return {"event": kind, **event}


def _missed(read: _Read) -> str:
    """Return the end of the report `Redis is back after ...`: which events were lost in the outage."""
    empty = "" if read[1].first else ". The audit is empty: the server has lost its data"
    return f"; errors, measurements and declared states published meanwhile are missing{empty}"


def _object(data: bytes) -> dict[str, Any] | None:
    with suppress(*DECODE_ERRORS):
        value = msgspec.json.decode(data)
        return value if isinstance(value, dict) else None
    return None
