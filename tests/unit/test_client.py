"""Laws of outage names: each error of a server or connection maps to one name, in every server version."""

import ssl
from typing import Any, Final

import pytest
from redis import exceptions as rx
from redis._parsers.base import BaseParser

from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect, server_address
from aism_engine.store.outages import naming_outages, outage_of

_parsed: Final[Any] = BaseParser.parse_error
_62 = "Error running script (call to f_83c3f68e704422a76a586eb2d9fccf45d0b27ac1): @user_script:54: "
_70 = " script: 83c3f68e704422a76a586eb2d9fccf45d0b27ac1, on @user_script:54."


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (rx.ConnectionError("Connection closed by server."), "connection"),
        (rx.TimeoutError("Timeout reading from socket"), "timeout"),
        (TimeoutError(), "timeout"),
        (ConnectionResetError(), "connection"),
        (ConnectionRefusedError(), "refused"),
        (_parsed("LOADING Redis is loading the dataset in memory"), "loading"),
        (rx.AuthenticationError("invalid password"), "noauth"),
        (_parsed("NOPERM this user has no permissions"), "noperm"),
        (_parsed("READONLY You can't write against a read only replica."), "readonly"),
        (_parsed("OOM command not allowed when used memory > 'maxmemory'."), "oom"),
        (rx.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "misconf"),
        (rx.ResponseError("BUSY Redis is busy running a script."), "busy"),
        (rx.ResponseError("UNKILLABLE Sorry the script already executed write commands"), "busy"),
        (rx.ResponseError("NOREPLICAS Not enough good replicas to write."), "noreplicas"),
        (_parsed("MOVED 3999 127.0.0.1:6381"), "cluster"),
        (_parsed("ASK 3999 127.0.0.1:6381"), "cluster"),
        (_parsed("TRYAGAIN Multiple keys request during rehashing of slot"), "cluster"),
        (_parsed("CROSSSLOT Keys in request don't hash to the same slot"), "cluster"),
        (_parsed("ERR SELECT is not allowed in cluster mode"), "cluster"),
        (_parsed("CLUSTERDOWN The cluster is down"), "clusterdown"),
        (_parsed("ERR DB index is out of range"), "no_database"),
        (rx.InvalidResponse("Protocol error"), "not_redis"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "tls"),
        (ssl.SSLEOFError("EOF occurred in violation of protocol"), "connection"),
        (TypeError("a bug"), None),
        (AttributeError("a bug"), None),
        (rx.ResponseError("MASTERDOWN Link with MASTER is down"), "masterdown"),
        (rx.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value" + _70), "wrong_type"),
        (rx.ResponseError("OOM command not allowed when used memory > 'maxmemory'." + _70), "oom"),
        (rx.ResponseError(_62 + "WRONGTYPE Operation against a key holding the wrong kind of value"), "wrong_type"),
        (rx.ResponseError(_62.replace("script:54", "script: 54") + "-OOM command not allowed"), "oom"),
        (rx.ResponseError(_62 + "-READONLY You can't write against a read only replica."), "readonly"),
        (rx.ResponseError(_62 + "-MISCONF Redis is configured to save RDB snapshots"), "misconf"),
        (rx.ResponseError("ACL failure in script: User default has no permissions" + _70), "noperm"),
        (rx.ResponseError("The user executing the script can't run this command" + _70), "noperm"),
        (rx.ResponseError(_62 + "@user_script: 54: The user executing the script can't run this command"), "noperm"),
        (rx.ResponseError(_62 + "attempt to index a nil value"), None),
        (rx.ResponseError("unknown command 'LMOVE'"), None),
        (rx.ResponseError(""), None),
        (rx.DataError("Invalid input of type"), None),
        (ValueError("a bug"), None),
    ],
    ids=str,
)
def test_every_outage_has_a_name_and_a_bug_has_none(error: Exception, expected: str | None) -> None:
    """This includes errors within a script, which Redis before 7.0 words differently."""
    assert outage_of(error) == expected


def test_a_refused_connection_is_distinguished_from_a_broken_one() -> None:
    """The client wraps the error of the socket."""
    error = rx.ConnectionError("Error 111 connecting to 127.0.0.1:1.")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert (outage_of(error), outage_of(rx.ConnectionError("Connection lost"))) == ("refused", "connection")


def test_a_bug_is_not_reported_as_an_outage() -> None:
    """The exception passes unchanged to the supervisor."""
    for bug in (
        ValueError("x"),
        TypeError("x"),
        AttributeError("x"),
        RuntimeError("closed"),
        rx.ResponseError("unknown command"),
        rx.DataError("x"),
    ):
        with pytest.raises(type(bug)), naming_outages():
            raise bug


async def test_a_missing_server_is_the_outage_refused() -> None:
    """The error is raised at once: the client does not retry by itself."""
    client = connect(RedisSettings(url="redis://127.0.0.1:1/0"), "test")
    with pytest.raises(ServerUnavailableError) as caught:
        await client.ping()
    assert (caught.value.outage, str(caught.value)) == ("refused", "refused: 127.0.0.1:1: Connection refused")
    with pytest.raises(ServerUnavailableError):
        await client.execute_commands([["PING"]])
    await client.aclose()


def test_a_password_is_never_shown() -> None:
    assert server_address(RedisSettings(url="redis://me:secret@example:6379/0")) == "redis://me:***@example:6379/0"


async def test_a_sentinel_that_redis_py_loses_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two discoveries at the same time can overwrite an entry in redis-py's list of sentinels."""
    client = connect(RedisSettings(sentinels=("one:1", "two:2", "three:3"), sentinel_master="mymaster"), "test")
    manager = client.connection_pool.sentinel_manager
    first, second, third = manager.sentinels

    async def discover_and_overwrite(_name: str) -> tuple[str, int]:
        manager.sentinels[:] = [second, second, third]
        return "primary", 6379

    monkeypatch.setattr(manager, "discover_master", discover_and_overwrite)
    assert await client.connection_pool.get_master_address() == ("primary", 6379)
    assert manager.sentinels == [second, third, first]
    await client.aclose()
