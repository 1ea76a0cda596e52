"""`aism-engine health`: checks a running engine, for people and for container health checks."""

import http.client
from contextlib import closing
from typing import Annotated, Final

import msgspec
import typer
from msgspec.structs import asdict

from aism_engine.cli import options
from aism_engine.cli.exit_codes import ExitCode, FailedError
from aism_engine.cli.output import Output, table_lines
from aism_engine.config import load_settings
from aism_engine.http.replies import LivezReply, ReadyzReply

_TIMEOUT_S: Final = 3.0
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  addresses of a server that listens on all interfaces


def health(
    *,
    address: Annotated[
        dict[str, str] | None, options.address("Address of the engine. Default: that of the settings.", "--http")
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Ask /livez: whether the process works at all.")] = False,
    config: options.Config = None,
    output: Output,
) -> ExitCode:
    """Check whether an engine is ready.

    The exit code is 1 if a check fails or no engine answers. A standby is ready. The address comes from the settings,
    so in a container the command checks the engine of the same container. --live shows whether a restart of the engine
    would help, so it passes while Redis is down.

    \b
    Example:
      aism-engine health --http 127.0.0.1:9464
      aism-engine health --live
    """
    settings = load_settings(config, overrides=address).settings.http
    if address is None and not settings.enabled:
        raise FailedError(
            "http.enabled is false in the settings, so no engine answers. Give the address of one with --http HOST:PORT"
        )
    if settings.port == 0:
        raise FailedError("http.port is 0, so the port is chosen at start: see the log. Give it with --http HOST:PORT")
    reply = _fetch(_LOOPBACK.get(settings.host, settings.host), settings.port, live=live)
    lines = [reply.status]
    if isinstance(reply, ReadyzReply):
        rows = [{"check": name, **asdict(check)} for name, check in reply.checks.items()]
        lines = [f"{reply.status}, {reply.role}", "", *table_lines(rows, ("check", "ok", "detail"))]
    output.print(reply, "\n".join(lines))
    return ExitCode.DONE if reply.status == "ok" else ExitCode.REFUSED


def _fetch(host: str, port: int, *, live: bool) -> LivezReply:
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with closing(http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)) as connection:
            connection.request("GET", "/livez" if live else "/readyz?verbose", headers={"Accept": "application/json"})
            body = connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else "its reply is not HTTP"
        raise FailedError(
            f"no engine answers at {shown}: {reason}. If it serves elsewhere, give --http HOST:PORT"
        ) from None
    try:
        return msgspec.json.decode(body, type=LivezReply if live else ReadyzReply)
    except msgspec.DecodeError:
        raise FailedError(
            f"the server at {shown} is not an AISM Engine. Give the address of one with --http HOST:PORT"
        ) from None
