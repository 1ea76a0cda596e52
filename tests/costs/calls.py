"""Counts the calls of Python code: what a piece of work costs, without a clock."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import CO_COROUTINE
from types import CodeType, FrameType
from typing import Any, Final

_PACKAGE: Final = "aism_engine."
_PER_CHUNK: Final = frozenset({"aism_engine.store.client", "aism_engine.store.redis_patches"})
"""Modules that are called for each chunk of bytes that the socket returns: as often as the machine likes."""
_COMPREHENSIONS: Final = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>"})
"""Functions in Python 3.11. From 3.12 on they are inlined: they count as a part of the function around them."""
_INLINED: Final = frozenset({all, any})
"""C functions that Python 3.14 inlines if their argument is a generator expression."""
_FEW: Final = 64
"""Calls in a batch of 512. A function with fewer of them does not work on each message."""


class Calls:
    """How often each function of the engine was called, and how often it called C functions.

    Each step of a generator counts as a call. The steps of coroutines are not counted, because it depends on the
    machine how often they wait. What they call is counted.
    """

    def __init__(self) -> None:
        self.python: Counter[str] = Counter()
        self.c: Counter[str] = Counter()
        """Calls of C functions, by the function that calls them. Types are no functions."""
        self._names: dict[CodeType, str] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what this thread does."""
        previous = sys.getprofile()
        sys.setprofile(self._observe)
        try:
            yield
        finally:
            sys.setprofile(previous)

    def frequent(self) -> dict[str, list[int]]:
        """Return the calls of each function, and the calls of C functions in it, unless both together are few."""
        return {
            name: [self.python[name], self.c[name]]
            for name in self.python | self.c
            if self.python[name] + self.c[name] >= _FEW
        }

    def _observe(self, frame: FrameType, event: str, called: Any) -> None:  # noqa: ANN401 - depends on the event
        code = frame.f_code
        name = self._names.get(code)
        if name is None:
            name = self._names[code] = _name(frame)
        if not name:
            return
        if event == "call":
            self.python[name] += code.co_name not in _COMPREHENSIONS and not code.co_flags & CO_COROUTINE
        elif event == "c_call":
            self.c[name] += called not in _INLINED


def _name(frame: FrameType) -> str:
    """Return the name of the function of a frame, without the package; empty if it is not to be counted."""
    module = str(frame.f_globals.get("__name__"))
    if not module.startswith(_PACKAGE) or module in _PER_CHUNK:
        return ""
    parts = frame.f_code.co_qualname.split(".")
    function = ".".join(part for part in parts if part != "<locals>" and part not in _COMPREHENSIONS)
    return f"{module.removeprefix(_PACKAGE)}:{function}"
