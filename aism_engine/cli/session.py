"""How commands stand beside a running engine: they read its keys, and ask it for things."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aism_engine.cli.exits import RefusedError, TimedOutError
from aism_engine.cli.output import print_json
from aism_engine.config import load_settings
from aism_engine.ops.admin_client import AdminClient

T = TypeVar("T")


def with_operator(redis: str | None, prefix: str | None, act: Callable[[AdminClient], Awaitable[T]]) -> T:
    """Connect to the server and the fleet that are meant (by flags, the environment, or default), and act there."""
    server = load_settings(overrides={"redis.url": redis, "redis.prefix": prefix}).settings.redis

    async def session() -> T:
        async with AdminClient.at(server.url, server.prefix) as operator:
            return await act(operator)

    return asyncio.run(session())


async def ask(
    operator: AdminClient,
    kind: str,
    payload: Mapping[str, Any],
    *,
    request_id: str | None = None,
    timeout_s: float,
    json: bool,
) -> dict[str, Any]:
    """Ask the engine for something. Raises RefusedError with its reasons, TimedOutError where it does not answer."""
    try:
        reply = await operator.request(kind, payload, request_id=request_id, timeout_s=timeout_s)
    except TimeoutError as error:
        raise TimedOutError(
            f"no engine has answered within {timeout_s:g} s. Request {error} stays queued and may still be accepted; "
            f"to ask again with --id {error} does not do it twice."
        ) from None
    if not reply["ok"]:
        if json:
            print_json(reply)
        raise RefusedError(_reasons(reply["error"]))
    return reply


def _reasons(fault: Mapping[str, Any]) -> str:
    suggestions = "; ".join(fault.get("suggestions", ()))
    return f"refused: {fault['message']}" + (f" (try: {suggestions})" if suggestions else "")
