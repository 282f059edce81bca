"""One module for each store.

A backend is imported when it is first asked for, so that nobody needs
the client of a store that they do not use.
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

#: Class -> the module that it lives in, the client that it needs, the extra that installs it.
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
