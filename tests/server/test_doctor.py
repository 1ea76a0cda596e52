"""The doctor on real servers: what they report, and damaged fleets."""

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.protocol.codec import encode
from aism_engine.errors import ServerUnavailableError
from aism_engine.ops.doctor.collector import diagnose
from aism_engine.ops.doctor.keyspace import KeyspaceFacts
from aism_engine.ops.doctor.keyspace_scan import KeyspaceScan
from aism_engine.ops.doctor.known_keys import classify
from aism_engine.settings import RedisSettings
from aism_engine.store.client import NamingRedis, connect
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.docs.reading import keys_of_code
from tests.support.doctor import collect, problems, severities
from tests.support.engine import Client, eventually, plain_client, running_engine
from tests.support.proxy import FaultProxy
from tests.support.sentinels import MASTER, SentinelSetup
from tests.support.server import OwnServer

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


@pytest.mark.parametrize(
    "start",
    ["GET {prefix}:engine:lease", "SMEMBERS", "EVALSHA", "EXISTS {parent}:engine:epoch"],
    ids=lambda start: start.partition(" ")[0],
)
async def test_an_outage_ends_the_doctor_and_leaves_no_finding_out(
    proxy: FaultProxy, redis_client: Client, prefix: str, start: str
) -> None:
    words = start.format(prefix=f"{prefix}:blue", parent=prefix).encode().split()
    await redis_client.sadd(Keys(f"{prefix}:blue").index, "a")
    rule = proxy.drop_reply(lambda request: list(request[: len(words)]) == words, cut=True)
    with pytest.raises(ServerUnavailableError):
        await collect(RedisSettings(url=proxy.url, prefix=f"{prefix}:blue"))
    assert len(rule.matched) == 1


async def test_an_outage_while_permissions_are_tried_in_a_transaction_has_a_name(
    proxy: FaultProxy, redis_client: Client, prefix: str
) -> None:
    """The doctor uses a transaction if the user may not call scripts."""
    await redis_client.execute_command(
        "ACL", "SETUSER", prefix, "on", ">secret", "allkeys", "+@all", "-eval", "-evalsha"
    )
    proxy.drop_reply(lambda request: request[0] == b"MULTI", cut=True)
    try:
        with pytest.raises(ServerUnavailableError):
            await collect(RedisSettings(url=proxy.url.replace("//", f"//{prefix}:secret@"), prefix=prefix))
    finally:
        await redis_client.execute_command("ACL", "DELUSER", prefix)


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
    lost = AgentRecord(agent_id="a-1", state="offline", since=1.0, first_seen_at=1.0, liveness=Liveness.LOST)
    await redis_client.set(Keys(prefix).agent("a-1"), encode(lost))
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
