"""The doctor on real servers: what they tell, what they deny, and fleets that somebody has damaged."""

import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from aism_engine.ops.doctor.collector import DoctorFacts, FactCollector, diagnose
from aism_engine.ops.doctor.findings import Severity
from aism_engine.ops.doctor.keyspace import KeyspaceFacts
from aism_engine.ops.doctor.keyspace_scan import KeyspaceScan, classify
from aism_engine.ops.doctor.permissions import denied_commands, missing_rules, required_commands
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.docs.reading import DOCS, keys_of_code
from tests.support.engine import Client, eventually, launched, plain_client, running_engine
from tests.support.sentinels import MASTER, Site
from tests.support.server import test_server_binary

PAGE: Final = (DOCS / "doctor.md").read_text(encoding="utf-8")


async def examined(server: EmbeddedServer, prefix: str = "aism", most: int = 100_000, **more: Any) -> dict[str, str]:  # noqa: ANN401
    """Examine a server; gives the severity of each finding."""
    settings = RedisSettings(**{"url": server.url, "prefix": prefix} | more)
    client = connect(settings, "")
    try:
        facts = await FactCollector(client, settings).collect(max_keys=most)
    finally:
        await client.aclose()
    return {finding.code: finding.severity.value for finding in diagnose(facts)}


