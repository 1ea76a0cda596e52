"""Measures how fast the audit is read, archived, synced and searched, and how long each page occupies the server.

Each fact has 195 bytes. The archiver of an engine pauses after each page for as long as the page took, so it archives
at most at half of the measured rate.
"""

import asyncio
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.archive.archive_writer import ArchiveWriter
from aism_engine.ops.audit_log import AuditLog, AuditTail
from aism_engine.store.client import connect_url
from aism_engine.store.keys import Keys
from bench.harness import PAGE, TIMEOUT_S, Client, Options, connect, make_server, progress
from bench.table import Row

FACT: Final = {
    "event": "state_changed",
    "at": "2026-11-22T22:01:34.125Z",
    "by": "agent",
    "agent_id": "architect-a1b2c3",
    "cause": "01a20576-62b8-70ff-9783",
    "old_state": "inbox",
    "new_state": "deep_work",
    "source": "agent",
}
FACTS: Final = {1: 50_000, 10: 20_000, 500: 1000}
"""Facts in each entry, and the number of entries."""
BENCH_KEYS: Final = Keys("bench")


class Archived(NamedTuple):
    """Size of an archive, and the times to write it and to search it."""

    written: int
    """Bytes of the archive, before compression."""
    write_s: float
    page_ms: float
    """Time in the server per page."""
    search_s: float


def rows(options: Options) -> Iterator[Row]:
    for facts, entries in FACTS.items():
        count = entries // options.size(1, 10)
        progress(f"archive: {count:,} entries of {facts} facts")
        measured = measure(facts, count)
        note = f"{facts} {'fact' if facts == 1 else 'facts'} an entry"
        yield Row("audit entries archived", count / measured.write_s, "/s", note=note)
        yield Row("audit archived", measured.written / measured.write_s / 1e6, "MB/s", note=note)
        yield Row("page of the audit, in the server", measured.page_ms, "ms", note=note)
        yield Row("archive searched", measured.written / measured.search_s / 1e6, "MB/s", note=note)


def measure(facts: int, entries: int) -> Archived:
    with tempfile.TemporaryDirectory() as folder, make_server() as server:
        client, directory = connect(server.url), Path(folder) / "archive"
        write_audit(client, facts, entries)
        archive = ArchiveWriter.open(directory, "bench")
        written, write_s = asyncio.run(archive_audit(server.url, archive))
        page_ms = client.info("commandstats")["cmdstat_evalsha"]["usec_per_call"] / 1000
        started_at = time.perf_counter()
        assert not list(ArchiveReader(directory).lines("nobody"))
        search_s = time.perf_counter() - started_at
        archive.close()
    return Archived(written, write_s, page_ms, search_s)


def write_audit(client: Client, facts: int, entries: int) -> None:
    body = msgspec.json.encode([FACT] * facts)
    for start in range(0, entries, PAGE):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + PAGE, entries)):
            pipeline.xadd(BENCH_KEYS.audit, {"commit": f"c{number}", "epoch": "1", "facts": body})
        pipeline.execute()


async def archive_audit(url: str, archive: ArchiveWriter) -> tuple[int, float]:
    """Append the whole audit to an archive and sync it; return the bytes and the seconds."""

    async def none_known(_: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return which entries were read before. Called only after a rollback of the server, which does not occur."""
        return set()

    client, started_at = connect_url(url, "bench", timeout_s=TIMEOUT_S), time.perf_counter()
    tail, written, more = AuditTail(AuditLog(client, BENCH_KEYS), archive.cursor, none_known), 0, True
    while more:
        page = await tail.read()
        written += await asyncio.to_thread(archive.append, page.lines)
        more = page.more
    await asyncio.to_thread(archive.sync)
    seconds = time.perf_counter() - started_at
    await client.aclose()
    return written, seconds
