"""What the supervisor runs."""

from typing import Protocol


class Component(Protocol):
    """A part of the engine that works until it is cancelled, and then finishes what it has in hand."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None:
        """Go on until cancelled. To return before that is a failure, as raising is: nobody asked for it."""
