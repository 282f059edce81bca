"""The cache backend: a document a message, in whatever cache an application has already."""

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

from .._process import at_fork
from .._time import monotonic
from ..backend import StatusBackend, escape_namespace
from ..errors import BackendError, StoreRefused
from ..record import Record
from ..update import Outcome, Update
from ._document import PendingDocument, by_message, from_value
from ._keys import key_of

#: What caches call the time to live that `set` takes, in seconds.
TTL_NAMES: Final = ("timeout", "ttl", "expire", "ex")

#: The methods that a cache has.
METHODS: Final = ("get", "set", "delete")

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

#: Packages whose `set` passes all its arguments on to a cache behind it -> that cache's name of the time to live.
PASSING_ON: Final = {"flask_caching": "timeout"}

#: There is no limit to what a cache takes that it could be asked for.
_NO_LIMIT: Final = 2**63

#: Who rewrites a document holds the lock of its key.  All backends of a
#: process share them, since nobody can tell whether two caches, or two
#: objects of one (Django has one a thread), keep the same documents.
_LOCKS: Final = [Lock() for _ in range(256)]


class _Errors:
    """The errors of a call for many messages.

    A cache may keep the messages on several servers.  So after a failure the
    backend tries the other messages, until the call has taken its time-out.
    """

    def __init__(self, timeout: int) -> None:
        self._deadline = monotonic() + timeout / 1000
        self.first: BackendError | None = None
        #: The error after which the cache is not called for the messages that are left.
        self.last: BackendError | None = None

    def add(self, error: BackendError) -> BackendError:
        self.first = self.first or error
        if monotonic() >= self._deadline:
            self.last = error
        return error


class _Fit(NamedTuple):
    """The way in which a cache is called: options of `get`, and the name that `set` has for the time to live."""

    get_options: dict[str, Any]
    #: None where `set` takes no time to live.
    ttl_name: str | None


class CacheBackend(StatusBackend):
    """Keeps statuses in a cache: anything with ``get(key)``, ``set(key,
    value, ...)`` and ``delete(key)``.  That is Django's cache framework,
    django-redis, cachelib_, Flask-Caching, dogpile.cache_ and many others.

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
    - Some caches hide errors: Django's in a database those of writing, and
      django-redis all of them with ``IGNORE_EXCEPTIONS``.  Updates are
      lost in an outage that a cache hides.

    A proxy, as ``django.core.cache.cache`` is one, is looked through at the
    first call and not before, so that a settings file may create the backend.

    Moments and expiry come from the clock of the host that writes; a reader
    compares the expiry with its own clock.

    What the cache is told to live is rounded up, to seconds and one more,
    as some cut off the present second; the document itself tells to the millisecond.

    Parameters:
      cache: The cache.  Its `set` takes a time to live in seconds as
        ``timeout``, ``ttl``, ``expire`` or ``ex``, or takes none.
      on_error(Callable[[], Any]): Function that is called on the same thread
        after a call of the cache has failed, before the next one.  By
        default, if the cache is Django's, it closes the thread's database
        connections that have broken: Django itself does that at the begin and
        end of a request only, and the writer's thread has none.
      namespace(str): What all keys start with.
      timeout(int): How long a job waits at most for a final status to be
        stored, in milliseconds.
      max_field_size(int): The largest encoded field, in bytes.

    Raises:
      TypeError: When `cache` is none that fits.  Where a proxy hides the
        cache, its first use raises :class:`.BackendError` instead.

    .. _cachelib: https://cachelib.readthedocs.io
    .. _dogpile.cache: https://dogpilecache.sqlalchemy.org
    """

    why_no_list = (
        "a cache has no index, and cannot tell which keys it has. Use the Redis or SQLite backend to list statuses."
    )

    def __init__(self, cache: Any, *, on_error: Callable[[], Any] | None = None, **parameters: Any) -> None:
        super().__init__(**parameters)
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be callable, not {type(on_error).__name__}.")
        self._cache = cache
        self._on_error = on_error or (close_broken_connections if _is_djangos(cache) else None)
        self._fit = None if _is_proxy(cache) else _find_fit(cache)
        self._prefix = escape_namespace(self.namespace) + ":"

    def __repr__(self) -> str:
        # Not the cache: it may show a password.
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
        return outcomes

    def _carry_out(self, document: PendingDocument) -> bool:
        """Carry out the updates of a message, and return whether that has stored a value."""
        key = document.key.decode()
        # An interrupt leaves a lock of C that `with` takes neither taken nor half released.
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
            # What caches return differs: whether there was something, whether it worked, or nothing.
            record, _ = self._fetch(key, self.now())
            deleted = self._call("delete", key)
            if deleted is False and record is not None and self._fetch(key, self.now())[0] is not None:
                raise BackendError(f"{self._name} did not delete a key.")
        return record is not None

    def _store(self, key: str, value: bytes, ttl: int) -> None:
        name = self._found_fit().ttl_name
        options = {} if name is None else {name: seconds_of(ttl)}
        try:
            # Some caches take bytes only, some texts only, all that we know take a str.
            if self._call("set", key, value.decode(), **options) is not False:
                return
            error = StoreRefused(f"{self._name} did not store a value; its own log may say why.")
        except BackendError as e:
            if isinstance(e.__cause__, OSError):
                raise
            error = StoreRefused(str(e))
            error.__cause__ = e.__cause__
        # Raises another error if the cache does not answer at all.
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
        """Read a record, None where there is none, and when it expires."""
        try:
            value = self._call("get", key, **self._found_fit().get_options)
        except BackendError as e:
            if isinstance(e.__cause__, DAMAGE):
                return None, 0
            raise
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogatepass")
        # Anything else is somebody else's, or what stands for nothing in this cache.
        return from_value(value, None, now) if isinstance(value, bytes) else (None, 0)

    # The cache

    def _found_fit(self) -> _Fit:
        fit = self._fit
        if fit is None:
            try:
                fit = self._fit = _find_fit(self._cache)
            except TypeError as e:
                raise BackendError(str(e)) from e
            except Exception as e:
                raise BackendError(f"There is no cache behind the {self._name} yet ({_name_of(type(e))}).") from e
        return fit

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        # Looked up each time: behind one object, Django has one cache a thread.
        try:
            return getattr(self._cache, name)(*args, **options)
        except Exception as e:
            # Without the text of `e`, which may contain a URL with a password: it is the cause.
            message = f"{self._name}.{name}() has failed with {_name_of(type(e))}"
            if self._on_error is not None:
                try:
                    self._on_error()
                except Exception as again:
                    raise BackendError(f"{message}, and then on_error with {_name_of(type(again))}.") from again
            raise BackendError(f"{message}.") from e

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


