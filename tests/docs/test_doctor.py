"""docs/doctor.md lists the findings of the code, and the permissions that the code checks."""

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
    """In the order of the checks."""
    assert re.findall(r"^### `(\w+)`$", PAGE, re.MULTILINE) == list(CODES)


def test_every_severity_is_explained() -> None:
    assert [names(row[0])[0] for row in table("Doctor findings", PAGE)] == [each.value for each in Severity]


def test_permissions_of_the_page_are_those_of_the_code() -> None:
    line = next(
        block for block in re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "ACL SETUSER" in block
    )
    commands = required_commands(Keys("aism"))
    expected = [rule for rule in missing_rules(commands, commands) if rule.startswith("+")]
    assert [word for word in line.split() if word.startswith("+")] == expected


def test_every_kind_of_deadline_is_known() -> None:
    """The scan checks every kind of member that docs/protocol.md lists for the deadlines."""
    row = next(row for row in table("Keys and channels") if "deadlines" in row[0])
    assert {name.partition(":")[0] for name in names(row[1])} == set(DEADLINE_RECORDS)


def test_every_command_of_the_engine_is_required() -> None:
    """Every command in scripts, batches and clients is in the list of required permissions."""
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
    used -= {"SCAN"}  # optional: see services/reconciler.py
    assert len(used) > 30
    assert used - {command.words[0] for command in required_commands(Keys("aism"))} == set()


def test_every_key_and_channel_is_required() -> None:
    commands = required_commands(Keys("aism"))
    rules = {rule[1:] for rule in missing_rules(commands, commands) if rule[0] in "~&"}
    documented = {re.sub(r"\{\w+\}", "*", name) for name in first_column("Keys and channels")}
    assert rules - {"aism:engine:probe"} == documented
