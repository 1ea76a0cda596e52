"""Measures how fast the audit is read, archived, synced and searched, and how long each page occupies the server.

Runs a server of its own, with facts of 195 bytes: `python bench/archive.py [--facts N] [--entries N]`. The archiver of
an engine pauses for as long as it works, so it reaches half of this rate at most.
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
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys

_FACT = {
    "event": "state_changed",
    "at": "2026-11-22T22:01:34.125Z",
    "by": "agent",
    "agent_id": "architect-a1b2c3",
    "cause": "01a20576-62b8-70ff-9783",
    "old_state": "inbox",
    "new_state": "deep_work",
    "source": "agent",
}
_CHUNK = 500


async def _none_known(_: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    return set()


async def main(facts: int, entries: int, folder: Path) -> None:
    with EmbeddedServer(append_only=False) as server:
        client, keys = connect_url(server.url, "bench", timeout_s=30), Keys("bench")
        body = msgspec.json.encode([_FACT] * facts)
        for start in range(0, entries, _CHUNK):
            pipeline = client.pipeline(transaction=False)
            for number in range(start, min(start + _CHUNK, entries)):
                fields = ("commit", f"c{number}", "epoch", "1", "facts", body)
                pipeline.execute_command("XADD", keys.audit, "*", *fields)
            await pipeline.execute()
        archive = ArchiveWriter.open(folder, "bench")
        tail = AuditTail(AuditLog(client, keys), archive.cursor, _none_known)
        began, worked, written, more = time.perf_counter(), time.process_time(), 0, True
        while more:
            reading = await tail.read()
            written += await asyncio.to_thread(archive.append, reading.lines)
            more = reading.more
        await asyncio.to_thread(archive.sync)
        seconds = time.perf_counter() - began
        stats: dict[str, Any] = await client.info("commandstats")
        await client.aclose()
    rate = written / seconds / 1e6
    per_page_ms = stats["cmdstat_evalsha"]["usec_per_call"] / 1000
    print(f"{entries / seconds:,.0f} entries/s, {entries * facts / seconds:,.0f} facts/s, {rate:.0f} MB/s")
    print(f"{per_page_ms:.2f} ms a page in the server, {(time.process_time() - worked) / seconds:.2f} of a processor")
    began = time.perf_counter()
    assert not list(ArchiveReader(folder).lines("nobody"))
    print(f"searched {written / 1e6:.0f} MB in {time.perf_counter() - began:.2f} s")
    archive.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--entries", type=int, default=50_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(given.facts, given.entries, Path(folder) / "archive"))
