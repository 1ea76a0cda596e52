"""The permissions that the engine needs on Redis, and which of them its user lacks.

Since Redis 7.0 a script can ask the server whether a command is allowed, without running it and with no permission but
that to call scripts, which the engine needs anyway. Before 7.0 each command is queued in a transaction that is never
executed: the server checks the permission when it queues the command. Neither writes anything.
"""

from collections.abc import Awaitable, Iterable, Sequence
from typing import Final, TypeAlias, TypeVar

from aism_engine.errors import ServerUnavailableError
from aism_engine.store.batch import Argument
from aism_engine.store.client import Client, naming_outages
from aism_engine.store.keys import Keys
from aism_engine.store.redis_exceptions import NoPermissionError, ResponseError
from aism_engine.store.scripts import ACL_DRY_RUN, DryRunCode

T = TypeVar("T")
RedisCommand: TypeAlias = tuple[str, ...]

SAMPLE: Final = "aism-doctor"
"""Placeholder for every id in a key; becomes `*` in an ACL rule."""
EVAL_COMMANDS: Final = frozenset({"EVAL", "EVALSHA"})
_QUEUE: Final = "LLEN LINDEX LTRIM LMOVE"
_COUNT_AND_RECORD: Final = "HSET HGET HMGET PEXPIRE TYPE"
_USES: Final = {
    "epoch": "GET SET",
    "lease": "GET SET PEXPIRE PTTL DEL",
    "ledger": "GET SET",
    "publication_cursor": "GET SET",
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
"""The commands used on each key, by its name in store/keys.py. Scripts that use a key declare it, too."""
_PROBED: Final = (
    "SET MSET MGET PEXPIRE DEL HSET HGET LPUSH LLEN LINDEX LREM LTRIM LMOVE SADD SREM ZADD ZSCORE ZREM XADD XDEL TYPE"
)
"""The commands that `probe_permissions.lua` tries on a key of its own."""
_PUBLISHED: Final = ("state_changes", "errors", "measurements")
_SUBSCRIBED: Final = ("responses", "requests", "state_changes", "measurements")
_WITHOUT_KEY: Final[tuple[RedisCommand, ...]] = (
    ("PING",),
    ("TIME",),
    ("CLIENT", "SETNAME", SAMPLE),
    ("EVALSHA", "0" * 40, "0"),
    ("EVAL", "return 1", "0"),
)
_ARGUMENTS: Final = {
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
"""The arguments after the key. The server checks permissions of syntactically complete commands only."""
_CHANNEL_COMMANDS: Final = frozenset({"PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE"})
_WITH_SUBCOMMAND: Final = frozenset({"CLIENT", "XINFO"})


def required_commands(keys: Keys, *, sentinels: bool = False) -> list[RedisCommand]:
    """Return every command that the engine sends, on every key and channel, with `SAMPLE` for ids."""
    commands = [*_WITHOUT_KEY, *((("ROLE",),) if sentinels else ())]
    uses = {_sample_key(keys, name): words.split() for name, words in _USES.items()}
    uses[f"{keys.prefix}:engine:probe"] = _PROBED.split()
    for key, words in uses.items():
        commands += (_complete(word, key, keys) for word in words)
        commands.append(("EVALSHA", "0" * 40, "1", key))
    commands += (("PUBLISH", getattr(keys, name), "x") for name in _PUBLISHED)
    commands += ((word, getattr(keys, name)) for name in _SUBSCRIBED for word in ("SUBSCRIBE", "UNSUBSCRIBE"))
    return commands


async def denied_commands(client: Client, commands: Sequence[RedisCommand]) -> list[RedisCommand]:
    """Return those of the commands that the user may not send.

    Raises ServerUnavailableError, `noperm`, if the user may not even ask.
    """
    arguments: list[Argument] = []
    for command in commands:
        arguments += (len(command), *command)
    may_call_scripts = True
    try:
        code, *numbers = await _unknown_as_noperm(ACL_DRY_RUN(client, [], arguments))
        if code == DryRunCode.CHECKED:
            return [commands[number - 1] for number in numbers]
    except ServerUnavailableError as error:
        if error.outage != "noperm":
            raise
        may_call_scripts = False
    try:
        return await _unknown_as_noperm(_denied_in_transaction(client, commands))
    except ServerUnavailableError as error:
        if error.outage != "noperm" or may_call_scripts:
            raise
        return [command for command in commands if command[0] in EVAL_COMMANDS]  # the others are not known


def missing_rules(denied: Iterable[Sequence[str]], required: Iterable[Sequence[str]]) -> list[str]:
    """Return the ACL rules that allow the denied commands: commands, then key patterns, then channel patterns.

    The server does not say whether it denied the command or the key. A command that is denied on every key lacks the
    command rule; a key on which every command is denied lacks the key rule; otherwise both rules are returned. Each
    returned rule is one that the engine needs.
    """
    missing = {tuple(command) for command in denied}
    allowed = [command for command in map(tuple, required) if command not in missing]
    allowed_names = {_name(command) for command in allowed}
    allowed_targets = {_target(command) for command in allowed}
    names, targets = set(), set()
    for command in missing:
        name, target = _name(command), _target(command)
        ambiguous = name in allowed_names and target in allowed_targets
        if name not in allowed_names or ambiguous:
            names.add(f"+{name}")
        if target and (target not in allowed_targets or ambiguous):
            targets.add(f"{'&' if command[0] in _CHANNEL_COMMANDS else '~'}{target.replace(SAMPLE, '*')}")
    return [*sorted(names), *sorted(targets, key=lambda rule: (rule[0] == "&", rule))]


def describe(command: Sequence[str]) -> str:
    """Format a command for people. Of a script call only the key is shown, not the digest."""
    return f"{command[0]} {_target(command)}".rstrip() if command[0] in EVAL_COMMANDS else " ".join(command)


async def _unknown_as_noperm(reply: Awaitable[T]) -> T:
    """Await a reply. A command that the server does not know counts as not permitted."""
    try:
        with naming_outages():
            return await reply
    except ResponseError as error:
        raise ServerUnavailableError("noperm", str(error)) from error


async def _denied_in_transaction(client: Client, commands: Sequence[RedisCommand]) -> list[RedisCommand]:
    pool, denied = client.connection_pool, []
    connection = await pool.get_connection()
    try:
        await connection.send_command("MULTI")
        await connection.read_response()
        for command in commands:
            await connection.send_command(*command)
            try:
                await connection.read_response()
            except ResponseError as error:  # other errors, such as a full memory, say nothing about permissions
                if isinstance(error, NoPermissionError) or str(error).startswith("unknown command"):
                    denied.append(command)
    finally:
        await connection.disconnect()  # in any case, so that the queued commands are never executed
        await pool.release(connection)
    return denied


def _sample_key(keys: Keys, name: str) -> str:
    key = getattr(keys, name)
    return key if isinstance(key, str) else str(key(*([SAMPLE] * (2 if name == "agent_reply" else 1))))


def _complete(name: str, key: str, keys: Keys) -> RedisCommand:
    if name == "XINFO":
        return ("XINFO", "STREAM", key)
    if name == "LMOVE":
        return ("LMOVE", key, keys.oversized, "RIGHT", "LEFT")
    return (name, key, *_ARGUMENTS.get(name, ()))


def _name(command: Sequence[str]) -> str:
    subcommand = f"|{command[1]}" if command[0] in _WITH_SUBCOMMAND else ""
    return f"{command[0]}{subcommand}".lower()


def _target(command: Sequence[str]) -> str:
    """Return the key or channel of a command, empty if it has none."""
    name = command[0]
    if name in EVAL_COMMANDS:
        return command[3] if len(command) > 3 else ""  # noqa: PLR2004  script, number of keys, key
    position = 2 if name in _WITH_SUBCOMMAND else 1
    return command[position] if len(command) > position and name != "CLIENT" else ""
