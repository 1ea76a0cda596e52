"""Model of Redis as a dict, and of what each effect and commit does to it. Written from the docs, not from the Lua."""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha1
from typing import Any, Final, NamedTuple

import msgspec

from aism_engine.domain import effects as fx
from aism_engine.domain.decision import Decision
from aism_engine.store.batch import Bounds, SourceTrim
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import CommitCode


class Scores(dict[str, float]):
    """A sorted set."""


KINDS: Final = {"string": bytes, "list": list, "hash": dict, "zset": Scores, "set": set, "stream": tuple}
"""Python type of each Redis type. A stream is a tuple of entries; a list begins at its head."""
ANY: Final = "any"


class Attempt(NamedTuple):
    """Arguments of a commit. It may be sent again at any time."""

    commit_id: str
    previous: str
    token: str
    decisions: tuple[Decision, ...]
    message_ids: tuple[tuple[str, str], ...]
    taken: SourceTrim | None


class ExpectedReply(NamedTuple):
    """Reply that a commit must get. `code` is None if the source is not a list: the store reports this as an outage."""

    code: CommitCode | None
    wrong: frozenset[str] = frozenset()
    """The keys of the wrong type."""
    moved: tuple[int, ...] = ()
    """Number of the decision of each precondition that does not hold."""


