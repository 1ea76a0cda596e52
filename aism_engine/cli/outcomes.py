"""What became of a command, or of a request to many: read, waited for, and told."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aism_engine.cli.exits import Exit, RefusedError, TimedOutError
from aism_engine.cli.progress import ProgressLine
from aism_engine.domain.commands.command import OPEN
from aism_engine.domain.commands.group import OUTCOMES
from aism_engine.ops.admin_client import AdminClient

_LOOK_EVERY_S: Final = 0.1
_OPEN: Final = frozenset({*(status.value for status in OPEN), "open"})
_CONTENTS: Final = ("payload", "result")
"""Fields of a command's record that hold JSON."""
_COUNTS: Final = ("total", "needed", *OUTCOMES)


async def outcome(operator: AdminClient, name: str) -> dict[str, Any]:
    """Read how a command or a group stands, as programs get it. Raises RefusedError where there is none of that id."""
    if record := await operator.command(name):
        contents = {each: msgspec.json.decode(record[each]) for each in _CONTENTS if record.get(each)}
        return {"command_id": name, **_said(record), **contents}
    if record := await operator.group(name):
        counts = {each: int(record.get(each, 0)) for each in _COUNTS}
        return {"group_id": name, **_said(record), **counts, "stopped": bool(record.get("stopped"))}
    raise RefusedError(f"there is no command {name}, and no group: it never was, or its record has gone")


async def wait(operator: AdminClient, name: str, ends_at: float) -> dict[str, Any]:
    """Wait until it is known what becomes of a command, or of enough of a group. Raises TimedOutError."""
    progress = ProgressLine()
    try:
        while (found := await outcome(operator, name))["status"] in _OPEN:
            if time.monotonic() >= ends_at:
                raise TimedOutError(f"{name} is {found['status']} still; it goes on, and may yet end well")
            progress.tell(f"{name}: {told(found)}")
            await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        progress.clear()
    return found


def told(found: Mapping[str, Any]) -> str:
    """Write an outcome on one line: the status, and what there is to say of it."""
    if "group_id" in found:
        counts = ", ".join(f"{found[each]} {each}" for each in OUTCOMES if found[each])
        return f"{found['status']} ({counts or 'none ended'}, of {found['total']})"
    result = msgspec.json.encode(found["result"]).decode() if found.get("result") else ""
    reason = ": ".join(found[name] for name in ("code", "reason") if found.get(name) not in {None, found["status"]})
    return " ".join(filter(None, (found["status"], reason, result)))


def code_of(found: Mapping[str, Any]) -> Exit:
    return Exit.DONE if found["status"] == "succeeded" else Exit.REFUSED


def _said(record: Mapping[str, str]) -> dict[str, Any]:
    """Leave out what says nothing, and what is there for the engine alone."""
    return {name: value for name, value in record.items() if value != "" and name not in {"body", "request"}}
