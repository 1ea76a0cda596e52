"""The page of the doctor says what the code finds, and its list of rights is the one that is checked."""

import re
from typing import Final

from aism_engine.ops.doctor.collector import CODES
from aism_engine.ops.doctor.findings import Severity
from aism_engine.ops.doctor.keyspace_scan import DEADLINE_RECORDS
from aism_engine.ops.doctor.permissions import missing_rules, required_commands
from aism_engine.store.keys import Keys
from tests.docs.reading import DOCS, ROOT, first_column, names, table

PAGE: Final = (DOCS / "doctor.md").read_text(encoding="utf-8")


def test_every_finding_has_its_section() -> None:
    """In the order in which they are looked at."""
    assert re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE) == list(CODES)


def test_every_severity_is_explained() -> None:
    assert [names(row[0])[0] for row in table("What the doctor finds", PAGE)] == [each.value for each in Severity]


def test_the_rights_of_an_engine_are_written_down() -> None:
    """The rules of the page are those without which something is missing, no more and no less."""
    line = next(
        block for block in re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "ACL SETUSER" in block
    )
    commands = required_commands(Keys("aism"))
    expected = [rule for rule in missing_rules(commands, commands) if rule.startswith("+")]
    assert [word for word in line.split() if word.startswith("+")] == expected


def test_every_kind_of_deadline_is_known() -> None:
    """What the protocol says may stand in the deadlines is what the survey looks for."""
    row = next(row for row in table("Keys and channels") if "deadlines" in row[0])
    assert {name.partition(":")[0] for name in names(row[1])} == set(DEADLINE_RECORDS)


def test_every_command_of_the_engine_is_among_the_rights() -> None:
    """What scripts call, what a commit writes, what clients are asked to do: nobody adds one and forgets the list."""
    store = ROOT / "aism_engine/store"
    lua = "".join(path.read_text(encoding="utf-8") for path in (store / "lua").glob("*.lua"))
    batch = (store / "batch.py").read_text(encoding="utf-8")
    clients = "".join(
        (ROOT / "aism_engine" / name).read_text(encoding="utf-8")
        for name in ("store/store.py", "ops/audit_log.py", "ops/audit_retention.py")
    )
    used = {
        *re.findall(r"(?:redis\.p?call|try)\('(\w+)'", lua),
        *re.findall(r"\.write(?:_chunks)?\(\s*\"(\w+)\"", batch),
    }
    used |= {name.upper() for name in re.findall(r"_client\.(\w+)\(", clients)} - {"EXECUTE_COMMAND", "PIPELINE"}
    used |= set(re.findall(r"execute_command\(\s*\"(\w+)\"", clients))
    used -= set(re.findall(r"command == '(\w+)'", lua))  # commit.lua's own
    used -= {"SCAN"}  # an engine works without, and says so: see services/reconciler.py
    assert len(used) > 30
    assert used - {words[0] for words in required_commands(Keys("aism"))} == set()


def test_every_key_is_among_the_rights() -> None:
    """Each key and channel of the protocol is needed for something."""
    commands = required_commands(Keys("aism"))
    rules = {rule[1:] for rule in missing_rules(commands, commands) if rule[0] in "~&"}
    documented = {re.sub(r"\{\w+\}", "*", name) for name in first_column("Keys and channels")}
    assert rules - {"aism:engine:probe"} == documented
