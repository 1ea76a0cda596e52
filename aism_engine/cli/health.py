"""`aism-engine health`: ask an engine how it is, for people and for container health checks."""

import http.client
from typing import Annotated, Final

import msgspec
import typer

from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode, RefusedError
from aism_engine.cli.output import print_json, print_table
from aism_engine.config import load_settings
from aism_engine.http.replies import LivezReply, ReadyzReply

_PATIENCE_S: Final = 3.0
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  who listens everywhere listens here, too


def health(
    *,
    address: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Where it serves; else as configured.", show_default=False),
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask only whether the process is worth keeping.")] = False,
    config: options.Config = None,
    json: options.Json = False,
) -> ExitCode:
    """Ask an engine whether it is ready: exit code 0, or 1 where a check fails or nobody answers.

    A standby is ready, and says so. With --live the answer is that of /livez: a Redis that is away is no reason to
    restart an engine. It asks where the settings say that an engine listens: in a container that is the one in it.

    \b
    Example:
      aism-engine health --http 127.0.0.1:9464
      aism-engine health --live
    """  # noqa: D301  \b keeps the lines of the example apart
    host, port = options.address(address) if address is not None else (None, None)
    settings = load_settings(config, overrides={"http.host": host, "http.port": port}).settings.http
    if address is None and not settings.enabled:
        raise RefusedError("http.enabled is off, as configured: no engine answers; name one with --http HOST:PORT")
    if settings.port == 0:
        raise RefusedError("http.port is 0, which is any free one: the log has it; name it with --http HOST:PORT")
    found = _asked(_EVERYWHERE.get(settings.host, settings.host), settings.port, live=live)
    if json:
        print_json(found)
    elif isinstance(found, ReadyzReply):
        typer.echo(f"{found.status}, {found.role}\n")
        rows = ((name, "ok" if check.ok else "failed", check.detail) for name, check in found.checks.items())
        print_table(("CHECK", "IS", "DETAIL"), rows)
    else:
        typer.echo(found.status)
    return ExitCode.DONE if found.status == "ok" else ExitCode.REFUSED


def _asked(host: str, port: int, *, live: bool) -> LivezReply:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/livez" if live else "/readyz?verbose", headers={"Accept": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise RefusedError(f"no engine answers at {where}: {error}; name it with --http HOST:PORT") from None
    finally:
        connection.close()
    try:
        return msgspec.json.decode(body, type=LivezReply if live else ReadyzReply)
    except msgspec.DecodeError:
        raise RefusedError(f"what answers at {where} is no engine of ours") from None
