"""The Lua scripts, and the codes they answer with.

Each is a file of its own in `lua/`; `--#include NAME` puts `lua/include/NAME.lua` in its place. A test compares the
enums below with the headers of the files.
"""

import re
from collections.abc import Sequence
from enum import IntEnum
from hashlib import sha1
from importlib.resources import files
from typing import Any, Final, Protocol

from redis.exceptions import NoScriptError

_LUA = files("aism_engine.store") / "lua"
_INCLUDE = re.compile(r"^--#include (\w+)$", re.MULTILINE)


class CommitCode(IntEnum):
    """What `commit.lua` answers."""

    APPLIED = 1
    REPLAYED = 2
    FENCED = -1
    OUT_OF_STEP = -2
    SOURCE_MOVED = -3
    WRONG_TYPE = -4
    SCORE_MOVED = -5


class LeaseCode(IntEnum):
    """What `lease.lua` answers."""

    RENEWED = 2
    TAKEN = 1
    HELD = 0


class TrimCode(IntEnum):
    """What `trim.lua` answers."""

    TRIMMED = 1
    FENCED = -1


class Executor(Protocol):
    async def execute_command(self, *args: Any, **options: Any) -> Any: ...  # noqa: ANN401 - redis-py's own signature


class Script:
    """One script, called by its digest. The server's cache of scripts dies with every restart, so each call is ready to
    load it again.
    """

    def __init__(self, name: str) -> None:
        self.text = _INCLUDE.sub(lambda found: _read(f"include/{found[1]}.lua"), _read(f"{name}.lua"))
        self.digest = sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, client: Executor, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:  # noqa: ANN401
        try:
            return await client.execute_command("EVALSHA", self.digest, len(keys), *keys, *args)
        except NoScriptError:  # EVAL keeps it, too; to load it first would leave a gap for the next flush
            return await client.execute_command("EVAL", self.text, len(keys), *keys, *args)


def _read(name: str) -> str:
    return (_LUA / name).read_text()


PEEK: Final = Script("peek")
COMMIT: Final = Script("commit")
LEASE: Final = Script("lease")
RELEASE: Final = Script("release")
READ_SNAPSHOTS: Final = Script("read_snapshots")
RECORDS: Final = Script("records")
PROBE: Final = Script("probe")
AUDIT: Final = Script("audit")
TRIM: Final = Script("trim")
PEEK_HEADS: Final = Script("peek_heads")
PUSH_PUBLISHED: Final = Script("push_published")
RIGHTS: Final = Script("rights")
