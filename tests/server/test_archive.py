"""The laws of the archive: every entry of the audit lies in it once, in order, or a line says what is missing."""

import asyncio
import gzip
import json
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from aism_engine.clock import from_iso
from aism_engine.ops import audit_log
from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.archive.archive_writer import ArchiveWriter
from aism_engine.ops.archive.directory import ArchiveError, read_identity
from aism_engine.ops.audit_log import AuditLog, AuditTail, Cursor
from aism_engine.ops.audit_retention import ArchivePosition, AuditRetention
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.scripts import TrimCode
from tests.support.daemon import daemon
from tests.support.engine import Client, Reader, eventually, launched, plain_client, running_engine
from tests.support.faults import Load

FAST: Final[dict[str, object]] = {"archive__poll_interval": 0.02, "retention__trim_interval": 0.02}
DAY: Final = from_iso("2026-11-22T00:00:00Z")


def facts(number: int) -> str:
    return json.dumps([{"event": "tested", "at": "2026-11-22T12:00:00.000Z", "by": "engine", "agent_id": f"a{number}"}])


class Desk(Reader):
    """A place from which the audit is written by hand, and archived step by step."""

    def __init__(self, client: Client, ours: Client, prefix: str, path: Path) -> None:
        super().__init__(client, prefix)
        self.log = AuditLog(ours, self.keys)
        self.retention = AuditRetention(ours, self.keys)
        self.path = path
        self.prefix = prefix

    async def write(self, *numbers: int, at: float = DAY) -> None:
        """Write entries, each a second after the one before it, by its number."""
        for number in numbers:
            entry = ("commit", f"c{number}", "epoch", "1", "facts", facts(number))
            await self.call("XADD", self.keys.audit, f"{(at + number) * 1000:.0f}-0", *entry)

    async def archive(self, archive: ArchiveWriter | None = None) -> None:
        """ArchiveWriter all that there is, as the archivist does, and give the directory back."""
        archive = archive or ArchiveWriter.open(self.path, self.prefix)
        try:
            await self.drain(archive)
        finally:
            archive.close()

    async def drain(self, archive: ArchiveWriter) -> None:
        tail = AuditTail(self.log, archive.cursor, self.known)
        more = True
        while more:
            reading = await tail.read()
            archive.append(reading.lines)
            more = reading.more

    async def known(self, entries: Any) -> set[tuple[str, str]]:  # noqa: ANN401
        return ArchiveReader(self.path).known(entries)

    def numbers(self) -> list[int]:
        """Read which entries are archived."""
        return [int(line["commit"][1:]) for line in lines_of(self.path) if "commit" in line]

    @property
    def newest(self) -> Path:
        return max(self.path.glob("audit-*.jsonl"))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Read all files of an archive as anybody would."""
    found = []
    for file in sorted(path.glob("audit-*")):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert content == b"" or content.endswith(b"\n")
        found += [json.loads(line) for line in content.splitlines()]
    return found


def commits_of(path: Path) -> list[str]:
    return [line["commit"] for line in lines_of(path) if "commit" in line]


@asynccontextmanager
async def desk_at(server: EmbeddedServer, prefix: str, path: Path) -> AsyncIterator[Desk]:
    ours = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    async with plain_client(server) as client:
        yield Desk(client, ours, prefix, path)
    await ours.aclose()


@pytest.fixture
async def desk(server: EmbeddedServer, prefix: str, tmp_path: Path) -> AsyncIterator[Desk]:
    async with desk_at(server, prefix, tmp_path / "archive") as desk:
        yield desk


@pytest.fixture
async def reader(server: EmbeddedServer, prefix: str) -> AsyncIterator[Reader]:
    async with plain_client(server) as client:
        yield Reader(client, prefix)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon after a trouble."""
    monkeypatch.setattr("aism_engine.services.archiver._RETRY_AFTER_S", 0.02)


async def audit_of(reader: Reader) -> list[str]:
    entries = await reader.call("XRANGE", reader.keys.audit, "-", "+")
    return [
        fields[fields.index(b"commit") + 1].decode() if isinstance(fields, list) else fields[b"commit"].decode()
        for _, fields in entries
    ]


