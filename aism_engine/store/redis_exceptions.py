"""redis-py's exceptions, for the modules above the store: only the store imports redis."""

from redis.exceptions import NoPermissionError, RedisError, ResponseError

__all__ = ["NoPermissionError", "RedisError", "ResponseError"]
