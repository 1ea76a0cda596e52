"""Laws of the doctor's checks: facts in, findings out."""

from typing import Any

import pytest

from aism_engine.ops.doctor.collector import CODES, DoctorFacts, diagnose
from aism_engine.ops.doctor.environment import ENVIRONMENT_CHECKS, ConfigFile, EnvironmentFacts, SentinelFacts
from aism_engine.ops.doctor.findings import Checks, Examples, Finding, Severity
from aism_engine.ops.doctor.fleet import FLEET_CHECKS, FleetFacts
from aism_engine.ops.doctor.keyspace import KEYSPACE_CHECKS, KeyspaceFacts
from aism_engine.ops.doctor.permissions import RequiredCommand, missing_rules
from aism_engine.ops.doctor.server import SERVER_CHECKS, ServerFacts
from aism_engine.store.lease import LeaseStatus

OK, NOTE, WARNING, DANGER = Severity
MIB = 1024 * 1024
AOF = {"aof_enabled": 1}
FSYNC = {"appendfsync": "everysec"}
PING = RequiredCommand("PING")
SUBSCRIBE = RequiredCommand("SUBSCRIBE", "&p:events")
SLAVE = {"ip": "10.0.0.2", "port": 6379, "state": "online", "lag": 1}


def evaluate(checks: Checks[Any], code: str, facts: object) -> Finding | None:
    """Return the finding of one check. What is wrong has a fix, and what is right has none."""
    assert code in checks.codes
    result = next((found for found in checks.run(facts) if found.code == code), None)
    if result is not None:
        assert result.summary
        assert result.fix or result.severity in {OK, NOTE}
        assert not (result.fix and result.severity is OK)
    return result


def severity(checks: Checks[Any], code: str, facts: object) -> Severity | None:
    result = evaluate(checks, code, facts)
    return None if result is None else result.severity


def buffers(pubsub: str, *, normal: str = "0") -> dict[str, str]:
    return {"client-output-buffer-limit": f"normal {normal} 0 0 slave 268435456 67108864 60 pubsub {pubsub}"}


