"""The command line `aism-engine`."""

import gc

gc.set_threshold(200_000)
"""More objects than the imports of a command make: collecting them takes a tenth of the time of a short command."""
