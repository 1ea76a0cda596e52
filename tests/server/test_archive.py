"""The laws of the archive's files: they hold every audit entry once, in order, or a note that entries are missing."""

import gzip
import json
import os
import shutil
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, Final

import pytest

from aism_engine.clock import from_iso
from aism_engine.ops import audit_log
from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.archive.archive_writer import ArchiveWriter
from aism_engine.ops.archive.directory import ArchiveError
from aism_engine.ops.audit_log import AuditLog, AuditTail, Cursor, EntryKey
from aism_engine.ops.audit_retention import AuditRetention
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.scripts import TrimCode
from tests.support.archive import archived_commits, archived_lines, audit_commits
from tests.support.engine import Client, Reader, plain_client

MIDNIGHT: Final = from_iso("2026-11-22T00:00:00Z")
GAP: Final = b'{"gap":{"after":"1-0","before":"2-0","entries":1}}\n'


def entry_id(second: float) -> str:
    return f"{(MIDNIGHT + second) * 1000:.0f}-0"


def facts(number: int) -> str:
    return json.dumps([{"event": "tested", "at": "2026-11-22T12:00:00.000Z", "by": "engine", "agent_id": f"a{number}"}])


class Archived(Reader):
    """An audit that the test writes, and an archive of it that the test updates step by step."""

    def __init__(self, client: Client, own: Client, prefix: str, path: Path) -> None:
        super().__init__(client, prefix)
        self.log = AuditLog(own, self.keys)
        self.retention = AuditRetention(own, self.keys)
        self.path = path
        self.prefix = prefix

    async def write(self, *numbers: int, at: float = 0) -> None:
        """Add an entry for each number, at this many seconds after `at`."""
        for number in numbers:
            await self.add(entry_id(at + number), commit=f"c{number}", epoch="1", facts=facts(number))

    async def add(self, entry: str = "*", **fields: str | bytes) -> None:
        await self.call("XADD", self.keys.audit, entry, *(word for pair in fields.items() for word in pair))

    async def update(self, archive: ArchiveWriter | None = None) -> None:
        """Open the archive, add everything new as the archiver does, and close it."""
        archive = archive or ArchiveWriter.open(self.path, self.prefix)
        try:
            await self.drain(archive)
        finally:
            archive.close()

    async def drain(self, archive: ArchiveWriter) -> None:
        async def find_known(entries: Collection[EntryKey]) -> set[EntryKey]:
            return ArchiveReader(self.path).known(entries)

        tail, more = AuditTail(self.log, archive.cursor, find_known), True
        while more:
            page = await tail.read()
            archive.append(page.lines)
            more = page.more

    def compress(self) -> None:
        archive = ArchiveWriter.open(self.path, self.prefix)
        while archive.compress():
            pass
        archive.close()

    def numbers(self) -> list[int]:
        return [int(line["commit"][1:]) for line in archived_lines(self.path) if "commit" in line]

    def notes(self, kind: str) -> list[dict[str, Any]]:
        return [line[kind] for line in archived_lines(self.path) if kind in line]

    async def counts_entries(self) -> bool:
        """Return whether the server counts the entries ever added, as it does since Redis 7.0."""
        return (await self.log.page("0-0")).added is not None

    @property
    def newest(self) -> Path:
        return max(self.path.glob("audit-*.jsonl"))


@pytest.fixture
async def archived(server: EmbeddedServer, prefix: str, tmp_path: Path) -> AsyncIterator[Archived]:
    own = connect(RedisSettings(url=server.url, prefix=prefix), "test")
    async with plain_client(server) as client:
        yield Archived(client, own, prefix, tmp_path / "archive")
    await own.aclose()


# --- the files --------------------------------------------------------------------------------------------------------


async def test_every_entry_is_one_line_in_order(archived: Archived, monkeypatch: pytest.MonkeyPatch) -> None:
    """Across pages and restarts. Each line has the fields and the number of its entry."""
    monkeypatch.setattr(audit_log.AuditLog.page, "__defaults__", (7, audit_log.PAGE_BYTES))
    await archived.write(*range(25))
    await archived.update()
    await archived.write(*range(25, 60))
    await archived.update()
    await archived.update()
    assert archived.numbers() == list(range(60))
    lines = archived_lines(archived.path)
    entry = {"id": entry_id(3), "n": 4, "commit": "c3", "epoch": "1", "facts": json.loads(facts(3))}
    assert {"n": 4, **lines[3]} == entry
    if await archived.counts_entries():
        assert [line["n"] for line in lines] == list(range(1, 61))


