"""The memcached backend: statuses in one server, or spread over many."""

from .backend import MemcachedBackend

__all__ = ["MemcachedBackend"]
