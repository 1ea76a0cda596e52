"""`aism-engine doctor`: checks Redis, the permissions of its user, the network path, and the keys of the fleet."""

import asyncio
import stat
import textwrap
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final

from aism_engine.cli import options
from aism_engine.cli.admin import FleetOptions
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.output import ProgressLine, print_json
from aism_engine.config import load_settings
from aism_engine.ops.doctor.collector import DoctorFacts, FactCollector, diagnose
from aism_engine.ops.doctor.environment import ConfigFile
from aism_engine.ops.doctor.findings import Finding, Severity
from aism_engine.redact import redacted
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect, server_address
from aism_engine.terminal import print_line, printable

_WIDTH: Final = 110
_UNBROKEN: Final[dict[str, Any]] = {"break_long_words": False, "break_on_hyphens": False}
"""Words of a shell command in a text must not be broken, so that the command can be copied."""


def doctor(
    *,
    fleet: FleetOptions,
    max_keys: Annotated[int, options.number("Maximum number of keys to scan; 0 scans none.", 0)] = 1_000_000,
    json: options.Json = False,
) -> ExitCode:
    """Check the server, the permissions, the network and the keys.

    Each finding says what was found, why it matters and how to fix it; docs/doctor.md explains all of them. The doctor
    writes nothing, so it is safe to run beside a working fleet. It exits with 1 if a finding is a danger: data can be
    lost, or the engine cannot work.

    \b
    Example:
      aism-engine doctor --config /etc/aism/engine.toml
      aism-engine doctor --redis redis://10.0.0.5:6379 --json | jq '.findings[] | select(.severity == "danger")'
    """
    settings = fleet.settings().redis
    findings = diagnose(asyncio.run(_collect(settings, _config_file(fleet.config), max_keys)))
    has_danger, address = any(each.severity is Severity.DANGER for each in findings), server_address(settings)
    if json:
        print_json({"ok": not has_danger, "redis": address, "prefix": settings.prefix, "findings": findings})
    else:
        _print(findings, f"{address}, prefix {settings.prefix}")
    return ExitCode.REFUSED if has_danger else ExitCode.DONE


async def _collect(settings: RedisSettings, file: ConfigFile | None, max_keys: int) -> DoctorFacts:
    client, progress = connect(settings, ""), ProgressLine()
    try:
        return await FactCollector(client, settings).collect(file, max_keys=max_keys, report=progress.update)
    finally:
        progress.clear()
        await client.aclose()


def _config_file(path: Path | None) -> ConfigFile | None:
    if path is None:
        return None
    settings = load_settings(path, environ={}).settings.redis
    has_password = bool(settings.sentinel_password) or redacted(settings.url) != settings.url
    return ConfigFile(path=str(path), mode=stat.S_IMODE(path.stat().st_mode), has_password=has_password)


def _print(findings: list[Finding], subject: str) -> None:
    print_line(subject)
    width = max(len(finding.code) for finding in findings)
    indent = " " * (width + 11)
    for finding in findings:
        lines = [finding.summary]
        if finding.severity in {Severity.DANGER, Severity.WARNING}:
            lines.append(f"Why: {finding.why}")
        if finding.fix:
            lines.append(f"Fix: {finding.fix}")
        head = f"{finding.severity.value:<7}  {finding.code:<{width}}  "
        for line in map(printable, lines):
            print_line(textwrap.fill(line, _WIDTH, initial_indent=head, subsequent_indent=indent, **_UNBROKEN))
            head = indent
    counts = Counter(finding.severity for finding in findings)
    print_line(
        ", ".join(f"{counts[severity]} {severity.value}" for severity in reversed(list(Severity)) if counts[severity])
    )