@pytest.mark.parametrize("torn", [b'{"id":"17', b"\0" * 5000, GAP, b"\xff\n"])
async def test_torn_end_is_cut_off_and_read_again(archived: Archived, torn: bytes) -> None:
    """Half a line, blocks that were never written, the note of a gap without the entry behind it, an invalid line."""
    await archived.write(*range(5))
    await archived.update()
    with archived.newest.open("ab") as file:
        file.write(torn)
    await archived.write(5)
    await archived.update()
    assert archived.numbers() == list(range(6))
    assert archived.notes("gap") == []


async def test_file_of_any_length_is_completed(archived: Archived) -> None:
    """Wherever a kill cut the file off, the next start completes it."""
    await archived.write(*range(4))
    await archived.update()
    complete = archived.newest.read_bytes()
    for length in range(0, len(complete), 13):
        os.truncate(archived.newest, length)
        await archived.update()
        assert archived.newest.read_bytes() == complete


async def test_damage_before_complete_lines_is_kept_in_a_file(archived: Archived) -> None:
    """A kill damages only the end of a file, so nothing else is thrown away."""
    await archived.write(*range(5))
    await archived.update()
    lines = archived.newest.read_bytes().splitlines(keepends=True)
    damaged = b"".join([b"\0\0\0\n", *lines[3:]])
    archived.newest.write_bytes(b"".join(lines[:2]) + damaged)
    await archived.update()
    assert archived.numbers() == list(range(5))
    assert next(archived.path.glob("damaged-*.jsonl")).read_bytes() == damaged


async def test_each_day_has_a_file_and_earlier_days_are_compressed(archived: Archived) -> None:
    """The day is that of the entry. Compressed and plain files are read alike."""
    for day, numbers in ((0, range(3)), (1, range(3, 6)), (5, range(6, 9))):
        await archived.write(*numbers, at=day * 86400)
    await archived.update()
    archived.compress()
    names = sorted(path.name for path in archived.path.glob("audit-*"))
    assert names == ["audit-2026-11-22.jsonl.gz", "audit-2026-11-23.jsonl.gz", "audit-2026-11-27.jsonl"]
    await archived.update()
    assert archived.numbers() == list(range(9))
    assert archived_commits(archived.path) == [f"c{number}" for number in range(9)]
    assert [line.commit for line in ArchiveReader(archived.path).lines("a4")] == ["c4"]


async def test_interrupted_compression_is_repeated(archived: Archived) -> None:
    """While the plain file exists, whatever is beside it is ignored."""
    await archived.write(*range(3))
    await archived.write(3, at=86400)
    await archived.update()
    (archived.path / "audit-2026-11-22.jsonl.gz").write_bytes(b"half of it")
    (archived.path / "audit-2026-11-22.part").write_bytes(b"less")
    assert archived_commits(archived.path) == ["c0", "c1", "c2", "c3"]
    archived.compress()
    assert archived.numbers() == list(range(4))
    assert not list(archived.path.glob("*.part"))


