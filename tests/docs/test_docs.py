"""The laws of the documentation: what it says of the code is so, and what the code publishes is said."""

import ast
import asyncio
import contextlib
import re
import typing
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import pytest

from aism_engine.cli.exit_codes import ExitCode
from aism_engine.domain import effects as fx
from aism_engine.domain.agents.agent import AgentRecord, Liveness
from aism_engine.domain.agents.transitions import StateChange
from aism_engine.domain.commands.command import Command, Status
from aism_engine.domain.decision import ErrorEvent
from aism_engine.domain.machines.machine import Refusal
from aism_engine.domain.protocol import messages as m
from aism_engine.engine import Engine
from aism_engine.settings import Settings
from aism_engine.store.embedded import EmbeddedServer
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
    argument,
    calls,
    codes_of_dead_letters,
    examples,
    fields_of,
    first_column,
    keys_of_code,
    literals,
    matches,
    names,
    needed,
    payload_rows,
    printed,
    table,
)
from tests.support.engine import eventually, running_engine
from tests.support.resp import Cli
from tests.support.server import test_server_binary

# --- keys and messages ------------------------------------------------------------------------------------------------


def test_every_key_and_channel_is_documented() -> None:
    """Each name that store/keys.py can make is a row of the table, and each row is such a name."""
    assert sorted(first_column("Keys and channels")) == sorted(keys_of_code())


def test_keys_named_anywhere_in_the_docs_exist() -> None:
    """Whatever looks like a key of ours in code on any page is one, or a part or an example of one."""
    shapes = [re.sub(r"\\\{\w+\\\}", "[^:]+", re.escape(key)) for key in keys_of_code()]
    for page in PAGES:
        for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            for key in re.findall(r"^aism:[\w:{}.-]+\w}?$", code):
                assert any(re.fullmatch(shape, key) for shape in shapes), f"{page.name}: {key}"


def test_every_field_of_a_response_is_documented() -> None:
    """The envelope of responses is the struct's, and says what is needed."""
    documented = needed("Fields of a response")
    for struct in typing.get_args(m.Response):
        envelope = fields_of(struct) | {"type": True}
        assert documented.keys() == envelope.keys() | {"payload"}
        assert all(envelope[name] for name, must in documented.items() if must)
        assert {name for name, must in envelope.items() if must} - {"payload", "command_id"} == {"type", "agent_id"}


def test_every_payload_of_a_response_is_documented() -> None:
    """Each type of response is there with the fields of its payload, and which of them it cannot be without."""
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


def test_what_needs_a_command_is_documented() -> None:
    """A type of response says "needs `command_id`" if and only if it does."""
    documented = {names(row[0])[0] for row in table("Payloads of responses") if "needs `command_id`" in row[-1]}
    assert documented == {
        struct.__struct_config__.tag for struct in typing.get_args(m.Response) if fields_of(struct)["command_id"]
    }


def test_every_field_of_a_request_is_documented() -> None:
    """The envelope and the payloads of requests are the structs'."""
    documented = needed("Fields of a request")
    expected = set()
    for struct in typing.get_args(m.Request):
        assert documented == fields_of(struct) | {"type": True}
        payload = next(field.type for field in msgspec.structs.fields(struct) if field.name == "payload")
        expected |= {(struct.__struct_config__.tag, name, must) for name, must in fields_of(payload).items()}
    assert payload_rows("Payloads of requests") == expected
    options = next(row for row in table("Payloads of requests") if row[1] == "`options`")
    assert set(fields_of(m.SendOptions)) <= set(names(options[-1]))


def test_every_field_of_a_command_is_documented() -> None:
    """A command as the agent pops it has the fields of its struct."""
    assert first_column("Fields of a command") == list(fields_of(m.CommandMessage))


def test_every_form_of_a_name_is_documented() -> None:
    """The patterns of ids, types, states and measurements stand in the protocol as the code has them."""
    for form in (m.Identifier, m.TypeName, m.StateName, m.MeasurementName):
        pattern = next(meta.pattern for meta in typing.get_args(form) if isinstance(meta, msgspec.Meta))
        assert pattern is not None
        assert f"`{pattern.removeprefix(chr(92) + 'A').removesuffix(chr(92) + 'Z')}`" in PROTOCOL


