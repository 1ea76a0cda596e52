"""Why something was refused, as those who asked are told."""

from math import ceil
from typing import Any

from msgspec import Struct, field

from aism_engine.domain.machines.machine import Refusal


class ErrorReply(Struct, frozen=True):
    """Why something was refused, in the error shape that replies carry."""

    type: str
    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    suggestions: tuple[str, ...] = ()


def transition_error(refusal: Refusal) -> ErrorReply:
    details: dict[str, Any] = {
        "current": refusal.current,
        "requested": refusal.requested,
        "allowed": refusal.allowed,
    }
    if refusal.missing:
        details["missing"] = refusal.missing
    if refusal.retry_after_s is not None:
        details["retry_after"] = ceil(refusal.retry_after_s * 1000) / 1000  # never too early
    return ErrorReply("transition_refused", refusal.code, refusal.message, details, refusal.suggestions)
