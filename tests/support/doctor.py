"""Runs the doctor on a real server."""

from typing import Any

from aism_engine.ops.doctor.collector import DoctorFacts, FactCollector, diagnose
from aism_engine.settings import RedisSettings
from aism_engine.store.client import connect
from aism_engine.store.embedded import EmbeddedServer


async def collect(settings: RedisSettings, max_keys: int = 100_000) -> DoctorFacts:
    client = connect(settings, "")
    try:
        return await FactCollector(client, settings).collect(max_keys=max_keys)
    finally:
        await client.aclose()


async def severities(
    server: EmbeddedServer,
    prefix: str = "aism",
    max_keys: int = 100_000,
    **settings: Any,  # noqa: ANN401
) -> dict[str, str]:
    """Run the doctor, and return the severity of each finding by its code."""
    facts = await collect(RedisSettings(**{"url": server.url, "prefix": prefix} | settings), max_keys)
    return {finding.code: finding.severity.value for finding in diagnose(facts)}


def problems(found: dict[str, str]) -> dict[str, str]:
    return {code: severity for code, severity in found.items() if severity in {"warning", "danger"}}
