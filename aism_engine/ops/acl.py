"""What the engine may do: each command that it needs, on each key and channel, and which of them are refused.

Since 7.0 a script can ask the server without doing anything, and needs no right but the one to call scripts, which the
engine needs itself. Before that each command is queued in a transaction that is never executed: the server judges
it as it queues it. Neither writes anything.
"""

from collections.abc import Awaitable, Sequence
from typing import Final, TypeAlias, TypeVar

from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor.permissions import SAMPLE
from aism_engine.store.batch import Argument
from aism_engine.store.client import Client, naming_outages
from aism_engine.store.keys import Keys
from aism_engine.store.redis_exceptions import NoPermissionError, ResponseError
from aism_engine.store.scripts import RIGHTS

T = TypeVar("T")
Words: TypeAlias = tuple[str, ...]

_QUEUE: Final = "LLEN LINDEX LTRIM LMOVE"
_COUNT_AND_RECORD: Final = "HSET HGET HMGET PEXPIRE TYPE"
_USES: Final = {
    "epoch": "GET SET",
    "lease": "GET SET PEXPIRE PTTL DEL",
    "ledger": "GET SET",
    "heard": "GET SET",
    "response_queue": f"{_QUEUE} LPUSH",
    "request_queue": _QUEUE,
    "fanout": f"{_QUEUE} LPUSH TYPE",
    "oversized": "LMOVE LTRIM LLEN TYPE",
    "heartbeats": "ZSCORE ZREM ZMSCORE ZRANGEBYSCORE ZCARD ZSCAN TYPE",
    "silent": "ZADD ZREM ZRANGE TYPE",
    "index": "SADD SREM SMEMBERS TYPE",
    "deadlines": "ZADD ZREM ZSCORE ZMSCORE ZRANGE ZRANGEBYSCORE ZCARD TYPE",
    "audit": "XADD XLEN XRANGE XREVRANGE XINFO XTRIM TYPE",
    "archives": "HSET HGETALL HDEL",
    "dead_letters": "XADD XDEL XRANGE XTRIM XLEN TYPE",
    "holds": "HSET HGET TYPE",
    "agent": "HSET HMGET DEL TYPE",
    "state": "MGET MSET GETRANGE DEL TYPE",
    "metadata": "HSET HGET DEL TYPE",
    "agent_measurements": "HSET HGETALL HLEN DEL TYPE",
    "commands": "LPUSH LREM LINDEX DEL TYPE",
    "inbox": "LPUSH LLEN DEL TYPE",
    "mail": "LPUSH LLEN LMOVE DEL TYPE",
    "agent_reply": "LPUSH PEXPIRE TYPE",
    "request_reply": "LPUSH PEXPIRE TYPE",
    "command": _COUNT_AND_RECORD,
    "group": _COUNT_AND_RECORD,
    "saved_reply": "SET MGET TYPE",
}
"""Each key, by its name in store/keys.py, and what is done to it. Scripts that touch it declare it as well."""
_PROBED: Final = (
    "SET MSET MGET PEXPIRE DEL HSET HGET LPUSH LLEN LINDEX LREM LTRIM LMOVE SADD SREM ZADD ZSCORE ZREM XADD XDEL TYPE"
)
"""What `probe.lua` tries, on a key of its own."""
_PUBLISHED: Final = ("state_changes", "errors", "measurements")
_HEARD: Final = ("responses", "requests", "state_changes", "measurements")
_CANNOT_ASK: Final = -1
_ALONE: Final[tuple[Words, ...]] = (
    ("PING",),
    ("TIME",),
    ("CLIENT", "SETNAME", SAMPLE),
    ("EVALSHA", "0" * 40, "0"),
    ("EVAL", "return 1", "0"),
)
_WORDS: Final = {
    "DEL": (),
    "GETRANGE": ("0", "1"),
    "HDEL": ("f",),
    "HGET": ("f",),
    "HMGET": ("f",),
    "HSET": ("f", "v"),
    "LINDEX": ("0",),
    "LPUSH": ("x",),
    "LREM": ("0", "x"),
    "LTRIM": ("0", "-1"),
    "MSET": ("x",),
    "PEXPIRE": ("1000",),
    "SADD": ("x",),
    "SET": ("x",),
    "SREM": ("x",),
    "XADD": ("*", "f", "v"),
    "XDEL": ("0-1",),
    "XRANGE": ("-", "+"),
    "XREVRANGE": ("+", "-"),
    "XTRIM": ("MAXLEN", "1"),
    "ZADD": ("1", "x"),
    "ZMSCORE": ("x",),
    "ZRANGE": ("0", "1"),
    "ZRANGEBYSCORE": ("0", "1"),
    "ZREM": ("x",),
    "ZSCAN": ("0",),
    "ZSCORE": ("x",),
}
"""What follows the key, so that it is a whole command: the server judges no other."""