class RedisModel:
    """Keys with their values, published messages, and the keys that expire."""

    def __init__(self, keys: Keys, bounds: Bounds) -> None:
        self.keys = keys
        self.bounds = bounds
        self.values: dict[str, Any] = {}
        self.expiring: set[str] = set()
        self.published: list[tuple[str, bytes]] = []

    # --- keys ---------------------------------------------------------------------------------------------------------

    def get(self, key: str, kind: type) -> Any:  # noqa: ANN401
        """Return the value, created empty if missing. `drop_empty` removes it again if it stays empty."""
        return self.values.setdefault(key, kind())

    def drop(self, key: str) -> None:
        self.values.pop(key, None)
        self.expiring.discard(key)

    def drop_empty(self) -> None:
        for key in [key for key, value in self.values.items() if not value and not isinstance(value, bytes)]:
            self.drop(key)

    def text(self, key: str) -> str:
        value = self.values.get(key, b"")
        return value.decode() if isinstance(value, bytes) else ""

    def queue(self) -> list[bytes]:
        """Return the response queue, oldest first; empty if the key is not a list."""
        value = self.values.get(self.keys.response_queue, [])
        return value[::-1] if isinstance(value, list) else []

    # --- commit -------------------------------------------------------------------------------------------------------

    def commit(self, attempt: Attempt) -> ExpectedReply:
        """Apply the commit if its conditions hold, and return its reply."""
        reply = self._check(attempt)
        if reply.code is CommitCode.APPLIED:
            self._apply(attempt)
        return reply

    def _check(self, attempt: Attempt) -> ExpectedReply:  # noqa: PLR0911 - one return for each code, in their order
        keys, queue, taken = self.keys, self.queue(), attempt.taken
        is_list = isinstance(self.values.get(keys.response_queue, []), list)
        ledger = self.text(keys.ledger)
        if ledger == attempt.commit_id:
            return ExpectedReply(CommitCode.REPLAYED)
        if self.text(keys.epoch) != attempt.token:
            return ExpectedReply(CommitCode.FENCED)
        if ledger != attempt.previous:
            return ExpectedReply(CommitCode.OUT_OF_STEP)
        if not is_list:
            return ExpectedReply(None)
        if taken is not None:
            batch = queue[: taken.messages]
            if len(batch) < taken.messages or (digest(batch[0]), digest(batch[-1])) != (taken.oldest, taken.newest):
                return ExpectedReply(CommitCode.SOURCE_MOVED)
        needed = self._needed(attempt)
        wrong = {key for key, kind in needed.items() if kind != ANY and self._kind(key) not in {"none", kind}}
        if wrong:
            return ExpectedReply(CommitCode.WRONG_TYPE, frozenset(wrong))
        moved = tuple(
            number
            for number, effect in _numbered(attempt.decisions)
            if isinstance(effect, fx.ExpectScore | fx.ExpectDeadline) and not self._holds(effect)
        )
        if moved:
            return ExpectedReply(CommitCode.SCORE_MOVED, moved=moved)
        return ExpectedReply(CommitCode.APPLIED)

    def _holds(self, effect: fx.ExpectScore | fx.ExpectDeadline) -> bool:
        if isinstance(effect, fx.ExpectScore):
            return bool(self.values.get(self.keys.heartbeats, {}).get(effect.agent_id) == effect.score)
        return bool(self.values.get(self.keys.deadlines, {}).get(effect.member) == effect.at)

    def _kind(self, key: str) -> str:
        kind = type(self.values.get(key))
        return next((name for name, each in KINDS.items() if each is kind), "none")

    def _needed(self, attempt: Attempt) -> dict[str, str]:
        """Return the type that each key must have; `ANY` if no effect needs a certain one."""
        needed: dict[str, str] = {}
        for _, effect in _numbered(attempt.decisions):
            for key, kind in self.touched(effect).items():
                if kind != ANY or key not in needed:
                    needed[key] = kind
        if self._entry(attempt) is not None:
            needed[self.keys.audit] = "stream"
        if attempt.taken is not None and attempt.taken.oversized:
            needed[self.keys.oversized] = "list"
        return needed

    def touched(self, effect: fx.Effect) -> dict[str, str]:
        """Return the keys that an effect reads or writes, with the type that each must have."""
        find = _TOUCHED.get(type(effect))
        return find(self, effect) if find else {}

    def _apply(self, attempt: Attempt) -> None:
        keys, taken = self.keys, attempt.taken
        self.values[keys.ledger] = attempt.commit_id.encode()
        published: dict[str, list[tuple[str, bytes]]] = {}
        for _, effect in _numbered(attempt.decisions):
            if isinstance(effect, fx.Publish):
                channel = getattr(keys, effect.channel)
                published.setdefault(channel, []).append((channel, msgspec.json.encode(effect.event)))
            elif type(effect) in _APPLY:
                _APPLY[type(effect)](self, effect)
        for channel in (keys.state_changes, keys.errors, keys.measurements):
            self.published += published.get(channel, [])
        entry = self._entry(attempt)
        if entry is not None:
            self.values[keys.audit] = (*self.values.get(keys.audit, ()), entry)
        if taken is not None:
            queue = self.values[keys.response_queue]
            if taken.oversized:
                self.get(keys.oversized, list).insert(0, queue[-1])
                del self.values[keys.oversized][self.bounds.oversized :]
            del queue[len(queue) - taken.messages :]
        self.drop_empty()

    def _entry(self, attempt: Attempt) -> dict[bytes, bytes] | None:
        facts = [effect for _, effect in _numbered(attempt.decisions) if isinstance(effect, fx.Fact)]
        mentioned = {
            (fact.agent_id, fact.cause) for fact in facts if fact.by == "agent" and fact.event != "dead_letter_added"
        }
        message_ids = [each for each in attempt.message_ids if each not in mentioned]
        if not facts and not message_ids:
            return None
        entry = {
            b"commit": attempt.commit_id.encode(),
            b"epoch": attempt.token.split(":")[0].encode(),
            b"facts": msgspec.json.encode(facts),
        }
        return entry | ({b"message_ids": msgspec.json.encode(message_ids)} if message_ids else {})

    # --- effects ------------------------------------------------------------------------------------------------------

    def _hash(self, key: str, fields: dict[str, Any]) -> None:
        self.get(key, dict).update((name.encode(), _bytes(value)) for name, value in fields.items())

    def _push(self, key: str, body: bytes, keep: int | None = None) -> None:
        self.get(key, list).insert(0, body)
        del self.values[key][keep or len(self.values[key]) :]

    def _overtake(self, key: str, body: bytes) -> None:
        self.get(key, list).append(body)

    def _save_agent(self, effect: fx.SaveAgent) -> None:
        key = self.keys.agent(effect.agent.agent_id)
        self.drop(key)
        self.values[key] = msgspec.json.encode(effect.agent)

    def _set_state(self, effect: fx.SetState) -> None:
        self.drop(self.keys.state(effect.agent_id))
        self.values[self.keys.state(effect.agent_id)] = effect.state.encode()

    def _forget(self, effect: fx.ForgetAgent) -> None:
        for key in self._owned(effect.agent_id):
            self.drop(key)
        self.get(self.keys.index, set).discard(effect.agent_id.encode())
        self.get(self.keys.heartbeats, Scores).pop(effect.agent_id, None)

    def _save_command(self, effect: fx.SaveCommand) -> None:
        key = self.keys.command(effect.command_id)
        self._hash(key, effect.fields)
        if effect.ttl_s is not None:
            self.expiring.add(key)

    def _withdraw(self, effect: fx.WithdrawCommand) -> None:
        key = self.keys.commands(effect.agent_id)
        queued = self.values.get(key, [])
        left = [body for body in queued if body != self._body(effect.command_id)]
        self.values[key] = left
        self.drop_empty()
        if len(left) == len(queued) and effect.notice is not None:
            self._overtake(key, effect.notice)

    def _release(self, effect: fx.ReleaseCommand) -> None:
        if (body := self._body(effect.command_id)) is not None:
            self._push(self.keys.commands(effect.agent_id), body)

    def _release_mail(self, effect: fx.ReleaseMail) -> None:
        for body in reversed(self.values.pop(self.keys.mail(effect.agent_id), [])):
            self._push(self.keys.inbox(effect.agent_id), body)

    def _body(self, command_id: str) -> bytes | None:
        found: bytes | None = self.values.get(self.keys.command(command_id), {}).get(b"body")
        return found

    def _save_group(self, effect: fx.SaveGroup) -> None:
        key = self.keys.group(effect.group_id)
        self._hash(key, effect.fields)
        if effect.ttl_s is not None:
            self.expiring.add(key)

    def _add_fanout_targets(self, effect: fx.AddFanoutTargets) -> None:
        for body in effect.bodies:
            self._push(self.keys.fanout, body)

    def _save_request_reply(self, effect: fx.SaveRequestReply) -> None:
        key = self.keys.saved_reply(effect.request_id)
        self.drop(key)
        self.values[key] = effect.body
        self.expiring.add(key)

    def _send_reply(self, effect: fx.SendReply) -> None:
        key = self._reply(effect.agent_id, effect.message_id)
        self._push(key, effect.body)
        self.expiring.add(key)

    def _add_dead_letter(self, dead_letter: fx.DeadLetter) -> None:
        fields = {name: getattr(dead_letter, name) for name in ("code", "reason", "source", "raw", "digest", "size")}
        if dead_letter.agent_id is not None:
            fields["agent_id"] = dead_letter.agent_id
        entry = {name.encode(): _bytes(value) for name, value in fields.items()}
        self.values[self.keys.dead_letters] = (*self.values.get(self.keys.dead_letters, ()), entry)

    def _owned(self, agent_id: str) -> list[str]:
        keys = self.keys
        owned = (keys.agent, keys.state, keys.metadata, keys.commands, keys.inbox, keys.mail, keys.agent_measurements)
        return [name(agent_id) for name in owned]

    def _reply(self, agent_id: str | None, message_id: str) -> str:
        keys = self.keys
        return keys.request_reply(message_id) if agent_id is None else keys.agent_reply(agent_id, message_id)


