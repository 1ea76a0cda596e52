"""Laws of `BlockingClient`: it returns what redis-py returns, and needs no event loop."""

import asyncio
from typing import Any

import pytest

from aism_engine.clock import SystemClock
from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store.blocking_client import BlockingClient, run
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.reads import FleetReader
from aism_engine.store.redis_error_codes import MissingScriptError


def _calls(prefix: str) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    text, table, scores, members, stream, entries, none = (f"{prefix}:{each}" for each in "thzsxln")
    return [
        ("get", (text,), {}),
        ("get", (none,), {}),
        ("hget", (table, "a"), {}),
        ("hmget", (table, ["a", "none"]), {}),
        ("hgetall", (table,), {}),
        ("hgetall", (none,), {}),
        ("smembers", (members,), {}),
        ("lrange", (entries, 0, -1), {}),
        ("zrange", (scores, 0, -1), {}),
        ("zrange", (scores, 0, -1), {"withscores": True}),
        ("zmscore", (scores, ["one", "none"]), {}),
        ("xrange", (stream, "-", "+"), {"count": 1}),
        ("xrange", (none, "-", "+"), {"count": 1}),
        ("publish", (none, "text"), {}),
    ]


@pytest.fixture
async def clients(server: EmbeddedServer, prefix: str) -> Any:  # noqa: ANN401
    settings = RedisSettings(url=server.url, prefix=prefix)
    blocking, client = BlockingClient(settings), connect(settings, "test")
    await client.set(f"{prefix}:t", "text")
    await client.hset(f"{prefix}:h", mapping={"a": "1", "b": "2"})
    await client.zadd(f"{prefix}:z", {"one": 1, "ten": 10.5})
    await client.sadd(f"{prefix}:s", "a", "b")
    await client.xadd(f"{prefix}:x", {"n": 1}, id="1-0")
    await client.xadd(f"{prefix}:x", {"n": 2}, id="2-0")
    await client.rpush(f"{prefix}:l", "a", "b", "c")
    yield blocking, client
    blocking.close()
    await client.aclose()


async def test_each_method_returns_what_redis_py_returns(clients: tuple[Any, Any], prefix: str) -> None:
    """A set may come as a list, and a tuple as one: readers only iterate over them."""
    blocking, client = clients
    for name, positional, named in _calls(prefix):
        await client.delete(f"{prefix}:l")
        await client.rpush(f"{prefix}:l", "a", "b", "c")
        expected = await getattr(client, name)(*positional, **named)
        await client.delete(f"{prefix}:l")
        await client.rpush(f"{prefix}:l", "a", "b", "c")
        found = await asyncio.to_thread(run, getattr(blocking, name)(*positional, **named))
        as_list = isinstance(expected, set | tuple)
        assert (sorted(found) if as_list else found) == (sorted(expected) if as_list else expected), name


async def test_keys_are_scanned_and_commands_sent_at_once(clients: tuple[Any, Any], prefix: str) -> None:
    blocking, _ = clients

    async def scan() -> list[bytes]:
        return [key async for key in blocking.scan_iter(match=f"{prefix}:*", count=2)]

    calls = [("LLEN", f"{prefix}:{name}") for name in ("l", "t", "none")]
    assert sorted(await asyncio.to_thread(run, scan())) == sorted(f"{prefix}:{each}".encode() for each in "thzsxl")
    three, error, none = await asyncio.to_thread(run, blocking.execute_commands(calls, raise_wrong_type=False))
    assert (three, isinstance(error, ServerUnavailableError), none) == (3, True, 0)
    with pytest.raises(ServerUnavailableError, match="wrong_type"):
        run(blocking.execute_commands(calls))
    with pytest.raises(ServerUnavailableError, match="wrong_type"):
        run(blocking.llen(f"{prefix}:t"))
    assert run(blocking.get(f"{prefix}:t")) == b"text"  # the replies are still in step


async def test_only_a_key_of_the_wrong_type_has_no_length(
    clients: tuple[Any, Any], server: EmbeddedServer, prefix: str
) -> None:
    """An agent whose inbox cannot be read would otherwise seem to have no unread messages."""
    keys, (blocking, client) = Keys(prefix), clients
    await client.lpush(keys.inbox("a"), "one", "two")
    await client.set(keys.mail("a"), "text")
    assert await FleetReader(client, keys, SystemClock()).unread_counts(["a"]) == {"a": 2}
    assert run(FleetReader(blocking, keys, SystemClock()).unread_counts(["a"])) == {"a": 2}
    await client.execute_command("ACL", "SETUSER", prefix, "on", ">secret", f"~{keys.mail('a')}", "+@all")
    settings = RedisSettings(url=server.url.replace("//", f"//{prefix}:secret@"))
    other_blocking, other = BlockingClient(settings), connect(settings, "test")
    try:
        with pytest.raises(ServerUnavailableError, match="noperm"):
            await FleetReader(other, keys, SystemClock()).unread_counts(["a"])
        with pytest.raises(ServerUnavailableError, match="noperm"):
            run(FleetReader(other_blocking, keys, SystemClock()).unread_counts(["a"]))
    finally:
        other_blocking.close()
        await other.aclose()
        await client.execute_command("ACL", "DELUSER", prefix)


async def test_a_dead_letter_is_read_by_both_clients(clients: tuple[Any, Any], prefix: str) -> None:
    keys, (blocking, client) = Keys(prefix), clients
    fields = {"code": "c", "reason": "r", "source": "commands", "raw": "raw", "digest": "d", "size": 3}
    await client.xadd(keys.dead_letters, fields, id="1-0")
    found = await FleetReader(client, keys, SystemClock()).dead_letters(["1-0", "2-0"])
    assert {each: letter.code for each, letter in found.items()} == {"1-0": "c"}
    assert run(FleetReader(blocking, keys, SystemClock()).dead_letters(["1-0", "2-0"])) == found


async def test_a_reply_that_comes_too_late_is_not_taken_for_the_next_one(
    clients: tuple[Any, Any], server: EmbeddedServer, prefix: str
) -> None:
    _, client = clients
    blocking = BlockingClient(RedisSettings(url=server.url, socket_timeout=300))
    with pytest.raises(ServerUnavailableError, match="timeout"):
        blocking._redis.call("BLPOP", f"{prefix}:n", 0, wait_s=-299.9)
    await client.rpush(f"{prefix}:n", "late")
    assert run(blocking.get(f"{prefix}:t")) == b"text"
    blocking.close()


async def test_a_missing_script_is_told_from_other_errors(clients: tuple[Any, Any]) -> None:
    """Both clients raise the same error, so that the script is sent whole."""
    blocking, client = clients
    with pytest.raises(MissingScriptError):
        run(blocking.execute_command("EVALSHA", "0" * 40, 0))
    with pytest.raises(MissingScriptError):
        await client.execute_command("EVALSHA", "0" * 40, 0)


def test_what_needs_an_event_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="without an event loop"):
        run(asyncio.sleep(0))
