"""The HTTP endpoints. They reply from memory and never call Redis."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from aism_engine.http.replies import HealthCheck, LivezReply, ReadyzReply

INDEX = """\
AISM Engine

/metrics   metrics for Prometheus, as text or OpenMetrics
/livez     200 while the process makes progress, else 503; also /healthz
/readyz    200 if every check passes, else 503; ?verbose lists all checks, as JSON unless text is preferred
/livez and /readyz reply with JSON to Accept: application/json.
"""


class Health(Protocol):
    """The health of the engine."""

    def live(self) -> bool: ...

    def role(self) -> str: ...

    def checks(self) -> Mapping[str, HealthCheck]: ...


def create_app(registry: CollectorRegistry, health: Health) -> Starlette:
    async def index(_: Request) -> Response:
        return PlainTextResponse(INDEX)

    async def metrics(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # prometheus_client raises it for a version that is not a number
            encode, content_type = choose_encoder("")
        return Response(encode(registry), headers={"content-type": content_type})

    async def livez(request: Request) -> Response:
        status = "ok" if health.live() else "failed"
        return _reply(request, f"{status}\n", LivezReply(status))

    async def readyz(request: Request) -> Response:
        checks = health.checks()
        failed = [f"{name} ({check.detail})" for name, check in checks.items() if not check.ok]
        text = f"failed: {', '.join(failed)}\n" if failed else "ok\n"
        if verbose := "verbose" in request.query_params:
            lines = [f"{'ok    ' if check.ok else 'failed'} {name}: {check.detail}\n" for name, check in checks.items()]
            text = "".join(lines)
        reply = ReadyzReply("failed" if failed else "ok", health.role(), checks)
        return _reply(request, text, reply, json_by_default=verbose)

    endpoints = {"/": index, "/metrics": metrics, "/livez": livez, "/healthz": livez, "/readyz": readyz}
    app = Starlette(routes=[Route(path, endpoint) for path, endpoint in endpoints.items()])
    app.router.redirect_slashes = False  # a redirect would contain the Host header of the client
    return app


def _reply(request: Request, text: str, reply: LivezReply, *, json_by_default: bool = False) -> Response:
    """Reply with JSON or text, whichever the Accept header (RFC 9110) prefers."""
    accept, status_code = request.headers.get("accept", ""), 200 if reply.status == "ok" else 503
    json_quality, text_quality = _quality(accept, "application", "json"), _quality(accept, "text", "plain")
    if json_quality > text_quality or (json_quality == text_quality and json_by_default):
        return Response(msgspec.json.encode(reply), status_code, media_type="application/json")
    return PlainTextResponse(text, status_code)


def _quality(accept: str, kind: str, subtype: str) -> float:
    """Return the quality (0 to 1) of a media type: that of the most specific media range that matches it."""
    found = {}
    for each in accept.lower().split(","):
        name, *parameters = (part.strip() for part in each.split(";"))
        quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        with suppress(ValueError):
            found[name] = float(quality)
    ranges = (f"{kind}/{subtype}", f"{kind}/*", "*/*")
    return next((found[name] for name in ranges if name in found), 0.0)
