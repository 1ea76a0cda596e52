"""Helpers that compare an archive with the audit."""

import gzip
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aism_engine.ops.archive.archive_reader import ArchiveReader
from tests.support.engine import Reader


def archived_lines(path: Path) -> list[dict[str, Any]]:
    """Read all files of an archive without the code under test."""
    found = []
    for file in sorted(path.glob("audit-*")):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        assert content == b"" or content.endswith(b"\n")
        found += [json.loads(line) for line in content.splitlines()]
    return found


def archived_commits(path: Path) -> list[str]:
    """Read the commits of an archive that an engine may be writing: its last line may be incomplete."""
    return [line.commit for line in ArchiveReader(path).lines() if line.id] if path.exists() else []


async def audit_commits(reader: Reader) -> list[str]:
    entries = await reader.call("XRANGE", reader.keys.audit, "-", "+")
    tables = [
        fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        for _, fields in entries
    ]
    return [fields[b"commit"].decode() for fields in tables]


def is_complete(reader: Reader, path: Path) -> Callable[[], Awaitable[bool]]:
    """Return a condition: the archive holds exactly the entries of the audit, and there is at least one."""

    async def check() -> bool:
        commits = archived_commits(path)
        return bool(commits) and commits == await audit_commits(reader)

    return check
