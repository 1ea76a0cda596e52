"""Measures how fast the audit is read, archived, synced and searched, and how long each page occupies the server.

The facts have 195 bytes. The archiver of an engine pauses after each page for as long as the page took, so it reaches
at most half of this rate.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from aism_engine.ops.archive.archive_reader import ArchiveReader
from aism_engine.ops.archive.archive_writer import ArchiveWriter
from aism_engine.ops.audit_log import AuditLog, AuditTail
from aism_engine.store.client import connect_url
from aism_engine.store.client_type import Client
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from bench.harness import PAGE

FACT = {
    "event": "state_changed",
    "at": "2026-11-22T22:01:34.125Z",
    "by": "agent",
    "agent_id": "architect-a1b2c3",
    "cause": "01a20576-62b8-70ff-9783",
    "old_state": "inbox",
    "new_state": "deep_work",
    "source": "agent",
}
KEYS = Keys("bench")


async def write_audit(client: Client, facts: int, entries: int) -> None:
    body = msgspec.json.encode([FACT] * facts)
    for start in range(0, entries, PAGE):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + PAGE, entries)):
            pipeline.xadd(KEYS.audit, {"commit": f"c{number}", "epoch": "1", "facts": body})
        await pipeline.execute()


async def archive_audit(client: Client, archive: ArchiveWriter) -> int:
    """Append the whole audit to an archive and sync it; return the bytes."""

    async def none_known(_: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        return set()

    tail, written, more = AuditTail(AuditLog(client, KEYS), archive.cursor, none_known), 0, True
    while more:
        page = await tail.read()
        written += await asyncio.to_thread(archive.append, page.lines)
        more = page.more
    await asyncio.to_thread(archive.sync)
    return written


async def main(facts: int, entries: int, folder: Path) -> None:
    archive = ArchiveWriter.open(folder, "bench")
    with EmbeddedServer(append_only=False) as server:
        client = connect_url(server.url, "bench", timeout_s=30)
        await write_audit(client, facts, entries)
        started_at, cpu_s = time.perf_counter(), time.process_time()
        written = await archive_audit(client, archive)
        seconds, cpu_s = time.perf_counter() - started_at, time.process_time() - cpu_s
        stats: dict[str, Any] = await client.info("commandstats")
        await client.aclose()
    page_ms = stats["cmdstat_evalsha"]["usec_per_call"] / 1000
    rates = f"{entries / seconds:,.0f} entries/s, {entries * facts / seconds:,.0f} facts/s"
    print(f"{rates}, {written / seconds / 1e6:.0f} MB/s")
    print(f"{page_ms:.2f} ms per page in the server, {cpu_s / seconds:.2f} of a core")
    started_at = time.perf_counter()
    assert not list(ArchiveReader(folder).lines("nobody"))
    print(f"searched {written / 1e6:.0f} MB in {time.perf_counter() - started_at:.2f} s")
    archive.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=10, help="facts in each entry")
    parser.add_argument("--entries", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(options.facts, options.entries, Path(temporary) / "archive"))
