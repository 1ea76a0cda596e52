"""What decisions have written: their effects, in dictionaries instead of Redis."""

import json
from collections import defaultdict
from typing import Any

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord, AgentSnapshot, decode_agent
from aism_engine.domain.protocol.codec import encode


class Written:
    """Everything that was written."""

    def __init__(self) -> None:
        self.snapshots: dict[str, AgentSnapshot] = {}
        """What agents have written to Redis themselves."""
        self.records: dict[str, bytes] = {}
        self.index: set[str] = set()
        self.states: dict[str, str] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.measurements: dict[str, dict[str, float]] = {}
        self.command_records: dict[str, dict[str, str | bytes]] = {}
        self.ttls: dict[str, float] = {}
        """Seconds for which the record of an ended command is kept."""
        self.lists: dict[str, list[bytes]] = defaultdict(list)
        """The commands of each agent, the newest first."""
        self.inboxes: dict[str, list[bytes]] = defaultdict(list)
        self.mail: dict[str, list[bytes]] = defaultdict(list)
        """Held messages of each agent, the newest first."""
        self.replies: dict[tuple[str | None, str], bytes] = {}
        self.deadlines: dict[str, float] = {}
        self.group_records: dict[str, dict[str, str | bytes]] = {}
        self.fanout: list[bytes] = []
        self.held: dict[str, str] = {}
        self.request_replies: dict[str, bytes] = {}
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.facts: list[fx.Fact] = []
        self.stream: dict[str, fx.DeadLetter] = {}
        """The dead letters, by their ids in the stream."""
        self._dead_lettered = 0

    def record(self, agent_id: str = "a") -> AgentRecord:
        """Read the record of an agent back."""
        return decode_agent(agent_id, self.records[agent_id])

    def write(self, effect: fx.Effect) -> None:  # noqa: C901, PLR0912, PLR0915 - one case for each effect
        match effect:
            case fx.SaveAgent(agent):
                self.records[agent.agent_id] = encode(agent)
            case fx.IndexAgent(agent_id):
                self.index.add(agent_id)
            case fx.SetState(agent_id, state):
                self.states[agent_id] = state
            case fx.SaveMetadata(agent_id, fields):
                self.metadata[agent_id] = self.metadata.get(agent_id, {}) | fields
            case fx.SaveMeasurements(agent_id, values):
                self.measurements[agent_id] = self.measurements.get(agent_id, {}) | values
            case fx.ForgetAgent(agent_id):
                everything: tuple[dict[str, Any], ...] = (
                    *(self.records, self.states, self.metadata, self.measurements),
                    *(self.lists, self.inboxes, self.mail, self.snapshots),
                )
                for part in everything:
                    part.pop(agent_id, None)
                self.index.discard(agent_id)
            case fx.SaveCommand(command_id, saved, ttl_s):
                self.command_records[command_id] = self.command_records.get(command_id, {}) | saved
                if ttl_s is not None:
                    self.ttls[command_id] = ttl_s
            case fx.PushCommand(agent_id, body):
                self.lists[agent_id].insert(0, body)
            case fx.ReleaseCommand(agent_id, command_id):
                self.lists[agent_id].insert(0, as_bytes(self.command_records[command_id]["body"]))
            case fx.PushCancel(agent_id, body):
                self.lists[agent_id].append(body)
            case fx.WithdrawCommand(agent_id, command_id, notice):
                body = as_bytes(self.command_records[command_id]["body"])
                left = [each for each in self.lists[agent_id] if each != body]
                if len(left) == len(self.lists[agent_id]) and notice is not None:
                    left.append(notice)
                self.lists[agent_id] = left
            case fx.SaveGroup(group_id, fields, _):
                self.group_records[group_id] = self.group_records.get(group_id, {}) | fields
            case fx.AddFanoutTargets(bodies):
                self.fanout += bodies
            case fx.SaveHold(fields):
                self.held = fields
            case fx.SaveRequestReply(request_id, body):
                self.request_replies[request_id] = body
            case fx.RemoveDeadLetters(dead_letter_ids):
                for dead_letter_id in dead_letter_ids:
                    self.stream.pop(dead_letter_id, None)
            case fx.DeliverMail(agent_id, body):
                self.inboxes[agent_id].insert(0, body)
            case fx.DeferMail(agent_id, body):
                self.mail[agent_id].insert(0, body)
            case fx.ReleaseMail(agent_id):
                self.inboxes[agent_id] = self.mail.pop(agent_id, []) + self.inboxes[agent_id]
            case fx.SendReply(agent_id, message_id, body):
                self.replies[agent_id, message_id] = body
            case fx.SetDeadline(member, at):
                self.deadlines[member] = at
            case fx.ClearDeadline(member):
                self.deadlines.pop(member, None)
            case fx.Publish(channel, event):
                self.published.append((channel, json.loads(encode(event))))
            case fx.Fact():
                self.facts.append(effect)
            case fx.DeadLetter():
                self._dead_lettered += 1
                self.stream[f"{self._dead_lettered}-0"] = effect
            case fx.ExpectScore(agent_id, score):
                assert self.snapshots[agent_id].score == score
            case fx.ExpectDeadline(member, at):
                assert self.deadlines[member] == at


def as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