def needed(keys: Keys, *, sentinels: bool = False) -> list[Words]:
    """Write down all that the engine does, each as the words of a command."""
    found = [*_ALONE, *((("ROLE",),) if sentinels else ())]
    uses = {_sample(keys, name): commands.split() for name, commands in _USES.items()}
    uses[f"{keys.prefix}:engine:probe"] = _PROBED.split()
    for key, commands in uses.items():
        found += (_words(command, key, keys) for command in commands)
        found.append(("EVALSHA", "0" * 40, "1", key))
    found += (("PUBLISH", getattr(keys, name), "x") for name in _PUBLISHED)
    found += ((command, getattr(keys, name)) for name in _HEARD for command in ("SUBSCRIBE", "UNSUBSCRIBE"))
    return found


async def refused(client: Client, commands: Sequence[Words]) -> list[Words]:
    """Ask which of these this user may not use.

    Raises ServerUnavailableError, `noperm`, where even asking is refused.
    """
    arguments: list[Argument] = []
    for words in commands:
        arguments += (len(words), *words)
    scripts = True
    try:
        places = await _unless_refused(RIGHTS(client, [], arguments))
        if places != [_CANNOT_ASK]:
            return [commands[place - 1] for place in places]
    except ServerUnavailableError as error:
        if error.outage != "noperm":
            raise
        scripts = False
    try:
        return await _unless_refused(_refused_in_transaction(client, commands))
    except ServerUnavailableError as error:
        if error.outage != "noperm" or scripts:
            raise
        return [words for words in commands if words[0] in {"EVAL", "EVALSHA"}]  # so much is certain


async def _unless_refused(answer: Awaitable[T]) -> T:
    """Await an answer; a command that this server does not know is as good as forbidden."""
    try:
        with naming_outages():
            return await answer
    except ResponseError as error:
        raise ServerUnavailableError("noperm", str(error)) from error


async def _refused_in_transaction(client: Client, commands: Sequence[Words]) -> list[Words]:
    pool, found = client.connection_pool, []
    connection = await pool.get_connection()
    try:
        await connection.send_command("MULTI")
        await connection.read_response()
        for words in commands:
            await connection.send_command(*words)
            try:
                await connection.read_response()
            except ResponseError as error:  # others, such as that it cannot be written now, are another matter
                if isinstance(error, NoPermissionError) or str(error).startswith("unknown command"):
                    found.append(words)
    finally:
        await connection.disconnect()  # whatever became of it, nothing that was queued is ever done
        await pool.release(connection)
    return found


def _sample(keys: Keys, name: str) -> str:
    key = getattr(keys, name)
    if isinstance(key, str):
        return key
    return str(key(*([SAMPLE] * (2 if name == "agent_reply" else 1))))


def _words(command: str, key: str, keys: Keys) -> Words:
    if command == "XINFO":
        return ("XINFO", "STREAM", key)
    if command == "LMOVE":
        return ("LMOVE", key, keys.oversized, "RIGHT", "LEFT")
    return (command, key, *_WORDS.get(command, ()))
