"""The Redis backend: statuses in a single server, behind Sentinels, or on a cluster."""

from .backend import RedisBackend

__all__ = ["RedisBackend"]
