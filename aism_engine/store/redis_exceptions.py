"""redis-py's exceptions for the layers above, because only the store imports redis."""

from redis.exceptions import NoPermissionError, RedisError, ResponseError

__all__ = ["NoPermissionError", "RedisError", "ResponseError"]