def is_whole(reader: Reader, path: Path) -> Callable[[], Awaitable[bool]]:
    """Tell whether the archive holds exactly what the audit does."""

    async def check() -> bool:
        await asyncio.sleep(0.02)
        return bool(commits_of_growing(path)) and commits_of_growing(path) == await audit_of(reader)

    return check


def has_grown(path: Path, held: int) -> bool:
    return len(commits_of_growing(path)) > held


def commits_of_growing(path: Path) -> list[str]:
    """Read an archive that is being written: its last line may be torn."""
    return [line.commit for line in ArchiveReader(path).lines() if line.id] if path.exists() else []


# --- one directory ----------------------------------------------------------------------------------------------------


async def test_every_entry_is_a_line_once_and_in_order(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many pages and many starts; each line has the entry as it was, and its number."""
    monkeypatch.setattr(audit_log, "PAGE_ENTRIES", 7)
    await desk.write(*range(25))
    await desk.archive()
    await desk.write(*range(25, 60))
    await desk.archive()
    await desk.archive()
    assert desk.numbers() == list(range(60))
    lines = lines_of(desk.path)
    entry = {"id": f"{(DAY + 3) * 1000:.0f}-0", "n": 4, "commit": "c3", "epoch": "1", "facts": json.loads(facts(3))}
    assert {"n": 4, **lines[3]} == entry
    if await counted(desk):
        assert [line["n"] for line in lines] == list(range(1, 61))


GAP: Final = b'{"gap":{"after":"1-0","before":"2-0","entries":1}}\n'


@pytest.mark.parametrize("torn", [b'{"id":"17', b"\0" * 5000, GAP, b"\xff\n"])
async def test_what_a_kill_tears_is_cut_off_and_read_again(desk: Desk, torn: bytes) -> None:
    """A half line, blocks that never reached the disk, a word on a gap without the entry behind it."""
    await desk.write(*range(5))
    await desk.archive()
    with desk.newest.open("ab") as file:
        file.write(torn)
    await desk.write(5)
    await desk.archive()
    assert desk.numbers() == list(range(6))
    assert not any("gap" in line for line in lines_of(desk.path))


@pytest.mark.parametrize("left", range(0, 400, 13))
async def test_a_file_may_end_anywhere(desk: Desk, left: int) -> None:
    """Whatever length a kill leaves, the next start completes it."""
    await desk.write(*range(4))
    await desk.archive()
    whole = desk.newest.read_bytes()
    os.truncate(desk.newest, min(left, len(whole)))
    await desk.archive()
    assert desk.newest.read_bytes() == whole


async def test_damage_is_kept_aside(desk: Desk) -> None:
    """Whole lines behind a damaged one are no tail that a kill leaves: nobody throws them away."""
    await desk.write(*range(5))
    await desk.archive()
    lines = desk.newest.read_bytes().splitlines(keepends=True)
    desk.newest.write_bytes(b"".join([*lines[:2], b"\0\0\0\n", *lines[3:]]))
    await desk.archive()
    assert desk.numbers() == list(range(5))
    assert next(desk.path.glob("damaged-*.jsonl")).read_bytes() == b"".join([b"\0\0\0\n", *lines[3:]])


async def test_each_day_has_its_file_and_the_days_that_are_over_are_compressed(desk: Desk) -> None:
    """By the time of the entry, not by when it was archived; reading sees no difference."""
    await desk.write(*range(3))
    await desk.write(*range(3, 6), at=DAY + 86400)
    await desk.write(*range(6, 9), at=DAY + 5 * 86400)
    archive = ArchiveWriter.open(desk.path, desk.prefix)
    await desk.drain(archive)
    while archive.compress():
        pass
    names = sorted(path.name for path in desk.path.glob("audit-*"))
    assert names == ["audit-2026-11-22.jsonl.gz", "audit-2026-11-23.jsonl.gz", "audit-2026-11-27.jsonl"]
    archive.close()
    await desk.archive()
    assert desk.numbers() == list(range(9))
    assert commits_of_growing(desk.path) == [f"c{number}" for number in range(9)]
    assert [line.commit for line in ArchiveReader(desk.path).lines("a4")] == ["c4"]


async def test_a_compression_that_was_killed_is_done_again(desk: Desk) -> None:
    """The plain file is the truth as long as it is there, whatever lies beside it."""
    await desk.write(*range(3))
    await desk.write(3, at=DAY + 86400)
    await desk.archive()
    (desk.path / "audit-2026-11-22.jsonl.gz").write_bytes(b"half of it")
    (desk.path / "audit-2026-11-22.part").write_bytes(b"less")
    assert commits_of_growing(desk.path) == ["c0", "c1", "c2", "c3"]
    archive = ArchiveWriter.open(desk.path, desk.prefix)
    while archive.compress():
        pass
    archive.close()
    assert desk.numbers() == list(range(4))
    assert not list(desk.path.glob("*.part"))


async def test_what_is_closed_stays_closed(desk: Desk) -> None:
    """Without its newest file an archive goes on where the last one ended, in a file behind it."""
    await desk.write(*range(3))
    await desk.archive()
    path = desk.newest
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    await desk.write(3)
    await desk.archive()
    assert desk.numbers() == list(range(4))
    assert desk.newest.name == "audit-2026-11-23.jsonl"


async def test_an_entry_of_a_strangers_is_kept_as_it_is(desk: Desk) -> None:
    """Whatever anyone writes into the audit: the archive goes on, line by line."""
    await desk.write(0)
    await desk.call("XADD", desk.keys.audit, "*", "who", b"\xff\n", "facts", "[")
    await desk.call("XADD", desk.keys.audit, "*", "commit", "c1", "facts", b"[" * 100_000)
    await desk.archive()
    await desk.call("XADD", desk.keys.audit, "*", "commit", "c2", "epoch", "1", "facts", "[]")
    await desk.archive()
    assert [line["commit"] for line in lines_of(desk.path)] == ["c0", "-", "c1", "c2"]
    assert lines_of(desk.path)[1]["foreign"] == {"who": "\\xff\n", "facts": "["}


async def test_a_page_is_bounded_by_its_bytes(desk: Desk) -> None:
    """A few entries of the largest size, not all that were asked for."""
    for number in range(5):
        await desk.call("XADD", desk.keys.audit, "*", "commit", f"c{number}", "facts", json.dumps(["x" * 400_000]))
    page = await desk.log.page("0-0", max_bytes=1_000_000)
    assert len(page.entries) == 3
    assert page.more
    assert len((await desk.log.page("0-0", max_bytes=1)).entries) == 1


# --- whose it is ------------------------------------------------------------------------------------------------------


def test_a_directory_has_one_writer(tmp_path: Path) -> None:
    """A second one is told who writes there, and what to do; after the first has closed it, it may."""
    first = ArchiveWriter.open(tmp_path, "aism")
    with pytest.raises(
        ArchiveError, match=rf"process {os.getpid()} on .* a different archive.directory for each engine"
    ) as refused:
        ArchiveWriter.open(tmp_path, "aism")
    assert refused.value.cause == "locked"
    first.close()
    ArchiveWriter.open(tmp_path, "aism").close()


def test_the_archive_of_another_fleet_is_left_alone(tmp_path: Path) -> None:
    """Its cursor would mean nothing here."""
    ArchiveWriter.open(tmp_path, "aism").close()
    with pytest.raises(ArchiveError) as refused:
        ArchiveWriter.open(tmp_path, "other")
    assert refused.value.cause == "foreign"


def test_an_archive_is_itself_wherever_it_is_mounted(tmp_path: Path) -> None:
    """Its name lies in it, and is neither the host's nor the directory's."""
    archive = ArchiveWriter.open(tmp_path / "here", "aism")
    archive.close()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = ArchiveWriter.open(tmp_path / "there", "aism")
    assert there.name == archive.name
    there.close()


# --- what is missing --------------------------------------------------------------------------------------------------


async def counted(desk: Desk) -> bool:
    return (await desk.log.page("0-0")).added is not None


async def test_a_gap_is_written_once_and_counted(desk: Desk) -> None:
    """Between the entries around it; servers before 7.0 do not count."""
    await desk.write(*range(5))
    await desk.archive()
    await desk.write(*range(5, 20))
    await desk.call("XTRIM", desk.keys.audit, "MAXLEN", "=", 8)
    await desk.archive()
    await desk.archive()
    assert desk.numbers() == [*range(5), *range(12, 20)]
    (gap,) = [line["gap"] for line in lines_of(desk.path) if "gap" in line]
    ends = {"after": f"{(DAY + 4) * 1000:.0f}-0", "before": f"{(DAY + 12) * 1000:.0f}-0"}
    assert gap == {**ends, "entries": 7 if await counted(desk) else None}


async def test_trimming_up_to_the_cursor_is_no_gap(desk: Desk) -> None:
    """Where the server counts, even the cursor's own entry may go."""
    await desk.write(*range(5))
    await desk.archive()
    await desk.write(5)
    if not await counted(desk):
        pytest.skip("this server does not count its entries")
    await desk.call("XTRIM", desk.keys.audit, "MAXLEN", "=", 1)
    await desk.archive()
    assert desk.numbers() == list(range(6))
    assert not any("gap" in line for line in lines_of(desk.path))


async def test_a_server_that_was_emptied_leaves_a_gap_that_nobody_can_count(desk: Desk) -> None:
    """What it counts has begun anew; what comes is archived all the same."""
    await desk.write(*range(5))
    await desk.archive()
    await desk.call("DEL", desk.keys.audit)
    await desk.archive()
    await desk.write(7, 8)
    await desk.archive()
    assert desk.numbers() == [*range(5), 7, 8]
    assert [line["gap"]["entries"] for line in lines_of(desk.path) if "gap" in line] == [None]


@pytest.mark.parametrize("clock", [0, 100])
async def test_a_server_that_has_gone_back_is_told_of_and_followed(desk: Desk, clock: int) -> None:
    """From where both agree: nothing of its new life is missed, even where its clock is behind, and ids come again."""
    await desk.write(*range(10))
    await desk.archive()
    await desk.call("DEL", desk.keys.audit)
    await desk.write(*range(6))
    for number in range(50, 54):  # by their ids the first of these lie before, and at, what was archived
        entry = ("commit", f"c{number}", "epoch", "2", "facts", facts(number))
        await desk.call("XADD", desk.keys.audit, f"{(DAY + clock + number - 43) * 1000:.0f}-0", *entry)
    await desk.archive()
    await desk.archive()
    assert desk.numbers() == [*range(10), *range(50, 54)]
    (rewound,) = [line["rollback"] for line in lines_of(desk.path) if "rollback" in line]
    assert rewound == {"after": f"{(DAY + 5) * 1000:.0f}-0", "before": f"{(DAY + 9) * 1000:.0f}-0"}


async def test_another_server_is_archived_from_its_beginning(desk: Desk) -> None:
    """Where nothing agrees, everything is new."""
    await desk.write(*range(10))
    await desk.archive()
    await desk.call("DEL", desk.keys.audit)
    await desk.write(*range(50, 53), at=DAY - 1000)
    await desk.archive()
    assert desk.numbers() == [*range(10), *range(50, 53)]
    assert [line["rollback"]["after"] for line in lines_of(desk.path) if "rollback" in line] == ["0-0"]


# --- what may go ------------------------------------------------------------------------------------------------------


async def test_nothing_goes_that_an_archive_has_yet_to_read(desk: Desk) -> None:
    """Nor the entry at its cursor, by which it knows that nothing is missing."""
    await desk.write(*range(300))
    await desk.call("SET", desk.keys.epoch, "1:me")
    before = f"{(DAY + 150) * 1000:.0f}-0"
    assert await desk.retention.trim_audit("1:me", 10, before) == (TrimCode.TRIMMED, 100, True)
    assert await desk.retention.trim_audit("1:me", 10, before) == (TrimCode.TRIMMED, 50, False)
    assert (await audit_of(desk))[0] == "c150"
    assert await desk.retention.trim_audit("1:me", 10, "0-0") == (TrimCode.TRIMMED, 0, False)


async def test_what_is_to_be_kept_stays(desk: Desk) -> None:
    """However far the archives are."""
    await desk.write(*range(130))
    await desk.call("SET", desk.keys.epoch, "1:me")
    assert await desk.retention.trim_audit("1:me", 20, None) == (TrimCode.TRIMMED, 100, True)
    assert await desk.retention.trim_audit("1:me", 20, f"{(DAY + 999) * 1000:.0f}-0") == (TrimCode.TRIMMED, 10, False)
    assert len(await audit_of(desk)) == 20


async def test_a_leader_of_yesterday_trims_nothing(desk: Desk) -> None:
    """Its token is not the newest."""
    await desk.write(*range(30))
    await desk.call("SET", desk.keys.epoch, "2:other")
    assert await desk.retention.trim_audit("1:me", 1, None) == (TrimCode.FENCED, 0, False)
    assert len(await audit_of(desk)) == 30


# --- engines ----------------------------------------------------------------------------------------------------------


async def test_an_engine_archives_all_that_it_does(server: EmbeddedServer, prefix: str, tmp_path: Path) -> None:
    """Across restarts: the archive is the audit, line for line, and the metrics tell of it."""
    path, load = tmp_path / "archive", Load()
    for _ in range(3):
        async with running_engine(server, prefix, archive__directory=str(path), **FAST) as engine:
            await load.say(engine, 200)
            await load.wait_applied_once(engine)
            await eventually(is_whole(engine, path))
            await eventually(lambda: engine.metric("aism_archive_up") == 1)
            assert engine.metric("aism_archive_entries_total") > 0
            assert engine.metric("aism_archive_bytes_total") > 0
            await eventually(lambda: engine.metric("aism_archive_behind_entries") == 0)
    assert commits_of(path) == await audit_of_server(server, prefix)


async def audit_of_server(server: EmbeddedServer, prefix: str) -> list[str]:
    async with plain_client(server) as client:
        return await audit_of(Reader(client, prefix))


async def test_a_standby_archives_too_and_goes_on_when_it_leads(
    server: EmbeddedServer, prefix: str, tmp_path: Path, reader: Reader
) -> None:
    """Two engines, two directories, each with everything once; the leader is killed in the middle of a load."""
    load, one, other = Load(), tmp_path / "one", tmp_path / "other"
    lease = {"lease__ttl": 1.0, "lease__renew_interval": 0.2}
    async with daemon(server.url, prefix, archive__directory=str(one), **FAST, **lease) as leader:
        await leader.wait_event("lease_taken")
        async with daemon(server.url, prefix, archive__directory=str(other), **FAST, **lease) as standby:
            await standby.wait_event("archive_opened")
            await load.say(reader, 2000)
            await eventually(lambda: reader.call("XLEN", reader.keys.audit))
            leader.signal(signal.SIGKILL)
            await load.say(reader, 200)
            await standby.wait_event("fleet_loaded")
            await load.wait_applied_once(reader)
            await eventually(is_whole(reader, other))
        async with daemon(server.url, prefix, archive__directory=str(one), **FAST, **lease):
            await eventually(is_whole(reader, one))


async def test_an_engine_that_is_killed_again_and_again_loses_and_doubles_nothing(
    server: EmbeddedServer, prefix: str, tmp_path: Path, reader: Reader
) -> None:
    """Kill -9 while it writes; in the end the archive is what the audit is."""
    path, load = tmp_path / "archive", Load()
    lease = {"lease__ttl": 0.5, "lease__renew_interval": 0.1}
    for _ in range(4):
        await load.say(reader, 3000)
        async with daemon(server.url, prefix, archive__directory=str(path), **FAST, **lease) as engine:
            await engine.wait_event("archive_opened")
            await eventually(partial(has_grown, path, len(commits_of_growing(path))))
            engine.signal(signal.SIGKILL)
    async with daemon(server.url, prefix, archive__directory=str(path), **FAST, **lease):
        await load.wait_applied_once(reader)
        await eventually(is_whole(reader, path))


async def test_the_audit_is_trimmed_behind_the_archives_alone(
    server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    """To `audit_keep`, as soon as all have read it; one that is behind holds it, up to `audit_keep_max`."""
    path = tmp_path / "archive"
    bounds = {"retention__audit_entries": 20, "retention__audit_entries_max": 500}
    async with running_engine(server, prefix, archive__directory=str(path), **FAST, **bounds) as engine:
        history = engine.engine.components[-1]._retention  # type: ignore[attr-defined]
        length: Callable[[], Awaitable[int]] = lambda: engine.call("XLEN", engine.keys.audit)  # noqa: E731
        await history.publish_position("gone", ArchivePosition("0-0", engine.engine.store.now))
        load = Load(agents=1)
        for _ in range(100):
            await load.say(engine, 1)
            await eventually(engine.is_drained)
        await eventually(is_whole(engine, path))
        assert await length() > 90
        await engine.call("HDEL", engine.keys.archives, "gone")

        async def trimmed() -> bool:
            return await length() == 20

        await eventually(trimmed)
        assert len(commits_of_growing(path)) > 90
        await history.publish_position("gone", ArchivePosition("0-0", engine.engine.store.now))
        for start in range(0, 900, 30):
            for number in range(30):
                await engine.call("XADD", engine.keys.audit, "*", "commit", f"x{start + number}", "facts", "[]")
            await load.say(engine, 1)
            await eventually(engine.is_drained)
        assert 480 <= await length() <= 700  # the server trims by whole nodes, and ours come between


async def test_a_gap_at_the_hard_bound_is_told(server: EmbeddedServer, prefix: str, tmp_path: Path) -> None:
    """An engine that was away for too long says how much it has missed, in its archive, its log and its metrics."""
    path, load = tmp_path / "archive", Load(agents=1)
    bounds = {"retention__audit_entries": 10, "retention__audit_entries_max": 100}
    async with running_engine(server, prefix, archive__directory=str(path), **FAST, **bounds) as engine:
        await load.say(engine, 1)
        await eventually(is_whole(engine, path))
    async with plain_client(server) as client:
        for number in range(300):
            added = ("MAXLEN", "=", "100", "*", "commit", f"x{number}", "epoch", "1", "facts", "[]")
            await Reader(client, prefix).call("XADD", Reader(client, prefix).keys.audit, *added)
    with capture_logs() as logs:
        async with running_engine(server, prefix, archive__directory=str(path), **FAST, **bounds) as engine:
            await eventually(lambda: engine.metric("aism_archive_gaps_total") == 1)
            counts = (await engine.engine.components[-1]._audit.page("0-0")).added is not None  # type: ignore[attr-defined]
            assert engine.metric("aism_archive_lost_entries_total") == (200 if counts else 0)
    assert [each["entries"] for each in logs if each["event"] == "archive_gap"] == [200 if counts else None]
    assert len([line for line in lines_of(path) if "gap" in line]) == 1


async def test_an_archive_that_has_said_nothing_for_long_is_not_waited_for(server: EmbeddedServer, prefix: str) -> None:
    """Nor is one whose announcement nobody can read; the log says so, and the hash has an end."""
    async with plain_client(server) as client:
        reader = Reader(client, prefix)
        await client.hset(reader.keys.archives, "old", b'{"cursor":"0-0","at":1.0,"host":"h"}')
        await client.hset(reader.keys.archives, "bad", b'{"cursor":"soon","at":1.0}')
        with capture_logs() as logs:
            async with running_engine(server, prefix, retention__audit_entries=5, **FAST) as engine:
                for number in range(20):
                    await client.xadd(engine.keys.audit, {"commit": f"c{number}", "facts": "[]"})

                async def trimmed() -> bool:
                    return bool(await client.xlen(engine.keys.audit) == 5)

                await eventually(trimmed)
        assert await client.hlen(reader.keys.archives) == 0
    assert {each["archive"] for each in logs if each["event"] == "archive_forgotten"} == {"old", "bad"}


async def test_a_directory_that_cannot_be_written_stops_nothing(
    server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    """It has a name in log and metric; the engine works, and when it can be written it holds everything."""
    path, load = tmp_path / "archive", Load()
    path.write_text("in the way")
    with capture_logs() as logs:
        async with running_engine(server, prefix, archive__directory=str(path), **FAST) as engine:
            await eventually(lambda: engine.metric("aism_archive_errors_total", cause="missing") >= 2)
            assert engine.metric("aism_archive_up") == 0
            await load.say(engine, 100)
            await load.wait_applied_once(engine)
            path.unlink()
            await eventually(is_whole(engine, path))
            await eventually(lambda: engine.metric("aism_archive_up") == 1)
    told = [each["cause"] for each in logs if each["event"] == "archive_unavailable"]
    assert told == ["missing"]
    assert [each["cause"] for each in logs if each["event"] == "archive_available"] == ["missing"]


async def test_a_full_disk_loses_nothing(
    server: EmbeddedServer, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that the disk takes by half is cut off; when there is room again the rest is written, once."""
    path, load, full, write = tmp_path / "archive", Load(), False, os.write

    def half(descriptor: int, content: Any) -> int:  # noqa: ANN401
        if full and stat.S_ISREG(os.fstat(descriptor).st_mode):
            if len(content) > 10:
                return write(descriptor, bytes(content[: len(content) // 2]))
            raise OSError(28, "No space left on device")
        return write(descriptor, content)

    monkeypatch.setattr("aism_engine.ops.archive.archive_writer.os.write", half)
    async with running_engine(server, prefix, archive__directory=str(path), **FAST) as engine:
        await load.say(engine, 50)
        await eventually(is_whole(engine, path))
        full = True
        await load.say(engine, 50)
        await eventually(lambda: engine.metric("aism_archive_errors_total", cause="no_space") >= 2)
        await load.wait_applied_once(engine)
        full = False
        await eventually(is_whole(engine, path))
    assert commits_of(path) == await audit_of_server(server, prefix)


async def test_two_engines_with_one_directory(server: EmbeddedServer, prefix: str, tmp_path: Path) -> None:
    """One archives, the other says that it is locked and works; it takes over when the first has gone."""
    path, load = tmp_path / "archive", Load()
    async with AsyncExitStack() as engines:
        first = await engines.enter_async_context(running_engine(server, prefix, archive__directory=str(path), **FAST))
        await eventually(lambda: first.metric("aism_archive_up") == 1)
        async with launched(server, prefix, archive__directory=str(path), **FAST) as second:
            await eventually(lambda: second.metric("aism_archive_errors_total", cause="locked") >= 1)
            await engines.aclose()
            await load.say(second, 50)
            await eventually(lambda: second.metric("aism_archive_up") == 1)
            await load.wait_applied_once(second)
            await eventually(is_whole(second, path))


async def test_a_clean_stop_leaves_the_cursor_at_the_last_line(
    server: EmbeddedServer, prefix: str, tmp_path: Path
) -> None:
    """Synced, announced, and the directory given back."""
    path = tmp_path / "archive"
    async with running_engine(server, prefix, archive__directory=str(path), **FAST) as engine:
        await Load().say(engine, 50)
        await eventually(is_whole(engine, path))
        history = engine.engine.components[-1]._retention  # type: ignore[attr-defined]
        last = lines_of(path)[-1]["id"]

        async def announced() -> bool:
            return [said.cursor for said in (await history.positions()).values()] == [last]

        await eventually(announced)
    archive = ArchiveWriter.open(path, prefix)
    assert archive.cursor.id == last
    assert read_identity(path).prefix == prefix
    archive.close()


def test_nothing_read_is_the_beginning() -> None:
    """A cursor that was never set is less than any id."""
    assert Cursor().id == "0-0"
