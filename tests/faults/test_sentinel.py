"""A failover by Sentinel: a real primary, a real replica, three real sentinels."""

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from aism_engine.app import Engine
from aism_engine.config import RedisSettings, load
from aism_engine.errors import ServerUnavailableError
from aism_engine.store.client import connect, naming_outages
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Running, eventually
from tests.support.resp import Cli
from tests.support.server import test_server_binary

MASTER = "fleet"
REGISTER = {"type": "register", "agent_id": "a", "id": "m1", "payload": {"type": "scribe"}}
MOVE = {"type": "state_transition", "agent_id": "a"}


class Site:
    """A primary, its replica, and the sentinels that watch them."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        binary = test_server_binary()
        self.primary = stack.enter_context(EmbeddedServer(binary, append_only=False))
        follow = ("--replicaof", f"127.0.0.1 {self.primary.port}")
        self.replica = stack.enter_context(EmbeddedServer(binary, append_only=False, extra=follow))
        self.sentinels = []
        for number in range(3):
            config = folder / f"sentinel-{number}.conf"
            self.sentinels.append(stack.enter_context(_sentinel(binary, config, self.primary.port)))

    @property
    def settings(self) -> dict[str, object]:
        return {"redis.sentinels": [f"127.0.0.1:{port}" for port in self.sentinels], "redis.sentinel_master": MASTER}


@contextmanager
def _sentinel(binary: Path, config: Path, watched: int) -> Iterator[int]:
    """Run a sentinel, which reads and rewrites a file of its own; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nprotected-mode no\nsentinel monitor {MASTER} 127.0.0.1 {watched} 2\n"
        f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 3000\n"
    )
    process = subprocess.Popen([str(binary), str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        site = Site(stack, tmp_path)
        for sentinel in site.sentinels:
            _wait_until_it_knows_the_others(sentinel)
        yield site


def _wait_until_it_knows_the_others(port: int) -> None:
    ends_at = time.monotonic() + 15
    facts: object = None
    while time.monotonic() < ends_at:
        with suppress(OSError), Cli("127.0.0.1", port) as ask:
            found = ask("SENTINEL", "MASTER", MASTER)
            facts = dict(zip(found[::2], found[1::2], strict=True))
            if (facts[b"num-other-sentinels"], facts[b"num-slaves"]) == (b"2", b"1"):
                return
        time.sleep(0.05)
    raise AssertionError(f"a sentinel does not know the others: {facts}")


@pytest.fixture
async def engine(site: Site) -> AsyncIterator[Running]:
    flags: dict[str, object] = {"http.enabled": False, "lease.ttl": 2.0, "lease.renew_every": 0.5, **site.settings}
    settings = load(environ={}, overrides=flags).settings
    subject, stopping = Engine(settings, environ={}), asyncio.Event()
    running = asyncio.create_task(subject.run(stopping))
    client = connect(settings.redis, "test")
    yield Running(subject, client)
    stopping.set()
    await running
    await client.aclose()


async def test_an_engine_follows_a_failover(
    engine: Running, site: Site, record_property: Callable[[str, object], None]
) -> None:
    """The primary dies, the sentinels promote its replica: the engine goes on there, in order."""
    await engine.say(REGISTER, {**MOVE, "id": "m2", "payload": {"target": "inbox"}})

    async def state() -> str | None:
        try:
            with naming_outages():
                return await engine.state("a")
        except ServerUnavailableError:
            return None

    async def state_is(wanted: str) -> bool:
        return await state() == wanted

    await eventually(lambda: state_is("inbox"))
    with Cli("127.0.0.1", site.primary.port) as ask:
        assert ask("WAIT", 1, 5000) == 1
    site.primary.kill()

    async def promoted() -> bool:
        with Cli("127.0.0.1", site.replica.port) as ask:
            return bool(ask("ROLE")[0] == b"master")

    await eventually(promoted, within_s=20)
    promoted_at = time.monotonic()

    async def pushed() -> bool:
        try:
            with naming_outages():
                await engine.say({**MOVE, "id": "m3", "payload": {"target": "deep_work"}})
        except ServerUnavailableError:
            return False
        return True

    await eventually(pushed, within_s=10)
    await eventually(lambda: state_is("deep_work"), within_s=10)
    record_property("recovery_s", round(time.monotonic() - promoted_at, 2))
    await eventually(lambda: serving(engine), within_s=10)


async def serving(engine: Running) -> bool:
    return engine.engine.outages.current is None


async def test_who_is_no_primary_is_not_spoken_to(site: Site) -> None:
    """Sentinels that still name a demoted server are not believed: it answers PING, but its role is another."""
    settings = RedisSettings(sentinels=(f"127.0.0.1:{site.sentinels[0]}",), sentinel_master=MASTER)
    with Cli("127.0.0.1", site.primary.port) as ask:
        ask("REPLICAOF", "127.0.0.1", site.replica.port)
    client = connect(settings, "test")
    with pytest.raises(ServerUnavailableError, match="no primary"), naming_outages():
        await client.ping()
    await client.aclose()


async def test_no_sentinel_at_all_is_an_outage_with_a_name() -> None:
    """None of them answers: the engine would wait, and say for whom."""
    client = connect(RedisSettings(sentinels=("127.0.0.1:1",), sentinel_master=MASTER), "test")
    with pytest.raises(ServerUnavailableError) as caught, naming_outages():
        await client.ping()
    assert caught.value.outage == "no_primary"
    await client.aclose()
