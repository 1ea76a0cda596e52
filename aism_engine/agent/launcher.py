"""Runs one program, and ends all its descendants after it. A process of its own, started by `Program`.

    python launcher.py CONTROL KILL_AFTER_S PROGRAM [ARGUMENT ...]

CONTROL is the file descriptor of a socket to the agent. When the agent shuts down its side, or dies, the program must
end. The launcher reports to the agent by lines on this socket:

- `error ERRNO`: the program could not be started. No other line follows.
- `exit CODE` or `signal NUMBER`: the program has ended. This line is not written if the agent has asked for the end.
- `left COUNT`: the launcher has ended the program and all its descendants, except COUNT that it could not end.

The launcher is the subreaper of the program: descendants that leave the process group and lose their parent become
children of the launcher, so it finds and reaps all of them. It gives the program the default action for every signal.
It imports little, because it starts anew for each command.
"""

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36
_CHECK_INTERVAL_S = 0.05
"""Longest pause between two searches for descendants that are still alive."""


def main() -> None:
    """Run the program of the command line."""
    control, kill_after_s, *command = sys.argv[1:]
    control_fd = int(control)
    os.set_inheritable(control_fd, False)  # noqa: FBT003  it has no keyword
    woken_fd = _wake_up_at_the_end_of_a_child()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        program = _start(command)
    except OSError as error:
        _report(control_fd, f"error {error.errno}")
        return
    status = _wait(program, control_fd, woken_fd)
    if status is not None:
        _report(control_fd, status)
    _report(control_fd, f"left {end_descendants(program, float(kill_after_s), woken_fd)}")


def _wake_up_at_the_end_of_a_child() -> int:
    """Return a file descriptor that becomes readable when a child ends. Ignore signals that are meant for the agent."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return woken


def _start(command: list[str]) -> int:
    """Start the program in a process group of its own, with the default action for all signals. Raises OSError."""
    fixed = {signal.SIGKILL, signal.SIGSTOP}
    return os.posix_spawnp(
        command[0], command, os.environ, setpgroup=0, setsigmask=(), setsigdef=signal.valid_signals() - fixed
    )


def _wait(program: int, control_fd: int, woken_fd: int) -> str | None:
    """Wait until the program has ended, and return how. Return None when the agent asks for its end or has died."""
    while True:
        readable, _, _ = select.select([control_fd, woken_fd], [], [])
        if woken_fd in readable:
            os.read(woken_fd, 1024)
        if (status := _reap(program)) is not None:
            return status
        if control_fd in readable:
            return None


def _reap(program: int) -> str | None:
    """Reap all children that have ended; return how the program has ended if it is among them."""
    found = None
    with suppress(ChildProcessError):  # no child is left
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == program:
                code = os.waitstatus_to_exitcode(ended[1])
                found = f"exit {code}" if code >= 0 else f"signal {-code}"
    return found


def _report(control_fd: int, line: str) -> None:
    with suppress(OSError):  # the agent has died
        os.write(control_fd, f"{line}\n".encode())


# --- ending the descendants -------------------------------------------------------------------------------------------


def end_descendants(program: int, kill_after_s: float, woken_fd: int) -> int:
    """End all descendants by SIGTERM, after `kill_after_s` by SIGKILL; return how many are still alive.

    A process of another user cannot be ended, so nothing waits for it.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        ends_at, sent, denied = time.monotonic() + kill_after_s, set[int](), set[int]()
        while left := _descendants(program):
            for pid in left - sent:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
                except PermissionError:
                    denied.add(pid)
            sent |= left
            if left <= denied:
                break
            if select.select([woken_fd], [], [], _CHECK_INTERVAL_S)[0]:
                os.read(woken_fd, 1024)
            _reap(program)
            if time.monotonic() >= ends_at:
                break
    return len(_descendants(program))


def _descendants(program: int) -> set[int]:
    """Return the living descendants of this process, and the living members of its session.

    Without /proc, return the process group of the program, as a negative number, while it has members.
    """
    if not os.path.isdir("/proc/self"):
        with suppress(ProcessLookupError):
            os.killpg(program, 0)
            return {-program}
        return set()
    if not _has_children():  # a subreaper without children has no descendants, so /proc need not be read
        return set()
    own, children, found = os.getpid(), dict[int, list[int]](), set[int]()
    for pid, parent, session in _processes():
        children.setdefault(parent, []).append(pid)
        if session == own != pid:
            found.add(pid)
    new = children.get(own, [])
    while new:
        found.update(new)
        new = [child for pid in new for child in children.get(pid, [])]
    return found


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill_session(session: int) -> None:
    """Kill all members of a session. Needed if its launcher was killed, and so cannot end them."""
    for pid, _, session_of_pid in _processes():
        if session_of_pid == session:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _processes() -> list[tuple[int, int, int]]:
    """Return id, parent and session of every living process."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, parent, _, session = file.read().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if state not in "ZX":
            found.append((int(name), int(parent), int(session)))
    return found


if __name__ == "__main__":
    main()
    os._exit(0)  # skips the cleanup of the interpreter, which nothing needs