# --- records, events, facts -------------------------------------------------------------------------------------------


def test_the_record_of_an_agent_is_documented() -> None:
    """Each field of the record has a place in its table, and each kind of liveness is named."""
    record = AgentRecord(agent_id="a", state="s", since=0.0, first_seen_at=0.0).record()
    said = {"reason", "context"}  # of the last change, for people alone
    assert set(first_column("`aism:engine:agent:{agent_id}`")) == {*record, *said}
    liveness = next(row[1] for row in table("`aism:engine:agent:{agent_id}`") if row[0] == "`liveness`")
    assert set(names(liveness)) == {state.value for state in Liveness}


def test_the_record_of_a_command_is_documented() -> None:
    """Each field that is ever written to the record has a place in its table, and each status is named."""
    documented = set(first_column("`aism:engine:command:{command_id}`"))
    record = Command(command_id="c", agent_id="a", type="t", accepted_at=0.0, expires_at=0.0).record()
    written = {"payload", "body", "acked_at", "progress_at", "percent", "note", "ended_at", "code", "reason"}
    written |= {"queued_at", "delivered_at", "replay_of", "result", "result_digest", "result_size"}
    assert documented == set(record) | written
    decisions = "".join(path.read_text(encoding="utf-8") for path in SOURCES if "domain" in path.parts)
    assert all(re.search(rf'["\']{name}["\']|\b{name}=', decisions) for name in documented - set(record))
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
    """What is published on a channel has the fields that the protocol names."""
    assert set(first_column(f"`aism:events:{channel}`")) == fields


def test_every_field_of_a_fact_is_documented() -> None:
    """A fact has the fields that the protocol names."""
    assert sorted(first_column("Fields of a fact")) == sorted(fields_of(fx.Fact))


def test_every_fact_is_documented_with_its_fields() -> None:
    """Each event that the code records is in the table with exactly the fields it is given there, and no other is."""
    recorded: dict[str, set[str]] = {}
    for call, place in [*calls("record"), *calls("Fact")]:
        for event in literals(argument(call, 0, "event"), place):
            given = {keyword.arg for keyword in call.keywords if keyword.arg not in {"event", "at", "by", "cause"}}
            recorded.setdefault(event, set()).update(filter(None, given))
    assert {row[0].strip("`"): set(names(row[1])) for row in table("Facts")} == recorded


def test_every_source_of_a_change_is_documented() -> None:
    """The sources given to change_state() are those that the protocol names."""
    told = {text for call, place in calls("change_state") for text in literals(argument(call, 3, "source"), place)}
    row = next(row for row in table("Fields of a fact") if row[0] == "`source`")
    assert set(names(row[1])) == told


# --- codes ------------------------------------------------------------------------------------------------------------


def test_every_code_of_a_dead_letter_is_documented() -> None:
    """The codes given to dead_letter(), MalformedError and DeadLetter are those of the protocol's list."""
    assert sorted(first_column("Codes of dead letters")) == sorted(codes_of_dead_letters())


def test_every_field_of_a_dead_letter_is_documented() -> None:
    """A dead letter has the fields of its struct."""
    assert sorted(first_column("Fields of a dead letter")) == sorted(fields_of(fx.DeadLetter))


def test_every_code_of_a_refusal_is_documented() -> None:
    """Each pair of type and code that a Fault can have is in the table of answers, and no other is."""
    refusals = set(typing.get_args(typing.get_type_hints(Refusal)["code"]))
    buried = {"unknown_command", "foreign_command", "not_sent"}
    kinds = {"kind": {"*KIND*_refused"}, "_KIND": {"replay_refused"}}  # of whatever asks for the agents it means
    passed_on: Mapping[str, set[str]] = {
        "refusal.code": refusals,
        "ctx.decision.code": buried,  # that of _command_of, which has buried the message
        "error.code": {"*any code of a dead letter*"},
        "code": {"*any code of a dead letter*"},  # that of _refuse, which buries the message with it
    }
    expected = set()
    for call, place in calls("ErrorReply"):
        kind, code = argument(call, 0, "type"), argument(call, 1, "code")
        assert code is not None
        given = literals(code, place) or passed_on[ast.unparse(code)]
        assert kind is not None
        expected |= {(type_, each) for type_ in literals(kind, place) or kinds[ast.unparse(kind)] for each in given}
    assert {(names(row[0])[0], row[1].strip("`")) for row in table("Replies")} == expected