def close_broken_connections() -> None:
    """Close the database connections of this thread that do not work any more, so that Django makes new ones.

    That is a part of what ``django.db.close_old_connections`` does.  It may
    run in the middle of a job, so it leaves alone what still works, however
    old, and transactions: those are for the code that has begun them to end.
    """
    # Django's caches work without its databases, which may not be loaded, and without settings, which databases need.
    db, conf = sys.modules.get("django.db"), sys.modules.get("django.conf")
    if db is None or conf is None or not conf.settings.configured:
        return
    for connection in db.connections.all(initialized_only=True):
        in_transaction = connection.in_atomic_block or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]
        if connection.errors_occurred and not in_transaction and not connection.is_usable():
            connection.close()


def _packages_of(cache: Any) -> list[str]:
    # A class of an application's own may inherit from another package's.
    return [kind.__module__.partition(".")[0] for kind in type(cache).__mro__]


def _is_djangos(cache: Any) -> bool:
    return "django" in _packages_of(cache)


def _is_proxy(cache: Any) -> bool:
    """Find out whether a look at the cache's methods would run its own code, and so begin to use it."""
    return hasattr(type(cache), "__getattr__") and None in (getattr_static(cache, name, None) for name in METHODS)


def _find_fit(cache: Any) -> _Fit:
    """Find the options that a cache's methods take."""
    packages = _packages_of(cache)
    own = next((OWN_BACKENDS[package] for package in packages if package in OWN_BACKENDS), None)
    if own is not None:
        raise TypeError(f"cache is a {_name_of(type(cache))}, a client: pass it to {own}(client=...).")
    gets = _signature_of(cache, "get", "key")
    sets = _signature_of(cache, "set", "key", "value")
    _signature_of(cache, "delete", "key")
    # The document has its own expiry; dogpile.cache's counts from its last write and may be much shorter.
    options = {"expiration_time": math.inf} if "expiration_time" in gets.parameters else {}
    passes_on = any(found.kind in _ANYTHING for found in sets.parameters.values())
    if len(sets.parameters) == 2 and not passes_on:
        return _Fit(options, None)
    name = _ttl_name_of(sets)
    if name is None and passes_on:
        name = _ttl_name_behind(cache)
    if name is None:
        raise TypeError(
            f"cache is a {_name_of(type(cache))} whose set{sets} takes no time to live by a name that is known: wrap "
            f"it in a class that has set(key, value, timeout), in seconds, or set(key, value) where values have none."
        )
    return _Fit(options, name)


def _ttl_name_of(sets: Signature, *self: str) -> str | None:
    return next(
        (name for name in TTL_NAMES if name in sets.parameters and _takes(sets, *self, "key", "value", **{name: 1})),
        None,
    )


def _ttl_name_behind(cache: Any) -> str | None:
    """Find the name of the time to live for a `set` that passes its arguments on, as the `set` of django-redis does.

    Such a method takes the arguments of the class that it inherits from.
    """
    # The cache itself, where `cache` is a proxy.
    owner = getattr(cache.set, "__self__", cache)
    for kind in type(owner).__mro__:
        inherited = vars(kind).get("set")
        name = _ttl_name_of(signature(inherited), "self") if isfunction(inherited) else None
        if name is not None:
            return name
    return next((PASSING_ON[package] for package in _packages_of(owner) if package in PASSING_ON), None)


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


at_fork(after_in_child=_renew_locks)
