"""Compare docs/ with the code: every name that the code publishes is documented, and every documented name exists."""

import asyncio
import contextlib
import re
import typing
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import pytest

from aism_engine.cli.exit_codes import ExitCode
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.membership import admit
from aism_engine.domain.agents.state_changes import StateChange, change_state, enter
from aism_engine.domain.commands import deadlines, lifecycle
from aism_engine.domain.commands.command import COMMAND_TABLE, Command, Status
from aism_engine.domain.dead_letters import add_dead_letter
from aism_engine.domain.decision import DecisionContext, ErrorEvent, ErrorReply
from aism_engine.domain.machines.machine import Code
from aism_engine.domain.protocol import messages as m
from aism_engine.domain.protocol.codec import MalformedError
from aism_engine.domain.protocol.names import IDENTIFIER, MEASUREMENT_NAME, STATE_NAME, TYPE_NAME
from aism_engine.engine import Engine
from aism_engine.settings import Settings
from aism_engine.store.writer import Failure
from tests.docs.reading import (
    CODE,
    DOCS,
    FENCE,
    HEADING,
    LINK,
    PAGES,
    PROTOCOL,
    ROOT,
    SOURCES,
    anchors,
    calls,
    examples,
    fields_of,
    first_column,
    keys_of_code,
    matches,
    names,
    payload_rows,
    printed,
    required,
    table,
    words,
)
from tests.support.engine import eventually, running_engine
from tests.support.server import Cli, OwnServer

_ANY_DEAD_LETTER: Final = "*any code of a dead letter*"

# --- keys and messages ------------------------------------------------------------------------------------------------


def test_every_key_and_channel_is_documented() -> None:
    """The table lists what store/keys.py can make."""
    assert sorted(first_column("Keys and channels")) == sorted(keys_of_code())


def test_every_key_on_any_page_exists() -> None:
    """Each key that is marked as code is one of ours, or an example of one."""
    shapes = [re.sub(r"\\\{\w+\\\}", "[^:]+", re.escape(key)) for key in keys_of_code()]
    for page in PAGES:
        for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            for key in re.findall(r"^aism:[\w:{}.-]+\w}?$", code):
                assert any(re.fullmatch(shape, key) for shape in shapes), f"{page.name}: {key}"


def test_every_field_of_a_response_is_documented() -> None:
    documented = required("Fields of a response")
    for struct in typing.get_args(m.Response):
        envelope = fields_of(struct) | {"type": True}
        assert documented.keys() == envelope.keys() | {"payload"}
        assert all(envelope[name] for name, must in documented.items() if must)
        assert {name for name, must in envelope.items() if must} - {"payload", "command_id"} == {"type", "agent_id"}


def test_every_payload_of_a_response_is_documented() -> None:
    free = {"ack": "", "result": "*any*", "measurement": "*name*"}
    expected = set()
    for struct in typing.get_args(m.Response):
        tag = struct.__struct_config__.tag
        if tag in free:
            expected.add((tag, free[tag], False))
        else:
            payload = next(field.type for field in msgspec.structs.fields(struct) if field.name == "payload")
            expected |= {(tag, name, must) for name, must in fields_of(payload).items()}
    assert payload_rows("Payloads of responses") == expected


def test_every_response_that_needs_a_command_is_documented() -> None:
    documented = {names(row[0])[0] for row in table("Payloads of responses") if "needs `command_id`" in row[-1]}
    assert documented == {
        struct.__struct_config__.tag for struct in typing.get_args(m.Response) if fields_of(struct)["command_id"]
    }


def test_every_field_of_a_request_is_documented() -> None:
    documented = required("Fields of a request")
    expected = set()
    for struct in typing.get_args(m.Request):
        assert documented == fields_of(struct) | {"type": True}
        payload = next(field.type for field in msgspec.structs.fields(struct) if field.name == "payload")
        expected |= {(struct.__struct_config__.tag, name, must) for name, must in fields_of(payload).items()}
    assert payload_rows("Payloads of requests") == expected
    options = next(row for row in table("Payloads of requests") if row[1] == "`options`")
    assert set(fields_of(m.SendOptions)) <= set(names(options[-1]))


