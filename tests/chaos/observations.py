"""What is left after a trial: what Redis holds, and the history of commits in its append-only file.

The file shows writes that nothing else shows, such as a measurement applied twice. Each script is one transaction in
it, in the order of execution, so that it also shows which epoch was the newest at each commit.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import hiredis

from aism_engine.store.keys import Keys
from tests.chaos.records import AgentRecord, Message, Request


class Fact(NamedTuple):
    """A line of the audit, and its position."""

    position: int
    event: str
    by: str
    cause: str
    agent_id: str
    old_state: str
    new_state: str
    command_id: str


class DeadLetter(NamedTuple):
    raw: bytes
    code: str
    size: int


class Commit(NamedTuple):
    """One run of the commit script, from the append-only file."""

    commit_id: str
    newest: int | None
    """The newest epoch at that time; None where the file begins after it was taken."""
    claimed: int | None
    """The epoch in its audit entry; None where it wrote none."""
    measured: tuple[tuple[str, int], ...]
    """The measurements that it wrote: agent, and number within that agent's."""


@dataclass
class Observations:
    """Everything on which the verdict is based."""

    agents: list[AgentRecord] = field(default_factory=list)
    wrong_type: frozenset[str] = frozenset()
    """Agents whose state key has the wrong type."""
    publishers: frozenset[str] = frozenset()
    """Agents that only publish."""
    invalid: list[Message] = field(default_factory=list)
    """Messages that cannot be decoded."""
    requests: list[Request] = field(default_factory=list)
    """Requests that address an agent with an exact model."""
    work_requests: list[Request] = field(default_factory=list)
    """Requests that address workers."""
    taken: Counter[str] = field(default_factory=Counter)
    """How often workers took each command."""
    succeeded: set[str] = field(default_factory=set)
    """The commands of which a worker has reported success."""
    facts: list[Fact] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    """The epochs of the audit entries, in order."""
    entries: list[str] = field(default_factory=list)
    """The commit ids of the audit entries, in order."""
    dead_letters: list[DeadLetter] = field(default_factory=list)
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
    has_all_commits: bool = True
    """False where the server was a replica: its file begins with a snapshot."""
    complaints: list[str] = field(default_factory=list)
    """Errors that engines logged, and unexpected exits."""


async def lengths(read: Any, keys: Keys) -> dict[str, int]:  # noqa: ANN401 - how to run a command
    """Return the lengths of what must be empty in the end."""
    return {
        "responses": await read("LLEN", keys.response_queue),
        "requests": await read("LLEN", keys.request_queue),
        "fanout": await read("LLEN", keys.fanout),
        "deadlines": await read("ZCARD", keys.deadlines),
    }


async def collect(client: Any, keys: Keys, observed: Observations) -> None:  # noqa: ANN401
    """Read everything that Redis holds."""
    for _, fields in await client.xrange(keys.audit):
        observed.epochs.append(int(fields[b"epoch"]))
        observed.entries.append(fields[b"commit"].decode())
        for fact in json.loads(fields[b"facts"]):
            words = (fact.get(name, "") for name in Fact._fields[1:])
            observed.facts.append(Fact(len(observed.facts), *words))
    for _, fields in await client.xrange(keys.dead_letters):
        observed.dead_letters.append(DeadLetter(fields[b"raw"], fields[b"code"].decode(), int(fields[b"size"])))
    for agent in observed.agents:
        agent_id = agent.agent_id
        observed.records[agent_id] = _texts(await client.hgetall(keys.agent(agent_id)))
        if agent_id not in observed.wrong_type:
            observed.states[agent_id] = (await client.get(keys.state(agent_id)) or b"").decode()
        measured = _texts(await client.hgetall(keys.agent_measurements(agent_id)))
        observed.measurements[agent_id] = {name: float(value) for name, value in measured.items()}
        inbox = [each for key in (keys.mail, keys.inbox) for each in await client.lrange(key(agent_id), 0, -1)]
        observed.inboxes[agent_id] = [json.loads(body)["id"] for body in reversed(inbox)]
        observed.left[f"commands of {agent_id}"] = await client.llen(keys.commands(agent_id))
    request_ids = {request.request_id for request in (*observed.requests, *observed.work_requests)}
    for command_id in request_ids | {fact.command_id for fact in observed.facts if fact.command_id}:
        observed.commands[command_id] = _texts(await client.hgetall(keys.command(command_id)))
    for request_id in request_ids:
        replies = await client.lrange(keys.request_reply(request_id), 0, -1)
        observed.replies[request_id] = [json.loads(reply) for reply in replies]
        observed.groups[request_id] = _texts(await client.hgetall(keys.group(request_id)))
    observed.left |= await lengths(client.execute_command, keys)


def commits(folder: Path, keys: Keys) -> Iterator[Commit]:
    """Read the commits from the append-only file, in the order of execution."""
    newest = None
    head, _, tail = keys.agent_measurements("").encode().partition(b"::")
    for block in _transactions(folder):
        commit_id, claimed, measured = "", None, []
        for words in block:
            name, key = words[0].upper(), words[1]
            if name == b"SET" and key == keys.epoch.encode():
                newest = int(words[2].partition(b":")[0])
            elif name == b"SET" and key == keys.ledger.encode():
                commit_id = words[2].decode()
            elif name == b"XADD" and key == keys.audit.encode():
                claimed = int(words[words.index(b"epoch") + 1])
            elif name == b"HSET" and key.startswith(head + b":") and key.endswith(b":" + tail):
                agent_id = key[len(head) + 1 : -len(tail) - 1].decode()
                measured.append((agent_id, int(float(words[words.index(b"last") + 1]))))
        if commit_id:
            yield Commit(commit_id, newest, claimed, tuple(measured))


def _transactions(folder: Path) -> Iterator[list[list[bytes]]]:
    """Read the commands from the append-only file, grouped by transaction. An incomplete one at the end is ignored."""
    folder /= "appendonlydir"
    manifest = (folder / "appendonly.aof.manifest").read_text()  # the folder may hold files that are no longer valid
    block: list[list[bytes]] | None = None
    for entry in (text.split() for text in manifest.splitlines()):
        if entry[-2:] != ["type", "i"]:
            continue
        reader = hiredis.Reader()
        reader.feed((folder / entry[1]).read_bytes())
        while (words := reader.gets()) is not False:
            name = words[0].upper()
            if name == b"MULTI":
                block = []
            elif name == b"EXEC":
                yield block or []
                block = None
            elif block is not None:
                block.append(words)
            elif len(words) > 1:
                yield [words]


def _texts(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
