"""The Lua scripts and the codes they return.

Each script is a file in `lua/`. A line `--#include NAME` is replaced by `lua/include/NAME.lua`. A test compares the
enums below with the headers and the code of the files.
"""

import re
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cached_property
from hashlib import sha1
from pathlib import Path
from typing import Any, Final

from aism_engine.store.client_type import Client
from aism_engine.store.redis_error_codes import MissingScriptError

_LUA = Path(__file__).parent / "lua"
_INCLUDE = re.compile(r"^--#include (\w+)$", re.MULTILINE)


class CommitCode(IntEnum):
    APPLIED = 1
    REPLAYED = 2
    FENCED = -1
    OUT_OF_STEP = -2
    SOURCE_MOVED = -3
    WRONG_TYPE = -4
    SCORE_MOVED = -5


class LeaseCode(IntEnum):
    RENEWED = 2
    TAKEN = 1
    HELD = 0


class TrimCode(IntEnum):
    TRIMMED = 1
    FENCED = -1


class Script:
    """One script, called by its digest. `codes` are the codes that it returns, if it returns any.

    A server loses its script cache at every restart, so a call that finds the script missing sends it whole.
    """

    def __init__(self, name: str, codes: Iterable[IntEnum] = ()) -> None:
        self.codes = {code.name: code.value for code in codes}
        self._name = name

    @cached_property
    def text(self) -> str:
        return _INCLUDE.sub(lambda found: _read(f"include/{found[1]}.lua"), _read(f"{self._name}.lua"))

    @cached_property
    def digest(self) -> str:
        return sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, client: Client, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:  # noqa: ANN401
        try:
            return await client.execute_command("EVALSHA", self.digest, len(keys), *keys, *args)
        except MissingScriptError:
            # EVAL caches the script too. SCRIPT LOAD and EVALSHA would leave a gap for another flush.
            return await client.execute_command("EVAL", self.text, len(keys), *keys, *args)


def load_all() -> None:
    """Read the files of all scripts. Without it each file is read when its script is first called."""
    for each in globals().values():
        if isinstance(each, Script):
            _ = each.digest


def _read(name: str) -> str:
    return (_LUA / name).read_text()


ACL_DRY_RUN: Final = Script("acl_dry_run")
ACQUIRE_LEASE: Final = Script("acquire_lease", LeaseCode)
COMMIT: Final = Script("commit", CommitCode)
PEEK: Final = Script("peek")
PEEK_HEADS: Final = Script("peek_heads")
PROBE_PERMISSIONS: Final = Script("probe_permissions")
PUSH_PUBLISHED: Final = Script("push_published")
READ_AUDIT: Final = Script("read_audit")
READ_RECORDS: Final = Script("read_records")
READ_STRINGS: Final = Script("read_strings")
READ_SNAPSHOTS: Final = Script("read_snapshots")
RELEASE_LEASE: Final = Script("release_lease")
TRIM_AUDIT: Final = Script("trim_audit", TrimCode)
