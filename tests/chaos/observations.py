"""What is left after a trial: what Redis holds, and the history of commits in its append-only file.

The file has all writes in the order of execution, so that it shows which epoch was the newest at each commit.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import hiredis
import msgspec

from tests.chaos.agent_model import FAULTY, AgentModel, Sent
from tests.chaos.system import KEYS, Node
from tests.support.engine import Reader

HEAD_BYTES: Final = 4096
"""Of an oversized message, as much as is kept with its dead letter."""


class Fact(msgspec.Struct, frozen=True):
    """One event in the audit."""

    event: str
    cause: str = ""
    by: str = ""
    agent_id: str = ""
    old_state: str = ""
    new_state: str = ""
    command_id: str = ""


@dataclass
class Commit:
    """One run of the commit script, from the append-only file."""

    commit_id: str
    newest: int | None
    """The newest epoch at that time; None where the file begins after it was taken."""
    claimed: int | None = None
    """The epoch in its audit entry; None where it wrote none."""


@dataclass
class Observations:
    """Everything on which the verdict is based."""

    agents: list[AgentModel]
    requests: list[Sent]
    facts: list[Fact] = field(default_factory=list)
    entries: list[tuple[str, int]] = field(default_factory=list)
    """The commit id and the epoch of each audit entry, in order."""
    dead_letters: list[tuple[bytes, int]] = field(default_factory=list)
    """The first bytes of each dead letter, and its size."""
    states: dict[str, str] = field(default_factory=dict)
    """The state keys."""
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    measurements: dict[str, dict[str, float]] = field(default_factory=dict)
    inboxes: dict[str, list[str]] = field(default_factory=dict)
    """The ids of the messages in each inbox, oldest first, followed by those that wait for delivery."""
    commands: dict[str, dict[str, str]] = field(default_factory=dict)
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    replies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    """The lengths of what must be empty in the end."""
    commits: list[Commit] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Errors that engines logged, and unexpected exits."""


async def lengths(read: Any) -> dict[str, int]:  # noqa: ANN401 - how to run a command
    """Return the lengths of what must be empty in the end."""
    return {
        "responses": await read("LLEN", KEYS.response_queue),
        "requests": await read("LLEN", KEYS.request_queue),
        "fanout": await read("LLEN", KEYS.fanout),
        "deadlines": await read("ZCARD", KEYS.deadlines),
    }


async def collect(node: Node, observed: Observations) -> None:
    """Read everything that Redis holds, and its append-only file."""
    client = node.client.client
    reader = Reader(client, KEYS.prefix)
    for _, fields in await client.xrange(KEYS.audit):
        observed.entries.append((fields[b"commit"].decode(), int(fields[b"epoch"])))
        observed.facts += msgspec.json.decode(fields[b"facts"], type=list[Fact])
    for letter in await reader.dead_letters():
        observed.dead_letters.append((letter["raw"][:HEAD_BYTES], int(letter["size"])))
    for agent in observed.agents:
        agent_id = agent.agent_id
        observed.records[agent_id] = await reader.record(agent_id)
        if agent.kind not in FAULTY:
            observed.states[agent_id] = await reader.state(agent_id) or ""
        measured = await client.hgetall(KEYS.agent_measurements(agent_id))
        observed.measurements[agent_id] = {name.decode(): float(value) for name, value in measured.items()}
        inbox = [each for key in (KEYS.mail, KEYS.inbox) for each in await client.lrange(key(agent_id), 0, -1)]
        observed.inboxes[agent_id] = [json.loads(body)["id"] for body in reversed(inbox)]
        listed = [json.loads(body) for body in await client.lrange(KEYS.commands(agent_id), 0, -1)]
        # A `cancel` is no command. It is left if the command ends after the agent has popped for the last time.
        observed.left[f"commands of {agent_id}"] = sum(each["type"] != "cancel" for each in listed)
    for command_id in {fact.command_id for fact in observed.facts if fact.command_id}:
        observed.commands[command_id] = await reader.command(command_id)
    for request_id in (request.id for request in observed.requests):
        replies = await client.lrange(KEYS.request_reply(request_id), 0, -1)
        observed.replies[request_id] = [json.loads(reply) for reply in replies]
        observed.groups[request_id] = await reader.group(request_id)
    observed.left |= await lengths(client.execute_command)
    observed.commits = list(commits(node.folder))


def commits(folder: Path) -> Iterator[Commit]:
    """Read the commits from the append-only file, in the order of execution."""
    newest: int | None = None
    commit: Commit | None = None
    for name, key, *rest in _commands(folder):
        if (name, key) == ("SET", KEYS.epoch):
            newest = int(rest[0].partition(":")[0])
        elif (name, key) == ("SET", KEYS.ledger):  # the first write of each commit
            if commit is not None:
                yield commit
            commit = Commit(rest[0], newest)
        elif commit is not None and (name, key) == ("XADD", KEYS.audit):
            commit.claimed = int(rest[rest.index("epoch") + 1])
    if commit is not None:
        yield commit


def _commands(folder: Path) -> Iterator[list[str]]:
    folder /= "appendonlydir"
    manifest = (folder / "appendonly.aof.manifest").read_text()  # the folder may hold files that are no longer valid
    for entry in (line.split() for line in manifest.splitlines()):
        if entry[-2:] == ["type", "i"]:
            reader = hiredis.Reader(encoding="utf-8", errors="replace")
            reader.feed((folder / entry[1]).read_bytes())
            while (words := reader.gets()) is not False:
                if len(words) > 1:
                    yield words
