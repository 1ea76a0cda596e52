"""The HTTP face: what the engine tells those who watch it. It answers from memory and never touches Redis."""

from collections.abc import Mapping
from typing import Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

INDEX = """\
AISM Engine

/metrics   for Prometheus: text, or OpenMetrics where it is asked for
/livez     200 while this process is worth keeping alive, else 503 (also /healthz)
/readyz    200 while every check passes, else 503; ?verbose, or Accept: application/json, names them all
           (in text with ?verbose and Accept: text/plain)
"""


class Check(msgspec.Struct, frozen=True):
    """One condition of being ready; `detail` says in words what was found."""

    ok: bool
    detail: str


class Health(Protocol):
    """What the engine knows of itself."""

    def live(self) -> bool: ...

    def role(self) -> str: ...

    def checks(self) -> Mapping[str, Check]: ...


class Readiness(msgspec.Struct, frozen=True):
    """The verbose answer of /readyz."""

    status: str
    role: str
    checks: Mapping[str, Check]


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

    async def livez(_: Request) -> Response:
        return _verdict(ok=health.live())

    async def readyz(request: Request) -> Response:
        checks = health.checks()
        failed = [f"{name} ({check.detail})" for name, check in checks.items() if not check.ok]
        accept, verbose = request.headers.get("accept", ""), "verbose" in request.query_params
        if not verbose and "application/json" not in accept:
            return _verdict(ok=not failed, detail=", ".join(failed))
        if "text/plain" in accept:
            lines = [f"{'ok    ' if check.ok else 'failed'} {name}: {check.detail}\n" for name, check in checks.items()]
            return PlainTextResponse("".join(lines), 503 if failed else 200)
        answer = Readiness("failed" if failed else "ok", health.role(), checks)
        return Response(msgspec.json.encode(answer), 503 if failed else 200, media_type="application/json")

    endpoints = {"/": index, "/metrics": metrics, "/livez": livez, "/healthz": livez, "/readyz": readyz}
    app = Starlette(routes=[Route(path, endpoint) for path, endpoint in endpoints.items()])
    app.router.redirect_slashes = False  # an unknown path is unknown; no answer is built from a caller's Host
    return app


def _verdict(*, ok: bool, detail: str = "") -> Response:
    text = "ok" if ok else f"failed: {detail}" if detail else "failed"
    return PlainTextResponse(f"{text}\n", 200 if ok else 503)
