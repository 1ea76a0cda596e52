"""The client of the load counts nothing as done that a replica has not confirmed."""

import asyncio

from tests.chaos.retrying_client import MARK, RetryingClient, load_client
from tests.support.engine import eventually
from tests.support.server import Cli, OwnServer


async def test_a_call_returns_when_the_replica_confirms_it() -> None:
    """A write that has returned is on the replica, however often it was repeated. Without a replica no call ends."""
    with (
        OwnServer(append_only=False, extra=("--repl-diskless-sync-delay", "0")) as primary,
        OwnServer(append_only=False) as replica,
        Cli(replica.port) as ask,
    ):
        ask("REPLICAOF", "127.0.0.1", primary.port)
        async with load_client(primary.url) as client:
            confirmed = RetryingClient(client, replicas=1)
            attempts = await confirmed.write("LPUSH", "list", "x")
            await eventually(lambda: 1 <= ask("LLEN", "list") <= attempts)
            replica.kill()
            unconfirmed = RetryingClient(client)
            for call in (confirmed.write("INCR", MARK), confirmed.read("LLEN", "list")):
                calling = asyncio.ensure_future(call)
                before = int(await unconfirmed.read("GET", MARK) or 0)

                async def is_repeated(enough: int = before + 3) -> bool:
                    return int(await unconfirmed.read("GET", MARK) or 0) >= enough

                await eventually(is_repeated)
                assert not calling.done()
                calling.cancel()
