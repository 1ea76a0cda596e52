"""The server that the tests use: `AISM_TEST_SERVER` (a path or a command), else the bundled one."""

import os
import shutil
from pathlib import Path

from aism_engine.store.embedded import bundled_binary


def test_server_binary() -> Path:
    named = os.environ.get("AISM_TEST_SERVER")
    return Path(shutil.which(named) or named) if named else bundled_binary()


test_server_binary.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it because of its name