def test_every_field_of_a_command_is_documented() -> None:
    assert first_column("Fields of a command") == list(fields_of(m.CommandMessage))


def test_every_pattern_of_a_name_is_documented() -> None:
    for pattern in (IDENTIFIER, TYPE_NAME, STATE_NAME, MEASUREMENT_NAME):
        assert f"`{pattern}`" in PROTOCOL


# --- records, events, facts -------------------------------------------------------------------------------------------


def test_every_field_of_the_record_of_an_agent_is_documented() -> None:
    assert set(first_column("`aism:engine:agent:{agent_id}`")) == set(AgentRecord.__struct_fields__)
    liveness = next(row[1] for row in table("`aism:engine:agent:{agent_id}`") if row[0] == "`liveness`")
    assert set(names(liveness)) == {state.value for state in Liveness} - {"silent"}


def test_every_field_of_the_record_of_a_command_is_documented() -> None:
    documented = set(first_column("`aism:engine:command:{command_id}`"))
    record = COMMAND_TABLE.encode(Command(command_id="c", agent_id="a", type="t", accepted_at=0.0, expires_at=0.0))
    later = {"payload", "body", "acked_at", "progress_at", "percent", "note", "ended_at", "code", "reason"}
    later |= {"queued_at", "delivered_at", "replay_of", "result", "result_digest", "result_size"}
    assert documented == set(record) | later
    domain = "".join(path.read_text(encoding="utf-8") for path in SOURCES if "domain" in path.parts)
    assert {name for name in later if not re.search(rf'["\']{name}["\']|\b{name}=', domain)} == set()
    status = next(row[1] for row in table("`aism:engine:command:{command_id}`") if names(row[0]) == ("status",))
    assert set(names(status)) == {status.value for status in Status}


@pytest.mark.parametrize(
    ("channel", "fields"),
    [
        ("state_changes", set(fields_of(StateChange))),
        ("errors", set(fields_of(ErrorEvent))),
        ("measurements", {"agent_id", "values", "timestamp", "source"}),
    ],
)
def test_every_field_of_an_event_is_documented(channel: str, fields: set[str]) -> None:
    assert set(first_column(f"`aism:events:{channel}`")) == fields


def test_every_field_of_a_fact_is_documented() -> None:
    assert sorted(first_column("Fields of a fact")) == sorted(fields_of(fx.Fact))


def test_every_fact_is_documented_with_its_fields() -> None:
    common = {"event", "at", "by", "cause", "operator"}
    recorded: dict[str, set[str]] = {}
    for arguments in (*calls(DecisionContext.record), *calls(fx.Fact)):
        for event in words(arguments.get("event", "")):
            suffixes = [*Status, "retried"] if event == "command_" else [""]  # the event follows the status
            for suffix in suffixes:
                recorded.setdefault(f"{event}{suffix}", set()).update(arguments.keys() - common)
    assert {row[0].strip("`"): set(names(row[1])) for row in table("Facts")} == recorded


def test_every_source_of_a_state_change_is_documented() -> None:
    row = next(row for row in table("Fields of a fact") if row[0] == "`source`")
    assert set(names(row[1])) == {
        source for call in (*calls(change_state), *calls(enter)) for source in words(call["source"])
    }


# --- codes ------------------------------------------------------------------------------------------------------------


def test_every_code_of_a_dead_letter_is_documented() -> None:
    given = [
        *calls(add_dead_letter),
        *calls(MalformedError),
        *calls(Failure),
        *calls(ErrorReply, within=admit),  # a response of an agent that is not admitted is dead-lettered
    ]
    codes = {code for call in given for code in words(call.get("code", ""))}
    # Only heartbeats and deadlines are committed with an expected score, and these are no messages.
    assert sorted(first_column("Codes of dead letters")) == sorted(codes - {"score_moved"})