_APPLY: Final[dict[type, Callable[[RedisModel, Any], None]]] = {
    fx.SaveAgent: RedisModel._save_agent,
    fx.IndexAgent: lambda model, effect: model.get(model.keys.index, set).add(effect.agent_id.encode()),
    fx.SetState: RedisModel._set_state,
    fx.SaveMetadata: lambda model, effect: model._hash(model.keys.metadata(effect.agent_id), effect.fields),
    fx.SaveMeasurements: lambda model, effect: model._hash(
        model.keys.agent_measurements(effect.agent_id), effect.values
    ),
    fx.ForgetAgent: RedisModel._forget,
    fx.SaveCommand: RedisModel._save_command,
    fx.PushCommand: lambda model, effect: model._push(model.keys.commands(effect.agent_id), effect.body),
    fx.PushCancel: lambda model, effect: model._overtake(model.keys.commands(effect.agent_id), effect.body),
    fx.ReleaseCommand: RedisModel._release,
    fx.WithdrawCommand: RedisModel._withdraw,
    fx.SaveGroup: RedisModel._save_group,
    fx.AddFanoutTargets: RedisModel._add_fanout_targets,
    fx.SaveHold: lambda model, effect: model._hash(model.keys.holds, effect.fields),
    fx.SaveRequestReply: RedisModel._save_request_reply,
    fx.DeliverMail: lambda model, effect: model._push(model.keys.inbox(effect.agent_id), effect.body),
    fx.DeferMail: lambda model, effect: model._push(model.keys.mail(effect.agent_id), effect.body),
    fx.ReleaseMail: RedisModel._release_mail,
    fx.SendReply: RedisModel._send_reply,
    fx.SetDeadline: lambda model, effect: model.get(model.keys.deadlines, Scores).update({effect.member: effect.at}),
    fx.ClearDeadline: lambda model, effect: model.get(model.keys.deadlines, Scores).pop(effect.member, None),
    fx.DeadLetter: RedisModel._add_dead_letter,
}


