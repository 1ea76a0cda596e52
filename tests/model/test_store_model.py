"""The store against a model: after every step that is applied to both, the contents of Redis equal the dict."""

import asyncio
import itertools
from typing import Any, ClassVar, Final

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from aism_engine.clock import SystemClock
from aism_engine.domain.decision import Decision
from aism_engine.errors import ServerUnavailableError
from aism_engine.settings import RedisSettings
from aism_engine.store.batch import SHARED, Batch, Bounds, SourceTrim
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from aism_engine.store.scripts import CommitCode, LeaseCode
from aism_engine.store.store import Store
from tests.model.reading import READS, value_of
from tests.model.redis_model import Attempt, ExpectedReply, RedisModel, Scores, digest, touching
from tests.model.strategies import (
    agents,
    limits,
    members,
    messages,
    positions,
    scores,
    some_decisions,
    some_message_ids,
)

BOUNDS: Final = Bounds(audit=10_000, dead_letters=10_000, oversized=2)
_EXAMPLES: Final = 200
_STEPS: Final = 40

_prefixes = itertools.count(1)


class StoreMachine(RuleBasedStateMachine):
    """Each rule is one step of the engine, of another leader, of an agent or of any other client."""

    url: ClassVar[str] = ""
    attempts: Bundle[Attempt] = Bundle("attempts")
    """Commits that were sent. Each may arrive again at any time."""
    peeks: Bundle[SourceTrim] = Bundle("peeks")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.keys = Keys(f"model{next(_prefixes)}")
        self.redis = _client(self.url)
        self.client = connect(RedisSettings(url=self.url), "model")
        self.store = Store(self.client, self.keys, SystemClock())
        self.model = RedisModel(self.keys, BOUNDS)
        self.subscription = self.redis.pubsub(ignore_subscribe_messages=True)
        self.subscription.subscribe(self.keys.state_changes, self.keys.errors, self.keys.measurements)
        self.count = 0
        self.token = ""
        self.lead("me")

    def teardown(self) -> None:
        self.subscription.close()
        names = list(self.redis.scan_iter(match=f"{self.keys.prefix}:*", count=1000))
        if names:
            self.redis.delete(*names)
        self.redis.close()
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()

    # --- agents and other clients -------------------------------------------------------------------------------------

    @rule(pushed=st.lists(messages, min_size=1, max_size=3))
    def push(self, pushed: list[bytes]) -> None:
        queue = self.keys.response_queue
        if not isinstance(self.model.values.get(queue, []), list):
            return
        self.redis.lpush(queue, *pushed)
        for message in pushed:
            self.model.get(queue, list).insert(0, message)

    @rule(end=st.sampled_from(["LPOP", "RPOP"]))
    def pop(self, end: str) -> None:
        """Another client pops a message."""
        queue = self.model.values.get(self.keys.response_queue)
        if isinstance(queue, list):
            self.redis.execute_command(end, self.keys.response_queue)
            queue.pop(0 if end == "LPOP" else -1)
            self.model.drop_empty()

    @rule(agent_id=agents, score=scores)
    def beat(self, agent_id: str, score: float) -> None:
        """An agent sends a heartbeat, which may change a score that a commit expects."""
        self._score(self.keys.heartbeats, agent_id, score)

    @rule(member=members, at=scores)
    def move_deadline(self, member: str, at: float) -> None:
        self._score(self.keys.deadlines, member, at)

    @rule(data=st.data(), kind=st.sampled_from(["string", "list", "hash", "zset", "set", "stream", "none"]))
    def replace_key(self, data: st.DataObject, kind: str) -> None:
        """Another client replaces a key by one of any type, or removes it."""
        keys = self.keys
        own = [name(agent) for agent in ("a", "b") for name in (keys.agent, keys.state, keys.commands, keys.inbox)] * 2
        own += [keys.mail("a"), keys.mail("b")]
        own += [keys.metadata("a"), keys.agent_measurements("a"), keys.agent_reply("a", "m1"), keys.command("m1")]
        shared = [keys.response_queue, keys.index, keys.deadlines, keys.heartbeats, keys.audit, keys.dead_letters]
        key = data.draw(st.sampled_from([*own, *shared, keys.request_reply("m1"), keys.oversized]))
        self.redis.delete(key)
        self.model.drop(key)
        match kind:
            case "string":
                self.redis.set(key, b"x")
                self.model.values[key] = b"x"
            case "list":
                self.redis.lpush(key, b"x")
                self.model.values[key] = [b"x"]
            case "hash":
                self.redis.hset(key, b"x", b"y")
                self.model.values[key] = {b"x": b"y"}
            case "zset":
                self.redis.zadd(key, {b"x": 1.0})
                self.model.values[key] = Scores({"x": 1.0})
            case "set":
                self.redis.sadd(key, b"x")
                self.model.values[key] = {b"x"}
            case "stream":
                self.redis.xadd(key, {b"x": b"y"})
                self.model.values[key] = ({b"x": b"y"},)

    # --- leadership ---------------------------------------------------------------------------------------------------

    @rule(holder=st.sampled_from(["me", "another"]))
    def lead(self, holder: str) -> None:
        """The lease expires and a leader takes it. Commits with an older token are fenced from now on."""
        self.redis.delete(self.keys.lease)
        code, self.token = self.loop.run_until_complete(self.store.acquire_lease(holder, 60.0, None))
        number = int((self.model.text(self.keys.epoch) or "0").split(":")[0]) + 1
        assert (code, self.token) == (LeaseCode.TAKEN, f"{number}:{holder}")
        self.model.values[self.keys.epoch] = self.model.values[self.keys.lease] = self.token.encode()
        self.model.values[self.keys.led_at] = self.redis.get(self.keys.led_at)
        self.model.expiring.add(self.keys.lease)

    @rule(attempt=attempts)
    def roll_back_the_ledger(self, attempt: Attempt) -> None:
        """The server loses the newest commits: its ledger names an older one."""
        self.redis.set(self.keys.ledger, attempt.previous)
        self.model.values[self.keys.ledger] = attempt.previous.encode()

    # --- the engine ---------------------------------------------------------------------------------------------------

    @rule(
        target=peeks,
        most=st.integers(1, 4),
        most_bytes=st.sampled_from([1, 60, 10_000]),
        limit=limits,
        skip=st.integers(0, 2),
    )
    def peek(self, most: int, most_bytes: int, limit: int, skip: int) -> Any:  # noqa: ANN401 - a value for the bundle, or none
        """A peek returns the oldest messages within all bounds, and removes none."""
        queue = self.model.queue()
        asking = self.store.peek(
            self.keys.response_queue, max_messages=most, max_bytes=most_bytes, max_message_bytes=limit, skip=skip
        )
        if not isinstance(self.model.values.get(self.keys.response_queue, []), list):
            with pytest.raises(ServerUnavailableError, match="wrong_type"):
                self.loop.run_until_complete(asking)
            return multiple()
        found = self.loop.run_until_complete(asking)
        assert (found.length, found.ledger) == (len(queue), self.model.text(self.keys.ledger))
        rest = queue[skip:]
        if rest and len(rest[0]) > limit:
            assert (found.messages, found.oversized) == ([rest[0][:4096]], digest(rest[0]))
        else:
            assert (found.messages, found.oversized) == (_fitting(rest, most, most_bytes, limit), "")
        return found.trim if found.messages and not skip else multiple()

    @rule(target=attempts, decided=some_decisions, message_ids=some_message_ids, behind=positions)
    def commit(self, decided: tuple[Decision, ...], message_ids: tuple[tuple[str, str], ...], behind: str) -> Attempt:
        """A service without a queue commits."""
        return self._commit(decided, message_ids, behind, None)

    @rule(target=attempts, decided=some_decisions, message_ids=some_message_ids, most=st.integers(1, 4), limit=limits)
    def consume(
        self, decided: tuple[Decision, ...], message_ids: tuple[tuple[str, str], ...], most: int, limit: int
    ) -> Any:  # noqa: ANN401
        """A consumer commits the messages that it has just peeked."""
        if not self.model.queue():
            return multiple()
        asking = self.store.peek(self.keys.response_queue, max_messages=most, max_bytes=10_000, max_message_bytes=limit)
        return self._commit(decided, message_ids, "in step", self.loop.run_until_complete(asking).trim)

    @rule(target=attempts, decided=some_decisions, most=st.integers(1, 4), end=st.sampled_from(["oldest", "newest"]))
    def consume_a_changed_queue(self, decided: tuple[Decision, ...], most: int, end: str) -> Any:  # noqa: ANN401
        """A consumer commits a batch whose oldest or newest message was replaced after the peek."""
        if not self.model.queue():
            return multiple()
        queue = self.keys.response_queue
        taken = self.loop.run_until_complete(
            self.store.peek(queue, max_messages=most, max_bytes=10_000, max_message_bytes=10_000)
        ).trim
        place = -1 if end == "oldest" else -taken.messages
        self.redis.lset(queue, place, b"moved")
        self.model.values[queue][place] = b"moved"
        return self._commit(decided, (), "in step", taken)

    @rule(target=attempts, decided=some_decisions, taken=consumes(peeks), behind=positions)
    def consume_late(self, decided: tuple[Decision, ...], taken: SourceTrim, behind: str) -> Attempt:
        """A consumer commits a batch that it peeked some steps ago."""
        return self._commit(decided, (), behind, taken)

    @rule(attempt=attempts)
    def send_again(self, attempt: Attempt) -> None:
        """A commit arrives again, whatever its first reply was."""
        self._send(attempt)

    def _commit(
        self,
        decided: tuple[Decision, ...],
        message_ids: tuple[tuple[str, str], ...],
        behind: str,
        taken: SourceTrim | None,
    ) -> Attempt:
        self.count += 1
        previous = self.model.text(self.keys.ledger) if behind != "out of step" else "unknown"
        token = {"fenced": "0:nobody", "twin": f"{self.token.partition(':')[0]}:twin"}.get(behind, self.token)
        attempt = Attempt(f"commit-{self.count}", previous, token, decided, message_ids, taken)
        self._send(attempt)
        return attempt

    def _send(self, attempt: Attempt) -> None:
        batch = Batch(self.keys, BOUNDS, attempt.decisions, attempt.message_ids)
        keys, arguments = batch.call(attempt.token, attempt.commit_id, attempt.previous, attempt.taken)
        expected = self.model.commit(attempt)
        sending = self.store.commit(keys, arguments)
        if expected.code is None:
            with pytest.raises(ServerUnavailableError, match="wrong_type"):
                self.loop.run_until_complete(sending)
            return
        reply = self.loop.run_until_complete(sending)
        assert reply.code is expected.code
        if reply.code is CommitCode.WRONG_TYPE:
            self._check_owners(batch, attempt, reply.details, expected)
        elif reply.code is CommitCode.SCORE_MOVED:
            assert tuple(map(batch.decision_of_watch, reply.details)) == expected.moved
        else:
            assert reply.details == []

    def _check_owners(self, batch: Batch, attempt: Attempt, places: list[int], expected: ExpectedReply) -> None:
        """Check that each wrong key is named with all decisions that need it, and that the engine's keys are shared."""
        keys, owners = self.keys, dict[str, set[int]]()
        for number, names in batch.users_of_keys(places).items():
            for name in names:
                owners.setdefault(name, set()).add(number)
        assert owners.keys() == expected.wrong
        ours = {keys.index, keys.heartbeats, keys.deadlines, keys.audit, keys.dead_letters, keys.oversized}
        for key, numbers in owners.items():
            assert numbers - {SHARED} == touching(self.model, attempt.decisions, key)
            assert (SHARED in numbers) == (key in ours)

    # --- invariants ---------------------------------------------------------------------------------------------------

    @invariant()
    def redis_equals_the_model(self) -> None:
        names = [name.decode() for name in self.redis.scan_iter(match=f"{self.keys.prefix}:*", count=1000)]
        pipeline = self.redis.pipeline(transaction=False)
        for name in names:
            pipeline.type(name)
            pipeline.pttl(name)
        answers = pipeline.execute()
        kinds = dict(zip(names, answers[::2], strict=True))
        for name, kind in kinds.items():
            pipeline.execute_command(*READS[kind.decode()][0], name, *READS[kind.decode()][1])
        values = zip(kinds.items(), pipeline.execute(), strict=True)
        assert {name: value_of(kind.decode(), raw) for (name, kind), raw in values} == self.model.values
        assert {name for name, left in zip(names, answers[1::2], strict=True) if left >= 0} == self.model.expiring

    @invariant()
    def published_messages_equal_the_model(self) -> None:
        self.redis.publish(self.keys.errors, b"end of the step")
        published: list[tuple[str, bytes]] = []
        while (message := self.subscription.get_message(timeout=5)) is None or message["data"] != b"end of the step":
            if message is not None:
                published.append((message["channel"].decode(), message["data"]))
        assert published == self.model.published
        self.model.published.clear()

    def _score(self, key: str, member: str, score: float) -> None:
        if isinstance(self.model.values.get(key, Scores()), Scores):
            self.redis.zadd(key, {member: score})
            self.model.get(key, Scores)[member] = score


def test_redis_equals_the_model(server: EmbeddedServer) -> None:
    """After pushes, peeks, commits, replays, commits of another leader, rollbacks and replaced keys.

    Each commit gets the reply of the model, and writes either all of its effects or none.
    """

    class Machine(StoreMachine):
        url = server.url

    bounded = settings(
        max_examples=_EXAMPLES,
        stateful_step_count=_STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(Machine, settings=bounded)


def _client(url: str) -> Any:  # noqa: ANN401 - redis-py's annotations are not reliable
    return Redis.from_url(url, protocol=2, socket_timeout=300)


def _fitting(rest: list[bytes], most: int, most_bytes: int, limit: int) -> list[bytes]:
    """Return the head of a queue within all bounds, and at least the first message if it is not oversized."""
    found: list[bytes] = []
    for message in rest[:most]:
        most_bytes -= len(message)
        if len(message) > limit or (most_bytes < 0 and found):
            break
        found.append(message)
    return found
