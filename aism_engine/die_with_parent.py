"""Starts a child process that the kernel kills when its parent dies (Linux only).

To the kernel, the parent is the *thread* that started the child. Start the child from a thread that lives long enough.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

# A small interpreter that becomes the program, with the same process id. A `preexec_fn` needs no interpreter, but it is
# not safe in a process with threads: Python 3.12 and later warn about it.
_BOOTSTRAP: Final = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(parent):
    sys.exit("the parent died before its child started")
try:
    os.execvp(command[0], command)
except OSError as error:
    print(f"cannot execute {command[0]}: {error}", file=sys.stderr)
    sys.exit(127)
"""


def die_with_parent(command: Sequence[str]) -> list[str]:
    """Return a command line that runs `command` and ends with this process. Exit code 127: it cannot be executed."""
    return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, str(os.getpid()), *command]
