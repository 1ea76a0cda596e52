"""What the supervisor runs."""

from typing import Protocol


class Component(Protocol):
    """A part of the engine that runs until it is cancelled, and then finishes the step that it has begun."""

    @property
    def name(self) -> str: ...

    async def run(self) -> None:
        """Run until cancelled. Returning earlier is a failure, as raising is."""
