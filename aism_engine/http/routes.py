"""The HTTP face: what the engine tells those who watch it. It answers from memory and never touches Redis."""

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

/metrics   for Prometheus: text, or OpenMetrics where it is asked for
/livez     200 while this process is worth keeping alive, else 503 (also /healthz)
/readyz    200 while every check passes, else 503; ?verbose names them all, in JSON unless text is preferred
Accept: application/json makes JSON of the last two.
"""


class Health(Protocol):
    """What the engine knows of itself."""

    def live(self) -> bool: ...

    def role(self) -> str: ...

    def checks(self) -> Mapping[str, HealthCheck]: ...


def create_app(registry: CollectorRegistry, health: Health) -> Starlette:
    """Build the face over what it shows."""

    async def index(_: Request) -> Response:
        return PlainTextResponse(INDEX)

    async def metrics(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except TypeError:  # prometheus_client's answer to a version that is no number
            encode, content_type = choose_encoder("")
        return Response(encode(registry), headers={"content-type": content_type})

    async def livez(request: Request) -> Response:
        live = health.live()
        return _json(LivezReply(_status(ok=live)), ok=live) if _wants_json(request) else _verdict(ok=live)

    async def readyz(request: Request) -> Response:
        checks = health.checks()
        failed = [f"{name} ({check.detail})" for name, check in checks.items() if not check.ok]
        verbose = "verbose" in request.query_params
        if _wants_json(request, by_default=verbose):
            return _json(ReadyzReply(_status(ok=not failed), health.role(), checks), ok=not failed)
        if verbose:
            lines = [f"{'ok    ' if check.ok else 'failed'} {name}: {check.detail}\n" for name, check in checks.items()]
            return _text("".join(lines), ok=not failed)
        return _verdict(ok=not failed, detail=", ".join(failed))

    endpoints = {"/": index, "/metrics": metrics, "/livez": livez, "/healthz": livez, "/readyz": readyz}
    app = Starlette(routes=[Route(path, endpoint) for path, endpoint in endpoints.items()])
    app.router.redirect_slashes = False  # an unknown path is unknown; no answer is built from a caller's Host
    return app


def _verdict(*, ok: bool, detail: str = "") -> Response:
    return _text(f"{_status(ok=ok)}{f': {detail}' if detail else ''}\n", ok=ok)


def _status(*, ok: bool) -> str:
    return "ok" if ok else "failed"


def _text(text: str, *, ok: bool) -> Response:
    return PlainTextResponse(text, 200 if ok else 503)


def _json(answer: msgspec.Struct, *, ok: bool) -> Response:
    return Response(msgspec.json.encode(answer), 200 if ok else 503, media_type="application/json")


def _wants_json(request: Request, *, by_default: bool = False) -> bool:
    """Tell whether JSON is preferred to text, as RFC 9110 reads Accept; `by_default` where neither is."""
    accept = request.headers.get("accept", "")
    json, text = (_wanted(accept, kind, subtype) for kind, subtype in (("application", "json"), ("text", "plain")))
    return by_default if json == text else json > text


def _wanted(accept: str, kind: str, subtype: str) -> float:
    """Give how much a media type is wanted, 0 to 1: what is said of it most exactly counts."""
    found = {}
    for each in accept.lower().split(","):
        name, *parameters = (part.strip() for part in each.split(";"))
        quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        with suppress(ValueError):
            found[name] = float(quality)
    ranges = (f"{kind}/{subtype}", f"{kind}/*", "*/*")
    return next((found[name] for name in ranges if name in found), 0.0)