async def test_closed_file_is_never_reopened(archived: Archived) -> None:
    """If the newest file is compressed, new entries go to a file behind it, also those of the same day."""
    await archived.write(*range(3))
    await archived.update()
    plain = archived.newest
    plain.with_suffix(".jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    await archived.write(3)
    await archived.update()
    assert archived.numbers() == list(range(4))
    assert archived.newest.name == "audit-2026-11-23.jsonl"


async def test_foreign_entry_is_kept_as_text(archived: Archived) -> None:
    """Anyone may write to the audit; the archive continues."""
    await archived.write(0)
    await archived.add(who=b"\xff\n", facts="[")
    await archived.add(commit="c1", facts=b"[" * 100_000)
    await archived.update()
    await archived.add(commit="c2", epoch="1", facts="[]")
    await archived.update()
    lines = archived_lines(archived.path)
    assert [line["commit"] for line in lines] == ["c0", "-", "c1", "c2"]
    assert lines[1]["foreign"] == {"who": "\\xff\n", "facts": "["}


async def test_page_is_bounded_in_bytes(archived: Archived) -> None:
    for number in range(5):
        await archived.add(commit=f"c{number}", facts=json.dumps(["x" * 400_000]))
    page = await archived.log.page("0-0", max_bytes=1_000_000)
    assert (len(page.entries), page.more) == (3, True)
    assert len((await archived.log.page("0-0", max_bytes=1)).entries) == 1


# --- the directory ----------------------------------------------------------------------------------------------------


def test_directory_has_one_writer(tmp_path: Path) -> None:
    """The error names the holder of the lock and the fix. After the first has closed, a second can open."""
    first = ArchiveWriter.open(tmp_path, "aism")
    with pytest.raises(ArchiveError, match=rf"process {os.getpid()} on .* a different archive.directory") as refused:
        ArchiveWriter.open(tmp_path, "aism")
    assert refused.value.cause == "locked"
    first.close()
    ArchiveWriter.open(tmp_path, "aism").close()


def test_archive_of_another_fleet_is_refused(tmp_path: Path) -> None:
    ArchiveWriter.open(tmp_path, "aism").close()
    with pytest.raises(ArchiveError) as refused:
        ArchiveWriter.open(tmp_path, "other")
    assert refused.value.cause == "foreign"


def test_archive_keeps_its_name_when_it_is_moved(tmp_path: Path) -> None:
    first = ArchiveWriter.open(tmp_path / "here", "aism")
    first.close()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = ArchiveWriter.open(tmp_path / "there", "aism")
    assert moved.name == first.name
    moved.close()


# --- missing entries --------------------------------------------------------------------------------------------------


async def test_gap_is_noted_once_with_its_size(archived: Archived) -> None:
    """Servers before 7.0 do not count, so the size is unknown."""
    await archived.write(*range(5))
    await archived.update()
    await archived.write(*range(5, 20))
    await archived.call("XTRIM", archived.keys.audit, "MAXLEN", "=", 8)
    await archived.update()
    await archived.update()
    assert archived.numbers() == [*range(5), *range(12, 20)]
    entries = 7 if await archived.counts_entries() else None
    assert archived.notes("gap") == [{"after": entry_id(4), "before": entry_id(12), "entries": entries}]


async def test_trimming_up_to_the_cursor_is_not_a_gap(archived: Archived) -> None:
    """If the server counts, even the entry at the cursor may be trimmed."""
    await archived.write(*range(5))
    await archived.update()
    await archived.write(5)
    if not await archived.counts_entries():
        pytest.skip("this server does not count its entries")
    await archived.call("XTRIM", archived.keys.audit, "MAXLEN", "=", 1)
    await archived.update()
    assert archived.numbers() == list(range(6))
    assert archived.notes("gap") == []


async def test_emptied_server_leaves_a_gap_of_unknown_size(archived: Archived) -> None:
    """Its count has restarted. New entries are archived."""
    await archived.write(*range(5))
    await archived.update()
    await archived.call("DEL", archived.keys.audit)
    await archived.update()
    await archived.write(7, 8)
    await archived.update()
    assert archived.numbers() == [*range(5), 7, 8]
    assert [gap["entries"] for gap in archived.notes("gap")] == [None]


@pytest.mark.parametrize("clock", [0, 100])
async def test_rollback_is_noted_and_archiving_continues_at_the_common_entry(archived: Archived, clock: int) -> None:
    """No later entry is missed, even if the server's clock is behind and ids are used a second time."""
    await archived.write(*range(10))
    await archived.update()
    await archived.call("DEL", archived.keys.audit)
    await archived.write(*range(6))
    for number in range(50, 54):  # with `clock` 0, the first ids are before and at the last archived one
        await archived.add(entry_id(clock + number - 43), commit=f"c{number}", epoch="2", facts=facts(number))
    await archived.update()
    await archived.update()
    assert archived.numbers() == [*range(10), *range(50, 54)]
    assert archived.notes("rollback") == [{"after": entry_id(5), "before": entry_id(9)}]


async def test_another_server_is_archived_from_its_beginning(archived: Archived) -> None:
    """Without a common entry every entry is new."""
    await archived.write(*range(10))
    await archived.update()
    await archived.call("DEL", archived.keys.audit)
    await archived.write(*range(50, 53), at=-1000)
    await archived.update()
    assert archived.numbers() == [*range(10), *range(50, 53)]
    assert [rollback["after"] for rollback in archived.notes("rollback")] == ["0-0"]


def test_initial_cursor_is_before_every_entry() -> None:
    assert Cursor().id == "0-0"


# --- trimming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "keep", "before", "trimmed"),
    [
        (300, 10, entry_id(150), [100, 50]),
        (300, 10, "0-0", [0]),
        (130, 20, None, [100, 10]),
        (130, 20, entry_id(999), [100, 10]),
        (130, 20, f"{2**64}-0", [0]),
    ],
)
async def test_trimming_keeps_entries_that_an_archive_needs(
    archived: Archived, count: int, keep: int, before: str | None, trimmed: list[int]
) -> None:
    """At most 100 entries per call, down to `keep`, and neither the entry at an archive's cursor nor any behind it."""
    await archived.write(*range(count))
    await archived.call("SET", archived.keys.epoch, "1:me")
    for removed in trimmed:
        more = removed == 100
        assert await archived.retention.trim_audit("1:me", keep, before) == (TrimCode.TRIMMED, removed, more)
    assert (await audit_commits(archived))[0] == f"c{sum(trimmed)}"


async def test_deposed_leader_trims_nothing(archived: Archived) -> None:
    await archived.write(*range(30))
    await archived.call("SET", archived.keys.epoch, "2:other")
    assert await archived.retention.trim_audit("1:me", 1, None) == (TrimCode.FENCED, 0, False)
    assert len(await audit_commits(archived)) == 30
