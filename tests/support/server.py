"""Which server the tests run against: what `AISM_TEST_SERVER` names (a path, or a command), else the one bundled."""

import os
import shutil
from pathlib import Path

from aism_engine.store.embedded import bundled_binary


def test_server_binary() -> Path:
    named = os.environ.get("AISM_TEST_SERVER")
    return Path(shutil.which(named) or named) if named else bundled_binary()


test_server_binary.__test__ = False  # type: ignore[attr-defined]  # it is no test, whatever pytest makes of its name
