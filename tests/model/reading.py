"""Reads the values of Redis in the form that the model has them."""

from typing import Any, Final

from tests.model.redis_model import Scores

READS: Final[dict[str, tuple[tuple[str, ...], tuple[str | int, ...]]]] = {
    "string": (("GET",), ()),
    "list": (("LRANGE",), (0, -1)),
    "hash": (("HGETALL",), ()),
    "zset": (("ZRANGE",), (0, -1, "WITHSCORES")),
    "set": (("SMEMBERS",), ()),
    "stream": (("XRANGE",), ("-", "+")),
}


def value_of(kind: str, raw: Any) -> Any:  # noqa: ANN401
    match kind:
        case "zset":
            flat = [part for pair in raw for part in pair] if raw and isinstance(raw[0], tuple | list) else raw
            return Scores({_text(member): float(score) for member, score in zip(flat[::2], flat[1::2], strict=True)})
        case "set":
            return set(raw)
        case "stream":
            return tuple(entry for _, entry in raw)
        case _:
            return raw


def _text(value: Any) -> str:  # noqa: ANN401
    return value.decode() if isinstance(value, bytes) else str(value)
