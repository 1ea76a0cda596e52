"""Blocks until a queue has a message, so that an idle engine need not poll.

`BLMOVE queue queue RIGHT RIGHT` moves the oldest message to the place where it already is, atomically: the queue is the
same before and after. The message stays in the queue until the commit that applies it. So a lost reply, a second
reader, or an engine that no longer leads does no harm.
"""

import asyncio
from typing import Final

from redis.exceptions import ResponseError

from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client_type import Client
from aism_engine.store.outages import naming_outages, outage_of

_BLOCK_S: Final = 2.0
"""Longest time that one call blocks. A dead connection is noticed after this time and the socket timeout."""


class QueueTail:
    """The end of a queue that is read next."""

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue

    async def wait(self, max_bytes: int) -> bytes | None:
        """Wait for a message, and return the oldest one, or None if the queue stays empty for some seconds.

        A message of more than `max_bytes` is not read: the method returns b"", as for an empty message.

        Raises `ServerUnavailableError` if the server cannot serve the call. The outage is `noperm` if the ACL refuses
        BLMOVE, or if the server does not know BLMOVE, because an operator has renamed or disabled it.
        """
        pool = self._client.connection_pool
        with naming_outages():
            connection = await pool.get_connection()
            is_read = False
            try:
                await connection.send_command("BLMOVE", self._queue, self._queue, "RIGHT", "RIGHT", _BLOCK_S)
                async with asyncio.timeout(_BLOCK_S + connection.socket_timeout):
                    message: bytes | None = await connection.read_bulk_string(max_bytes)
                is_read = message != b""
            except ResponseError as error:
                raise ServerUnavailableError(outage_of(error) or "noperm", str(error)) from error
            finally:
                if not is_read:  # the rest of the reply, or the reply to a cancelled call, may still arrive
                    await connection.disconnect(nowait=True)
                await pool.release(connection)
        return message
