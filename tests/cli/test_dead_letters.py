"""Laws of `dead-letters`."""

from functools import partial

import pytest

from aism_engine.cli.output import ProgressLine
from tests.cli.conftest import Call, response
from tests.support.engine import Running, eventually


@pytest.fixture
async def dead_letters(engine: Running) -> dict[str, str]:
    """Three dead letters: their ids by their codes."""
    await engine.say(
        b"no message",
        response("w-0", "result", "never-sent"),
        response("w-1", "message", to="late", content="hi"),
    )

    async def ids_by_code() -> dict[str, str] | None:
        entries = await engine.client.xrange(engine.keys.dead_letters)
        ids = {fields[b"code"].decode(): dead_letter_id.decode() for dead_letter_id, fields in entries}
        return ids if len(ids) == 3 else None

    found = await eventually(ids_by_code)
    assert found is not None
    return found


async def test_list_filters_and_show_has_the_raw_message(fleet: Call, dead_letters: dict[str, str]) -> None:
    async def codes(*flags: str) -> list[str]:
        return [each["code"] for each in (await fleet("dead-letters", "list", *flags, "--json")).json]

    assert sorted(await codes()) == sorted(dead_letters)
    assert await codes("--code", "invalid_json") == ["invalid_json"]
    assert await codes("--agent", "w-0") == ["unknown_command"]
    assert await codes("--source", "commands") == []
    assert await codes("--since", "1h", "--until", "30m") == []
    shown = (await fleet("dead-letters", "show", dead_letters["invalid_json"], "--json")).json
    assert (shown["raw"], shown["size"]) == ("no message", 10)
    assert dead_letters["invalid_json"] in (await fleet("dead-letters", "list")).out
    assert (await fleet("dead-letters", "show", "1-1")).code == 1


async def test_a_replayed_message_is_applied_or_dead_lettered_again(
    fleet: Call, engine: Running, dead_letters: dict[str, str]
) -> None:
    """A message passes the same checks as at first; a new dead letter is linked to the first one."""
    await engine.say(response("late", "register", type="worker"))
    await eventually(partial(engine.record, "late"))
    replayed = await fleet("dead-letters", "replay", dead_letters["unknown_recipient"], "--json")
    assert (replayed.code, [each["outcome"] for each in replayed.json]) == (0, ["applied"])
    assert await engine.call("LLEN", engine.keys.inbox("late")) == 1
    replayed = await fleet("dead-letters", "replay", "--all", "--json")
    assert replayed.code == 1
    assert {each["dead_letter_id"]: each["outcome"] for each in replayed.json} == {
        dead_letters["invalid_json"]: "refused",
        dead_letters["unknown_command"]: "dead_lettered",
    }
    left = (await fleet("dead-letters", "list", "--json")).json
    assert {each["code"]: each["replay_of"] for each in left} == {
        "invalid_json": None,
        "unknown_command": dead_letters["unknown_command"],
    }
    gone = await fleet("dead-letters", "replay", dead_letters["unknown_recipient"])
    assert (gone.code, gone.out.splitlines()[-1]) == (1, "1 refused")


async def test_purge_removes_exactly_the_selection(fleet: Call, engine: Running, dead_letters: dict[str, str]) -> None:
    assert (await fleet("dead-letters", "purge")).code == 64
    assert (await fleet("dead-letters", "purge", dead_letters["invalid_json"], "--all")).code == 64
    purged = await fleet("dead-letters", "purge", "--code", "invalid_json", "--reason", "noise", "--json")
    assert purged.json == {"purged": 1, "unknown": []}
    assert (await fleet("dead-letters", "purge", "--until", "1h", "--json")).json == {"purged": 0, "unknown": []}
    assert len(await engine.dead_letters()) == 2
    assert (await fleet("dead-letters", "purge", "--all", "--json")).json == {"purged": 2, "unknown": []}
    (first, _) = await engine.audit("dead_letters_purged")
    assert (first["reason"], first["details"]["count"]) == ("noise", 1)


async def test_purge_says_which_ids_do_not_exist(fleet: Call, dead_letters: dict[str, str]) -> None:
    """The others are deleted."""
    purged = await fleet("dead-letters", "purge", dead_letters["invalid_json"], "1-1", "--json")
    assert (purged.code, purged.json) == (1, {"purged": 1, "unknown": ["1-1"]})
    assert (await fleet("dead-letters", "purge", "1-1")).out == "0 purged; there is no dead letter 1-1\n"


@pytest.mark.parametrize("command", ["replay", "purge"])
@pytest.mark.parametrize("flags", ["--code invalid_json", "--agent w-0", "--since 1h", "--all"])
async def test_ids_and_a_filter_are_not_combined(
    fleet: Call, engine: Running, dead_letters: dict[str, str], command: str, flags: str
) -> None:
    done = await fleet("dead-letters", command, dead_letters["unknown_recipient"], *flags.split())
    assert (done.code, len(await engine.dead_letters())) == (64, 3)


async def test_progress_of_a_replay_counts_unknown_ids(
    fleet: Call, dead_letters: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(ProgressLine, "update", lambda _self, text: shown.append(text))
    done = await fleet("dead-letters", "replay", "9-0", dead_letters["unknown_command"], "10-0", "--json")
    assert [each["dead_letter_id"] for each in done.json] == ["9-0", "10-0", dead_letters["unknown_command"]]
    assert shown == ["1 dead letters read", "1 of 3 replayed", "2 of 3 replayed", "3 of 3 replayed"]


async def test_times_before_1970_select_all_or_none(fleet: Call, dead_letters: dict[str, str]) -> None:
    """Ids of a stream begin with 1970."""
    for time in ("1969-12-31T00:00:00Z", "1970-01-01T00:00:00Z", "100000d"):
        assert len((await fleet("dead-letters", "list", "--since", time, "--json")).json) == len(dead_letters)
        assert (await fleet("dead-letters", "list", "--until", time, "--json")).json == []
    assert (await fleet("dead-letters", "purge", "--until", "1969-12-31T00:00:00Z", "--json")).json == {
        "purged": 0,
        "unknown": [],
    }


@pytest.mark.parametrize("command", ["show", "replay", "purge"])
@pytest.mark.parametrize("dead_letter_id", ["1763884800000", "+", "(1-0", "x", "1-99999999999999999999", "\u0663-0"])
async def test_text_that_is_no_id_is_a_usage_error(fleet: Call, command: str, dead_letter_id: str) -> None:
    done = await fleet("dead-letters", command, dead_letter_id)
    assert (done.code, done.err.count("expected the id of a dead letter, such as 1763884800000-0")) == (64, 1)
