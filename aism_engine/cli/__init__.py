"""The command line `aism-engine`."""

import gc

from aism_engine.terminal import GC_THRESHOLD

gc.set_threshold(GC_THRESHOLD)  # before the imports of the command
