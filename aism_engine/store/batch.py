"""One commit: decisions, translated to the keys and arguments of one call of `commit.lua`.

Only this module knows the keys and server commands of each effect. If a commit is refused because of a key, the batch
finds the decisions that use the key, so that the others can be committed without them.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord
from aism_engine.domain.decision import Decision
from aism_engine.store.keys import Keys

Argument: TypeAlias = str | bytes | int | float
SHARED: Final = -1
"""Used instead of a decision's number, for the keys that the whole engine uses."""
_SHARED_KEYS: Final = ("index", "heartbeats", "deadlines", "holds", "fanout", "audit", "dead_letters", "oversized")
"""The keys of the whole engine. `silent` is not one: if its type is wrong, only the decisions that write it fail."""
_ANY_TYPE: Final = "*"
_TYPES: Final = {
    **dict.fromkeys(("LPUSH", "RELEASE", "WITHDRAW", "FORWARD", "OVERTAKE"), "l"),
    **dict.fromkeys(("ZADD", "ZREM"), "z"),
    **dict.fromkeys(("SADD", "SREM"), "e"),
    **dict.fromkeys(("XADD", "XDEL"), "x"),
    **dict.fromkeys(("DEL", "PEXPIRE"), _ANY_TYPE),
    "HSET": "h",
    "SET": "s",
}
"""The type of the key that each command writes, as a letter of `commit.lua`.

RELEASE, WITHDRAW, FORWARD and OVERTAKE are not commands of Redis: `commit.lua` defines them.
"""
_encode_lines: Final = msgspec.json.Encoder().encode_lines
"""Encodes values in JSON, each followed by a line break. A line break in a text is escaped."""
_MAX_ARGUMENTS: Final = 1000
"""Maximum number of arguments of one write: the stack of a script holds about 8,000 values."""


class SourceTrim(NamedTuple):
    """The messages that a commit removes from the tail of the queue they were peeked from."""

    queue: str
    messages: int
    oldest: str
    """Digest of the oldest of them."""
    newest: str
    oversized: bool = False


class Bounds(NamedTuple):
    """Maximum number of audit entries, dead letters and oversized messages that are kept."""

    audit: int
    dead_letters: int
    oversized: int


