"""Laws of connections: every tool reads a URL in the same way, and names why it cannot connect."""

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import hiredis
import pytest

from aism_engine import Agent, Operator, Task
from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.subscription import Subscription
from aism_engine.store.sync_redis import SyncRedis
from tests.support.daemon import daemon
from tests.support.engine import eventually
from tests.support.proxy import FaultProxy
from tests.support.server import test_server_binary

_MAINS: Final = {"aism-engine": "aism_engine.cli.main", "aism": "aism_engine.agent.tool"}


async def call(tool: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run one of the two tools as a process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AISM_")}
    program = [sys.executable, "-c", f"from {_MAINS[tool]} import main; main()", *arguments]
    return await asyncio.to_thread(
        subprocess.run, program, env=inherited | environ, capture_output=True, text=True, check=False
    )


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[str]:
    """Path of the Unix socket of a server. Its user `ann` has no password, and that of `bob` needs escapes."""
    path = f"{tmp_path}/a b.sock"
    with EmbeddedServer(test_server_binary(), append_only=False, extra=("--unixsocket", path)) as server:
        redis, rights = SyncRedis(server.url), ("on", "allkeys", "allcommands", "allchannels")
        redis.call("ACL", "SETUSER", "ann", "nopass", *rights)
        redis.call("ACL", "SETUSER", "bob", ">s/c@t%", *rights)
        redis.close()
        yield path


async def test_every_entry_point_connects_to_a_unix_socket(socket: str, prefix: str) -> None:
    """The engine, commands of operators, the doctor, `aism`, and the agent and operator in Python."""
    url = f"unix://bob:s%2Fc%40t%25@{socket.replace(' ', '%20')}?db=1"
    environ = {"AISM_REDIS_URL": url, "AISM_REDIS__PREFIX": prefix, "AISM_AGENT_ID": "a-1"}
    agent = Agent("a-2", type="worker", url=url, prefix=prefix)

    @agent.on("greet")
    async def greet(_task: Task) -> dict[str, object]:
        return {"hello": True}

    async with daemon(url, prefix) as engine:
        await engine.wait_event("lease_taken")
        registered = await call("aism", "register", "--type", "worker", **environ)
        assert (registered.returncode, json.loads(registered.stdout)["ok"]) == (0, True)
        async with agent, Operator(url=url, prefix=prefix) as operator:
            outcome = await operator.wait(await operator.send("a-2", "greet"))
            assert outcome.result == {"hello": True}
        listed = await call("aism-engine", "agents", "list", "--json", **environ)
        assert [each["agent_id"] for each in json.loads(listed.stdout)] == ["a-1", "a-2"]
        for arguments in (("top", "--once"), ("tail", "--count", "0"), ("doctor", "--json"), ("send", "a-1", "x")):
            done = await call("aism-engine", *arguments, **environ)
            assert "Traceback" not in done.stderr
        assert engine.count("component_failed") == 0


@pytest.mark.parametrize(
    ("url", "user", "database"),
    [
        ("unix://{socket}", b"default", 0),
        ("unix://ann@{socket}?db=2", b"ann", 2),
        ("unix://ann:@{socket}?db=", b"ann", 0),
        ("unix://{socket}?username=bob&password=s%2Fc%40t%25&db=3", b"bob", 3),
        ("unix://bob:s%2Fc%40t%25@{socket}?username=ann&password=x", b"bob", 0),
    ],
)
async def test_both_clients_log_in_in_the_same_way(socket: str, url: str, user: bytes, database: int) -> None:
    url = url.format(socket=socket.replace(" ", "%20"))
    blocking, client, commands = (
        SyncRedis(url),
        connect(RedisSettings(url=url), ""),
        (("ACL", "WHOAMI"), ("CLIENT", "INFO")),
    )
    for name, info in (blocking.calls(commands), [await client.execute_command(*each) for each in commands]):
        assert (name, f" db={database} ".encode() in info) == (user, True)
    blocking.close()
    await client.aclose()


@pytest.mark.parametrize("tool", _MAINS)
@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("redis://127.0.0.1:{port}/99", 69, "no_database: "),
        ("redis://bob:wrong@127.0.0.1:{port}", 69, "noauth: "),
        ("redis://127.0.0.1:{web}", 69, "Another program answers at this address"),
        ("unix:///none", 69, "Is the server running?"),
        ("redis://127.0.0.1:{port}?timeout=5", 64, "unknown option timeout; the options of a URL are db, username,"),
    ],
)
async def test_both_tools_say_the_same_of_a_url_that_does_not_work(
    server: EmbeddedServer, tool: str, url: str, code: int, message: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    web = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with web:
        named = url.format(port=server.port, web=web.sockets[0].getsockname()[1])
        arguments = ["heartbeat"] if tool == "aism" else ["agents", "list"]
        done = await call(tool, *arguments, AISM_REDIS_URL=named, AISM_AGENT_ID="a-1")
    assert (done.returncode, message in done.stderr, done.stderr.count("\n")) == (code, True, 1), done.stderr


@pytest.mark.parametrize("empty", ["AISM_REDIS_URL", "AISM_REDIS__URL", "AISM_REDIS__PREFIX"])
async def test_an_empty_variable_is_as_none_in_both_tools(socket: str, prefix: str, empty: str) -> None:
    url = f"unix://{socket.replace(' ', '%20')}"
    environ = {"AISM_REDIS_URL": url, "AISM_REDIS__URL": url, "AISM_REDIS__PREFIX": prefix, "AISM_AGENT_ID": "a-1"}
    environ[empty] = ""
    for done in (await call("aism", "heartbeat", **environ), await call("aism-engine", "agents", "list", **environ)):
        assert done.returncode == 0, done.stderr
    redis = SyncRedis(url)
    expected = "aism" if empty == "AISM_REDIS__PREFIX" else prefix
    assert redis.call("EXISTS", f"{expected}:agents:heartbeats") == 1
    redis.close()


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def tls_port(server: EmbeddedServer, tmp_path: Path) -> AsyncIterator[int]:
    """Port of a TLS server in front of the test server. Its certificate, cert.pem, is that of 127.0.0.1 only."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=aism", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, ["openssl", "req", *made, *subject], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, to_server), copy(from_server, writer), return_exceptions=True)

    async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context) as listener:
        yield listener.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rediss://127.0.0.1:{port}", "tls"),
        ("rediss://127.0.0.1:{port}?ssl_ca_certs={cert}", "PONG"),
        ("rediss://localhost:{port}?ssl_ca_certs={cert}", "tls"),
        ("rediss://localhost:{port}?ssl_ca_certs={cert}&ssl_check_hostname=false", "PONG"),
        ("rediss://localhost:{port}?ssl_cert_reqs=none", "PONG"),
        ("rediss://127.0.0.1:{port}?ssl_ca_certs={cert}&ssl_certfile={cert}&ssl_keyfile={key}", "PONG"),
        ("rediss://127.0.0.1:{plain}", "tls"),
    ],
)
async def test_options_of_tls_mean_the_same_to_both_clients(
    tls_port: int, tmp_path: Path, url: str, expected: str
) -> None:
    """A plain port answers a TLS handshake with an error that is none."""
    files: dict[str, Any] = {name: f"{tmp_path}/{name}.pem" for name in ("cert", "key")}
    async with await asyncio.start_server(_refuse_tls, "127.0.0.1", 0) as plain:
        url = url.format(port=tls_port, plain=plain.sockets[0].getsockname()[1], **files)
        assert await asyncio.to_thread(_ping_blocking, url) == expected
        assert await _ping(url) == expected


async def _refuse_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"-ERR this is no TLS\r\n")
    writer.close()


async def _ping(url: str) -> str:
    """Return the reply to a ping, or the name of the outage."""
    client = connect(RedisSettings(url=url), "")
    try:
        return str((await client.execute_command("ECHO", "PONG")).decode())
    except ServerUnavailableError as error:
        return error.outage
    finally:
        await client.aclose()


def _ping_blocking(url: str) -> str:
    try:
        redis = SyncRedis(url)
    except ServerUnavailableError as error:
        return error.outage
    reply: bytes = redis.call("PING")
    redis.close()
    return reply.decode()


# --- Redis Cluster ----------------------------------------------------------------------------------------------------


async def test_a_cluster_node_is_a_named_outage_with_a_hint(tmp_path: Path, prefix: str) -> None:
    """The engine waits, as in any outage, and the tools end with the code of an outage."""
    options = ("--cluster-enabled", "yes", "--cluster-config-file", str(tmp_path / "nodes.conf"))
    with EmbeddedServer(test_server_binary(), append_only=False, extra=options) as server:
        environ = {"AISM_REDIS_URL": server.url, "AISM_REDIS__PREFIX": prefix, "AISM_AGENT_ID": "a-1"}
        async with daemon(server.url, prefix) as engine:
            reported = await engine.wait_event("redis_unavailable")
            assert reported["outage"] in {"cluster", "clusterdown"}  # the second before Redis 7
            assert reported["hint"].startswith("Redis Cluster is not supported")
            for tool, arguments in (("aism", "heartbeat"), ("aism-engine", "agents list"), ("aism-engine", "doctor")):
                done = await call(tool, *arguments.split(), **environ)
                assert (done.returncode, "Redis Cluster is not supported" in done.stderr) == (69, True)
            assert engine.count("component_failed") == 0


# --- bugs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bug", [TypeError, AttributeError, RuntimeError])
async def test_a_bug_is_an_outage_only_if_the_connection_is_closed(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, bug: type[Exception]
) -> None:
    """Some versions of asyncio raise these errors for a write to a closed connection."""
    client = connect(RedisSettings(url=server.url), "test")
    for closed, expected in ((False, bug), (True, ServerUnavailableError)):
        await client.ping()
        (connection,) = client.connection_pool._available_connections
        writer = connection._writer

        def write(_data: object, closed: bool = closed, writer: asyncio.StreamWriter = writer) -> None:  # noqa: FBT001
            if closed:
                writer.transport.abort()
            raise bug("'NoneType' object is not callable")

        monkeypatch.setattr(writer, "writelines", write)
        with pytest.raises(expected):
            await client.ping()
    await client.aclose()


async def test_closing_a_subscription_while_a_channel_is_left_is_no_bug(proxy: FaultProxy, prefix: str) -> None:
    """The consumers leave their channels while the listener closes a broken connection."""
    first, second = f"{prefix}:1", f"{prefix}:2"
    client = connect(RedisSettings(url=proxy.url, connect_timeout=300.0, socket_timeout=300.0), "test")
    subscription = Subscription(client, [first, second])
    await subscription.read(2, timeout_s=300.0)
    await subscription._pubsub.connection.disconnect()
    proxy.black_hole()
    leaving = asyncio.create_task(subscription.leave([second]))
    await eventually(subscription._sync_lock.locked)
    closing = asyncio.create_task(subscription.close())
    await eventually(lambda: subscription._pubsub is None)
    proxy.heal()
    await asyncio.gather(leaving, closing)
    await client.aclose()


async def test_a_task_that_is_cancelled_before_it_sends_ends(server: EmbeddedServer) -> None:
    """Ctrl-C cancels a task while it runs. `asyncio.wait_for` of Python 3.11 loses that."""
    client = connect(RedisSettings(url=server.url), "test")

    async def read() -> None:
        await client.get("a")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await client.get("a")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(read())
    await client.aclose()


async def test_no_piece_of_a_packed_command_is_empty(server: EmbeddedServer) -> None:
    """Such a piece is never sent by asyncio of CPython 3.12 and later, so that the connection could not be closed."""
    client, large = connect(RedisSettings(url=server.url), "test"), b"x" * 20_000
    connection = client.connection_pool.make_connection()
    commands: list[Any] = [("SET", "key", large), ("MSET", large, large, large, large), ("SET", large, "value")]
    for command in commands:
        pieces = connection.pack_command(*command)
        assert b"".join(pieces) == hiredis.pack_command(command)
        assert all(pieces)
    await client.aclose()


async def test_a_connection_of_the_pool_with_unread_data_is_replaced(server: EmbeddedServer) -> None:
    """The rest of a reply must not be taken for the reply to the next command."""
    client = connect(RedisSettings(url=server.url), "test")
    await client.ping()
    (connection,) = client.connection_pool._available_connections
    await connection.send_command("ECHO", "late")
    await eventually(connection.can_read)
    assert await client.execute_command("ECHO", "next") == b"next"
    await client.aclose()


async def test_a_cancelled_command_leaves_no_reply_behind(server: EmbeddedServer, prefix: str) -> None:
    client = connect(RedisSettings(url=server.url, socket_timeout=300.0), "test")
    waiting = asyncio.create_task(client.execute_command("BLPOP", prefix, 300))
    await eventually(lambda: client.connection_pool._in_use_connections)
    (connection,) = client.connection_pool._in_use_connections
    await eventually(lambda: connection.is_connected)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert await client.execute_command("ECHO", "next") == b"next"
    assert not client.connection_pool._in_use_connections
    await client.aclose()
