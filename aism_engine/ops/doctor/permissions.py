"""The permissions that the engine needs on Redis, and which of them its user lacks.

Since Redis 7.0 a script can ask the server whether a command is allowed, without running it. This needs only the
permission to call scripts, which the engine needs anyway. Before 7.0 each command is queued in a transaction that is
never executed: the server checks the permission when it queues the command. Neither writes anything.
"""

from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeVar

from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor.known_keys import KEY_USES, SAMPLE, sample_key
from aism_engine.store.batch import Argument
from aism_engine.store.client_type import Client
from aism_engine.store.keys import Keys
from aism_engine.store.outages import naming_outages
from aism_engine.store.redis_exceptions import NoPermissionError, ResponseError
from aism_engine.store.scripts import ACL_DRY_RUN

T = TypeVar("T")

EVAL_COMMANDS: Final = frozenset({"EVAL", "EVALSHA"})
_REPORTED_OUTAGES: Final = frozenset({"noperm", "wrong_type", "cluster", "clusterdown"})
"""Outages that a check reports as a finding. At any other outage the doctor stops."""
_DIGEST: Final = "0" * 40
_PROBED: Final = (
    "SET MSET MGET PEXPIRE DEL HSET HGET LPUSH LLEN LINDEX LREM LTRIM LMOVE SADD SREM ZADD ZSCORE ZREM XADD XDEL TYPE"
)
"""The commands that `probe_permissions.lua` tries on a key of its own."""
_PUBLISHED: Final = ("state_changes", "errors", "measurements")
_SUBSCRIBED: Final = ("responses", "requests", "state_changes", "measurements")
_ARGUMENTS: Final = {
    1: "HDEL HGET HMGET LINDEX LPUSH MSET PEXPIRE SADD SET SISMEMBER SREM XDEL ZMSCORE ZREM ZSCAN ZSCORE",
    2: "GETRANGE HSET LRANGE LREM LTRIM XRANGE XREVRANGE XTRIM ZADD ZRANGE ZRANGEBYSCORE",
    3: "LMOVE XADD",
    4: "BLMOVE",
}
"""Commands by their number of arguments after the key. The server checks the number before the permission."""


class RequiredCommand(NamedTuple):
    """A command that the engine sends. The target is its key or channel as in an ACL rule, `~key` or `&channel`."""

    name: str
    """`GET`, or `XINFO|STREAM` for a command with a subcommand."""
    target: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.name.split("|"), *self.arguments)

    def __str__(self) -> str:
        """Format the command for people, without its arguments."""
        return f"{self.name.replace('|', ' ')} {self.target[1:]}".rstrip()


_WITHOUT_KEY: Final = (
    RequiredCommand("PING"),
    RequiredCommand("TIME"),
    RequiredCommand("CLIENT|SETNAME", arguments=(SAMPLE,)),
    RequiredCommand("EVALSHA", arguments=(_DIGEST, "0")),
    RequiredCommand("EVAL", arguments=("return 1", "0")),
)


def required_commands(keys: Keys, *, sentinels: bool = False) -> list[RequiredCommand]:
    """Return every command that the engine sends, on every key and channel, with `SAMPLE` for ids."""
    commands = [*_WITHOUT_KEY, *((RequiredCommand("ROLE"),) if sentinels else ())]
    uses = {sample_key(keys, name): names for name, (_, names) in KEY_USES.items()}
    uses[f"{keys.prefix}:engine:probe"] = _PROBED
    counts = {name: count for count, names in _ARGUMENTS.items() for name in names.split()}
    for key, names in uses.items():
        # Every argument is the key, because the second key of LMOVE must also be one that the user may access.
        commands += [RequiredCommand(name, f"~{key}", (key,) * (1 + counts.get(name, 0))) for name in names.split()]
        commands.append(RequiredCommand("EVALSHA", f"~{key}", (_DIGEST, "1", key)))
    for channel in (getattr(keys, name) for name in _PUBLISHED):
        commands.append(RequiredCommand("PUBLISH", f"&{channel}", (channel, "x")))
    for channel in (getattr(keys, name) for name in _SUBSCRIBED):
        commands += [RequiredCommand(name, f"&{channel}", (channel,)) for name in ("SUBSCRIBE", "UNSUBSCRIBE")]
    return commands


async def denied_commands(client: Client, commands: Sequence[RequiredCommand]) -> list[RequiredCommand]:
    """Return those of the commands that the user may not send.

    Raises ServerUnavailableError with the outage `noperm` if the server is older than Redis 7.0, and the user may call
    scripts but may not send MULTI.
    """
    arguments: list[Argument] = []
    for command in commands:
        arguments += (len(command.words), *command.words)
    may_call_scripts = True
    try:
        numbers = await _unknown_as_noperm(ACL_DRY_RUN(client, [], arguments))
        if numbers is not None:
            return [commands[number - 1] for number in numbers]
    except ServerUnavailableError as error:
        if error.outage != "noperm":
            raise
        may_call_scripts = False
    try:
        with naming_outages():
            return await _unknown_as_noperm(_denied_in_transaction(client, commands))
    except ServerUnavailableError as error:
        if error.outage != "noperm" or may_call_scripts:
            raise
        # It is unknown whether the user may send the other commands: neither way to ask is allowed.
        return [command for command in commands if command.name in EVAL_COMMANDS]


def missing_rules(denied: Iterable[RequiredCommand], required: Iterable[RequiredCommand]) -> list[str]:
    """Return the ACL rules that allow the denied commands: commands, then key patterns, then channel patterns.

    The server does not say whether it denied the command or the key. A command that is denied on every key lacks the
    command rule; a key on which every command is denied lacks the key rule; otherwise both rules are returned. Each
    returned rule is one that the engine needs.
    """
    missing = set(denied)
    allowed = [command for command in required if command not in missing]
    allowed_names = {command.name for command in allowed}
    allowed_targets = {command.target for command in allowed}
    names, targets = set(), set()
    for name, target, _ in missing:
        ambiguous = name in allowed_names and target in allowed_targets
        if name not in allowed_names or ambiguous:
            names.add(f"+{name.lower()}")
        if target and (target not in allowed_targets or ambiguous):
            targets.add(target.replace(SAMPLE, "*"))
    return [*sorted(names), *sorted(targets, key=lambda rule: (rule[0] == "&", rule))]


@contextmanager
def skipping_errors_reported_elsewhere() -> Iterator[None]:
    """End the block at an error that a check of the doctor reports anyway: a ResponseError or a reported outage.

    Any other outage raises ServerUnavailableError.
    """
    try:
        yield
    except ResponseError:
        pass
    except ServerUnavailableError as error:
        if error.outage not in _REPORTED_OUTAGES:
            raise


async def _unknown_as_noperm(reply: Awaitable[T]) -> T:
    """Await a reply. A command that the server does not know counts as not permitted."""
    try:
        return await reply
    except ResponseError as error:
        raise ServerUnavailableError("noperm", str(error)) from error


async def _denied_in_transaction(client: Client, commands: Sequence[RequiredCommand]) -> list[RequiredCommand]:
    pool, denied = client.connection_pool, []
    connection = await pool.get_connection()
    try:
        await connection.send_command("MULTI")
        await connection.read_response()
        for command in commands:
            await connection.send_command(*command.words)
            try:
                await connection.read_response()
            except ResponseError as error:  # other errors, such as a full memory, say nothing about permissions
                if isinstance(error, NoPermissionError) or str(error).startswith("unknown command"):
                    denied.append(command)
    finally:
        await connection.disconnect()  # in any case, so that the queued commands are never executed
        await pool.release(connection)
    return denied