@pytest.mark.parametrize(
    ("code", "info", "config", "expected"),
    [
        ("version", {"redis_version": "6.2.14"}, {}, OK),
        ("version", {"redis_version": "7.2.4", "valkey_version": "9.1.2"}, {}, OK),
        ("version", {"redis_version": "10.0.0"}, {}, OK),
        ("version", {"redis_version": "6.0.20"}, {}, DANGER),
        ("version", {"redis_version": "5.0.7"}, {}, DANGER),
        ("version", {}, {}, None),
        ("role", {"role": "master"}, {}, OK),
        ("role", {"role": "slave", "master_host": "h", "master_port": 1}, {}, DANGER),
        ("role", {}, {}, None),
        ("persistence", AOF, {}, OK),
        ("persistence", {}, {"appendonly": "yes"}, OK),
        ("persistence", {"aof_enabled": 0}, {"save": ""}, DANGER),
        ("persistence", {"aof_enabled": 0, "rdb_changes_since_last_save": 7}, {"save": "3600 1"}, DANGER),
        ("persistence", {"aof_enabled": 0}, {}, DANGER),
        ("persistence", {}, {}, None),
        ("fsync", AOF, FSYNC, NOTE),
        ("fsync", AOF, {"appendfsync": "always"}, OK),
        ("fsync", AOF, {"appendfsync": "no"}, DANGER),
        ("fsync", AOF, FSYNC | {"no-appendfsync-on-rewrite": "yes"}, WARNING),
        ("fsync", {"aof_enabled": 0}, FSYNC, None),
        ("fsync", AOF, {}, None),
        ("persistence_status", AOF | {"aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok"}, {}, OK),
        ("persistence_status", AOF | {"aof_last_write_status": "err"}, {}, DANGER),
        ("persistence_status", AOF | {"aof_last_write_status": "ok", "aof_last_bgrewrite_status": "err"}, {}, WARNING),
        ("persistence_status", AOF | {"rdb_last_bgsave_status": "err"}, {}, WARNING),
        ("persistence_status", {"aof_enabled": 0, "rdb_last_bgsave_status": "err"}, {}, DANGER),
        ("persistence_status", {}, {}, None),
        ("eviction", {"maxmemory_policy": "noeviction", "maxmemory": 5}, {}, OK),
        ("eviction", {"maxmemory_policy": "allkeys-lru", "maxmemory": 0}, {}, WARNING),
        ("eviction", {"maxmemory_policy": "allkeys-lru", "maxmemory": 5 * MIB}, {}, DANGER),
        ("eviction", {"maxmemory_policy": "volatile-ttl", "maxmemory": 5 * MIB}, {}, DANGER),
        ("eviction", {}, {}, None),
        ("memory", {"used_memory": 10, "maxmemory": 100}, {}, OK),
        ("memory", {"used_memory": 81, "maxmemory": 100}, {}, WARNING),
        ("memory", {"used_memory": 10, "maxmemory": 0, "total_system_memory": 100}, {}, NOTE),
        ("memory", {"used_memory": 81, "maxmemory": 0, "total_system_memory": 100}, {}, WARNING),
        ("memory", {"used_memory": 10, "maxmemory": 0}, {}, NOTE),
        ("memory", {}, {}, None),
        ("replicas", {"role": "master", "connected_slaves": 0}, {}, NOTE),
        ("replicas", {"role": "master", "connected_slaves": 1}, {"min-replicas-to-write": "0"}, WARNING),
        ("replicas", {"role": "master", "connected_slaves": 1}, {"min-replicas-to-write": "1"}, OK),
        ("replicas", {"role": "master", "connected_slaves": 1}, {}, None),
        ("replicas", {"role": "slave", "connected_slaves": 0}, {}, None),
        ("replica_lag", {"slave0": SLAVE}, {}, OK),
        ("replica_lag", {"slave0": SLAVE, "slave1": SLAVE | {"lag": 11}}, {}, WARNING),
        ("replica_lag", {"slave0": SLAVE | {"state": "wait_bgsave"}}, {}, WARNING),
        ("replica_lag", {"connected_slaves": 0}, {}, None),
        ("replica_read_only", {"role": "master"}, {"replica-read-only": "yes"}, OK),
        ("replica_read_only", {"role": "master"}, {"replica-read-only": "no"}, WARNING),
        ("replica_read_only", {"role": "slave"}, {"replica-read-only": "no"}, DANGER),
        ("replica_read_only", {"role": "master"}, {}, None),
        ("output_buffers", {}, buffers("33554432 8388608 60"), OK),
        ("output_buffers", {}, buffers("32mb 8mb 60"), OK),
        ("output_buffers", {}, buffers("0 0 0"), WARNING),
        ("output_buffers", {}, buffers("33554432 8388608 60", normal="1mb"), WARNING),
        ("output_buffers", {}, buffers("33554432 8388608 60", normal="1gb"), OK),
        ("output_buffers", {}, buffers("1048576 0 0"), WARNING),
        ("output_buffers", {}, buffers("33554432 4096 60"), WARNING),
        ("output_buffers", {}, {"client-output-buffer-limit": "strange"}, None),
        ("output_buffers", {}, {}, None),
        ("clients", {"connected_clients": 80, "maxclients": 100}, {}, OK),
        ("clients", {"connected_clients": 81, "maxclients": 100}, {}, WARNING),
        ("clients", {}, {}, None),
        ("cluster", {"cluster_enabled": 0}, {}, OK),
        ("cluster", {"cluster_enabled": 1}, {}, DANGER),
        ("cluster", {}, {}, None),
    ],
)
def test_checks_of_the_server(
    code: str, info: dict[str, Any], config: dict[str, str], expected: Severity | None
) -> None:
    """What can lose data is a danger. What the server does not report is no finding."""
    assert severity(SERVER_CHECKS, code, ServerFacts(info=info, config=config)) == expected


@pytest.mark.parametrize(
    ("prefix", "expected"), [("{aism}", NOTE), ("x{a}b", NOTE), ("{}aism", DANGER), ("a{b", DANGER)]
)
def test_prefix_on_a_cluster_node_needs_a_hash_tag(prefix: str, expected: Severity) -> None:
    assert (
        severity(SERVER_CHECKS, "cluster", ServerFacts(info={"cluster_enabled": 1}, config={}, prefix=prefix))
        == expected
    )


@pytest.mark.parametrize(("connected", "needed"), [(0, "0"), (1, "0")])
def test_replicas_matter_more_with_sentinels(connected: int, needed: str) -> None:
    """A primary that may be replaced at any moment needs a replica, and must not accept writes without one."""
    info = {"role": "master", "connected_slaves": connected}
    watched = ServerFacts(info=info, config={"min-replicas-to-write": needed}, watched=True)
    assert severity(SERVER_CHECKS, "replicas", watched) is DANGER


