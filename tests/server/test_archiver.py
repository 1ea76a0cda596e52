"""The laws of the archiver: an engine archives its whole audit, through kills, full disks, and changes of leader."""

import asyncio
import errno
import os
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from aism_engine.backoff import Backoff
from aism_engine.ops.archive.archive_writer import ArchiveWriter
from aism_engine.ops.archive.directory import read_identity
from aism_engine.ops.audit_log import AuditLog
from aism_engine.ops.audit_retention import AuditRetention, PublishedCursor
from aism_engine.store.embedded import EmbeddedServer
from tests.support.archive import archived_commits, archived_lines, audit_commits, is_complete
from tests.support.daemon import daemon
from tests.support.engine import Reader, Running, eventually, launched, plain_client, running_engine
from tests.support.faults import Load

FAST: Final[dict[str, object]] = {"archive__poll_interval": 0.02, "retention__trim_interval": 0.02}
SHORT_LEASE: Final = {"lease__ttl": 1.0, "lease__renew_interval": 0.2}


@pytest.fixture
async def reader(server: EmbeddedServer, prefix: str) -> AsyncIterator[Reader]:
    async with plain_client(server) as client:
        yield Reader(client, prefix)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture(autouse=True)
def _retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aism_engine.services.archiver._BACKOFF", Backoff(0.02, 0.02))


def settings(path: Path, **overrides: object) -> dict[str, object]:
    return {"archive__directory": str(path), **FAST, **overrides}


def retention(engine: Running) -> AuditRetention:
    return AuditRetention(engine.client, engine.keys)


async def test_engine_archives_its_whole_audit(server: EmbeddedServer, prefix: str, path: Path, reader: Reader) -> None:
    """Across restarts the archive equals the audit, and the metrics report it."""
    load = Load()
    for _ in range(3):
        async with running_engine(server, prefix, **settings(path)) as engine:
            await load.say(engine, 200)
            await load.wait_applied_once(engine)
            await eventually(is_complete(engine, path))
            await eventually(lambda: engine.metric("aism_archive_up") == 1)
            await eventually(lambda: engine.metric("aism_archive_entries_total") > 0)
            await eventually(lambda: engine.metric("aism_archive_bytes_total") > 0)
            await eventually(lambda: engine.metric("aism_archive_behind_entries") == 0)
    assert [line["commit"] for line in archived_lines(path)] == await audit_commits(reader)


async def test_standby_archives_too(server: EmbeddedServer, prefix: str, tmp_path: Path, reader: Reader) -> None:
    """Two engines with a directory each archive everything once, though the leader is killed under load."""
    load, first, second = Load(), tmp_path / "first", tmp_path / "second"
    async with daemon(server.url, prefix, **settings(first, **SHORT_LEASE)) as leader:
        await leader.wait_event("lease_taken")
        async with daemon(server.url, prefix, **settings(second, **SHORT_LEASE)) as standby:
            await standby.wait_event("archive_opened")
            await load.say(reader, 2000)
            await eventually(lambda: reader.call("XLEN", reader.keys.audit))
            leader.signal(signal.SIGKILL)
            await load.say(reader, 200)
            await standby.wait_event("fleet_loaded")
            await load.wait_applied_once(reader)
            await eventually(is_complete(reader, second))
        async with daemon(server.url, prefix, **settings(first, **SHORT_LEASE)):
            await eventually(is_complete(reader, first))


async def test_killed_engine_loses_and_repeats_nothing(
    server: EmbeddedServer, prefix: str, path: Path, reader: Reader
) -> None:
    """It is killed four times while it writes; in the end the archive equals the audit."""
    load = Load()
    for _ in range(4):
        await load.say(reader, 3000)
        async with daemon(server.url, prefix, **settings(path, **SHORT_LEASE)) as engine:
            await engine.wait_event("archive_opened")
            count = len(archived_commits(path))
            await eventually(lambda count=count: len(archived_commits(path)) > count)  # type: ignore[misc]
            engine.signal(signal.SIGKILL)
    async with daemon(server.url, prefix, **settings(path, **SHORT_LEASE)):
        await load.wait_applied_once(reader)
        await eventually(is_complete(reader, path))


async def test_audit_is_trimmed_behind_the_archives_only(server: EmbeddedServer, prefix: str, path: Path) -> None:
    """To `audit_entries` when all archives have read it; an archive that is behind keeps it to `audit_entries_max`."""
    bounds = {"retention__audit_entries": 20, "retention__audit_entries_max": 500}
    async with running_engine(server, prefix, **settings(path, **bounds)) as engine:
        load = Load(agents=1)

        async def length() -> int:
            return int(await engine.call("XLEN", engine.keys.audit))

        async def is_trimmed() -> bool:
            return await length() == 20

        async def apply_one() -> None:
            await load.say(engine, 1)
            await eventually(engine.is_drained)

        behind = PublishedCursor("0-0", engine.engine.store.now)
        await retention(engine).publish_cursor("behind", behind)
        for _ in range(100):
            await apply_one()
        await eventually(is_complete(engine, path))
        assert await length() > 90
        await retention(engine).remove_cursor("behind")
        await eventually(is_trimmed)
        assert len(archived_commits(path)) > 90
        await retention(engine).publish_cursor("behind", behind)
        for _ in range(30):
            for _ in range(30):
                await engine.call("XADD", engine.keys.audit, "*", "commit", "x", "facts", "[]")
            await apply_one()
        assert 480 <= await length() <= 700  # the server trims by whole nodes, and not at the entries of this test


