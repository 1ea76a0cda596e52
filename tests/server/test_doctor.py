"""The doctor on real servers: what they report, what they deny, and damaged fleets."""

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
from aism_engine.ops.doctor.keyspace_scan import KeyspaceScan
from aism_engine.ops.doctor.known_keys import classify
from aism_engine.ops.doctor.permissions import denied_commands, missing_rules, required_commands
from aism_engine.settings import RedisSettings
from aism_engine.store.client import NamingRedis, connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.docs.reading import DOCS, keys_of_code
from tests.support.engine import Client, Running, eventually, launched, plain_client, running_engine
from tests.support.sentinels import MASTER, SentinelSetup
from tests.support.server import OwnServer

PAGE: Final = (DOCS / "doctor.md").read_text(encoding="utf-8")


async def collect(settings: RedisSettings, max_keys: int = 100_000) -> DoctorFacts:
    client = connect(settings, "")
    try:
        return await FactCollector(client, settings).collect(max_keys=max_keys)
    finally:
        await client.aclose()


async def severities(
    server: EmbeddedServer,
    prefix: str = "aism",
    max_keys: int = 100_000,
    **settings: Any,  # noqa: ANN401
) -> dict[str, str]:
    """Run the doctor, and return the severity of each finding by its code."""
    facts = await collect(RedisSettings(**{"url": server.url, "prefix": prefix} | settings), max_keys)
    return {finding.code: finding.severity.value for finding in diagnose(facts)}


def problems(found: dict[str, str]) -> dict[str, str]:
    return {code: severity for code, severity in found.items() if severity in {"warning", "danger"}}