@pytest.mark.parametrize(
    ("code", "facts", "expected"),
    [
        ("permissions", {"denied": None}, None),
        ("permissions", {"denied": [], "required": [PING]}, OK),
        ("permissions", {"denied": [PING], "required": [PING]}, DANGER),
        ("permissions", {"denied": [SUBSCRIBE], "required": [SUBSCRIBE]}, WARNING),
        ("clock", {"clock_ahead_s": None}, None),
        ("clock", {"clock_ahead_s": 0.5}, OK),
        ("clock", {"clock_ahead_s": -2.0}, NOTE),
        ("clock", {"clock_ahead_s": -3600.0}, WARNING),
        ("clock", {"clock_ahead_s": 3600.0}, WARNING),
        ("latency", {}, None),
        ("latency", {"round_trips_s": [0.001] * 9 + [0.4]}, OK),
        ("latency", {"round_trips_s": [0.01] * 9}, NOTE),
        ("latency", {"round_trips_s": [0.1] * 9}, WARNING),
        ("latency", {"round_trips_s": [0.001] * 9 + [0.6], "commits_s": [0.001]}, WARNING),
        ("protocol", {"protocol": 2}, OK),
        ("protocol", {"protocol": 3}, NOTE),
        ("not_checked", {}, None),
        ("not_checked", {"unchecked": ["CONFIG: denied"]}, WARNING),
    ],
)
def test_checks_of_the_environment(code: str, facts: dict[str, Any], expected: Severity | None) -> None:
    assert severity(ENVIRONMENT_CHECKS, code, EnvironmentFacts(**facts)) == expected


def sentinel(number: int, primary: str = "10.0.0.1:6379", others: int = 2, error: str = "") -> SentinelFacts:
    return SentinelFacts(address=f"s{number}:26379", primary=primary, others=others, error=error)


@pytest.mark.parametrize(
    ("sentinels", "expected"),
    [
        ([], None),
        ([sentinel(1), sentinel(2), sentinel(3)], OK),
        ([sentinel(1)], OK),
        ([sentinel(1), sentinel(2, "10.0.0.2:6379")], DANGER),
        ([sentinel(1), sentinel(2, error="NOQUORUM")], WARNING),
        ([sentinel(1), sentinel(2, primary="", error="refused")], WARNING),
        ([sentinel(1, others=1), sentinel(2, others=1)], WARNING),
        ([sentinel(1, others=0)], WARNING),
    ],
)
def test_three_sentinels_must_answer_and_agree(sentinels: list[SentinelFacts], expected: Severity | None) -> None:
    assert severity(ENVIRONMENT_CHECKS, "sentinels", EnvironmentFacts(sentinels=sentinels)) == expected


@pytest.mark.parametrize(
    ("known", "summary"),
    [
        (1, "the primary has 1 sentinel: it needs three, so that two of them can agree when one fails"),
        (2, "the primary has 2 sentinels: it needs three, so that two of them can agree when one fails"),
    ],
)
def test_too_few_sentinels_are_counted(known: int, summary: str) -> None:
    finding = evaluate(ENVIRONMENT_CHECKS, "sentinels", EnvironmentFacts(sentinels=[sentinel(1, others=known - 1)]))
    assert finding is not None
    assert finding.summary == summary


@pytest.mark.parametrize(
    ("mode", "has_password", "expected"),
    [(0o600, True, OK), (0o640, True, OK), (0o644, False, OK), (0o644, True, WARNING), (0o666, False, WARNING)],
)
def test_others_cannot_read_the_password(mode: int, has_password: bool, expected: Severity) -> None:  # noqa: FBT001
    file = ConfigFile(path="/etc/aism/engine.toml", mode=mode, has_password=has_password)
    assert severity(ENVIRONMENT_CHECKS, "config_file", EnvironmentFacts(config_file=file)) == expected


FOUND = Examples(count=7, names=["a", "b"])


@pytest.mark.parametrize(
    ("code", "facts", "expected"),
    [
        *((code, {}, OK) for code in KEYSPACE_CHECKS.codes),
        ("prefix", {"fleets_above": ["aism"]}, WARNING),
        ("prefix", {"fleets_below": FOUND}, WARNING),
        ("prefix", {"other_databases": [1, 7]}, WARNING),
        ("foreign_keys", {"foreign": FOUND}, WARNING),
        ("key_types", {"wrong_type": FOUND}, DANGER),
        ("orphaned_agents", {"unindexed_agents": FOUND}, NOTE),
        ("orphaned_agents", {"missing_records": FOUND}, WARNING),
        ("orphaned_commands", {"commands_without_deadline": FOUND}, DANGER),
        ("orphaned_commands", {"truncated": True}, NOTE),
        ("orphaned_commands", {"commands_without_deadline": FOUND, "truncated": True}, DANGER),
        ("orphaned_deadlines", {"deadlines_without_record": FOUND}, WARNING),
        ("no_expiry", {"without_expiry": FOUND}, WARNING),
        ("no_expiry", {"lease_without_expiry": True}, DANGER),
        ("heartbeats", {"invalid_members": FOUND}, NOTE),
        ("heartbeats", {"unindexed_members": FOUND}, NOTE),
        ("heartbeats", {"heartbeats": 7}, OK),
    ],
)
def test_checks_of_the_keys(code: str, facts: dict[str, Any], expected: Severity) -> None:
    assert severity(KEYSPACE_CHECKS, code, KeyspaceFacts(prefix="aism:b", **facts)) == expected


