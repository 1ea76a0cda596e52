"""The permissions that the engine and the doctor need, on real servers."""

import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from redis.asyncio import Redis

from aism_engine.ops.doctor.collector import diagnose
from aism_engine.ops.doctor.findings import Severity
from aism_engine.ops.doctor.permissions import denied_commands, missing_rules, required_commands
from aism_engine.settings import RedisSettings
from aism_engine.store.embedded import EmbeddedServer
from aism_engine.store.keys import Keys
from tests.docs.reading import DOCS
from tests.support.doctor import collect
from tests.support.engine import Client, Running, eventually, launched, plain_client
from tests.support.server import OwnServer

PAGE: Final = (DOCS / "doctor.md").read_text(encoding="utf-8")


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