async def test_gap_at_the_hard_bound_is_reported(
    server: EmbeddedServer, prefix: str, path: Path, reader: Reader
) -> None:
    """After a long absence the engine reports the missing entries in its archive, its log and its metrics."""
    bounded = settings(path, retention__audit_entries=10, retention__audit_entries_max=100)
    async with running_engine(server, prefix, **bounded) as engine:
        await Load(agents=1).say(engine, 1)
        await eventually(is_complete(engine, path))
    for number in range(300):
        added = ("MAXLEN", "=", "100", "*", "commit", f"x{number}", "epoch", "1", "facts", "[]")
        await reader.call("XADD", reader.keys.audit, *added)
    with capture_logs() as logs:
        async with running_engine(server, prefix, **bounded) as engine:
            await eventually(lambda: engine.metric("aism_archive_gaps_total") == 1)
            counts = (await AuditLog(engine.client, engine.keys).page("0-0")).added is not None
            assert engine.metric("aism_archive_lost_entries_total") == (200 if counts else 0)
    assert [line["entries"] for line in logs if line["event"] == "archive_gap"] == [200 if counts else None]
    assert len([line for line in archived_lines(path) if "gap" in line]) == 1


async def test_silent_archive_is_not_waited_for(server: EmbeddedServer, prefix: str, reader: Reader) -> None:
    """Nor is one whose position is malformed. Both are logged and removed."""
    await reader.client.hset(reader.keys.archives, "old", b'{"cursor":"0-0","at":1.0,"host":"h"}')
    await reader.client.hset(reader.keys.archives, "bad", b'{"cursor":"soon","at":1.0}')
    with capture_logs() as logs:
        async with running_engine(server, prefix, retention__audit_entries=5, **FAST) as engine:
            for number in range(20):
                await reader.call("XADD", engine.keys.audit, "*", "commit", f"c{number}", "facts", "[]")

            async def is_trimmed() -> bool:
                return bool(await reader.call("XLEN", engine.keys.audit) == 5)

            await eventually(is_trimmed)
    assert await reader.call("HLEN", reader.keys.archives) == 0
    assert {line["archive"] for line in logs if line["event"] == "archive_forgotten"} == {"old", "bad"}


async def test_unusable_directory_does_not_stop_the_engine(server: EmbeddedServer, prefix: str, path: Path) -> None:
    """Log and metric name the cause; once the directory is usable, the archive is completed."""
    load = Load()
    await asyncio.to_thread(path.write_text, "not a directory")
    with capture_logs() as logs:
        async with running_engine(server, prefix, **settings(path)) as engine:
            await eventually(lambda: engine.metric("aism_archive_errors_total", cause="missing") >= 2)
            assert engine.metric("aism_archive_up") == 0
            await load.say(engine, 100)
            await load.wait_applied_once(engine)
            await asyncio.to_thread(path.unlink)
            await eventually(is_complete(engine, path))
            await eventually(lambda: engine.metric("aism_archive_up") == 1)
    for event in ("archive_unavailable", "archive_available"):
        assert [line["cause"] for line in logs if line["event"] == event] == ["missing"]


async def test_full_disk_loses_nothing(
    server: EmbeddedServer, prefix: str, path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial write is cut off; when there is space again, its entries are written once."""
    load, is_full, write = Load(), False, os.write

    def limited(descriptor: int, content: Any) -> int:  # noqa: ANN401
        if is_full and stat.S_ISREG(os.fstat(descriptor).st_mode):
            if len(content) > 10:
                return write(descriptor, bytes(content[: len(content) // 2]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr("aism_engine.ops.archive.archive_writer.os.write", limited)
    async with running_engine(server, prefix, **settings(path)) as engine:
        await load.say(engine, 50)
        await eventually(is_complete(engine, path))
        is_full = True
        await load.say(engine, 50)
        await eventually(lambda: engine.metric("aism_archive_errors_total", cause="no_space") >= 2)
        await load.wait_applied_once(engine)
        is_full = False
        await eventually(is_complete(engine, path))
    assert [line["commit"] for line in archived_lines(path)] == await audit_commits(reader)


async def test_second_engine_with_the_same_directory_waits_for_the_lock(
    server: EmbeddedServer, prefix: str, path: Path
) -> None:
    """Meanwhile it reports `locked` and works; when the first engine stops, it archives."""
    load = Load()
    async with AsyncExitStack() as engines:
        first = await engines.enter_async_context(running_engine(server, prefix, **settings(path)))
        await eventually(lambda: first.metric("aism_archive_up") == 1)
        async with launched(server, prefix, **settings(path)) as second:
            await eventually(lambda: second.metric("aism_archive_errors_total", cause="locked") >= 1)
            await engines.aclose()
            await load.say(second, 50)
            await eventually(lambda: second.metric("aism_archive_up") == 1)
            await load.wait_applied_once(second)
            await eventually(is_complete(second, path))


async def test_clean_stop_publishes_the_last_entry(server: EmbeddedServer, prefix: str, path: Path) -> None:
    """It is synced and published, and the directory is unlocked."""
    async with running_engine(server, prefix, **settings(path)) as engine:
        await Load().say(engine, 50)
        await eventually(is_complete(engine, path))
        last = archived_lines(path)[-1]["id"]

        async def is_published() -> bool:
            return [each and each.cursor for each in (await retention(engine).cursors()).values()] == [last]

        await eventually(is_published)
    archive = ArchiveWriter.open(path, prefix)
    assert archive.cursor.id == last
    assert read_identity(path, prefix).archive == archive.name
    archive.close()
