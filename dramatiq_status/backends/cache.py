"""The cache backend: one document for each message, in a cache that an application already has."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature, getattr_static, iscoroutinefunction, isfunction, signature
from itertools import chain
from pickle import UnpicklingError
from threading import Lock
from typing import Any, Final, NamedTuple
from zlib import error as ZlibError

from .._log import logger
from .._process import at_fork
from .._time import monotonic
from ..backend import StatusBackend, escape_namespace
from ..cancel_log import LOG_TTL, add_to_log, cancelled_by, read_log
from ..errors import BackendError, StoreRefused
from ..record import Record
from ..update import Outcome, Update
from ._document import PendingDocument, by_message, from_value
from ._keys import key_of

#: Names of the parameter of `set` for the time to live in seconds, in different caches.
TTL_NAMES: Final = ("timeout", "ttl", "expire", "ex")

#: Methods that a cache must have.
METHODS: Final = ("get", "set", "delete")

#: Maximum time to live of a document, in seconds: ten years.  Some caches store the time of expiry in 32 bits.
MAX_TTL: Final = 315_360_000

#: Maximum size of a key, in bytes.  Caches add prefixes and versions to a key, and may store it in memcached, which
#: takes 250 bytes.
MAX_KEY_SIZE: Final = 200

#: Exceptions of a cache that has found a damaged value.
DAMAGE: Final = (UnpicklingError, ZlibError)

#: Backends for clients that are no caches, by the package of the client.
OWN_BACKENDS: Final = {"redis": "RedisBackend", "valkey": "RedisBackend", "pymemcache": "MemcachedBackend"}

#: Names of the time-to-live parameter, by packages whose `set` passes all its arguments to another cache.
PASSING_ON: Final = {"flask_caching": "timeout"}

#: Maximum size of a document, in bytes: none, because the backend cannot query the limit of a cache.
_NO_LIMIT: Final = 2**63

#: Locks for updates, by the hash of the key.  All backends of a process share them, because two caches, or two objects
#: of one cache (Django has one for each thread), may have the same documents.
_LOCKS: Final = [Lock() for _ in range(256)]


class _Errors:
    """The errors of a call for many messages.

    A cache may distribute the messages over several servers.  So after a failure, the backend tries the other
    messages.  It stops at the first error after the time-out of the call.

    Parameters:
      timeout(int): In milliseconds.

    Attributes:
      first(BackendError): The first error, None for none.
      last(BackendError): The error after which no time was left; None while there is time.
    """

    def __init__(self, timeout: int) -> None:
        self._deadline = monotonic() + timeout / 1000
        self.first: BackendError | None = None
        self.last: BackendError | None = None

    def add(self, error: BackendError) -> BackendError:
        self.first = self.first or error
        if monotonic() >= self._deadline:
            self.last = error
        return error


class _CallStyle(NamedTuple):
    """Differences in the signatures of a cache's methods.

    Parameters:
      get_options: Additional arguments of `get`.
      ttl_name: Name of the parameter of `set` for the time to live, None if there is none.
    """

    get_options: dict[str, Any]
    ttl_name: str | None


class CacheBackend(StatusBackend):
    """A backend that stores statuses in a cache: an object with ``get(key)``, ``set(key, value, ...)`` and
    ``delete(key)``.  The caches of Django, django-redis, cachelib_, Flask-Caching and dogpile.cache_ are examples.

    >>> from django.core.cache import cache
    >>> CacheBackend(cache)
    <CacheBackend 'dramatiq-status' in ConnectionProxy>

    Use another backend if you can, because a cache promises less:

    - An update reads a document, changes it and writes it back.  Within one process, locks protect this.  **Two
      processes that write to the same message at the same time can lose fields and increments of each other**.  For a
      moment, a run that has lost its message can also overwrite the status of the run that has the message now.  This
      cannot happen while one worker runs a message and no other process writes to it.
    - Workers and readers must share the cache.  A cache in the memory of a process is for a single process, and for
      tests.
    - A cache may forget a document early: Django's caches in memory and on disk keep 300 entries by default
      (``MAX_ENTRIES``), and cachelib's caches 500 (``threshold``).  The next write of a running message restores its
      status.  The status of a finished message stays unknown.
    - If `set` takes no time to live (dogpile.cache), the cache keeps documents until it deletes them by its own rules.
      The backend ignores them after their time to live.  The ``expiration_time`` of a region of dogpile.cache does not
      count for statuses.
    - For each message, a read takes one call of the cache, and an update takes two calls.  Only the cache's own
      time-outs limit their duration.
    - A time limit or an abort may interrupt the code of the cache in the middle of a call.  The backend then releases
      its own locks, but some caches keep a lock forever: dogpile.cache's ``dbm`` with its file lock, and Django's
      ``cache``, which takes a lock in each call to find the cache object of the thread.  To avoid Django's lock, pass
      this object itself, ``caches["default"]``.  Threads can share the object of a cache in memory or on disk.
    - Some caches hide errors: Django's cache in a database hides errors of writes, and django-redis hides all errors
      with ``IGNORE_EXCEPTIONS``.  Updates are lost in an outage that the cache hides.

    A proxy, for example ``django.core.cache.cache``, is used at the first call and not before, so that a settings file
    may create the backend.

    All times and expiries come from the clock of the host that writes.  A reader compares an expiry with its own clock.
    The time to live of a document in the cache is rounded up to seconds, plus one second, because some caches round
    down.  The document itself contains its expiry in milliseconds.

    Parameters:
      cache: The cache.  The time to live of its `set`, in seconds, is called ``timeout``, ``ttl``, ``expire`` or
        ``ex``, or there is none.
      on_error(Callable[[], Any]): Function that is called after a call of the cache has failed, on the same thread and
        before the next call.  For a cache of Django, the default closes the thread's database connections that are
        broken.  Django itself closes them only at the beginning and the end of a request, and the writer's thread has
        no requests.
      namespace(str): Prefix of all keys.
      timeout(int): Maximum number of milliseconds that a worker waits until a final state is stored.  A call with
        many messages ends at the first error after this time.
      max_field_size(int): Maximum size of an encoded field, in bytes.

    Raises:
      TypeError: When `cache` lacks `get`, `set` or `delete`, takes a time to live under another name, or is a client
        that has a backend of its own.  If a proxy hides the cache, its first use raises :class:`.BackendError` instead.

    .. _cachelib: https://cachelib.readthedocs.io
    .. _dogpile.cache: https://dogpilecache.sqlalchemy.org
    """

    why_no_list = "a cache has no index, and cannot list its keys. Use the Redis or SQLite backend to list statuses."

    def __init__(self, cache: Any, *, on_error: Callable[[], Any] | None = None, **parameters: Any) -> None:
        super().__init__(**parameters)
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be callable, not {type(on_error).__name__}.")
        self._cache = cache
        self._on_error = on_error or (close_broken_connections if _is_djangos(cache) else None)
        self._call_style = None if _is_proxy(cache) else _find_call_style(cache)
        self._prefix = escape_namespace(self.namespace) + ":"
        # In the key of a message, ":" comes directly behind the namespace.
        self._log_key = escape_namespace(self.namespace) + "%cancels"

    def __repr__(self) -> str:
        # The cache is left out, because its `repr` may contain a password.
        return f"<{type(self).__name__} {self.namespace!r} in {type(self._cache).__name__}>"

    # Writing

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        documents = by_message(
            updates, lambda message_id: PendingDocument(message_id, self._key_of(message_id).encode())
        )
        outcomes = [Outcome.UNAVAILABLE] * len(updates)
        errors = _Errors(self.timeout)
        stored, refused = False, list[PendingDocument]()
        for document in documents:
            if errors.last is None:
                try:
                    stored = self._carry_out(document) or stored
                except BackendError as e:
                    errors.add(e)
                    if isinstance(e, StoreRefused):
                        refused.append(document)
                    continue
                for index, outcome in zip(document.indexes, document.outcomes):
                    outcomes[index] = outcome
        if errors.first is not None and all(outcome is Outcome.UNAVAILABLE for outcome in outcomes):
            raise errors.first
        for index in chain.from_iterable(document.indexes for document in refused if stored):
            outcomes[index] = Outcome.UNSTORABLE
        if cancelled := cancelled_by(updates, outcomes):
            self._log_cancels(cancelled)
        return outcomes

    def _log_cancels(self, message_ids: Sequence[str]) -> None:
        try:
            with _lock_of(self._log_key):
                self._store(self._log_key, add_to_log(self._read_log(), message_ids).encode(), LOG_TTL)
        except BackendError as e:
            logger.info("The log of cancelled messages was not written, so workers stop messages late: %s", e)

    def read_cancels(self, position: Any) -> tuple[int, list[int]]:
        return read_log(self._read_log(), position or 0)

    def _read_log(self) -> Any:
        return self._call("get", self._log_key, **self._known_call_style().get_options)

    def _carry_out(self, document: PendingDocument) -> bool:
        """Carry out the updates of a message.  Return whether a value was stored."""
        key = document.key.decode()
        # The lock is written in C, so `with` releases it after an interrupt as well.
        with _lock_of(key):
            now = self.now()
            record, expires_at = self._fetch(key, now)
            value = document.apply(record, expires_at, now, _NO_LIMIT)
            if value is not None:
                self._store(key, value, document.expires_at - now)
        return value is not None

    def delete(self, message_id: str) -> bool:
        key = self._key_of(message_id)
        with _lock_of(key):
            # Some caches return whether there was a value, some whether they have succeeded, and some nothing.
            record, _ = self._fetch(key, self.now())
            deleted = self._call("delete", key)
            if deleted is False and record is not None and self._fetch(key, self.now())[0] is not None:
                raise BackendError(f"{self._name} did not delete a key.")
        return record is not None

    def _store(self, key: str, value: bytes, ttl: int) -> None:
        name = self._known_call_style().ttl_name
        options = {} if name is None else {name: seconds_of(ttl)}
        try:
            # Some caches reject bytes.  All known caches accept a str.
            if self._call("set", key, value.decode(), **options) is not False:
                return
            error = StoreRefused(f"{self._name} did not store a value; its own log may contain the reason.")
        except BackendError as e:
            if isinstance(e.__cause__, OSError):
                raise
            error = StoreRefused(str(e))
            error.__cause__ = e.__cause__
        # If the cache does not answer at all, this call raises the error of the outage instead.
        self._fetch(key, self.now())
        raise error

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | BackendError | None]:
        found: list[Record | BackendError | None] = []
        errors = _Errors(self.timeout)
        for message_id in message_ids:
            if errors.last is None:
                try:
                    found.append(self._fetch(self._key_of(message_id), self.now())[0])
                except BackendError as e:
                    found.append(errors.add(e))
            else:
                found.append(errors.last)
        if errors.first is not None and all(isinstance(record, BackendError) for record in found):
            raise errors.first
        return found

    def _fetch(self, key: str, now: int) -> tuple[Record | None, int]:
        """Read a record, and the time at which it expires.  Return None as the record if there is none."""
        try:
            value = self._call("get", key, **self._known_call_style().get_options)
        except BackendError as e:
            if isinstance(e.__cause__, DAMAGE):
                return None, 0
            raise
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        # Any other value comes from another program, or is the cache's sign for a missing key.
        return from_value(value, None, now) if isinstance(value, bytes) else (None, 0)

    # The cache

    def _known_call_style(self) -> _CallStyle:
        style = self._call_style
        if style is None:
            try:
                style = self._call_style = _find_call_style(self._cache)
            except TypeError as e:
                raise BackendError(str(e)) from e
            except Exception as e:
                raise BackendError(f"There is no cache behind the {self._name} yet ({_name_of(type(e))}).") from e
        return style

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        # The method is looked up in each call, because Django has one cache for each thread behind one object.
        try:
            return getattr(self._cache, name)(*args, **options)
        except Exception as e:
            # The text of `e`, the cause of the new error, is left out: it may contain a URL with a password.
            message = f"{self._name}.{name}() has failed with {_name_of(type(e))}"
            if self._on_error is not None:
                try:
                    self._on_error()
                except Exception as again:
                    raise BackendError(f"{message}, and on_error has failed with {_name_of(type(again))}.") from again
            raise BackendError(f"{message}.") from e

    @property
    def _name(self) -> str:
        return _name_of(type(self._cache))

    def _key_of(self, message_id: str) -> str:
        return key_of(self._prefix, message_id, MAX_KEY_SIZE)


def seconds_of(ttl: int) -> int:
    """Return the time to live for a cache, in seconds.

    Parameters:
      ttl(int): The time to live of a document, in milliseconds.

    >>> seconds_of(1), seconds_of(1500)
    (2, 3)
    """
    return min(max(0, math.ceil(ttl / 1000)) + 1, MAX_TTL)


def close_broken_connections() -> None:
    """Close the broken database connections of this thread, so that Django makes new ones.

    This is a part of ``django.db.close_old_connections``.  It may run in the middle of a job.  So it closes neither
    connections that still work, nor connections with a transaction: the code that has begun a transaction ends it.
    """
    # Django's caches work without its databases, which may not be loaded.  Databases need settings, and caches do not.
    db, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if db is None or conf is None or not conf.settings.configured:
        return
    for connection in db.connections.all(initialized_only=True):
        in_transaction = connection.in_atomic_block or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
        if connection.errors_occurred and not in_transaction and not connection.is_usable():
            connection.close()


def _packages_of(cache: Any) -> list[str]:
    # An application's own class may inherit from a class of another package.
    return [kind.__module__.partition(".")[0] for kind in type(cache).__mro__]


def _is_djangos(cache: Any) -> bool:
    return "django" in _packages_of(cache)


def _is_proxy(cache: Any) -> bool:
    """Return whether reading the attributes of the cache would execute its code."""
    return hasattr(type(cache), "__getattr__") and None in (getattr_static(cache, name, None) for name in METHODS)


def _find_call_style(cache: Any) -> _CallStyle:
    """Find the way in which a cache is called, by the parameters of its methods."""
    packages = _packages_of(cache)
    own = next((OWN_BACKENDS[package] for package in packages if package in OWN_BACKENDS), None)
    if own is not None:
        raise TypeError(f"cache is a {_name_of(type(cache))}, a client: pass it to {own}(client=...).")
    gets = _signature_of(cache, "get", "key")
    sets = _signature_of(cache, "set", "key", "value")
    _signature_of(cache, "delete", "key")
    # A document contains its expiry.  The expiry of dogpile.cache counts from the last write, and may be much earlier.
    options = {"expiration_time": math.inf} if "expiration_time" in gets.parameters else {}
    passes_on = any(found.kind in _ANYTHING for found in sets.parameters.values())
    if len(sets.parameters) == 2 and not passes_on:
        return _CallStyle(options, None)
    name = _ttl_name_of(sets)
    if name is None and passes_on:
        name = _ttl_name_behind(cache)
    if name is None:
        raise TypeError(
            f"cache is a {_name_of(type(cache))} whose set{sets} takes no time to live as {', '.join(TTL_NAMES)}: wrap "
            f"it in a class that has set(key, value, timeout), in seconds, or set(key, value) if values have none."
        )
    return _CallStyle(options, name)


def _ttl_name_of(sets: Signature, *self: str) -> str | None:
    return next(
        (name for name in TTL_NAMES if name in sets.parameters and _takes(sets, *self, "key", "value", **{name: 1})),
        None,
    )


def _ttl_name_behind(cache: Any) -> str | None:
    """Find the name of the time to live for a `set` that passes its arguments to another cache.

    For example, the `set` of django-redis takes the arguments of the `set` of its base class.
    """
    # If `cache` is a proxy, this is the cache itself.
    owner = getattr(cache.set, "__self__", cache)
    for kind in type(owner).__mro__:
        inherited = vars(kind).get("set")
        name = _ttl_name_of(signature(inherited), "self") if isfunction(inherited) else None
        if name is not None:
            return name
    return next((PASSING_ON[package] for package in _packages_of(owner) if package in PASSING_ON), None)


#: Kinds of parameters of a method that passes its arguments to another method.
_ANYTHING: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _signature_of(cache: Any, name: str, *args: str) -> Signature:
    method: Callable[..., Any] | None = getattr(cache, name, None)
    if not callable(method):
        problem = f"has no method {name}()"
    elif iscoroutinefunction(method):
        problem = f"has a coroutine for {name}(): pass a cache that is called without await"
    else:
        try:
            found = signature(method)
        except (TypeError, ValueError):
            problem = f"has no signature for its {name}(): wrap it in a class whose methods have one"
        else:
            # `_find_call_style` checks the time to live of `set`.
            if name == "set" or _takes(found, *args):
                return found
            problem = f"has a {name}{found} that cannot be called with ({', '.join(args)})"
    raise TypeError(
        f"cache must have get(key), set(key, value[, timeout]) and delete(key), as the caches of Django, cachelib and "
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
    # A lock that another thread of the parent holds would never be released in the child.
    _LOCKS[:] = [Lock() for _ in _LOCKS]


at_fork(after_in_child=_renew_locks)