# --- the server -------------------------------------------------------------------------------------------------------


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
async def test_each_unsafe_setting_is_one_finding(
    append_only: bool,  # noqa: FBT001
    extra: tuple[str, ...],
    expected: dict[str, str],
) -> None:
    with OwnServer(append_only=append_only, append_fsync="everysec", extra=extra) as server:
        assert problems(await severities(server, max_keys=0)) == expected


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (("CONFIG", "SCAN"), {"not_checked": "warning"}),
        (("SISMEMBER", "TYPE"), {"not_checked": "warning", "permissions": "danger"}),
        (("LREM",), {"permissions": "danger"}),
        (("EVAL", "EVALSHA"), {"permissions": "danger"}),
        (("EVAL", "EVALSHA", "MULTI", "TIME"), {"permissions": "danger", "not_checked": "warning"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_disabled_commands_are_reported(commands: tuple[str, ...], expected: dict[str, str], prefix: str) -> None:
    """As on managed servers: a command of the engine is a danger, one that only the doctor uses a warning."""
    disabled = [word for command in commands for word in ("--rename-command", command, "")]
    with OwnServer(extra=disabled) as server:
        async with plain_client(server) as client:
            await client.execute_command("SET", Keys(prefix).state("a-1"), "idle")
        assert problems(await severities(server, prefix)) == expected


async def test_both_protocol_versions_give_the_same_findings() -> None:
    with OwnServer() as server:
        found = [await severities(server, protocol=protocol) for protocol in (2, 3)]
    assert [problems(each) for each in found] == [{}, {}]
    assert found[0].keys() == found[1].keys()


async def test_replica_is_a_danger() -> None:
    """Its primary has a warning, since it accepts writes without the replica."""
    immediate_sync = ("--repl-diskless-sync-delay", "0")
    with (
        OwnServer(extra=immediate_sync) as primary,
        OwnServer() as replica,
    ):
        async with plain_client(replica) as client, plain_client(primary) as other:
            await client.execute_command("REPLICAOF", "127.0.0.1", primary.port)

            async def is_online() -> bool:
                replication = await other.execute_command("INFO", "replication")
                return "slave0" in replication and replication["slave0"]["state"] == "online"

            await eventually(is_online)
        assert problems(await severities(replica))["role"] == "danger"
        found = await severities(primary)
        assert (problems(found), found["replica_lag"]) == ({"replicas": "warning"}, "ok")


async def test_sentinels_are_queried(tmp_path: Path) -> None:
    """Three that agree are ok. One that does not answer is a finding, and not an error."""
    with SentinelSetup(tmp_path) as sentinels:
        primary = sentinels.wait_whole()
        watched: dict[str, Any] = {"sentinels": tuple(sentinels.addresses), "sentinel_master": MASTER}
        found = await severities(primary, **watched)
        assert (found["sentinels"], found["replicas"]) == ("ok", "danger")  # it accepts writes without a replica
        watched["sentinels"] = (sentinels.addresses[0], "127.0.0.1:1")
        assert (await severities(primary, **watched))["sentinels"] == "warning"


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Iterator[EmbeddedServer]:
    """A server whose users belong to these tests."""
    with OwnServer() as server:
        yield server


@pytest.fixture
async def admin(own: EmbeddedServer) -> AsyncIterator[Client]:
    async with plain_client(own) as client:
        yield client


@asynccontextmanager
async def user(admin: Client, own: EmbeddedServer, *rules: str) -> AsyncIterator[str]:
    """Create a user with these permissions only, and yield its URL."""
    name = f"u{secrets.token_hex(4)}"
    await admin.execute_command("ACL", "SETUSER", name, "on", ">secret", "resetchannels", *rules)
    try:
        yield f"redis://{name}:secret@127.0.0.1:{own.port}/0"
    finally:
        await admin.execute_command("ACL", "DELUSER", name)


def all_rules(prefix: str) -> list[str]:
    commands = required_commands(Keys(prefix))
    return missing_rules(commands, commands)


async def missing(url: str, prefix: str) -> list[str]:
    commands = required_commands(Keys(prefix))
    async with Redis.from_url(url, protocol=2) as client:
        return missing_rules(await denied_commands(client, commands), commands)


async def test_every_missing_permission_is_named(own: EmbeddedServer, admin: Client, prefix: str) -> None:
    """For a user that lacks one rule that rule is reported, and no other command."""
    rules = all_rules(prefix)
    assert len(rules) > 60
    for rule in rules:
        others = [each for each in rules if each != rule]
        async with user(admin, own, "+multi", *others) as url:  # MULTI is how servers before 7.0 are asked
            found = await missing(url, prefix)
        assert rule in found
        assert [each for each in found if each[0] == "+"] == [rule] or rule[0] != "+"


async def test_complete_permissions_lack_nothing(own: EmbeddedServer, admin: Client, prefix: str) -> None:
    for rules in (["+multi", *all_rules(prefix)], ["+@all", f"~{prefix}:*", f"&{prefix}:*"]):
        async with user(admin, own, *rules) as url:
            assert await missing(url, prefix) == []


async def test_engine_works_with_the_named_permissions_only(own: EmbeddedServer, admin: Client, prefix: str) -> None:
    """The rules are complete: with nothing else the engine does everything once, and no command is denied."""
    async with user(admin, own, *all_rules(prefix)) as url:
        async with launched(own, prefix, redis__url=url, protocol__max_message_bytes=2000) as engine:
            await use_everything(engine)
            assert engine.metric("aism_redis_outages_total", outage="noperm") == 0
            assert engine.refusal is None
        assert await admin.execute_command("EXISTS", Keys(prefix).lease) == 0  # the lease was released


async def use_everything(engine: Running) -> None:
    """Make the engine use each of its keys and commands once."""
    keys = engine.keys
    for agent_id in ("a-1", "a-2"):
        register = {"type": "scribe", "capabilities": ["ack"], "labels": {"name": agent_id}}
        await engine.say({"id": "r", "type": "register", "agent_id": agent_id, "payload": register})
        await engine.call("ZADD", keys.heartbeats, 1_800_000_000, agent_id)
    measurement = {"type": "measurement", "agent_id": "a-1", "payload": {"n": 1}}
    message = {"type": "message", "agent_id": "a-1", "payload": {"to": "a-2", "content": 1}, "reply": True}
    await engine.say(
        {"id": "m1", **message},
        {"id": "m2", **measurement},
        {"id": "m3", **message, "payload": {"to": "nobody", "content": 1}},
        {"id": "m4", **measurement, "pad": "x" * 3000},
        b"{",
    )
    await eventually(lambda: engine.call("LLEN", keys.oversized))
    await engine.ask({"id": "c1", "type": "send", "payload": {"agent_id": "a-1", "command": {"type": "work"}}})
    await engine.replied("c1")
    await engine.call("RPOP", keys.commands("a-1"))
    await engine.say({"type": "result", "agent_id": "a-1", "command_id": "c1", "payload": {}})

    async def has_ended() -> bool:
        return bool((await engine.command("c1")).get("ended_at"))

    await eventually(has_ended)
    dead_letters = await eventually(lambda: engine.call("XRANGE", keys.dead_letters, "-", "+"))
    requests = (
        ("send", {"selector": "type=scribe", "command": {"type": "work"}}),
        ("cancel", {"group_id": "q0"}),
        ("pause", {"all": True}),
        ("resume", {"all": True}),
        ("replay", {"dead_letter_id": dead_letters[0][0].decode()}),
        ("purge", {"until": "9999999999999-0"}),
        ("forget", {"agent_id": "a-2"}),
    )
    for number, (kind, payload) in enumerate(requests):
        await engine.ask({"id": f"q{number}", "type": kind, "payload": payload, "reply": True})
        assert "forbidden" not in str(await engine.replied(f"q{number}"))
    await engine.call("PUBLISH", keys.state_changes, '{"agent_id":"a-1","old_state":"x","new_state":"inbox"}')
    await eventually(lambda: engine.call("EXISTS", keys.publication_cursor))


async def test_denied_reads_are_findings(own: EmbeddedServer, admin: Client, prefix: str) -> None:
    """The permissions of the engine do not let the doctor read everything; that is not an error."""
    async with user(admin, own, *all_rules(prefix)) as url:
        facts = await collect(RedisSettings(url=url, prefix=prefix))
    assert {"INFO", "CONFIG", "keys"} <= {each.partition(":")[0] for each in facts.environment.unchecked}
    assert facts.keyspace is None
    assert [finding.code for finding in diagnose(facts) if finding.severity is Severity.DANGER] == []


async def test_doctor_reads_everything_with_the_permissions_of_its_page(
    own: EmbeddedServer, admin: Client, prefix: str
) -> None:
    extra = [rule for rules in re.findall(r"`(\+[^`]*)`", PAGE) for rule in rules.split()]
    async with user(admin, own, *all_rules(prefix), *extra) as url:
        await admin.execute_command("SADD", Keys(prefix).index, "a-1")
        await admin.execute_command("SET", Keys(prefix).state("ghost"), "idle")
        facts = await collect(RedisSettings(url=url, prefix=prefix))
    assert (list(facts.environment.unchecked), facts.environment.denied) == ([], [])


# --- the keys ---------------------------------------------------------------------------------------------------------


async def scan(client: Client, prefix: str, max_keys: int = 100_000) -> KeyspaceFacts:
    named = NamingRedis(connection_pool=client.connection_pool)
    return await KeyspaceScan(named, Keys(prefix), max_keys=max_keys).run()


def test_every_key_of_the_engine_is_classified() -> None:
    """Whatever the prefix. Channels are not keys."""
    channels = {
        getattr(Keys("aism"), name) for name in ("responses", "requests", "state_changes", "errors", "measurements")
    }
    for pattern in keys_of_code() - channels:
        for prefix in ("aism", "{a}:b"):
            key = pattern.replace("{", "").replace("}", "").replace("aism:", f"{prefix}:", 1)
            assert classify(Keys(prefix), key) is not None, key
            assert classify(Keys(prefix), f"{key}:more") is None


async def test_working_fleet_has_no_findings(server: EmbeddedServer, prefix: str, redis_client: Client) -> None:
    """Everything that an engine writes is known, belongs together and expires where it should."""
    async with running_engine(server, prefix) as engine:
        for number in range(20):
            await engine.say({"id": "r", "type": "register", "agent_id": f"a-{number}", "payload": {"type": "scribe"}})
        payload = {"selector": "type=scribe", "command": {"type": "work"}}
        await engine.ask({"id": "g", "type": "send", "payload": payload, "reply": True})
        await engine.replied("g")
        await engine.say({"type": "result", "agent_id": "a-1", "command_id": "g.a-1", "payload": {}}, b"{")
        await eventually(engine.is_drained)
        found = await scan(redis_client, prefix)
    assert found == KeyspaceFacts(prefix=prefix, scanned=found.scanned)
    assert found.scanned > 60


async def test_each_kind_of_damage_is_found(server: EmbeddedServer, prefix: str, redis_client: Client) -> None:
    call, keys = redis_client.execute_command, Keys(prefix)
    async with running_engine(server, prefix) as engine:
        await engine.say({"id": "r", "type": "register", "agent_id": "a-1", "payload": {"type": "scribe"}})
        for name in ("c-1", "c-2"):
            payload = {"agent_id": "a-1", "command": {"type": "work"}}
            await engine.ask({"id": name, "type": "send", "payload": payload, "reply": True})
            await engine.replied(name)
    await call("ZREM", keys.deadlines, "command:c-1")
    await call("DEL", keys.command("c-2"))
    await call("ZADD", keys.deadlines, 0, "nonsense", 2, "stay:a-1", 2, "stay:nobody")
    await call("HSET", keys.group("g-1"), "status", "open")
    await call("SET", keys.state("ghost"), "idle")
    await call("SADD", keys.index, "gone")
    await call("LPUSH", keys.request_reply("q-1"), "{}")
    await call("LPUSH", keys.agent_reply("a-1", "m-1"), "{}")
    await call("SET", keys.lease, "1:x")
    await call("SET", keys.inbox("a-1"), "not a list")
    await call("SET", f"{prefix}:engine:waiting:a-1", "x")
    await call("ZADD", keys.heartbeats, 1, "no id", 1, "a-1", 0, "a-2")
    await call("SET", f"{prefix}:blue:engine:epoch", "1:x")
    found = await scan(redis_client, prefix)
    assert sorted(found.commands_without_deadline.names) == ["command:c-1", "group:g-1"]
    assert sorted(found.deadlines_without_record.names) == ["command:c-2", "nonsense", "stay:nobody"]
    assert found.unindexed_agents.names == ["ghost"]
    assert found.missing_records.names == ["gone"]
    assert {keys.request_reply("q-1"), keys.agent_reply("a-1", "m-1")} <= set(found.without_expiry.names)
    assert found.lease_without_expiry
    assert found.wrong_type.names == [f"{keys.inbox('a-1')} (string)"]
    assert found.foreign.names == [f"{prefix}:engine:waiting:a-1"]
    assert (found.heartbeats, found.invalid_members.names, found.unindexed_members.names) == (3, ["no id"], ["a-2"])
    assert found.fleets_below.names == [f"{prefix}:blue"]
    assert (await scan(redis_client, f"{prefix}:blue:deep")).fleets_above == [prefix, f"{prefix}:blue"]


async def test_a_missing_leader_and_lost_agents_are_found(
    server: EmbeddedServer, prefix: str, redis_client: Client
) -> None:
    """Before the first engine there is nothing to miss."""
    found = await severities(server, prefix)
    assert (found["leader"], found["lost_agents"]) == ("note", "ok")
    async with running_engine(server, prefix) as engine:
        for number in range(3):
            await engine.say({"type": "register", "agent_id": f"a-{number}", "payload": {"type": "scribe"}})
        await eventually(lambda: engine.record("a-2"))
        found = await severities(server, prefix)
        assert (found["leader"], found["lost_agents"]) == ("ok", "ok")
    await redis_client.hset(Keys(prefix).agent("a-1"), "liveness", "lost")
    facts = await collect(RedisSettings(url=server.url, prefix=prefix))
    summaries = {finding.code: (finding.severity.value, finding.summary) for finding in diagnose(facts)}
    assert summaries["leader"][0] == "danger"
    assert summaries["leader"][1].startswith("no engine has led for ")
    assert summaries["lost_agents"] == ("warning", "1 of 3 agents lost: a-1")


async def test_same_prefix_in_another_database_is_found(own: EmbeddedServer, prefix: str) -> None:
    """The keys are separate, but the databases of a server share all channels."""
    other_url = own.url.replace("/0", "/3")
    async with Redis.from_url(other_url, protocol=2) as other:
        await other.set(Keys(prefix).epoch, "1:x")
        await other.set(Keys("another").epoch, "1:x")
        for url, expected in ((own.url, [3]), (other_url, [])):
            keyspace = (await collect(RedisSettings(url=url, prefix=prefix))).keyspace
            assert keyspace is not None
            assert keyspace.other_databases == expected
        await other.flushdb()


async def test_scan_continues_behind_keys_of_the_wrong_type(server: EmbeddedServer, prefix: str) -> None:
    keys, client = Keys(prefix), connect(RedisSettings(url=server.url), "test")
    for key in (keys.index, keys.deadlines, keys.heartbeats, keys.state("a-1")):
        await client.execute_command("LPUSH", key, "x")
    assert (await scan(client, prefix)).wrong_type.count == 4
    await client.aclose()


async def test_scan_is_bounded(redis_client: Client, prefix: str) -> None:
    """It reports that keys are left."""
    await redis_client.mset({Keys(prefix).state(f"a-{number}"): "idle" for number in range(3000)})
    found = await scan(redis_client, prefix, max_keys=1000)
    assert found.truncated
    assert found.scanned < 3000


# --- the engine's own checks ------------------------------------------------------------------------------------------


async def test_engine_reports_an_unsafe_server(prefix: str) -> None:
    """At its start and on a timer, and also when the danger is gone."""
    with OwnServer(append_only=False) as server, capture_logs() as logs:
        async with running_engine(server, prefix, sampler__safety_interval=0.05) as engine:
            await eventually(lambda: engine.metric("aism_redis_unsafe", code="persistence") == 1)
            assert engine.metric("aism_redis_unsafe", code="eviction") == 0
            await engine.call("CONFIG", "SET", "appendonly", "yes")
            await eventually(lambda: engine.metric("aism_redis_unsafe", code="persistence") == 0)
    changes = [(line["event"], line["code"]) for line in logs if line["event"] in {"redis_unsafe", "redis_safe"}]
    assert changes == [("redis_unsafe", "persistence"), ("redis_safe", "persistence")]