def test_every_field_of_a_dead_letter_is_documented() -> None:
    assert sorted(first_column("Fields of a dead letter")) == sorted(fields_of(fx.DeadLetter))


def test_every_code_of_an_error_reply_is_documented() -> None:
    """Replies also pass on the code of a refused transition or of a dead letter."""
    expected = {
        (kind, code)
        for call in calls(ErrorReply)
        for kind in words(call["type"]) or {"*KIND*_refused"}
        for code in words(call["code"])
    }
    expected |= {("transition_refused", code) for code in typing.get_args(Code)}
    expected |= {("command_refused", code) for code in ("unknown_command", "foreign_command", "not_sent")}
    expected |= {(f"{kind}_refused", _ANY_DEAD_LETTER) for kind in ("message", "replay", "request")}
    assert {(names(row[0])[0], row[1].strip("`")) for row in table("Replies")} == expected


def test_every_code_of_the_errors_channel_is_documented() -> None:
    given = [*calls(DecisionContext.publish_error), *calls(deadlines._end), *calls(lifecycle.stop_with_error)]
    row = next(row for row in table("`aism:events:errors`") if "`code`" in row[0])
    assert set(names(row[1])) - {"error"} == {code for call in given for code in words(call["code"])}


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert [int(row[0]) for row in table("Exit codes", page)] == [int(code) for code in ExitCode]


# --- the pages themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_has_a_target(page: Path) -> None:
    """A link that does not lead to the web names a file of this repository, and a heading in it."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_file_on_a_page_exists(page: Path) -> None:
    """A path that is marked as code exists, relative to the root, the package or the Lua scripts."""
    homes = (ROOT, ROOT / "aism_engine", ROOT / "aism_engine/store/lua", ROOT / "aism_engine/store/lua/include")
    for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        for name in re.findall(r"(?:^|(?<=\s))[\w./-]+(?:\.(?:py|lua|toml|md)\b|/(?=$))", code):
            assert name.startswith("/") or any((home / name).exists() for home in homes), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_setting_on_a_page_exists(page: Path) -> None:
    """A dotted name that begins with a section of the settings is a setting."""
    sections = {field.name: fields_of(field.type) for field in msgspec.structs.fields(Settings)}
    for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        section, dot, name = code.partition(" ")[0].partition(".")
        if dot and section in sections and re.fullmatch(r"[a-z_]+", name) and name not in {"py", "toml", "lua", "json"}:
            assert name in sections[section], code


def test_components_are_documented_in_start_order() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    documented = [row[0].strip("`") for row in table("Components", page)]
    assert documented == [component.name for component in Engine(Settings(), environ={}).components]


def test_every_lua_script_is_documented() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "aism_engine/store/lua").glob("*.lua")}
    assert set(first_column("Lua scripts", page)) == scripts


def test_every_page_in_the_code_exists() -> None:
    for path in SOURCES:
        for name in re.findall(r"\bdocs/[\w/.-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_decisions_have_consecutive_numbers_and_the_same_headings() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]}: ")
        assert HEADING.findall(text)[1:] == ["Question", "Decision", "Rejected", "Evidence"]


# --- the examples -----------------------------------------------------------------------------------------------------

_READS: Final = frozenset({"GET", "HGET"})


async def test_every_example_prints_its_output() -> None:
    """Every example of the page, run in order beside an engine, prints what the page says."""

    async def prints(cli: Cli, command: list[str], expected: str) -> bool:
        shown = printed(await asyncio.to_thread(cli, *command))
        assert command[0] in _READS or matches(expected, shown), (command, shown)
        return matches(expected, shown)

    with OwnServer(append_only=False) as server, contextlib.ExitStack() as stack:
        async with running_engine(server, "aism"):
            cli = stack.enter_context(Cli(server.port))
            for command, expected in examples():
                # The engine applies a published message some time after the publication.
                await eventually(partial(prints, cli, command, expected))