def test_every_code_of_the_errors_channel_is_documented() -> None:
    """What trouble() is told in words of the code's own stands at the channel."""
    told = {text for call, place in calls("publish_error") for text in literals(argument(call, 0, "code"), place)}
    told |= {text for call, place in calls("_end") for text in literals(argument(call, 3, "code"), place)}
    row = next(row for row in table("`aism:events:errors`") if "`code`" in row[0])
    assert told == set(names(row[1])) - {"error"}


def test_exit_codes_are_documented() -> None:
    """The exit codes of the command line are those of the page on configuration."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert [int(row[0]) for row in table("Exit codes", page)] == [int(code) for code in ExitCode]


# --- the pages themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    """A link that is none into the web leads to a file of this repository, and to a heading in it."""
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_files_that_are_named_exist(page: Path) -> None:
    """A path or a script that stands in code is there: from the root, from the package, or among the Lua scripts."""
    homes = (ROOT, ROOT / "aism_engine", ROOT / "aism_engine/store/lua", ROOT / "aism_engine/store/lua/include")
    for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        for name in re.findall(r"(?:^|(?<=\s))[\w./-]+(?:\.(?:py|lua|toml|md)\b|/(?=$))", code):
            assert name.startswith("/") or any((home / name).exists() for home in homes), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_settings_that_are_named_exist(page: Path) -> None:
    """A dotted key whose first part is a section of the settings is a setting."""
    sections = {field.name: fields_of(field.type) for field in msgspec.structs.fields(Settings)}
    for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        section, dot, name = code.partition(" ")[0].partition(".")
        if dot and section in sections and re.fullmatch(r"[a-z_]+", name) and name not in {"py", "toml", "lua"}:
            assert name in sections[section], code


def test_components_are_documented_in_start_order() -> None:
    """The table of components is the list in engine.py."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    documented = [row[0].strip("`") for row in table("Components", page)]
    assert documented == [component.name for component in Engine(Settings(), environ={}).components]


def test_every_lua_script_is_documented() -> None:
    """The table of scripts lists the files in store/lua."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "aism_engine/store/lua").glob("*.lua")}
    assert set(first_column("Lua scripts", page)) == scripts


def test_pages_that_the_code_names_exist() -> None:
    """Where a docstring sends its reader to a page, there is one."""
    for path in SOURCES:
        for name in re.findall(r"\bdocs/[\w/.-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_decisions_are_numbered_without_a_gap() -> None:
    """Each decision has a number of its own, the title says it, and the pages say their status and their evidence."""
    pages = sorted((DOCS / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{number:04}" for number in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]}: ")
        assert HEADING.findall(text)[1:] == ["Question", "Decision", "Rejected", "Evidence"]


# --- the examples -----------------------------------------------------------------------------------------------------

_READS: Final = frozenset({"GET", "HGET"})


async def test_the_flows_work_as_they_are_printed() -> None:
    """Every example of the page, run in order beside an engine, prints what the page says."""

    async def types(cli: Cli, words: list[str], expected: str) -> bool:
        shown = printed(await asyncio.to_thread(cli, *words))
        assert words[0] in _READS or matches(expected, shown), (words, shown)
        return matches(expected, shown)

    with EmbeddedServer(test_server_binary(), append_only=False) as server, contextlib.ExitStack() as stack:
        async with running_engine(server, "aism"):
            cli = stack.enter_context(Cli("127.0.0.1", server.port))
            for words, expected in examples():
                await eventually(partial(types, cli, words, expected))  # what was only published takes a moment
