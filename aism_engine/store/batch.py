"""Effects, turned into the keys and arguments of one call of `commit.lua`.

The only place that knows which server command an effect is. Each key remembers the decision that first asked for it, so
that a commit refused because of a key can be decided again without that one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import msgspec

from aism_engine.domain import effects as fx
from aism_engine.domain.decision import Decision
from aism_engine.store.keys import Keys

Argument: TypeAlias = str | bytes | int | float
_MOST_ARGUMENTS: Final = 1000
"""Of one write: a script may put no more than some 8,000 values on its stack."""
OURS: Final = -1
"""The owner of keys that belong to no one decision: the audit, the dead letters, the indexes."""


class SourceTrim(NamedTuple):
    """What a batch was peeked from: it leaves the queue in the commit of its decisions."""

    queue: str
    messages: int
    oldest: str
    newest: str
    oversized: bool = False


class Bounds(NamedTuple):
    """How much is kept: entries of the audit, dead letters, oversized messages."""

    audit: int
    dead_letters: int
    oversized: int


class Batch:
    """One commit, ready to be sent, and sent again: it is the same commit as long as its id is."""

    def __init__(self, keys: Keys, bounds: Bounds) -> None:
        self._keys = keys
        self._bounds = bounds
        self._places: dict[str, int] = {}
        self._types: list[str] = []
        self._owners: list[int] = []
        self._owner = OURS
        self._decisions: list[Decision] = []
        self.facts: list[fx.Fact] = []
        self._heard: list[tuple[str, str]] = []
        self._watches: list[Argument] = []
        self._watch_owners: list[int] = []
        self._strings: dict[int, str] = {}
        self._events: dict[str, list[Argument]] = {}
        self._writes: list[Argument] = []

    def add(self, decisions: Iterable[Decision]) -> None:
        """Add all effects of these decisions, in order."""
        self._decisions = asked = list(decisions)
        for self._owner, decision in enumerate(asked):
            for effect in decision.effects:
                self._WRITERS[type(effect)](self, effect)
        self._owner = OURS

    def hear(self, heard: Iterable[tuple[str, str]]) -> None:
        """Note whose messages these decisions are about, by their ids.

        Where no fact tells of one the audit lists it, so that the next leader knows a second copy, too.
        """
        self._heard = list(heard)

    def call(
        self, token: str, commit_id: str, previous: str, taken: SourceTrim | None
    ) -> tuple[list[str], list[Argument]]:
        """Build KEYS and ARGV of `commit.lua`, once: its header says what they are."""
        told = {
            (fact.agent_id, fact.cause)
            for fact in self.facts
            if fact.by == "agent" and fact.event != "dead_letter_added"
        }
        untold = [each for each in self._heard if each not in told]
        if self.facts or untold:
            entry: list[Argument] = ["commit", commit_id, "epoch", token.partition(":")[0]]
            entry += ("facts", msgspec.json.encode(self.facts))
            if untold:
                entry += ("heard", msgspec.json.encode(untold))
            self._write("XADD", self._place(self._keys.audit, "x"), "MAXLEN", "~", self._bounds.audit, "*", *entry)
        keys = self._keys
        taken = taken or SourceTrim(keys.response_queue, 0, "", "")
        if taken.oversized:
            self._place(keys.oversized, "l")  # so that its type is checked with the others
        head: list[Argument] = [
            token,
            commit_id,
            previous,
            "".join(self._types),
            taken.messages,
            taken.oldest,
            taken.newest,
            self._bounds.oversized if taken.oversized else 0,
            len(self._watch_owners),
            len(self._strings),
            len(self._events),
        ]
        arguments = head + self._watches
        for pair in self._strings.items():
            arguments += pair
        for channel, messages in self._events.items():
            arguments += (channel, len(messages), *messages)
        return [keys.epoch, keys.ledger, taken.queue, keys.oversized, *self._places], arguments + self._writes

    def owners_of_keys(self, places: Iterable[int]) -> dict[str, set[int]]:
        """Find the keys that `commit.lua` names by their places, each with all the decisions that asked for it.

        While all goes well only the first one is noted; the others are found by building each decision again, alone.
        """
        names = list(self._places)
        owners = {names[place - 1]: {self._owners[place - 1]} for place in places}
        for number, decision in enumerate(self._decisions):
            alone = Batch(self._keys, self._bounds)
            alone.add([decision])
            for key in owners.keys() & alone._places.keys():
                owners[key].add(number)
        return owners

    def owner_of_watch(self, number: int) -> int:
        return self._watch_owners[number - 1]

    # --- building ---------------------------------------------------------------------------------------------------

    def _place(self, key: str, letter: str, *, ours: bool = True) -> int:
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self._places) + 1
            self._types.append(letter)
            self._owners.append(OURS if ours else self._owner)
        elif letter != "*":
            self._types[place - 1] = letter
        return place

    def _write(self, command: str, place: int, *arguments: Argument) -> None:
        self._writes += (command, place, len(arguments), *arguments)

    def _hash(self, key: str, fields: dict[str, Any]) -> int:
        place = self._place(key, "h", ours=False)
        writes = self._writes
        writes += ("HSET", place, 2 * len(fields))
        for pair in fields.items():
            writes += pair
        return place

    def _watch(self, place: int, member: str | bytes, score: float) -> None:
        self._watches += (place, member, repr(score))
        self._watch_owners.append(self._owner)

    # --- one for each effect ----------------------------------------------------------------------------------------

    def _save_agent(self, effect: fx.SaveAgent) -> None:
        self._hash(self._keys.agent(effect.agent_id), effect.fields)

    def _index_agent(self, effect: fx.IndexAgent) -> None:
        self._write("SADD", self._place(self._keys.index, "e"), effect.agent_id)

    def _set_state(self, effect: fx.SetState) -> None:
        self._strings[self._place(self._keys.state(effect.agent_id), "s", ours=False)] = effect.state

    def _save_metadata(self, effect: fx.SaveMetadata) -> None:
        self._hash(self._keys.metadata(effect.agent_id), effect.fields)

    def _save_measurements(self, effect: fx.SaveMeasurements) -> None:
        values = {name: repr(value) for name, value in effect.values.items()}
        self._hash(self._keys.agent_measurements(effect.agent_id), values)

    def _forget_agent(self, effect: fx.ForgetAgent) -> None:
        keys, agent_id = self._keys, effect.agent_id
        owned = (keys.agent, keys.state, keys.metadata, keys.commands, keys.inbox, keys.mail, keys.agent_measurements)
        for name in owned:
            place = self._place(name(agent_id), "*", ours=False)
            self._strings.pop(place, None)
            self._write("DEL", place)
        self._write("SREM", self._place(keys.index, "e"), agent_id)
        self._write("ZREM", self._place(keys.heartbeats, "z"), agent_id)

    def _save_silent(self, effect: fx.SaveSilent) -> None:
        place = self._place(self._keys.silent, "z", ours=False)  # people read it, nothing else hangs on it
        pairs = [word for agent_id, since in effect.since.items() for word in (repr(since), agent_id)]
        for command, words in (("ZADD", pairs), ("ZREM", effect.over)):
            for start in range(0, len(words), _MOST_ARGUMENTS):
                self._write(command, place, *words[start : start + _MOST_ARGUMENTS])

    def _save_command(self, effect: fx.SaveCommand) -> None:
        place = self._hash(self._keys.command(effect.command_id), effect.fields)
        if effect.ttl_s is not None:
            self._write("PEXPIRE", place, int(effect.ttl_s * 1000))

    def _push_command(self, effect: fx.PushCommand) -> None:
        self._write("LPUSH", self._place(self._keys.commands(effect.agent_id), "l", ours=False), effect.body)

    def _release_command(self, effect: fx.ReleaseCommand) -> None:
        record = self._place(self._keys.command(effect.command_id), "h", ours=False)
        self._write("RELEASE", self._place(self._keys.commands(effect.agent_id), "l", ours=False), record)

    def _withdraw_command(self, effect: fx.WithdrawCommand) -> None:
        record = self._place(self._keys.command(effect.command_id), "h", ours=False)
        otherwise = () if effect.otherwise is None else (effect.otherwise,)
        self._write("WITHDRAW", self._place(self._keys.commands(effect.agent_id), "l", ours=False), record, *otherwise)

    def _save_group(self, effect: fx.SaveGroup) -> None:
        place = self._hash(self._keys.group(effect.group_id), effect.fields)
        if effect.ttl_s is not None:
            self._write("PEXPIRE", place, int(effect.ttl_s * 1000))

    def _add_fanout_targets(self, effect: fx.AddFanoutTargets) -> None:
        place = self._place(self._keys.fanout, "l")
        for start in range(0, len(effect.bodies), _MOST_ARGUMENTS):
            self._write("LPUSH", place, *effect.bodies[start : start + _MOST_ARGUMENTS])

    def _save_hold(self, effect: fx.SaveHold) -> None:
        self._write("HSET", self._place(self._keys.holds, "h"), "fleet", effect.hold)

    def _save_request_reply(self, effect: fx.SaveRequestReply) -> None:
        place = self._place(self._keys.saved_reply(effect.request_id), "k", ours=False)
        self._write("SET", place, effect.body, "PX", int(effect.ttl_s * 1000))

    def _remove_dead_letters(self, effect: fx.RemoveDeadLetters) -> None:
        self._write("XDEL", self._place(self._keys.dead_letters, "x"), *effect.dead_letter_ids)

    def _deliver_mail(self, effect: fx.DeliverMail) -> None:
        self._write("LPUSH", self._place(self._keys.inbox(effect.agent_id), "l", ours=False), effect.body)

    def _hold_mail(self, effect: fx.HoldMail) -> None:
        self._write("LPUSH", self._place(self._keys.mail(effect.agent_id), "l", ours=False), effect.body)

    def _release_mail(self, effect: fx.ReleaseMail) -> None:
        waiting = self._place(self._keys.mail(effect.agent_id), "l", ours=False)
        self._write("FORWARD", self._place(self._keys.inbox(effect.agent_id), "l", ours=False), waiting)

    def _send_reply(self, effect: fx.SendReply) -> None:
        keys, message_id = self._keys, effect.message_id
        key = (
            keys.request_reply(message_id) if effect.agent_id is None else keys.agent_reply(effect.agent_id, message_id)
        )
        place = self._place(key, "l", ours=False)
        self._write("LPUSH", place, effect.body)
        self._write("PEXPIRE", place, int(effect.ttl_s * 1000))

    def _set_deadline(self, effect: fx.SetDeadline) -> None:
        self._write("ZADD", self._place(self._keys.deadlines, "z"), repr(effect.at), effect.member)

    def _clear_deadline(self, effect: fx.ClearDeadline) -> None:
        self._write("ZREM", self._place(self._keys.deadlines, "z"), _as_read(effect.member))

    def _publish(self, effect: fx.Publish) -> None:
        self._events.setdefault(getattr(self._keys, effect.channel), []).append(effect.body)

    def _record(self, effect: fx.RecordFact) -> None:
        self.facts.append(effect.fact)

    def _add_dead_letter(self, effect: fx.AddDeadLetter) -> None:
        letter = effect.dead_letter
        fields: Sequence[Argument] = (
            *("code", letter.code, "reason", letter.reason, "source", letter.source),
            *("raw", letter.raw, "digest", letter.digest, "size", letter.size),
            *(("agent_id", letter.agent_id) if letter.agent_id is not None else ()),
            *(("replay_of", letter.replay_of) if letter.replay_of is not None else ()),
        )
        place = self._place(self._keys.dead_letters, "x")
        self._write("XADD", place, "MAXLEN", "~", self._bounds.dead_letters, "*", *fields)

    def _expect_score(self, effect: fx.ExpectScore) -> None:
        self._watch(self._place(self._keys.heartbeats, "z"), effect.agent_id, effect.score)

    def _expect_deadline(self, effect: fx.ExpectDeadline) -> None:
        self._watch(self._place(self._keys.deadlines, "z"), _as_read(effect.member), effect.at)

    _WRITERS: ClassVar[dict[type, Callable[["Batch", Any], None]]] = {
        fx.SaveAgent: _save_agent,
        fx.IndexAgent: _index_agent,
        fx.SetState: _set_state,
        fx.SaveMetadata: _save_metadata,
        fx.SaveMeasurements: _save_measurements,
        fx.ForgetAgent: _forget_agent,
        fx.SaveSilent: _save_silent,
        fx.SaveCommand: _save_command,
        fx.PushCommand: _push_command,
        fx.ReleaseCommand: _release_command,
        fx.WithdrawCommand: _withdraw_command,
        fx.SaveGroup: _save_group,
        fx.AddFanoutTargets: _add_fanout_targets,
        fx.SaveHold: _save_hold,
        fx.SaveRequestReply: _save_request_reply,
        fx.RemoveDeadLetters: _remove_dead_letters,
        fx.DeliverMail: _deliver_mail,
        fx.HoldMail: _hold_mail,
        fx.ReleaseMail: _release_mail,
        fx.SendReply: _send_reply,
        fx.SetDeadline: _set_deadline,
        fx.ClearDeadline: _clear_deadline,
        fx.Publish: _publish,
        fx.RecordFact: _record,
        fx.AddDeadLetter: _add_dead_letter,
        fx.ExpectScore: _expect_score,
        fx.ExpectDeadline: _expect_deadline,
    }


def _as_read(member: str) -> bytes:
    """Write a deadline as it was read, though somebody's name for it be no UTF-8: it could not be removed else."""
    return member.encode(errors="surrogateescape")
