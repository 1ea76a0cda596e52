"""Reports that something was published on a channel, without reading what.

A `Subscription` parses each message, which takes longer than preparing a commit. A notification needs no parsing.
"""

from collections.abc import Callable

from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client_type import Client
from aism_engine.store.outages import naming_outages


class Doorbell:
    """Notifications of one channel."""

    def __init__(self, client: Client, channel: str) -> None:
        self._client = client
        self._channel = channel

    async def listen(self, ring: Callable[[], None]) -> None:
        """Subscribe, and call `ring` after the subscription and for messages that arrive. Messages can be lost.

        Raises `ServerUnavailableError` when the connection ends or the server refuses the subscription.
        """
        pool = self._client.connection_pool
        with naming_outages():
            connection = await pool.get_connection()
            try:
                await connection.send_command("SUBSCRIBE", self._channel)
                if (await connection.read_bytes()).startswith(b"-"):
                    raise ServerUnavailableError("noperm", f"the server refuses SUBSCRIBE {self._channel}")
                while True:
                    ring()
                    await connection.read_bytes()  # may begin within a message, with any byte
            finally:
                await connection.disconnect(nowait=True)
                await pool.release(connection)
