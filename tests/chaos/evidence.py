"""What is left after a trial: what Redis holds, and what its append-only file tells of the way there.

The file is the better witness. Each script is one transaction in it, in the order in which the server ran them: it
shows writes that nothing else shows (a measurement that was applied twice), and which epoch was the newest at each of
them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aism_engine.store.keys import Keys
from tests.chaos.journal import Asked, Journal, Order, Said


class Fact(NamedTuple):
    """A line of the audit, and where it stands in it."""

    place: int
    event: str
    by: str
    cause: str
    agent_id: str
    old_state: str
    new_state: str
    command_id: str


class Letter(NamedTuple):
    raw: bytes
    code: str
    size: int


class Commit(NamedTuple):
    """One run of the script that writes, as the append-only file has it."""

    commit_id: str
    newest: int | None
    """The epoch that was the newest then; none where the file begins after it was taken."""
    claimed: int | None
    """The epoch that it says it was written under; none where it left no line in the audit."""
    measured: tuple[tuple[str, int], ...]
    """The measurements that it wrote: whose, and the how manieth of that agent."""


@dataclass
class Evidence:
    """Everything that a verdict is made from."""

    journals: list[Journal] = field(default_factory=list)
    wrong_type_keys: frozenset[str] = frozenset()
    voices: frozenset[str] = frozenset()
    garbage: list[Said] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    taken: Counter[str] = field(default_factory=Counter)
    """The foreman's commands that workers had in their hands, and how often."""
    done: set[str] = field(default_factory=set)
    """Those of which a worker has reported success."""
    groups: dict[str, dict[str, str]] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    """Of the entries of the audit, in order."""
    entries: list[str] = field(default_factory=list)
    """The commits that wrote them."""
    letters: list[Letter] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    """What agents read."""
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    measurements: dict[str, dict[str, float]] = field(default_factory=dict)
    inboxes: dict[str, list[str]] = field(default_factory=dict)
    """The ids of the messages, the oldest first: of those that lie there, and then of those that wait."""
    commands: dict[str, dict[str, str]] = field(default_factory=dict)
    replies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    """What lies where nothing should lie any more."""
    commits: list[Commit] = field(default_factory=list)
    from_the_start: bool = True
    """Whether those are all commits. A server that was a replica has begun its file with what it got as a whole."""
    complaints: list[str] = field(default_factory=list)
    """What the engines themselves found wrong, or that they ended."""


async def collect(client: Any, keys: Keys, evidence: Evidence) -> None:  # noqa: ANN401
    """Read all that Redis holds."""
    for _, fields in await client.xrange(keys.audit):
        evidence.epochs.append(int(fields[b"epoch"]))
        evidence.entries.append(fields[b"commit"].decode())
        for fact in json.loads(fields[b"facts"]):
            words = (fact.get(name, "") for name in Fact._fields[1:])
            evidence.facts.append(Fact(len(evidence.facts), *words))
    for _, fields in await client.xrange(keys.dead_letters):
        evidence.letters.append(Letter(fields[b"raw"], fields[b"code"].decode(), int(fields[b"size"])))
    for journal in evidence.journals:
        agent_id = journal.agent_id
        evidence.records[agent_id] = _texts(await client.hgetall(keys.agent(agent_id)))
        if agent_id not in evidence.wrong_type_keys:
            evidence.states[agent_id] = (await client.get(keys.state(agent_id)) or b"").decode()
        measured = _texts(await client.hgetall(keys.agent_measurements(agent_id)))
        evidence.measurements[agent_id] = {name: float(value) for name, value in measured.items()}
        inbox = [each for key in (keys.mail, keys.inbox) for each in await client.lrange(key(agent_id), 0, -1)]
        evidence.inboxes[agent_id] = [json.loads(body)["id"] for body in reversed(inbox)]
        evidence.left[f"commands of {agent_id}"] = await client.llen(keys.commands(agent_id))
    told = {fact.command_id for fact in evidence.facts if fact.command_id}
    for command_id in told | {asked.request_id for asked in evidence.asked}:
        evidence.commands[command_id] = _texts(await client.hgetall(keys.command(command_id)))
    orders = [order.request_id for order in evidence.orders]
    for request_id in (*orders, *(asked.request_id for asked in evidence.asked)):
        replies = await client.lrange(keys.request_reply(request_id), 0, -1)
        evidence.replies[request_id] = [json.loads(reply) for reply in replies]
    for request_id in orders:
        evidence.groups[request_id] = _texts(await client.hgetall(keys.group(request_id)))
    evidence.left["response queue"] = await client.llen(keys.response_queue)
    evidence.left["request queue"] = await client.llen(keys.request_queue)
    evidence.left["fanout"] = await client.llen(keys.fanout)
    evidence.left["deadlines"] = await client.zcard(keys.deadlines)


def commits(folder: Path, keys: Keys) -> Iterator[Commit]:
    """Read the append-only file: every commit in the order in which the server ran them."""
    newest, measures = None, {keys.agent_measurements("").encode().partition(b"::")}
    head, _, tail = measures.pop()
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
    folder /= "appendonlydir"
    manifest = (folder / "appendonly.aof.manifest").read_text()  # other files may lie there: of a past that is void
    listed = [line.split() for line in manifest.splitlines()]
    files = [folder / words[1] for words in listed if words[-2:] == ["type", "i"]]
    block: list[list[bytes]] | None = None
    for file in files:
        for words in _calls(file.read_bytes()):
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


def _calls(data: bytes) -> Iterator[list[bytes]]:
    """Cut the file into calls; what a crash has left half written ends it."""
    at = 0
    while at < len(data):
        end = data.find(b"\r\n", at)
        if data[at : at + 1] != b"*" or end < 0:
            return
        count, at = int(data[at + 1 : end]), end + 2
        words = []
        for _ in range(count):
            end = data.find(b"\r\n", at)
            if end < 0:
                return
            size, at = int(data[at + 1 : end]), end + 2
            words.append(data[at : at + size])
            at += size + 2
        if at > len(data):
            return
        yield words


def _texts(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
