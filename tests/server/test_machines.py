"""State machines on a real server: reloads, and stays across takeovers."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from structlog.testing import capture_logs

from aism_engine.policy_loader import load_machines
from aism_engine.settings import MachinesSettings
from aism_engine.store.embedded import EmbeddedServer
from tests.support.engine import Reader, Running, eventually, plain_client, running_engine

Write: TypeAlias = Callable[[str], Mapping[str, object]]

SHIFT = """\
[machine]
name = "shift"
version = 1
initial = "off"
on_register = "off"

[states.off]
to = ["on"]

[states.on]
to = ["off", "home"]

[states.home]
to = ["off"]
"""
SHORT = SHIFT.replace('"home"]', '"home"]\nmax_stay = 0.6\nafter_max_stay = "off"')


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the machine file, and return the settings that use it."""

    def write(text: str) -> Mapping[str, object]:
        (tmp_path / "shift.toml").write_text(text)
        names = {"default": "shift", "unregistered": "shift", "directory": str(tmp_path)}
        return {f"machines__{name}": value for name, value in names.items()}

    return write


def reload(running: Running, folder: Path) -> None:
    settings = MachinesSettings(directory=str(folder), default="shift", unregistered="shift")
    running.engine.reload_machines(lambda: load_machines(settings))


async def begin(running: Running) -> None:
    """Let an agent register and change to `on`."""
    await running.say(said("register", type="guard"), said("state_transition", target="on"))
    await eventually(partial(is_in, running, "on"))


def said(kind: str, **payload: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"type": kind, "agent_id": "a", "payload": payload}


async def is_in(running: Reader, state: str) -> bool:
    return await running.state("a") == state


async def test_a_reload_applies_all_machines_or_none(
    server: EmbeddedServer, prefix: str, write: Write, tmp_path: Path
) -> None:
    """A file with a problem changes nothing and is logged. A valid one applies at once."""
    async with running_engine(server, prefix, **write(SHIFT)) as running:
        await begin(running)
        write(SHIFT.replace('to = ["off"]', 'to = ["of"]'))
        with capture_logs() as logs:
            reload(running, tmp_path)
        (told,) = logs
        assert (told["event"], told["problems"]) == (
            "machines_refused",
            (f'{tmp_path}/shift.toml:14: [states.home] to: unknown state "of" (did you mean "off"?)',),
        )
        assert running.metric("aism_machine_reloads_total", outcome="refused") == 1
        assert running.engine.checks()["machines"].detail == "shift v1"
        write(SHIFT.replace("= 1", "= 2").replace('"on"', '"at_work"').replace("states.on]", "states.at_work]"))
        reload(running, tmp_path)
        assert running.engine.checks()["machines"].detail == "shift v2"
        await eventually(partial(is_in, running, "off"))
        change = (await running.audit("state_changed", agent_id="a"))[-1]
        assert (change["old_state"], change["source"]) == ("on", "machine")


async def test_a_stay_ends_under_the_next_leader(server: EmbeddedServer, prefix: str, write: Write) -> None:
    """Its deadline is in Redis."""
    settings = write(SHORT)
    async with running_engine(server, prefix, **settings) as running:
        await begin(running)
    async with running_engine(server, prefix, **settings) as running:
        await eventually(partial(is_in, running, "off"))
        change = (await running.audit("state_changed", agent_id="a"))[-1]
        assert (change["source"], change["by"]) == ("max_stay", "engine")


async def test_a_queued_declaration_takes_precedence_over_the_end_of_a_stay(
    server: EmbeddedServer, prefix: str, write: Write
) -> None:
    """Although no engine ran when the stay ended."""
    settings = write(SHORT)
    async with running_engine(server, prefix, **settings) as running:
        await begin(running)
        ((_, ends_at),) = await running.client.zrange(running.keys.deadlines, 0, -1, withscores=True)
    async with plain_client(server) as client:
        reader = Reader(client, prefix)
        await reader.say(json.dumps(said("state_transition", target="home")).encode())

        async def is_over() -> bool:
            return bool((await client.time())[0] > ends_at)

        await eventually(is_over)
    async with running_engine(server, prefix, **settings) as running:
        await eventually(partial(is_in, running, "home"))
        assert await running.audit("stay_exceeded") == []
