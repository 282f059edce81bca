"""The cache backend: a document a message, in whatever cache an application has already."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature, iscoroutinefunction, signature
from pickle import UnpicklingError
from threading import Lock
from typing import Any, Final
from zlib import error as ZlibError

from ..backend import StatusBackend, escape_namespace
from ..errors import BackendError
from ..record import Outcome, Record, Update
from ._item import Job, Known, from_value
from ._key import key_of

#: What caches call the time to live that `set` takes, in seconds.
TTL_NAMES: Final = ("timeout", "ttl", "expire", "ex")

#: The longest time to live that a cache is told, in seconds: ten years.
#: Some keep the moment of expiry in 32 bits.
MAX_TTL: Final = 315_360_000

#: The longest key, in bytes.  Caches put prefixes and versions before
#: it, and may keep it in memcached, where it has 250 bytes.
MAX_KEY_SIZE: Final = 200

#: What a cache raises that has found a value and cannot make sense of it.
DAMAGE: Final = (UnpicklingError, ZlibError)

#: Clients of stores that have a backend of their own -> that backend.
OWN_BACKENDS: Final = {"redis": "RedisBackend", "valkey": "RedisBackend", "pymemcache": "MemcachedBackend"}

#: There is no limit to what a cache takes that it could be asked for.
_NO_LIMIT: Final = 2**63

#: Who rewrites a document holds the lock of its key.  All backends of a
#: process share them, since nobody can tell whether two caches, or two
#: objects of one (Django has one a thread), keep the same documents.
_LOCKS: Final = [Lock() for _ in range(256)]


class CacheBackend(StatusBackend):
    """Keeps statuses in a cache: anything with ``get(key)``, ``set(key,
    value, ...)`` and ``delete(key)``.  That is Django's cache framework,
    cachelib_, dogpile.cache_ and many others.

    >>> from django.core.cache import cache
    >>> CacheBackend(cache)
    <CacheBackend 'dramatiq-status' in ConnectionProxy>

    Use another backend where you can: a cache promises less than they do.

    - An update reads a document, changes it and writes it back.  Within
      one process, locks keep that sane.  **Two processes that write to the
      same message at the same time can lose one another's fields and
      increments**, and a run that is redelivered while the older one still
      writes may be hidden by it for a moment.  As long as one worker
      process runs a message and nobody writes to it from outside, there are no two.
    - Workers and readers have to share the cache: one that lives in the
      memory of a process is for a single process, and for tests.
    - Caches forget, many of them early: Django's in memory and on disk
      keep 300 entries by default (``MAX_ENTRIES``), cachelib's keep 500
      (``threshold``).  The next write of the running message restores its
      status; one that has finished stays unknown.
    - A cache whose `set` takes no time to live (dogpile.cache) keeps
      documents until it deletes them by its own rules; they read as
      unknown from their time on.  The ``expiration_time`` of a region of
      dogpile.cache does not count for statuses.
    - Reading takes one call of the cache a message, an update two.
      Nothing limits how long they take but the cache's own time-outs.
    - Time limits and aborts may interrupt the cache's own code in the
      middle of a call.  No lock of this backend is left behind then, but
      not every cache can say that of its own: not Django's ``cache``, which
      looks for the thread's own object under a lock at every call
      (``caches["default"]`` is that object, and threads can share those in
      memory and on disk), nor dogpile.cache's ``dbm`` with its file lock.

    Moments and expiry come from the clock of the host that writes.

    What the cache is told to live is rounded up, to seconds and one more,
    as some cut off the present second; the document itself tells to the millisecond.

    Parameters:
      cache: The cache.  Its `set` takes a time to live in seconds as
        ``timeout``, ``ttl``, ``expire`` or ``ex``, or takes none.
      namespace(str): What all keys start with.
      timeout(int): How long a job waits at most for a final status to be
        stored, in milliseconds.
      max_field_size(int): The largest encoded field, in bytes.

    Raises:
      TypeError: When `cache` is none that fits.

    .. _cachelib: https://cachelib.readthedocs.io
    .. _dogpile.cache: https://dogpilecache.sqlalchemy.org
    """

    why_no_list = (
        "a cache has no index, and cannot tell which keys it has. Use the Redis or SQLite backend to list statuses."
    )

    def __init__(self, cache: Any, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._cache = cache
        self._get_options, self._ttl_name = _fit(cache)
        self._prefix = escape_namespace(self.namespace) + ":"

    def __repr__(self) -> str:
        # Not the cache: it may show a password.
        return f"<{type(self).__name__} {self.namespace!r} in {type(self._cache).__name__}>"

    # Writing

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        jobs: dict[str, Job] = {}
        for index, (message_id, update) in enumerate(updates):
            job = jobs.get(message_id)
            if job is None:
                job = jobs[message_id] = Job(message_id, self._key_of(message_id).encode())
            job.indexes.append(index)
            job.updates.append(update)
        outcomes = [Outcome.MISSING] * len(updates)
        for job in jobs.values():
            self._carry_out(job)
            for index, outcome in zip(job.indexes, job.outcomes):
                outcomes[index] = outcome
        return outcomes

    def _carry_out(self, job: Job) -> None:
        key = job.key.decode()
        # An interrupt leaves a lock of C that `with` takes neither taken nor half released.
        with _lock_of(key):
            now = self.now()
            value = job.work_out(Known(*self._fetch(key, now), None), now, _NO_LIMIT)
            if value is not None:
                self._store(key, value, job.expires_at - now)

    def delete(self, message_id: str) -> bool:
        key = self._key_of(message_id)
        with _lock_of(key):
            # What caches return differs: whether there was something, whether it worked, or nothing.
            record, _ = self._fetch(key, self.now())
            deleted = self._call("delete", key)
            if deleted is False and record is not None and self._fetch(key, self.now())[0] is not None:
                raise BackendError(f"{self._name} did not delete a key.")
        return record is not None

    def _store(self, key: str, value: bytes, ttl: int) -> None:
        options = {} if self._ttl_name is None else {self._ttl_name: seconds_of(ttl)}
        # Some caches take bytes only, some texts only, all that we know take a str.
        if self._call("set", key, value.decode(), **options) is False:
            raise BackendError(f"{self._name} did not store a value; its own log may say why.")

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        return [self._fetch(self._key_of(message_id), self.now())[0] for message_id in message_ids]

    def _fetch(self, key: str, now: int) -> tuple[Record | None, int]:
        """Read a record, None where there is none, and when it expires."""
        try:
            value = self._call("get", key, **self._get_options)
        except BackendError as e:
            if isinstance(e.__cause__, DAMAGE):
                return None, 0
            raise
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        # Anything else is somebody else's, or what stands for nothing in this cache.
        return from_value(value, None, now) if isinstance(value, bytes) else (None, 0)

    # The cache

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        # Looked up anew each time: behind one object, Django has one cache a thread.
        try:
            return getattr(self._cache, name)(*args, **options)
        except Exception as e:
            # Not what it says, which may be a URL with a password: whoever wants to know looks at the cause.
            raise BackendError(f"{self._name}.{name}() has failed with {_name_of(type(e))}.") from e

    @property
    def _name(self) -> str:
        return _name_of(type(self._cache))

    def _key_of(self, message_id: str) -> str:
        return key_of(self._prefix, message_id, MAX_KEY_SIZE)


def seconds_of(ttl: int) -> int:
    """What to tell a cache about how long a document lives, in seconds.

    >>> seconds_of(1), seconds_of(1500)
    (2, 3)
    """
    return min(max(0, math.ceil(ttl / 1000)) + 1, MAX_TTL)


def _fit(cache: Any) -> tuple[dict[str, Any], str | None]:
    """Find out how a cache wants to be called.

    Returns:
      tuple[dict[str, Any], str | None]: What to pass to `get` as well, and
      what `set` calls the time to live, None where it takes none.
    """
    # A class of somebody's own may inherit from a client.
    packages = [kind.__module__.partition(".")[0] for kind in type(cache).__mro__]
    own = next((OWN_BACKENDS[package] for package in packages if package in OWN_BACKENDS), None)
    if own is not None:
        raise TypeError(f"cache is a {_name_of(type(cache))}, a client: pass it to {own}(client=...).")
    gets = _signature_of(cache, "get", "key")
    sets = _signature_of(cache, "set", "key", "value")
    _signature_of(cache, "delete", "key")
    # The document has its own expiry; dogpile.cache's counts from its last write and may be much shorter.
    options = {"expiration_time": math.inf} if "expiration_time" in gets.parameters else {}
    for name in TTL_NAMES:
        if name in sets.parameters and _takes(sets, "key", "value", **{name: 1}):
            return options, name
    if len(sets.parameters) == 2 and not any(found.kind in _ANYTHING for found in sets.parameters.values()):
        return options, None
    raise TypeError(
        f"cache is a {_name_of(type(cache))} whose set{sets} takes no time to live by a name that is known: wrap it "
        f"in a class that has set(key, value, timeout), in seconds, or set(key, value) where values have none."
    )


#: What a method has that passes on whatever it gets.
_ANYTHING: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _signature_of(cache: Any, name: str, *args: str) -> Signature:
    method: Callable[..., Any] | None = getattr(cache, name, None)
    if not callable(method):
        problem = f"has no method {name}()"
    elif iscoroutinefunction(method):
        problem = f"has a coroutine for {name}(): pass one that is called without await"
    else:
        try:
            found = signature(method)
        except (TypeError, ValueError):
            problem = f"does not tell which parameters its {name}() takes: wrap it in a class whose methods do"
        else:
            # How `set` takes the time to live is looked at by whoever asked.
            if name == "set" or _takes(found, *args):
                return found
            problem = f"has a {name}{found} that cannot be called with ({', '.join(args)})"
    raise TypeError(
        f"cache must have get(key), set(key, value, timeout) and delete(key), as those of Django, cachelib and "
        f"dogpile.cache do; this {_name_of(type(cache))} {problem}."
    )


def _takes(found: Signature, *args: Any, **options: Any) -> bool:
    try:
        found.bind(*args, **options)
    except TypeError:
        return False
    return True


def _name_of(kind: type) -> str:
    return kind.__qualname__


def _lock_of(key: str) -> Lock:
    return _LOCKS[hash(key) % len(_LOCKS)]


def _renew_locks() -> None:
    # Those that other threads of the parent hold would never be released in the child.
    _LOCKS[:] = [Lock() for _ in _LOCKS]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
