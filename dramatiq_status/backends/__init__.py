"""The backends, one module for each store.

The module of a backend is imported when the backend is first used.  So an application needs only the client packages
of the stores that it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .url import backend_from_url

if TYPE_CHECKING:
    from .cache import CacheBackend
    from .memcached import MemcachedBackend
    from .redis import RedisBackend
    from .sqlite import SQLiteBackend
    from .stub import StubBackend

__all__ = ["CacheBackend", "MemcachedBackend", "RedisBackend", "SQLiteBackend", "StubBackend", "backend_from_url"]

#: By the name of a backend: its module, the client package that it needs, and the extra that installs this package.
_BACKENDS = {
    "CacheBackend": ("cache", "", ""),
    "MemcachedBackend": ("memcached", "pymemcache", "memcached"),
    "RedisBackend": ("redis", "redis", "redis"),
    "SQLiteBackend": ("sqlite", "", ""),
    "StubBackend": ("stub", "", ""),
}


def __getattr__(name: str) -> Any:
    if name not in _BACKENDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, client, extra = _BACKENDS[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as e:
        if not client or (e.name or "").partition(".")[0] != client:
            raise
        raise ImportError(
            f"{name} needs the package {client!r}, which is not installed: pip install 'dramatiq-status[{extra}]'."
        ) from e


def __dir__() -> list[str]:
    return sorted(__all__)
