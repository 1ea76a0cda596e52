"""The command line `aism-engine`."""

import gc

from aism_engine.terminal import GC_THRESHOLD

# Set here, because the imports of each command already create many objects.
gc.set_threshold(GC_THRESHOLD)