def bad(findings: dict[str, str]) -> dict[str, str]:
    return {code: severity for code, severity in findings.items() if severity in {"warning", "danger"}}


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("append_only", "extra", "expected"),
    [
        (True, (), {}),
        (False, (), {"persistence": "danger"}),
        (False, ("--save", "3600 1"), {"persistence": "danger"}),
        (True, ("--appendfsync", "no"), {"fsync": "danger"}),
        (True, ("--no-appendfsync-on-rewrite", "yes"), {"fsync": "warning"}),
        (True, ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"), {"eviction": "danger"}),
        (True, ("--maxmemory-policy", "volatile-lru"), {"eviction": "warning"}),
        (True, ("--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1"), {"output_buffers": "warning"}),
        (True, ("--replica-read-only", "no"), {"replica_read_only": "warning"}),
        (True, ("--rename-command", "CONFIG", ""), {"not_checked": "warning"}),
        (True, ("--cluster-enabled", "yes"), {"cluster": "danger"}),
    ],
    ids=lambda value: " ".join(value) or "plain" if isinstance(value, tuple) else "",
)
async def test_what_a_server_is_set_to_is_found(
    append_only: bool,  # noqa: FBT001
    extra: tuple[str, ...],
    expected: dict[str, str],
) -> None:
    """Each wrong setting is its own finding, and nothing else is found."""
    with EmbeddedServer(test_server_binary(), append_only=append_only, extra=extra) as server:
        assert bad(await examined(server, most=0)) == expected


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (("CONFIG", "SCAN"), {"not_checked": "warning"}),
        (("SMISMEMBER", "TYPE"), {"not_checked": "warning", "permissions": "danger"}),
        (("LREM",), {"permissions": "danger"}),
        (("EVAL", "EVALSHA"), {"permissions": "danger"}),
        (("EVAL", "EVALSHA", "MULTI", "TIME"), {"permissions": "danger", "not_checked": "warning"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_commands_that_a_server_does_not_have_are_told_of(
    commands: tuple[str, ...], expected: dict[str, str], prefix: str
) -> None:
    """As managed servers take some away: what the engine needs is a danger, what only the doctor does is a warning."""
    gone = [word for command in commands for word in ("--rename-command", command, "")]
    with EmbeddedServer(test_server_binary(), extra=gone) as server:
        async with plain_client(server) as client:
            await client.execute_command("SET", Keys(prefix).state("a-1"), "idle")
        assert bad(await examined(server, prefix)) == expected


@pytest.mark.parametrize("protocol", [2, 3])
async def test_both_protocols_tell_the_same(protocol: int) -> None:
    with EmbeddedServer(test_server_binary()) as server:
        found = await examined(server, protocol=protocol)
        assert bad(found) == {}
        assert len(found) >= len(await examined(server))


async def test_a_replica_is_no_place_for_an_engine() -> None:
    """It is told of on both sides: the replica is none, and the primary takes writes when it is gone."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with (
        EmbeddedServer(test_server_binary(), extra=at_once) as primary,
        EmbeddedServer(test_server_binary()) as replica,
    ):
        async with plain_client(replica) as client, plain_client(primary) as other:
            await client.execute_command("REPLICAOF", "127.0.0.1", primary.port)

            async def follows() -> bool:
                role = await other.execute_command("INFO", "replication")
                return "slave0" in role and role["slave0"]["state"] == "online"

            await eventually(follows)
        assert bad(await examined(replica))["role"] == "danger"
        assert bad(await examined(primary)) == {"replicas": "warning"}
        assert (await examined(primary))["replica_lag"] == "ok"


async def test_sentinels_are_asked(tmp_path: Path) -> None:
    """Three that agree are in order; one that is not there is told of, and is no error."""
    with Site(test_server_binary(), tmp_path, append_fsync="always") as site:
        primary = site.named(site.sentinels[0])
        assert primary is not None
        watched: dict[str, Any] = {"sentinels": tuple(site.addresses), "sentinel_master": MASTER}
        found = await examined(primary, **watched)
        assert (found["sentinels"], found["replicas"]) == ("ok", "danger")  # it writes also when it is cut off
        found = await examined(primary, **watched | {"sentinels": (site.addresses[0], "127.0.0.1:1")})
        assert found["sentinels"] == "warning"


# --- rights -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedServer]:
    """A server whose users are those of these tests."""
    with EmbeddedServer(test_server_binary()) as server:
        yield server


@pytest.fixture
async def boss(own: EmbeddedServer) -> AsyncIterator[Client]:
    async with plain_client(own) as client:
        yield client


@asynccontextmanager
async def user(boss: Client, own: EmbeddedServer, *rules: str) -> AsyncIterator[str]:
    """Make a user with these rights alone; gives the URL to come as that one."""
    name = f"u{secrets.token_hex(4)}"
    await boss.execute_command("ACL", "SETUSER", name, "on", ">secret", "resetchannels", *rules)
    try:
        yield f"redis://{name}:secret@127.0.0.1:{own.port}/0"
    finally:
        await boss.execute_command("ACL", "DELUSER", name)


def all_rules(prefix: str) -> list[str]:
    commands = required_commands(Keys(prefix))
    return missing_rules(commands, commands)


async def missing(url: str, prefix: str) -> list[str]:
    client: Client = Redis.from_url(url, protocol=2)
    commands = required_commands(Keys(prefix))
    try:
        return missing_rules(await denied_commands(client, commands), commands)
    finally:
        await client.aclose()


async def test_each_right_that_is_missing_is_named(own: EmbeddedServer, boss: Client, prefix: str) -> None:
    """Whoever has all but one is told that one, and no other command is blamed."""
    rules = all_rules(prefix)
    assert len(rules) > 60
    asking = ["+multi"]  # what it takes on servers before 7.0, and where scripts are forbidden
    found = {}
    for rule in rules:
        async with user(boss, own, *asking, *(each for each in rules if each != rule)) as url:
            found[rule] = await missing(url, prefix)
    assert {rule: rule in told for rule, told in found.items()} == dict.fromkeys(rules, True)
    blamed = {rule: [each for each in told if each[0] == "+"] for rule, told in found.items() if rule[0] == "+"}
    assert blamed == {rule: [rule] for rule in blamed}


async def test_who_has_all_rights_lacks_none(own: EmbeddedServer, boss: Client, prefix: str) -> None:
    async with user(boss, own, "+multi", *all_rules(prefix)) as url:
        assert await missing(url, prefix) == []
    async with user(boss, own, "+@all", f"~{prefix}:*", f"&{prefix}:*") as url:
        assert await missing(url, prefix) == []


async def test_an_engine_can_work_with_the_rights_that_are_named(
    own: EmbeddedServer, boss: Client, prefix: str
) -> None:
    """The list is complete: with nothing else a whole life is lived, and no command is ever forbidden."""
    async with user(boss, own, *all_rules(prefix)) as url:
        async with launched(own, prefix, redis__url=url, protocol__max_message_bytes=2000) as engine:
            keys = engine.keys
            for number in (1, 2):
                register = {"type": "scribe", "capabilities": ["ack"], "labels": {"n": str(number)}}
                await engine.say(
                    {"id": f"r{number}", "type": "register", "agent_id": f"a-{number}", "payload": register}
                )
                await engine.call("ZADD", keys.heartbeats, 1_800_000_000, f"a-{number}")
            await engine.say(
                {
                    "id": "m1",
                    "type": "message",
                    "agent_id": "a-1",
                    "payload": {"to": "a-2", "content": 1},
                    "reply": True,
                },
                {"id": "m2", "type": "measurement", "agent_id": "a-1", "payload": {"n": 1}},
                {"id": "m3", "type": "message", "agent_id": "a-1", "payload": {"to": "nobody", "content": 1}},
                {"id": "m4", "type": "measurement", "agent_id": "a-1", "payload": {"n": 1}, "pad": "x" * 3000},
                b"{",
            )
            await eventually(lambda: engine.call("LLEN", keys.oversized))
            await engine.ask({"id": "c1", "type": "send", "payload": {"agent_id": "a-1", "command": {"type": "work"}}})
            await engine.replied("c1")
            await engine.call("RPOP", keys.commands("a-1"))
            await engine.say({"type": "result", "agent_id": "a-1", "command_id": "c1", "payload": {}})
            await eventually(lambda: _ended(engine.command, "c1"))
            for number, (kind, payload) in enumerate(
                (
                    ("send", {"selector": "type=scribe", "command": {"type": "work"}}),
                    ("cancel", {"group_id": "q0"}),
                    ("pause", {"all": True}),
                    ("resume", {"all": True}),
                    ("replay", {"dead_letter_id": await _letter(engine.call, keys)}),
                    ("purge", {"until": "9999999999999-0"}),
                    ("forget", {"agent_id": "a-2"}),
                )
            ):
                await engine.ask({"id": f"q{number}", "type": kind, "payload": payload, "reply": True})
                assert "forbidden" not in str(await engine.replied(f"q{number}"))
            await engine.call("PUBLISH", keys.state_changes, '{"agent_id":"a-1","old_state":"x","new_state":"inbox"}')
            await eventually(lambda: engine.call("EXISTS", keys.publication_cursor))
            assert engine.metric("aism_redis_outages_total", outage="noperm") == 0
            assert engine.outage is None
        assert await boss.execute_command("EXISTS", keys.lease) == 0  # it was given back


async def _ended(command: Any, command_id: str) -> bool:  # noqa: ANN401
    return bool((await command(command_id)).get("ended_at"))


async def _letter(call: Any, keys: Keys) -> str:  # noqa: ANN401
    entries = await eventually(lambda: call("XRANGE", keys.dead_letters, "-", "+"))
    return str(entries[0][0].decode())


async def facts_of(url: str, prefix: str) -> DoctorFacts:
    settings = RedisSettings(url=url, prefix=prefix)
    client = connect(settings, "")
    try:
        return await FactCollector(client, settings).collect(max_keys=1000)
    finally:
        await client.aclose()


async def test_what_is_denied_is_told(own: EmbeddedServer, boss: Client, prefix: str) -> None:
    """Who may do what the engine does, and no more, may not see everything: that is a finding, and no error."""
    async with user(boss, own, *all_rules(prefix)) as url:
        facts = await facts_of(url, prefix)
    assert {"INFO", "CONFIG", "keys"} <= {each.partition(":")[0] for each in facts.environment.unchecked}
    assert facts.keyspace is None
    assert {finding.code for finding in diagnose(facts) if finding.severity is Severity.DANGER} == set()


async def test_the_doctor_sees_everything_with_the_rights_that_its_page_names(
    own: EmbeddedServer, boss: Client, prefix: str
) -> None:
    extra = [rule for rules in re.findall(r"`(\+[^`]*)`", PAGE) for rule in rules.split()]
    async with user(boss, own, *all_rules(prefix), *extra) as url:
        await boss.execute_command("SADD", Keys(prefix).index, "a-1")
        await boss.execute_command("SET", Keys(prefix).state("ghost"), "idle")
        facts = await facts_of(url, prefix)
    assert list(facts.environment.unchecked) == []
    assert facts.environment.denied == []


# --- keys -------------------------------------------------------------------------------------------------------------


async def surveyed(client: Client, prefix: str, most: int = 100_000) -> KeyspaceFacts:
    return await KeyspaceScan(client, Keys(prefix), max_keys=most).run()


def test_every_key_of_the_engine_is_known_by_its_name() -> None:
    """What store/keys.py can make is recognised, whatever the prefix; channels are no keys."""
    channels = {
        getattr(Keys("aism"), name) for name in ("responses", "requests", "state_changes", "errors", "measurements")
    }
    for pattern in keys_of_code() - channels:
        for prefix in ("aism", "{a}:b"):
            key = pattern.replace("{", "").replace("}", "").replace("aism:", f"{prefix}:", 1)
            assert classify(Keys(prefix), key) is not None, key
            assert classify(Keys(prefix), f"{key}:more") is None


async def test_a_fleet_at_work_is_in_order(server: EmbeddedServer, prefix: str, redis_client: Client) -> None:
    """Whatever an engine writes, nothing of it is strange, orphaned or for ever."""
    async with running_engine(server, prefix) as engine:
        for number in range(20):
            await engine.say({"id": "r", "type": "register", "agent_id": f"a-{number}", "payload": {"type": "scribe"}})
        await engine.ask(
            {
                "id": "g",
                "type": "send",
                "payload": {"selector": "type=scribe", "command": {"type": "work"}},
                "reply": True,
            }
        )
        await engine.replied("g")
        await engine.say({"type": "result", "agent_id": "a-1", "command_id": "g.a-1", "payload": {}}, b"{")
        await eventually(engine.is_drained)
        found = await surveyed(redis_client, prefix)
    expected = KeyspaceFacts(prefix=prefix, scanned=found.scanned)
    assert found == expected
    assert found.scanned > 60


async def test_what_somebody_has_damaged_is_found(server: EmbeddedServer, prefix: str, redis_client: Client) -> None:
    """Each kind of orphan, by its name."""
    call, keys = redis_client.execute_command, Keys(prefix)
    async with running_engine(server, prefix) as engine:
        await engine.say({"id": "r", "type": "register", "agent_id": "a-1", "payload": {"type": "scribe"}})
        for name in ("c-1", "c-2"):
            payload = {"agent_id": "a-1", "command": {"type": "work"}}
            await engine.ask({"id": name, "type": "send", "payload": payload, "reply": True})
            await engine.replied(name)
    await call("ZREM", keys.deadlines, "command:c-1")
    await call("DEL", keys.command("c-2"))
    await call("ZADD", keys.deadlines, 1, "nonsense", 2, "stay:a-1", 2, "stay:nobody")
    await call("HSET", keys.group("g-1"), "status", "open")
    await call("SET", keys.state("ghost"), "idle")
    await call("SADD", keys.index, "gone")
    await call("LPUSH", keys.request_reply("q-1"), "{}")
    await call("LPUSH", keys.agent_reply("a-1", "m-1"), "{}")
    await call("SET", keys.lease, "1:x")
    await call("SET", keys.inbox("a-1"), "no list")
    await call("SET", f"{prefix}:engine:waiting:a-1", "x")
    await call("ZADD", keys.heartbeats, 1, "no id", 1, "a-1")
    await call("SET", f"{prefix}:blue:engine:epoch", "1:x")
    found = await surveyed(redis_client, prefix)
    assert sorted(found.commands_without_deadline.names) == ["command:c-1", "group:g-1"]
    assert sorted(found.deadlines_without_record.names) == ["command:c-2", "nonsense", "stay:nobody"]
    assert found.unindexed_agents.names == ["ghost"]
    assert found.missing_records.names == ["gone"]
    assert {keys.request_reply("q-1"), keys.agent_reply("a-1", "m-1")} <= set(found.without_expiry.names)
    assert found.lease_without_expiry
    assert found.wrong_type.names == [f"{keys.inbox('a-1')} (string)"]
    assert found.foreign.names == [f"{prefix}:engine:waiting:a-1"]
    assert found.invalid_members.names == ["no id"]
    assert found.fleets_below.names == [f"{prefix}:blue"]
    assert (await surveyed(redis_client, f"{prefix}:blue:deep")).fleets_above == [prefix, f"{prefix}:blue"]


async def test_who_beats_and_is_not_known_is_found(redis_client: Client, prefix: str) -> None:
    """Nobody watches it: it is never given a command, and never lost."""
    keys = Keys(prefix)
    await redis_client.execute_command("SADD", keys.index, "a-1")
    await redis_client.execute_command("ZADD", keys.heartbeats, 1, "a-1", 1, "a-2", 1, "no id")
    found = await surveyed(redis_client, prefix)
    assert (found.heartbeats, found.unindexed_members.names, found.invalid_members.names) == (3, ["a-2"], ["no id"])


async def test_a_fleet_of_the_same_name_in_another_database_is_found(
    own: EmbeddedServer, boss: Client, prefix: str
) -> None:
    """Its keys are apart, but all channels are one: what its agents publish is heard here."""
    beside = Redis.from_url(own.url.replace("/0", "/3"), protocol=2)
    try:
        await beside.set(Keys(prefix).epoch, "1:x")
        await beside.set(Keys("another").epoch, "1:x")
        keyspace = (await facts_of(own.url, prefix)).keyspace
        assert keyspace is not None
        assert keyspace.other_databases == [3]
        keyspace = (await facts_of(own.url.replace("/0", "/3"), prefix)).keyspace
        assert keyspace is not None
        assert keyspace.other_databases == []
        await boss.execute_command("FLUSHALL")
    finally:
        await beside.aclose()


async def test_an_index_of_the_wrong_type_is_one_finding(redis_client: Client, prefix: str) -> None:
    """And the walk goes on."""
    keys = Keys(prefix)
    for key in (keys.index, keys.deadlines, keys.heartbeats, keys.state("a-1")):
        await redis_client.execute_command("LPUSH", key, "x")
    assert (await surveyed(redis_client, prefix)).wrong_type.count == 4


async def test_the_walk_is_bounded(redis_client: Client, prefix: str) -> None:
    """Of more keys than were to be looked at the rest is left, and that is told."""
    await redis_client.mset({Keys(prefix).state(f"a-{number}"): "idle" for number in range(3000)})
    found = await surveyed(redis_client, prefix, most=1000)
    assert found.truncated
    assert found.scanned < 3000


# --- what the engine watches ------------------------------------------------------------------------------------------


async def test_the_engine_tells_of_a_server_that_is_not_safe(prefix: str) -> None:
    """At the start and then by its timer; when it is mended, that is told as well."""
    with EmbeddedServer(test_server_binary(), append_only=False) as server, capture_logs() as logs:
        async with running_engine(server, prefix, sampler__safety_interval=0.05) as engine:
            await eventually(lambda: engine.metric("aism_redis_unsafe", code="persistence") == 1)
            assert engine.metric("aism_redis_unsafe", code="eviction") == 0
            await engine.call("CONFIG", "SET", "appendonly", "yes")
            await eventually(lambda: engine.metric("aism_redis_unsafe", code="persistence") == 0)
    told = [(line["event"], line["code"]) for line in logs if line["event"].startswith(("redis_unsafe", "redis_safe"))]
    assert told == [("redis_unsafe", "persistence"), ("redis_safe", "persistence")]
