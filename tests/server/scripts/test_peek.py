"""Laws of peek.lua and peek_heads.lua, and of the script cache."""

import pytest
from redis.exceptions import NoScriptError

from aism_engine.domain.commands.delivery import command_id_of
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import encode
from aism_engine.domain.text import message_digest
from aism_engine.store.batch import SourceTrim
from aism_engine.store.scripts import PEEK, CommitCode
from tests.server.scripts.conftest import CHANGE, Leader


async def test_a_peek_reads_the_oldest_messages_and_removes_none(leader: Leader) -> None:
    messages = [b"1", b"\x00\xff\r\n", b"3"]
    await leader.push(*messages)
    peek = await leader.peek(max_messages=2)
    assert (peek.messages, peek.oversized, peek.length) == (messages[:2], "", 3)
    assert await leader.queue() == messages
    assert peek.trim == SourceTrim(
        leader.keys.response_queue, 2, message_digest(messages[0]), message_digest(messages[1])
    )


async def test_a_peek_at_an_empty_queue_returns_no_messages(leader: Leader) -> None:
    """Also if `skip` exceeds the length of the queue."""
    assert await leader.peeked_lengths() == []
    await leader.push(b"1")
    assert (await leader.peeked_lengths(skip=1), await leader.peeked_lengths(skip=7)) == ([], [])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, [100, 200, 300, 400]),
        ({"max_messages": 3}, [100, 200, 300]),
        ({"max_messages": 1}, [100]),
        ({"max_bytes": 1000}, [100, 200, 300, 400]),
        ({"max_bytes": 999}, [100, 200, 300]),
        ({"max_bytes": 300}, [100, 200]),
        ({"max_bytes": 50}, [100]),
        ({"skip": 1}, [200, 300, 400]),
        ({"skip": 2, "max_messages": 1}, [300]),
        ({"skip": 2, "max_bytes": 10}, [300]),
        ({"max_message_bytes": 300}, [100, 200, 300]),
        ({"max_message_bytes": 200}, [100, 200]),
        ({"max_message_bytes": 100}, [100]),
    ],
)
async def test_a_peek_is_bounded_in_count_and_in_bytes(
    leader: Leader, bounds: dict[str, int], expected: list[int]
) -> None:
    """The first message is returned whatever its size. An oversized message ends the batch and is not part of it."""
    await leader.push(*(b"x" * size for size in (100, 200, 300, 400)))
    assert await leader.peeked_lengths(**bounds) == expected


@pytest.mark.parametrize(
    "bounds", [{}, {"max_messages": 23}, {"max_bytes": 1}, {"max_bytes": 400}, {"max_bytes": 1200}]
)
@pytest.mark.parametrize("skip", [0, 1, 39])
@pytest.mark.parametrize("oversized", [None, 0, 1, 7, 8, 9, 20, 39])
async def test_a_peek_in_chunks_returns_what_a_peek_one_by_one_would(
    leader: Leader, bounds: dict[str, int], skip: int, oversized: int | None
) -> None:
    """Messages of changing sizes, some of them empty, and at most one that is oversized."""
    messages = [b"x" * (number * 37 % 101) for number in range(40)]
    if oversized is not None:
        messages[oversized] = b"y" * 5001
    await leader.push(*messages)
    expected, left = list[bytes](), bounds.get("max_bytes", 10**7)
    for message in messages[skip:][: bounds.get("max_messages", 100)]:
        left -= len(message)
        if len(message) > 5000 or (left < 0 and expected):
            break
        expected.append(message)
    digest = "" if expected else message_digest(messages[skip])
    peek = await leader.peek(skip=skip, **bounds)
    assert (peek.messages, peek.oversized, peek.length) == (expected or [messages[skip][:4096]], digest, 40)


@pytest.mark.parametrize("size", [101, 4096, 4097, 1_000_000])
async def test_an_oversized_message_is_peeked_as_head_and_digest(leader: Leader, size: int) -> None:
    """It is returned alone, once it is the oldest, so the engine never has the whole message in memory."""
    message = (bytes(range(256)) * (size // 256 + 1))[:size]
    await leader.push(b"small", message, b"later")
    assert await leader.peeked_lengths(max_message_bytes=100) == [5]
    peek = await leader.peek(max_message_bytes=100, skip=1)
    assert (peek.messages, peek.oversized, peek.length) == ([message[:4096]], message_digest(message), 3)
    assert peek.trim == SourceTrim(
        leader.keys.response_queue, 1, message_digest(message), message_digest(message), oversized=True
    )


@pytest.mark.parametrize("size", [0, 1, 255, 4095, 4096, 4097, 8192, 100_000])
async def test_python_and_lua_compute_the_same_digest(leader: Leader, size: int) -> None:
    for message in (b"x" * size, (bytes(range(256)) * 400)[:size], b"\x00" * size):
        await leader.push(message)
        peek = await leader.peek(max_message_bytes=-1)
        assert peek.oversized == message_digest(message)
        await leader.call("DEL", leader.keys.response_queue)


async def test_messages_with_the_same_head_differ_by_their_length(leader: Leader) -> None:
    assert message_digest(b"x" * 5000) != message_digest(b"x" * 5001)
    await leader.push(b"x" * 5000)
    trim = leader.trim(b"x" * 5001)
    assert await leader.refusal(*CHANGE, trim=trim) == CommitCode.SOURCE_MOVED


async def test_a_script_missing_on_the_server_is_sent_whole(leader: Leader) -> None:
    """The script cache of a server is empty after each restart."""
    await leader.push(b"1")
    with pytest.raises(NoScriptError):
        await leader.call("EVALSHA", "0" * 40, 0)
    await leader.call("SCRIPT", "FLUSH")
    assert await leader.peeked_lengths() == [1]
    await leader.call("SCRIPT", "FLUSH")
    assert (await leader.commit(*CHANGE, trim=leader.trim(b"1"))).code == CommitCode.APPLIED
    assert not (await leader.call("SCRIPT", "EXISTS", PEEK.digest))[0]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("command_id", ["c", "c" * 100])
async def test_the_oldest_command_of_a_list_is_found_behind_cancels(
    leader: Leader, codec: str, command_id: str
) -> None:
    """A command whose payload looks like a `cancel` is a command."""
    commands = leader.keys.commands("a")

    def message(message_id: str, kind: str) -> bytes:
        payload = {"id": "c", "type": "cancel"}
        return encode(m.CommandMessage(id=message_id, type=kind, payload=payload, timestamp="now"), codec)

    async def oldest() -> str | None:
        return command_id_of((await leader.store.list_heads(["a"]))["a"])

    await leader.call("LPUSH", commands, message(command_id, "work"))
    assert await oldest() == command_id
    await leader.call("RPUSH", commands, message(f"{command_id}.cancel", "cancel"), message("other", "cancel"))
    assert await oldest() == command_id
    await leader.call("LREM", commands, 0, message(command_id, "work"))
    assert await leader.store.list_heads(["a"]) == {"a": b""}