@pytest.mark.parametrize(
    ("code", "facts", "expected"),
    [
        ("leader", {}, None),
        ("leader", {"lease": LeaseStatus("1:me", 900.0, 1000.0)}, OK),
        ("leader", {"lease": LeaseStatus(None, 900.0, 1000.0)}, DANGER),
        ("leader", {"lease": LeaseStatus(None, None, 1000.0)}, NOTE),
        ("lost_agents", {}, None),
        ("lost_agents", {"agents": 9}, OK),
        ("lost_agents", {"agents": 9, "lost": FOUND}, WARNING),
    ],
)
def test_checks_of_the_fleet(code: str, facts: dict[str, Any], expected: Severity | None) -> None:
    assert severity(FLEET_CHECKS, code, FleetFacts(**facts)) == expected


def test_user_without_scripts_is_advised_to_run_the_doctor_again() -> None:
    """Without scripts the other permissions cannot be checked. The digests of scripts are not shown."""
    refused = [
        RequiredCommand("EVAL", arguments=("return 1", "0")),
        RequiredCommand("EVALSHA", arguments=("0" * 40, "0")),
        RequiredCommand("EVALSHA", "~aism:engine:epoch", ("0" * 40, "1", "aism:engine:epoch")),
    ]
    facts = EnvironmentFacts(denied=refused, required=[*refused, PING])
    result = evaluate(ENVIRONMENT_CHECKS, "permissions", facts)
    assert result is not None
    assert result.summary == "the user may not send: EVAL, EVALSHA, EVALSHA aism:engine:epoch"
    assert "+eval +evalsha" in result.fix
    assert "then run the doctor again" in result.fix


def test_examples_are_bounded() -> None:
    """Of any number of names the first few are kept, truncated, and the count."""
    examples = Examples()
    for number in range(1000):
        examples.add(f"{number}" + "x" * 1000)
    assert (examples.count, len(examples.names), max(map(len, examples.names))) == (1000, 5, 120)
    assert str(Examples(7, ["a", "b"])) == "a, b, and 5 more"
    assert KeyspaceFacts(prefix="a").foreign is not KeyspaceFacts(prefix="b").foreign


def test_most_severe_findings_come_first() -> None:
    """Each code occurs at most once."""
    facts = DoctorFacts(
        ServerFacts(info={"aof_enabled": 0, "redis_version": "7.0.0"}, config={}),
        EnvironmentFacts(unchecked=["CONFIG: denied"]),
        keyspace=KeyspaceFacts(prefix="aism"),
    )
    found = diagnose(facts)
    severities = [finding.severity for finding in found]
    assert severities == sorted(severities, key=[DANGER, WARNING, NOTE, OK].index)
    assert len({finding.code for finding in found}) == len(found)
    assert {finding.code for finding in found} <= set(CODES)


def test_server_that_reports_nothing_has_no_findings() -> None:
    """As for a user that may read neither INFO nor CONFIG."""
    assert SERVER_CHECKS.run(ServerFacts(info={}, config={})) == []


GET_LEASE, SET_LEASE, GET_LEDGER, HGET_COMMAND = (
    RequiredCommand(*each)
    for each in (
        *[("GET", "~p:lease"), ("SET", "~p:lease"), ("GET", "~p:ledger")],
        ("HGET", "~p:command:aism-doctor"),
    )
)
XINFO = RequiredCommand("XINFO|STREAM", "~p:audit")
PUBLISH = RequiredCommand("PUBLISH", "&p:events")
NEEDED = [
    *[GET_LEASE, SET_LEASE, GET_LEDGER, PING, XINFO, RequiredCommand("XADD", "~p:audit")],
    *[RequiredCommand("EVALSHA", "~p:audit"), PUBLISH, SUBSCRIBE, HGET_COMMAND],
]


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ([GET_LEASE, GET_LEDGER], ["+get", "~p:ledger"]),
        ([GET_LEASE, SET_LEASE], ["+set", "~p:lease"]),
        ([PING], ["+ping"]),
        ([XINFO], ["+xinfo|stream"]),
        ([PUBLISH, SUBSCRIBE], ["+publish", "+subscribe", "&p:events"]),
        ([HGET_COMMAND], ["+hget", "~p:command:*"]),
        ([GET_LEASE], ["+get", "~p:lease"]),
        ([], []),
    ],
)
def test_denied_commands_become_acl_rules(refused: list[RequiredCommand], expected: list[str]) -> None:
    """Commands before keys before channels. If either can be the reason, both the command and the key."""
    assert missing_rules(refused, NEEDED) == expected
