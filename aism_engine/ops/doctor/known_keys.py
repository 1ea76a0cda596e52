"""The keys of an engine: their Redis types, and the commands that the engine uses on them."""

import re
from typing import Final, NamedTuple

from aism_engine.domain.protocol.names import IDENTIFIER
from aism_engine.store.keys import Keys

SAMPLE: Final = "aism-doctor"
"""Placeholder for every id in a key; becomes `*` in an ACL rule."""
_QUEUE: Final = "LLEN LINDEX LRANGE LTRIM LMOVE BLMOVE"
_RECORD: Final = "HSET HGET HMGET PEXPIRE TYPE"
KEY_USES: Final = {
    "epoch": ("string", "GET SET"),
    "led_at": ("string", "SET"),
    "lease": ("string", "GET SET PEXPIRE PTTL DEL"),
    "ledger": ("string", "GET SET"),
    "publication_cursor": ("string", "GET SET"),
    "response_queue": ("list", f"{_QUEUE} LPUSH"),
    "request_queue": ("list", _QUEUE),
    "fanout": ("list", f"{_QUEUE} LPUSH TYPE"),
    "oversized": ("list", "LMOVE LTRIM LLEN TYPE"),
    "heartbeats": ("zset", "ZSCORE ZREM ZMSCORE ZRANGEBYSCORE ZCARD ZSCAN TYPE"),
    "silent": ("zset", "ZADD ZREM ZRANGE TYPE"),
    "index": ("set", "SADD SREM SISMEMBER SMEMBERS TYPE"),
    "deadlines": ("zset", "ZADD ZREM ZSCORE ZMSCORE ZRANGE ZRANGEBYSCORE ZCARD TYPE"),
    "audit": ("stream", "XADD XLEN XRANGE XREVRANGE XINFO|STREAM XTRIM TYPE"),
    "archives": ("hash", "HSET HGETALL HDEL"),
    "dead_letters": ("stream", "XADD XDEL XRANGE XTRIM XLEN TYPE"),
    "holds": ("hash", "HSET HMGET TYPE"),
    "agent": ("string", "MSET MGET GETRANGE STRLEN DEL TYPE"),
    "state": ("string", "MGET MSET GETRANGE DEL TYPE"),
    "metadata": ("hash", "HSET HGET DEL TYPE"),
    "agent_measurements": ("hash", "HSET HGETALL HLEN DEL TYPE"),
    "commands": ("list", "LPUSH LMOVE LREM LINDEX DEL TYPE"),
    "inbox": ("list", "LPUSH LLEN DEL TYPE"),
    "mail": ("list", "LPUSH LLEN LMOVE DEL TYPE"),
    "agent_reply": ("list", "LPUSH PEXPIRE TYPE"),
    "request_reply": ("list", "LPUSH PEXPIRE TYPE"),
    "command": ("hash", _RECORD),
    "group": ("hash", _RECORD),
    "saved_reply": ("string", "SET MGET TYPE"),
}
"""Maps the name of each key in store/keys.py to its Redis type and the commands that the engine uses on the key.

The engine also needs EVALSHA on each key, because scripts declare the keys that they use.
"""


def sample_key(keys: Keys, name: str) -> str:
    """Return the key of this name in store/keys.py, with `SAMPLE` for each id."""
    key = getattr(keys, name)
    return key if isinstance(key, str) else str(key(*([SAMPLE] * (2 if name == "agent_reply" else 1))))


_PATTERN: Final = re.compile(
    "|".join(f"(?P<{name}>{sample_key(Keys(''), name).replace(SAMPLE, f'({IDENTIFIER})')})" for name in KEY_USES)
)


class KnownKey(NamedTuple):
    """A key of the engine, with its name in store/keys.py."""

    key: str
    name: str
    id: str
    """The first id in the key, or empty."""
    agent_id: str
    """The agent that the key belongs to, or empty."""

    @property
    def type(self) -> str:
        return KEY_USES[self.name][0]


def classify(keys: Keys, key: str) -> KnownKey | None:
    """Classify a key under the prefix. Return None if no engine of this version writes such a key."""
    rest = key.removeprefix(keys.prefix)
    found = _PATTERN.fullmatch(rest)
    if found is None:
        return None
    first_id = next(filter(None, found.groups()[found.lastindex or 0 :]), "")
    return KnownKey(key, found.lastgroup or "", first_id, first_id if ":agent:" in rest else "")