_TOUCHED: Final[dict[type, Callable[[RedisModel, Any], dict[str, str]]]] = {
    fx.SaveAgent: lambda model, effect: {model.keys.agent(effect.agent.agent_id): "string"},
    fx.IndexAgent: lambda model, _effect: {model.keys.index: "set"},
    fx.SetState: lambda model, effect: {model.keys.state(effect.agent_id): "string"},
    fx.SaveMetadata: lambda model, effect: {model.keys.metadata(effect.agent_id): "hash"},
    fx.SaveMeasurements: lambda model, effect: {model.keys.agent_measurements(effect.agent_id): "hash"},
    fx.ForgetAgent: lambda model, effect: {
        **dict.fromkeys(model._owned(effect.agent_id), ANY),
        model.keys.index: "set",
        model.keys.heartbeats: "zset",
    },
    fx.SaveCommand: lambda model, effect: {model.keys.command(effect.command_id): "hash"},
    fx.PushCommand: lambda model, effect: {model.keys.commands(effect.agent_id): "list"},
    fx.PushCancel: lambda model, effect: {model.keys.commands(effect.agent_id): "list"},
    fx.ReleaseCommand: lambda model, effect: {
        model.keys.commands(effect.agent_id): "list",
        model.keys.command(effect.command_id): "hash",
    },
    fx.WithdrawCommand: lambda model, effect: {
        model.keys.commands(effect.agent_id): "list",
        model.keys.command(effect.command_id): "hash",
    },
    fx.SaveGroup: lambda model, effect: {model.keys.group(effect.group_id): "hash"},
    fx.AddFanoutTargets: lambda model, _effect: {model.keys.fanout: "list"},
    fx.SaveHold: lambda model, _effect: {model.keys.holds: "hash"},
    fx.SaveRequestReply: lambda model, effect: {model.keys.saved_reply(effect.request_id): "string"},
    fx.DeliverMail: lambda model, effect: {model.keys.inbox(effect.agent_id): "list"},
    fx.DeferMail: lambda model, effect: {model.keys.mail(effect.agent_id): "list"},
    fx.ReleaseMail: lambda model, effect: {
        model.keys.inbox(effect.agent_id): "list",
        model.keys.mail(effect.agent_id): "list",
    },
    fx.SendReply: lambda model, effect: {model._reply(effect.agent_id, effect.message_id): "list"},
    fx.SetDeadline: lambda model, _effect: {model.keys.deadlines: "zset"},
    fx.ClearDeadline: lambda model, _effect: {model.keys.deadlines: "zset"},
    fx.ExpectDeadline: lambda model, _effect: {model.keys.deadlines: "zset"},
    fx.ExpectScore: lambda model, _effect: {model.keys.heartbeats: "zset"},
    fx.DeadLetter: lambda model, _effect: {model.keys.dead_letters: "stream"},
}


def digest(message: bytes) -> str:
    return f"{sha1(message[:4096], usedforsecurity=False).hexdigest()}:{len(message)}"


def touching(model: RedisModel, decisions: Sequence[Decision], key: str) -> set[int]:
    """Return the numbers of the decisions that touch a key."""
    return {number for number, effect in _numbered(decisions) if key in model.touched(effect)}


def _numbered(decisions: Iterable[Decision]) -> list[tuple[int, fx.Effect]]:
    return [(number, effect) for number, decision in enumerate(decisions) for effect in decision.effects]


def _bytes(value: str | bytes | float) -> bytes:
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else repr(value)).encode()
