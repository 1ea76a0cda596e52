"""The open commands of one agent, by what they wait for. It is derived from the records of the commands."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from aism_engine.domain.commands.command import RANKS, Command


class CommandIndex(Struct, gc=False):
    """Ids of the open commands of one agent. Containers are replaced, never changed in place."""

    scheduled: frozenset[str] = frozenset()
    waiting: tuple[tuple[int, int, str], ...] = ()
    """(priority rank, seq, id), in the order of dispatch."""
    queued: tuple[str, ...] = ()
    """In the order of the pushes."""
    delivered: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.scheduled) + len(self.waiting) + len(self.queued) + len(self.delivered)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the ids. The index may change meanwhile."""
        waiting = [command_id for _, _, command_id in self.waiting]
        return iter([*self.queued, *self.delivered, *self.scheduled, *waiting])

    def in_flight(self, *, acks: bool) -> int:
        """Count the commands in flight. Without the capability `ack`, a command that was taken is not counted."""
        return len(self.queued) + (len(self.delivered) if acks else 0)

    @property
    def oldest_undelivered(self) -> list[str]:
        """The oldest command in the agent's list, and the oldest waiting one of each priority."""
        waiting = self.waiting
        firsts = {bisect_left(waiting, (rank,)) for rank in RANKS.values()} if waiting else ()
        return [*self.queued[:1], *(waiting[first][2] for first in firsts if first < len(waiting))]

    def remove(self, command_id: str) -> None:
        if command_id in self.queued:
            self.queued = tuple(other for other in self.queued if other != command_id)
        elif command_id in self.delivered:
            self.delivered -= {command_id}
        elif command_id in self.scheduled:
            self.scheduled -= {command_id}
        else:
            self.waiting = tuple(entry for entry in self.waiting if entry[2] != command_id)

    def put(self, command: Command) -> None:
        """Put a command into the bucket of its status; remove it if it has ended."""
        command_id = command.command_id
        self.remove(command_id)
        if not command.open:
            return
        match command.bucket:
            case "queued":
                self.queued += (command_id,)
            case "delivered":
                self.delivered |= {command_id}
            case "scheduled":
                self.scheduled |= {command_id}
            case "waiting":
                waiting = list(self.waiting)
                insort(waiting, (RANKS[command.priority], command.seq, command_id))
                self.waiting = tuple(waiting)


NO_COMMANDS: Final = CommandIndex()
"""The index of an agent without open commands. Callers must not change it."""
