"""A child process that dies with its parent, however that dies: the kernel is told to kill it (Linux only).

To the kernel the parent is the *thread* that started it: start one from a thread that lives as long as it shall.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

# It becomes the program: same process, same id. A `preexec_fn` could do this without an interpreter of its own, but is
# not safe where there are threads, and warns of it from Python 3.12 on.
_LEASH: Final = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(parent):
    sys.exit("the parent has died before its child could start")
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"cannot execute {command[0]}: {error}", file=sys.stderr)
    sys.exit(127)
"""


def die_with_parent(command: Sequence[str]) -> list[str]:
    """Give the command by which this one is started so that it dies with us. 127: it cannot be executed."""
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command]