class Batch:
    """The decisions of one commit, translated to server commands.

    `call` builds the arguments once. They can be sent any number of times, because they contain the id of the commit.
    """

    def __init__(
        self, keys: Keys, bounds: Bounds, decisions: Sequence[Decision], message_ids: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Translate all effects of the decisions, in order.

        `message_ids` has a pair (agent id, message id) for each message that the decisions are about. The audit entry
        must contain each pair, so that the next leader recognizes a duplicate of each message. Some facts contain a
        pair already; the entry lists the others.
        """
        self.keys = keys
        self.bounds = bounds
        self.facts: list[fx.Fact] = []
        self._decisions = decisions
        self._message_ids = message_ids
        self._current = SHARED
        self._key_numbers: dict[str, int] = {}
        self._types: list[str] = []
        self._watches: list[Argument] = []
        self._watch_decisions: list[int] = []
        self._writes: list[Argument] = []
        self._write_count = 0
        self.states: dict[str, str] = {}
        """States of agents to write, by agent id."""
        self.records: dict[str, AgentRecord] = {}
        """Records of agents to write, by agent id. They are encoded when the batch is complete."""
        self._events: dict[fx.Channel, list[object]] = {"state_changes": [], "errors": [], "measurements": []}
        self._translate(decisions)
        self._string_names = [*map(keys.state, self.states), *map(keys.agent, self.records)]

    def _translate(self, decisions: Sequence[Decision]) -> None:
        """Translate all effects. Effects of a state change are the most frequent: no function is called for them."""
        facts, records, states, events = self.facts, self.records, self.states, self._events
        for self._current, decision in enumerate(decisions):
            for effect in decision.effects:
                if type(effect) is fx.SaveAgent:
                    records[effect.agent.agent_id] = effect.agent
                elif type(effect) is fx.SetState:
                    states[effect.agent_id] = effect.state
                elif type(effect) is fx.Fact:
                    facts.append(effect)
                elif type(effect) is fx.Publish:
                    events[effect.channel].append(effect.event)
                else:
                    _WRITERS[type(effect)](self, effect)

    def call(
        self, token: str, commit_id: str, previous_id: str, trim: SourceTrim | None
    ) -> tuple[list[str], list[Argument]]:
        """Build KEYS and ARGV of `commit.lua`, as its header describes them. Call it once: it adds the audit entry."""
        keys = self.keys
        self._write_audit(token, commit_id)
        trim = trim or SourceTrim(keys.response_queue, 0, "", "")
        if trim.oversized:
            self.key(keys.oversized, "l")  # so that its type is checked
        channels = [channel for channel, events in self._events.items() if events]
        arguments: list[Argument] = [
            *(token, commit_id, previous_id, "".join(self._types)),
            *(trim.messages, trim.oldest, trim.newest, self.bounds.oversized if trim.oversized else 0),
            *(len(self._watch_decisions), self._write_count, len(self._string_names), len(channels)),
            *self._watches,
            *self._writes,
            _join_lines(self.states.values(), self.records.values()),
        ]
        for channel in channels:
            events = self._events[channel]
            arguments += (getattr(keys, channel), _join_lines((), events))
        return [keys.epoch, keys.ledger, trim.queue, keys.oversized, *self.names], arguments

    @property
    def names(self) -> list[str]:
        """The keys in the order of KEYS."""
        return [*self._key_numbers, *self._string_names]

    def users_of_keys(self, numbers: Iterable[int]) -> dict[int, list[str]]:
        """Return, for each decision and for `SHARED`, which of the keys with these numbers it uses.

        A batch does not record which decision uses a key. Therefore each decision is translated again, alone.
        """
        names = self.names
        wanted = [names[number - 1] for number in numbers]
        used: dict[int, Collection[str]] = {SHARED: [getattr(self.keys, name) for name in _SHARED_KEYS]}
        for decision_number, decision in enumerate(self._decisions):
            used[decision_number] = Batch(self.keys, self.bounds, [decision]).names
        return {user: found for user, keys in used.items() if (found := [key for key in wanted if key in keys])}

    def decision_of_watch(self, number: int) -> int:
        return self._watch_decisions[number - 1]

    # --- building blocks of the effects -------------------------------------------------------------------------------

    def key(self, name: str, type_code: str) -> int:
        """Return the number of a key. A new key gets the next number. `type_code`: see ARGV[4] of `commit.lua`."""
        number = self._key_numbers.get(name)
        if number is None:
            number = self._key_numbers[name] = len(self._key_numbers) + 1
            self._types.append(type_code)
        elif type_code != _ANY_TYPE:
            self._types[number - 1] = type_code
        return number

    def watch(self, name: str, member: str | bytes, score: float) -> None:
        """Add a precondition: the commit is refused unless the member of the sorted set `name` has this score."""
        self._watches += (self.key(name, "z"), member, repr(score))
        self._watch_decisions.append(self._current)

    def write(self, command: str, name: str, *arguments: Argument) -> None:
        self._writes += (command, self.key(name, _TYPES[command]), len(arguments), *arguments)
        self._write_count += 1

    def write_from(self, command: str, source: str, name: str, *arguments: Argument) -> None:
        """Add one of the commands that commit.lua defines. It reads the key `source`."""
        self.write(command, name, self.key(source, "l" if command == "FORWARD" else "h"), *arguments)

    def write_chunks(self, command: str, name: str, arguments: Sequence[Argument]) -> None:
        for start in range(0, len(arguments), _MAX_ARGUMENTS):
            self.write(command, name, *arguments[start : start + _MAX_ARGUMENTS])

    def set_hash(self, name: str, fields: Mapping[str, Argument], expire_s: float | None = None) -> None:
        self._writes += ("HSET", self.key(name, "h"), 2 * len(fields))
        for pair in fields.items():
            self._writes += pair
        self._write_count += 1
        if expire_s is not None:
            self.write("PEXPIRE", name, int(expire_s * 1000))

    def delete(self, name: str) -> None:
        self.write("DEL", name)

    def _write_audit(self, token: str, commit_id: str) -> None:
        mentioned = {
            (fact.agent_id, fact.cause)
            for fact in self.facts
            if fact.by == "agent" and fact.event != "dead_letter_added"
        }
        message_ids = [each for each in self._message_ids if each not in mentioned]
        if not self.facts and not message_ids:
            return
        entry: list[Argument] = ["commit", commit_id, "epoch", token.partition(":")[0]]
        entry += ("facts", msgspec.json.encode(self.facts))
        if message_ids:
            entry += ("message_ids", msgspec.json.encode(message_ids))
        self.write("XADD", self.keys.audit, "MAXLEN", "~", self.bounds.audit, "*", *entry)


def _forget_agent(batch: Batch, effect: fx.ForgetAgent) -> None:
    keys, agent_id = batch.keys, effect.agent_id
    for name in (keys.agent, keys.state, keys.metadata, keys.commands, keys.inbox, keys.mail, keys.agent_measurements):
        batch.delete(name(agent_id))
    batch.states.pop(agent_id, None)
    batch.records.pop(agent_id, None)
    batch.write("SREM", keys.index, agent_id)
    batch.write("ZREM", keys.heartbeats, agent_id)


def _save_silent(batch: Batch, effect: fx.SaveSilent) -> None:
    scores = [part for agent_id, since in effect.since.items() for part in (repr(since), agent_id)]
    batch.write_chunks("ZADD", batch.keys.silent, scores)
    batch.write_chunks("ZREM", batch.keys.silent, effect.no_longer)


def _withdraw_command(batch: Batch, effect: fx.WithdrawCommand) -> None:
    record, commands = batch.keys.command(effect.command_id), batch.keys.commands(effect.agent_id)
    batch.write_from("WITHDRAW", record, commands, *([] if effect.notice is None else [effect.notice]))


def _save_request_reply(batch: Batch, effect: fx.SaveRequestReply) -> None:
    batch.write("SET", batch.keys.saved_reply(effect.request_id), effect.body, "PX", int(effect.ttl_s * 1000))


def _send_reply(batch: Batch, effect: fx.SendReply) -> None:
    keys, agent_id, message_id = batch.keys, effect.agent_id, effect.message_id
    name = keys.request_reply(message_id) if agent_id is None else keys.agent_reply(agent_id, message_id)
    batch.write("LPUSH", name, effect.body)
    batch.write("PEXPIRE", name, int(effect.ttl_s * 1000))


def _add_dead_letter(batch: Batch, effect: fx.DeadLetter) -> None:
    fields = {name: value for name, value in msgspec.structs.asdict(effect).items() if value is not None}
    bound = ("MAXLEN", "~", batch.bounds.dead_letters)
    batch.write("XADD", batch.keys.dead_letters, *bound, "*", *chain.from_iterable(fields.items()))


def _join_lines(texts: Collection[str], values: Collection[object]) -> bytes:
    """Return texts, and values in JSON, each followed by a line break."""
    lines = "\n".join([*texts, ""]).encode() + _encode_lines(values)
    if lines.count(b"\n") == len(texts) + len(values):
        return lines
    # A state or a `msgspec.Raw` of a handler may contain line breaks. They would shift all later values to other keys.
    each = chain((text.encode() for text in texts), map(msgspec.json.encode, values))
    return b"".join(line.replace(b"\n", b" ") + b"\n" for line in each)


def _member(deadline: str) -> bytes:
    """Encode the name of a deadline to the bytes in Redis. `due_deadlines` decodes invalid UTF-8 to surrogates."""
    return deadline.encode(errors="surrogateescape")


_WRITERS: Final[dict[type, Callable[[Batch, Any], None]]] = {
    fx.IndexAgent: lambda batch, effect: batch.write("SADD", batch.keys.index, effect.agent_id),
    fx.SaveMetadata: lambda batch, effect: batch.set_hash(batch.keys.metadata(effect.agent_id), effect.fields),
    fx.SaveMeasurements: lambda batch, effect: batch.set_hash(
        batch.keys.agent_measurements(effect.agent_id), {name: repr(value) for name, value in effect.values.items()}
    ),
    fx.ForgetAgent: _forget_agent,
    fx.SaveSilent: _save_silent,
    fx.SaveCommand: lambda batch, effect: batch.set_hash(
        batch.keys.command(effect.command_id), effect.fields, effect.ttl_s
    ),
    fx.PushCommand: lambda batch, effect: batch.write("LPUSH", batch.keys.commands(effect.agent_id), effect.body),
    fx.PushCancel: lambda batch, effect: batch.write("OVERTAKE", batch.keys.commands(effect.agent_id), effect.body),
    fx.ReleaseCommand: lambda batch, effect: batch.write_from(
        "RELEASE", batch.keys.command(effect.command_id), batch.keys.commands(effect.agent_id)
    ),
    fx.WithdrawCommand: _withdraw_command,
    fx.SaveGroup: lambda batch, effect: batch.set_hash(batch.keys.group(effect.group_id), effect.fields, effect.ttl_s),
    fx.AddFanoutTargets: lambda batch, effect: batch.write_chunks("LPUSH", batch.keys.fanout, effect.bodies),
    fx.SaveHold: lambda batch, effect: batch.set_hash(batch.keys.holds, effect.fields),
    fx.SaveRequestReply: _save_request_reply,
    fx.RemoveDeadLetters: lambda batch, effect: batch.write("XDEL", batch.keys.dead_letters, *effect.dead_letter_ids),
    fx.DeliverMail: lambda batch, effect: batch.write("LPUSH", batch.keys.inbox(effect.agent_id), effect.body),
    fx.DeferMail: lambda batch, effect: batch.write("LPUSH", batch.keys.mail(effect.agent_id), effect.body),
    fx.ReleaseMail: lambda batch, effect: batch.write_from(
        "FORWARD", batch.keys.mail(effect.agent_id), batch.keys.inbox(effect.agent_id)
    ),
    fx.SendReply: _send_reply,
    fx.SetDeadline: lambda batch, effect: batch.write("ZADD", batch.keys.deadlines, repr(effect.at), effect.member),
    fx.ClearDeadline: lambda batch, effect: batch.write("ZREM", batch.keys.deadlines, _member(effect.member)),
    fx.DeadLetter: _add_dead_letter,
    fx.ExpectScore: lambda batch, effect: batch.watch(batch.keys.heartbeats, effect.agent_id, effect.score),
    fx.ExpectDeadline: lambda batch, effect: batch.watch(batch.keys.deadlines, _member(effect.member), effect.at),
}
