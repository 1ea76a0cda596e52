"""`aism-engine doctor`: whether Redis, and the way to it, are fit to keep a fleet."""

import asyncio
import stat
import textwrap
from collections import Counter
from pathlib import Path
from typing import Annotated, Final

import typer

from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode
from aism_engine.cli.output import ProgressLine, print_json
from aism_engine.config import load_settings
from aism_engine.ops.diagnosis import Diagnosis
from aism_engine.ops.doctor.examination import DoctorFacts, examine
from aism_engine.ops.doctor.findings import Finding, Severity
from aism_engine.ops.doctor.surroundings import ConfigFile
from aism_engine.redact import redacted
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect, where

_WIDTH: Final = 110


def doctor(
    *,
    config: options.Config = None,
    redis: options.Redis = None,
    prefix: options.Prefix = None,
    max_keys: Annotated[
        int, typer.Option(metavar="N", min=0, help="Most keys of the server that are walked over; 0: none.")
    ] = 1_000_000,
    json: options.Json = False,
) -> ExitCode:
    """Examine the server, the rights on it, the way to it and the keys of the fleet: what is so, why it matters, how to
    mend it.

    It writes nothing, and may look at a fleet at work. docs/doctor.md says more on each finding. The exit code is 1
    where a finding is a danger: something can be lost, or the engine cannot work.

    \b
    Example:
      aism-engine doctor --config /etc/aism/engine.toml
      aism-engine doctor --redis redis://10.0.0.5:6379 --json | jq '.findings[] | select(.severity == "danger")'
    """  # noqa: D301  \b keeps the lines of the example apart
    settings = load_settings(config, overrides={"redis.url": redis, "redis.prefix": prefix}).settings.redis
    findings = examine(asyncio.run(_look(settings, _file(config), max_keys)))
    dangerous = any(finding.severity is Severity.DANGER for finding in findings)
    if json:
        print_json({"ok": not dangerous, "redis": where(settings), "prefix": settings.prefix, "findings": findings})
    else:
        _print(findings, f"{where(settings)}, prefix {settings.prefix}")
    return ExitCode.REFUSED if dangerous else ExitCode.DONE


async def _look(settings: RedisSettings, file: ConfigFile | None, most: int) -> DoctorFacts:
    client, progress = connect(settings, ""), ProgressLine()
    try:
        return await Diagnosis(client, settings).facts(file, most=most, tell=progress.update)
    finally:
        progress.clear()
        await client.aclose()


def _file(path: Path | None) -> ConfigFile | None:
    """Look at the rights of the file, and whether a password stands in it."""
    if path is None:
        return None
    alone = load_settings(path, environ={}).settings.redis
    has_password = bool(alone.sentinel_password) or redacted(alone.url) != alone.url
    return ConfigFile(path=str(path), mode=stat.S_IMODE(path.stat().st_mode), has_password=has_password)


def _print(findings: list[Finding], subject: str) -> None:
    typer.echo(subject)
    width = max(len(finding.code) for finding in findings)
    indent = " " * (width + 11)
    for finding in findings:
        lines = [finding.what]
        if finding.severity in {Severity.DANGER, Severity.WARNING}:
            lines += (f"Why: {finding.why}", f"Mend: {finding.mend}")
        elif finding.mend:
            lines.append(f"Mend: {finding.mend}")
        head = f"{finding.severity.value:<7}  {finding.code:<{width}}  "
        for line in lines:
            typer.echo(_wrapped(line, head, indent))
            head = indent
    counts = Counter(finding.severity for finding in findings)
    typer.echo(
        ", ".join(f"{counts[severity]} {severity.value}" for severity in reversed(list(Severity)) if counts[severity])
    )


def _wrapped(line: str, head: str, indent: str) -> str:
    return textwrap.fill(
        line, _WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
