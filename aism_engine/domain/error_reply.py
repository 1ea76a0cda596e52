"""The reply that says why something was refused."""

from math import ceil
from typing import Any

from msgspec import Struct, field

from aism_engine.domain.machines.machine import Refusal


class ErrorReply(Struct, frozen=True):
    """The field `error` of a reply."""

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
        details["retry_after"] = ceil(refusal.retry_after_s * 1000) / 1000  # rounded up: a retry is never too early
    return ErrorReply("transition_refused", refusal.code, refusal.message, details, refusal.suggestions)
