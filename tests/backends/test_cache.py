"""Caches: those of Django, cachelib and dogpile.cache, in memory and on disk, those of packages that wrap them, and
what else fits.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import django.db  # noqa: F401 - see test_djangos_databases_need_settings_and_its_caches_do_not
import dramatiq
import flask_caching
import pytest
import redis
from cachelib import FileSystemCache, RedisCache, SimpleCache
from django.conf import UserSettingsHolder, global_settings, settings
from django.core.cache import CacheHandler
from django.utils.connection import ConnectionProxy
from dogpile.cache import make_region
from flask import Flask
from pymemcache import Client
from redis.backoff import NoBackoff
from redis.retry import Retry

from dramatiq_status import BackendError, StatusRegistry, current_progress, current_status
from dramatiq_status.backend import StatusBackend, now_ms
from dramatiq_status.backends import CacheBackend
from dramatiq_status.backends._document import to_value
from dramatiq_status.backends.cache import MAX_KEY_SIZE, MAX_TTL, seconds_of
from dramatiq_status.errors import StoreRefused
from dramatiq_status.record import GENERATION, ORIGIN, PROGRESS, RUN_TOKEN, SEQUENCE, STATE, VERSION, Record
from dramatiq_status.testing.conformance import BackendConformance, enqueue, finish, outside, start, together, write
from dramatiq_status.update import Outcome

from ..recording import make_broker, run
from ..servers import MemcachedServer

#: Maximum number of entries of a cache, which no test reaches.
MANY = 1_000_000


def django_caches(kind: str, location: object) -> CacheHandler:
    """Return an object like `django.core.cache.caches` for one cache."""
    backend = f"django.core.cache.backends.{kind}"
    settings = {"BACKEND": backend, "LOCATION": str(location), "OPTIONS": {"MAX_ENTRIES": MANY}}
    return CacheHandler({"default": settings})


class CacheConformance(BackendConformance):
    """Conformance tests of every cache."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Any:
        raise NotImplementedError

    @pytest.fixture
    def backend(self, cache: Any) -> CacheBackend:
        return CacheBackend(cache)

    @pytest.fixture
    def make_backend(self, cache: Any) -> Callable[..., StatusBackend]:
        return lambda **parameters: CacheBackend(cache, **parameters)

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        assert isinstance(backend, CacheBackend)
        value = backend._cache.get(backend._key_of(message_id))
        return int(value.split("\n")[0]) - backend.now() if isinstance(value, str) else None

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        assert isinstance(backend, CacheBackend)
        record = backend.read(message_id)
        assert record is not None
        backend._store(backend._key_of(message_id), to_value(record, backend.now() + ttl), ttl)

    @contextmanager
    def refusing(self, backend: StatusBackend, message_id: str) -> Iterator[None]:
        assert isinstance(backend, CacheBackend)
        cache, refused = backend._cache, backend._key_of(message_id)

        class Refusing:
            """The cache, whose `set` returns False for one key, as some caches do for a value that is too large."""

            def get(self, key: str) -> Any:
                return cache.get(key)

            def set(self, key: str, value: Any, timeout: int) -> Any:
                return key != refused and cache.set(key, value, timeout)

            def delete(self, key: str) -> Any:
                return cache.delete(key)

        backend._cache = Refusing()
        yield
        backend._cache = cache

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        later = now_ms() + 86_400_000

        def value(value: object) -> Callable[[CacheBackend, str], None]:
            return lambda backend, message_id: backend._call("set", backend._key_of(message_id), value)

        def record(fields: Record) -> Callable[[CacheBackend, str], None]:
            return value(to_value(fields, later).decode())

        return {
            "empty": value(""),
            "text": value("x"),
            "surrogate": value(f"{later}\ndramatiq-status 1\ns\n\ud800"),
            "number": value(5),
            "nothing": value(None),
            "structure": value({"s": "1"}),
            "not UTF-8": value(b"%d\ndramatiq-status 1\ns\n\xff" % later),
            "no expiry": value("dramatiq-status 1\ns\n1\nv\n1\ne\n7\nn\n1"),
            "another format": value(f"{later}\ndramatiq-status 0\ns\n1\nv\n1\ne\n7\nn\n1"),
            "half a record": value(f"{later}\ndramatiq-status 1\ns\n1\nv\n1\ne\n7\nn"),
            "unknown state": record({STATE: "4", VERSION: "1", ORIGIN: "7", GENERATION: "1"}),
            "no version": record({STATE: "1", ORIGIN: "7", GENERATION: "1", RUN_TOKEN: "1", SEQUENCE: "1"}),
        }

    @pytest.mark.skipif(sys.gettrace() is not None, reason="With a tracer, interrupts strike as a lock is taken.")
    def test_an_interrupted_call_spoils_no_other(self, backend: StatusBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        super().test_an_interrupted_call_spoils_no_other(backend, monkeypatch)

    def test_a_cache_that_returns_bytes(self, backend: CacheBackend, message_id: str) -> None:
        # Given a record in a cache that returns bytes for a str
        value = to_value({"s": "1", "v": "1", "e": "7", "n": "1"}, backend.now() + 60_000)
        backend._call("set", backend._key_of(message_id), value)
        # When it is read and changed
        found = backend.read(message_id), backend.update(message_id, outside(step="1"))
        # Then it is a record like any other
        assert found == ({"s": "1", "v": "1", "e": "7", "n": "1"}, Outcome.APPLIED)

    def test_writes_of_many_threads_to_many_messages(self, backend: CacheBackend) -> None:
        # Given messages to which several threads write, through two backends
        ids = [uuid4().hex for _ in range(5)]
        backend.update_many([(message_id, start(1)) for message_id in ids])

        def count() -> None:
            own = CacheBackend(backend._cache)
            for _ in range(20):
                own.update_many([(message_id, outside(increment=1)) for message_id in ids])

        # When they increment the progress at the same time
        together(*[count] * 4)
        # Then every sum is exact
        assert [record and record[PROGRESS] for record in backend.read_many(ids)] == ["80"] * 5


class TestDjangoLocMem(CacheConformance):
    """The whole suite, on the library that is used most.  Its interface asks the most of the backend, too: an object
    of each thread, versions of keys, a time to live in seconds, and a default for it that the backend must override.
    """

    @pytest.fixture
    def cache(self) -> Any:
        return django_caches("locmem.LocMemCache", uuid4().hex)["default"]


#: The tests of the conformance suite whose result depends on the cache's own `get`, `set` and `delete`: what they
#: return, how they serialise values and keys, when values expire, and what threads and interrupts do to them.
#: All others depend on the backend's own code, which is the same for every cache.
INTERFACE = {
    "test_a_batch_of_hundreds",
    "test_a_damaged_record_hides_no_other",
    "test_a_damaged_record_is_replaced",
    "test_a_damaged_record_reads_none",
    "test_a_delete_removes_one_record",
    "test_a_fork_shares_no_connection",
    "test_a_large_field",
    "test_a_message_that_is_retried_and_completed",
    "test_a_record_expires",
    "test_a_record_has_all_fields_of_its_enqueue",
    "test_an_interrupted_call_spoils_no_other",
    "test_an_unknown_message_has_no_record",
    "test_backends_of_one_namespace_share",
    "test_message_ids_that_look_alike",
    "test_namespaces_are_apart",
    "test_no_increment_is_lost",
    "test_odd_message_ids",
    "test_read_many_keeps_the_order",
    "test_values_are_read_unchanged",
}


class CacheInterface(CacheConformance):
    """Tests with results that depend on the cache: those of INTERFACE, and those of CacheConformance itself."""


for name in dir(BackendConformance):
    if name.startswith("test_") and name not in INTERFACE:
        setattr(CacheInterface, name, None)


def test_the_interface_is_part_of_the_suite() -> None:
    # A test that gets another name in the suite would otherwise silently not run on the other caches.
    assert set(dir(BackendConformance)) >= INTERFACE


def test_a_value_that_memcached_refuses_is_no_outage(memcached_server: MemcachedServer) -> None:
    # Given Django's cache in memcached, which takes items of up to a megabyte
    settings = {
        "BACKEND": "django.core.cache.backends.memcached.PyMemcacheCache",
        "LOCATION": memcached_server.address,
    }
    backend = CacheBackend(CacheHandler({"default": settings})["default"], max_field_size=2_000_000)
    large = enqueue(text='"' + "x" * 1_500_000 + '"')
    # When a message with a larger field is stored beside another, and alone
    outcomes = backend.update_many([("large", large), ("other", enqueue())])
    # Then the cache refuses this message only
    assert outcomes == [Outcome.UNSTORABLE, Outcome.APPLIED] and backend.read("other") is not None
    with pytest.raises(StoreRefused):
        backend.update("large", large)


class TestDjangoFileBased(CacheInterface):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Any:
        return django_caches("filebased.FileBasedCache", tmp_path)["default"]


class TestCachelibSimple(CacheInterface):
    @pytest.fixture
    def cache(self) -> Any:
        return SimpleCache(threshold=MANY)


class TestCachelibFileSystem(CacheInterface):
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Any:
        return FileSystemCache(str(tmp_path), threshold=MANY)

    test_a_refused_message_delays_no_other = CacheConformance.test_a_refused_message_delays_no_other

    @contextmanager
    def refusing(self, backend: StatusBackend, message_id: str) -> Iterator[None]:
        # A directory in place of its file: cachelib logs the error, and `set` returns False.
        assert isinstance(backend, CacheBackend)
        path = Path(backend._cache._get_filename(backend._key_of(message_id)))
        path.mkdir()
        yield
        path.rmdir()


class TestDogpileMemory(CacheInterface):
    @pytest.fixture
    def cache(self) -> Any:
        return make_region().configure("dogpile.cache.memory")


class TestDogpileDbm(CacheInterface):
    # An interrupt can strike after the file lock was taken, before dogpile.cache has recorded that. It can also strike
    # while dbm.dumb writes its index. Some Pythons have no other dbm.
    test_an_interrupted_call_spoils_no_other = None  # type: ignore[assignment]

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Any:
        return make_region().configure("dogpile.cache.dbm", arguments={"filename": str(tmp_path / "status.dbm")})


# Packages that wrap other caches

#: Functions that make caches of packages, from the URL of a Redis and a directory.
PACKAGES: dict[str, Callable[[str, Path], Any]] = {
    "django-redis": lambda url, path: CacheHandler(redis_settings("django_redis.cache.RedisCache", url))["default"],
    "django-redis by proxy": lambda url, path: ConnectionProxy(
        CacheHandler(redis_settings("django_redis.cache.RedisCache", url)), "default"
    ),
    "django-prometheus redis": lambda url, path: CacheHandler(
        redis_settings("django_prometheus.cache.backends.redis.RedisCache", url)
    )["default"],
    "django-prometheus native redis": lambda url, path: CacheHandler(
        redis_settings("django_prometheus.cache.backends.redis.NativeRedisCache", url)
    )["default"],
    "django-prometheus filebased": lambda url, path: CacheHandler(
        {"default": {"BACKEND": "django_prometheus.cache.backends.filebased.FileBasedCache", "LOCATION": str(path)}}
    )["default"],
    "Flask-Caching redis": lambda url, path: flask_cache(CACHE_TYPE="RedisCache", CACHE_REDIS_URL=url),
    "Flask-Caching files": lambda url, path: flask_cache(CACHE_TYPE="FileSystemCache", CACHE_DIR=str(path)),
    "Flask-Caching memory": lambda url, path: flask_cache(CACHE_TYPE="SimpleCache"),
}


def redis_settings(backend: str, url: str) -> dict[str, Any]:
    return {"default": {"BACKEND": backend, "LOCATION": url}}


def flask_cache(**config: str) -> Any:
    cache = flask_caching.Cache()
    cache.init_app(Flask("test"), config=config)
    return cache


@pytest.fixture
def django_settings() -> Iterator[None]:
    """Configure Django without a project, for packages that read its settings."""
    before = settings._wrapped
    settings._wrapped = UserSettingsHolder(global_settings)
    yield
    settings._wrapped = before


@pytest.mark.usefixtures("django_settings")
@pytest.mark.parametrize("name", PACKAGES)
def test_the_caches_of_packages_are_called_with_their_parameters(name: str, redis_url: str, tmp_path: Path) -> None:
    # Given a cache of a package that passes calls to another cache
    cache = PACKAGES[name](redis_url, tmp_path)
    backend = CacheBackend(cache)
    # When a message runs
    outcomes = backend.update_many(
        [("m", enqueue()), ("m", start(1)), ("m", write(1, 2, increment=3)), ("n", start(2))]
    )
    outcomes.append(backend.update("m", finish(1, ttl=60_000)))
    # Then its status is found, and the cache has got a time to live
    record, other = backend.read("m"), backend.read("n")
    assert outcomes == [Outcome.APPLIED] * 5
    assert record is not None and (record[PROGRESS], record[STATE]) == ("3", "2") and other is not None
    if "redis" in name:
        client = redis.Redis.from_url(redis_url)
        (key,) = client.keys("*dramatiq-status:m*")
        assert 55 < client.ttl(key) <= 61
    # And it can be deleted
    assert (backend.delete("m"), backend.read("m"), backend.delete("m")) == (True, None, False)


# Objects that fit

#: Methods `set`, each with the arguments that it passes on for a time to live of 1.5 seconds.
SETS: dict[str, tuple[Callable[..., Any], dict[str, int]]] = {
    "timeout": (lambda self, key, value, timeout=300: self.keep(key, value, timeout=timeout), {"timeout": 3}),
    "ttl": (lambda self, key, value, ttl: self.keep(key, value, ttl=ttl), {"ttl": 3}),
    "expire": (lambda self, key, value, expire=None, tag=None: self.keep(key, value, expire=expire), {"expire": 3}),
    "ex": (lambda self, key, value, *, ex=0: self.keep(key, value, ex=ex), {"ex": 3}),
    "none": (lambda self, name, data: self.keep(name, data), {}),
}


class Shelf:
    """A cache class of an application, without `set`.  Its repr and its errors contain a secret."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.options: dict[str, Any] = {}

    def __repr__(self) -> str:
        return "redis://:secret@host"

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def keep(self, key: str, value: Any, **options: Any) -> None:
        self.values[key], self.options = value, options

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class OwnRedis(redis.Redis):
    """A subclass of a Redis client."""


def shelf_with(**methods: Any) -> Any:
    return type("OwnShelf", (Shelf,), methods)()


@pytest.mark.parametrize("name", SETS)
def test_a_cache_gets_the_time_to_live(name: str, message_id: str = "m") -> None:
    # Given a cache of an application, and a clock that stands still
    method, expected = SETS[name]
    cache = shelf_with(set=method)
    backend = CacheBackend(cache)
    backend.now = lambda: 1_795_479_267_029  # type: ignore[method-assign]
    # When a status with a time to live of 1.5 seconds is stored
    outcomes = backend.update_many([(message_id, start(1)), (message_id, finish(1, ttl=1_500))])
    # Then the cache gets it by its own name, rounded up to seconds
    assert (outcomes, cache.options) == ([Outcome.APPLIED] * 2, expected)
    assert backend.read(message_id) is not None


@pytest.mark.parametrize(
    "ttl, seconds",
    [(-5, 1), (0, 1), (1, 2), (999, 2), (1000, 2), (1001, 3), (40 * 86_400_000, 3_456_001), (10**18, MAX_TTL)],
)
def test_a_time_to_live_is_rounded_up_to_seconds(ttl: int, seconds: int) -> None:
    assert seconds_of(ttl) == seconds


@pytest.mark.parametrize("kind", ["locmem", "simple", "file"])
def test_no_cache_forgets_too_early(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a cache whose clock is at the end of a second. A cache that cuts fractions off would lose most of a second
    cache: Any = {
        "locmem": lambda: django_caches("locmem.LocMemCache", uuid4().hex)["default"],
        "simple": SimpleCache,
        "file": lambda: FileSystemCache(str(tmp_path)),
    }[kind]()
    backend = CacheBackend(cache)
    now = 1_790_000_000.999
    for module in ("django.core.cache.backends.locmem", "django.core.cache.backends.base"):
        monkeypatch.setattr(f"{module}.time.time", lambda: now)
    for module in ("cachelib.simple", "cachelib.file"):
        monkeypatch.setattr(f"{module}.time", lambda: now)
    monkeypatch.setattr(backend, "now", lambda: int(now * 1000))
    # When a status with a time to live of two seconds is stored
    backend.update_many([("m", start(1)), ("m", finish(1, ttl=2_000))])
    # Then it can be read until these two seconds are over, and not longer
    found = []
    for now in (1_790_000_002.998, 1_790_000_002.999):  # noqa: B007 - the clocks read it
        found.append(backend.read("m") is not None)
    assert found == [True, False]


@pytest.mark.parametrize(
    "cache, message",
    [
        ({}, r"this dict has no method set\(\)"),
        (None, r"this NoneType has no method get\(\)"),
        ("redis://:secret@host", r"this str has no method get\(\)"),
        (Shelf(), r"this Shelf has no method set\(\)"),
        (shelf_with(set=lambda self, key, value, minutes: None), r"set\(key, value, minutes\) takes no time to live"),
        (shelf_with(set=lambda self, key, value, minutes=5: None), r"set\(key, value, minutes=5\) takes no time"),
        (shelf_with(set=lambda self, *args, **kwargs: None), r"set\(\*args, \*\*kwargs\) takes no time"),
        (shelf_with(set=lambda self, key: None), r"set\(key\) takes no time"),
        (shelf_with(set=lambda self, key, value, ttl, group: None), r"set\(key, value, ttl, group\) takes no time"),
        (shelf_with(set=SETS["ttl"][0], get=lambda self: None), r"get\(\) that cannot be called with \(key\)"),
        (shelf_with(set=SETS["ttl"][0], delete=5), r"has no method delete\(\)"),
        (
            shelf_with(set=SETS["ttl"][0], delete=staticmethod({}.pop)),
            r"has no signature for its delete\(\)",
        ),
        (redis.Redis(password="secret"), r"cache is a Redis, a client: pass it to RedisBackend\(client=\.\.\.\)"),
        (OwnRedis(), r"cache is a OwnRedis, a client: pass it to RedisBackend\(client=\.\.\.\)"),
        (Client(("127.0.0.1", 1)), r"cache is a Client, a client: pass it to MemcachedBackend\(client=\.\.\.\)"),
    ],
)
def test_an_object_that_is_no_cache_raises_an_error(cache: Any, message: str) -> None:
    # Given an object that is no cache, or a cache that cannot be called
    # When a backend is made of it
    # Then the error names what is missing, and contains no secret
    with pytest.raises(TypeError, match=message) as caught:
        CacheBackend(cache)
    assert "secret" not in str(caught.value)


class LateCache:
    """A proxy for a cache that does not exist yet."""

    cache: Any = None
    looks = 0

    def __getattr__(self, name: str) -> Any:
        self.looks += 1
        if self.cache is None:
            raise RuntimeError("Not configured yet: redis://:secret@host")
        return getattr(self.cache, name)


def test_a_proxy_is_used_at_the_first_call() -> None:
    # Given a proxy for a cache that does not exist yet
    proxy = LateCache()
    # When a backend is created, it does not use the proxy
    backend = CacheBackend(proxy)
    assert (repr(backend), proxy.looks) == ("<CacheBackend 'dramatiq-status' in LateCache>", 0)
    # And if the backend is used earlier, it raises a BackendError
    with pytest.raises(BackendError, match=r"no cache behind the LateCache yet \(RuntimeError\)") as caught:
        backend.update("m", enqueue())
    assert "secret" not in str(caught.value)
    # And with an object that is no cache, the error names the wrong method
    proxy.cache = shelf_with(set=lambda self, key, value, minutes: None)
    with pytest.raises(BackendError, match=r"set\(key, value, minutes\) takes no time to live"):
        backend.read("m")
    # Then it works as soon as there is a cache
    proxy.cache = SimpleCache()
    assert (backend.update("m", enqueue()), backend.read("m") is not None) == (Outcome.APPLIED, True)


def test_an_asynchronous_cache_raises_an_error() -> None:
    # Given a cache whose methods are coroutines
    async def get(self: object, key: str) -> None: ...

    # When a backend is made of it
    # Then the error names the coroutine
    with pytest.raises(TypeError, match=r"has a coroutine for get\(\)"):
        CacheBackend(shelf_with(get=get, set=SETS["ttl"][0]))


def test_keys_fit_for_memcached() -> None:
    # Given Django's cache, which warns of keys that memcached refuses, and the longest namespace
    cache = django_caches("locmem.LocMemCache", uuid4().hex)["default"]
    backend = CacheBackend(cache, namespace=":" * 48)
    ids = ["x" * 200, "a b", "\u010d" * 100, "plain"]
    # When messages with long and odd ids are written and read
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backend.update_many([(message_id, enqueue()) for message_id in ids])
        found = backend.read_many(ids)
    # Then no key was too long or had characters that memcached refuses
    assert None not in found
    assert max(len(backend._key_of(message_id)) for message_id in ids) > MAX_KEY_SIZE
    assert backend._key_of("plain").endswith(":plain")


# Errors


def test_errors_have_causes_and_no_secrets() -> None:
    # Given caches with a password, whose server is down
    once = Retry(NoBackoff(), 0)
    django = django_caches("redis.RedisCache", "redis://:secret@127.0.0.1:1/0")
    django.settings["default"]["OPTIONS"] = {"retry": once}
    for cache in (ConnectionProxy(django, "default"), RedisCache("127.0.0.1", 1, password="secret", retry=once)):
        backend = CacheBackend(cache)
        # When they are used
        for call in (backend.read, lambda m, b=backend: b.update(m, enqueue()), backend.delete):
            with pytest.raises(BackendError) as caught:
                call("m")
            # Then the error has a cause, and contains neither the password nor the address of the server
            assert isinstance(caught.value.__cause__, redis.ConnectionError)
            assert "failed with ConnectionError" in str(caught.value)
            assert "secret" not in str(caught.value) and "127.0.0.1" not in str(caught.value)


def test_on_error_is_called_before_the_next_call() -> None:
    # Given a cache that fails once, and a hook
    calls: list[str] = []

    def get(self: object, key: str) -> None:
        calls.append("get")
        if len(calls) == 1:
            raise ConnectionError

    thread = threading.current_thread()
    hook = lambda: calls.append("hook" if threading.current_thread() is thread else "elsewhere")  # noqa: E731
    backend = CacheBackend(shelf_with(set=SETS["ttl"][0], get=get), on_error=hook)
    # When it is used twice
    with pytest.raises(BackendError, match=r"get\(\) has failed with ConnectionError\.") as caught:
        backend.read("m")
    backend.read("m")
    # Then the hook was called on the same thread, once, before the next call
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert calls == ["get", "hook", "get"]


def test_a_hook_for_errors_that_fails_itself() -> None:
    # Given a cache that fails, and a hook that fails as well
    def get(self: object, key: str) -> None:
        raise ConnectionError

    def hook() -> None:
        raise OSError("redis://:secret@host")

    backend = CacheBackend(shelf_with(set=SETS["ttl"][0], get=get), on_error=hook)
    # When it is used
    with pytest.raises(BackendError) as caught:
        backend.read("m")
    # Then it raises a BackendError that names both
    assert "failed with ConnectionError, and on_error has failed with OSError" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_hook_for_errors_must_be_callable() -> None:
    with pytest.raises(TypeError, match="on_error must be callable, not str"):
        CacheBackend(SimpleCache(), on_error="close")  # type: ignore[arg-type]


@pytest.mark.parametrize("refusal", [False, ConnectionError()], ids=["False", "exception"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_an_error_for_one_message_holds_up_no_other(bad: int, refusal: Any) -> None:
    # Given a cache that neither stores nor finds the status of one message
    def keep(self: Shelf, key: str, value: Any, ttl: int) -> Any:
        if not key.endswith(str(bad)):
            return Shelf.keep(self, key, value)
        if refusal is False:
            return False
        raise refusal

    def get(self: Shelf, key: str) -> Any:
        if key.endswith(str(bad)) and refusal is not False:
            raise refusal
        return Shelf.get(self, key)

    backend = CacheBackend(shelf_with(set=keep, get=get))
    # When three messages get increments in one call, and are read in one call
    updates = [(f"m{n}", write(1, 2, create=True, increment=5)) for n in range(3)]
    outcomes = backend.update_many(updates)
    found = backend.read_many(["m0", "m1", "m2"])
    # Then only this message fails: its update has to be sent again unless the cache has answered that it
    # refuses it, and its status was not read
    trouble = Outcome.UNSTORABLE if refusal is False else Outcome.UNAVAILABLE
    assert outcomes == [trouble if n == bad else Outcome.APPLIED for n in range(3)]
    expected = type(None) if refusal is False else BackendError
    assert [isinstance(record, expected if n == bad else dict) for n, record in enumerate(found)] == [True] * 3
    # And if it is the only message, the call raises an error
    with pytest.raises(BackendError):
        backend.update(*updates[bad])
    with pytest.raises(BackendError) if refusal is not False else nullcontext():
        backend.read(f"m{bad}")


def test_a_cache_that_fails_slowly_takes_one_time_out() -> None:
    # Given a cache that fails after some milliseconds, except for the first message
    calls = 0

    def get(self: object, key: str) -> None:
        nonlocal calls
        calls += 1
        if not key.endswith("m0"):
            time.sleep(0.005)
            raise TimeoutError

    backend = CacheBackend(shelf_with(set=SETS["ttl"][0], get=get), timeout=1)
    ids = [f"m{n}" for n in range(100)]
    # When it is called for many messages
    found = backend.read_many(ids)
    outcomes = backend.update_many([(message_id, enqueue()) for message_id in ids])
    # Then the call ends before all of them have failed
    assert found[0] is None and all(isinstance(record, BackendError) for record in found[1:])
    assert outcomes == [Outcome.APPLIED, *[Outcome.UNAVAILABLE] * 99]
    assert calls == 4


def test_a_disk_without_space_is_an_error(tmp_path: Path) -> None:
    # Given caches whose directory is gone, and a file in its place
    made: list[Any] = [
        django_caches("filebased.FileBasedCache", tmp_path / "django")["default"],
        FileSystemCache(str(tmp_path / "cachelib")),
    ]
    for cache, name in zip(made, ("django", "cachelib")):
        for file in (tmp_path / name).iterdir():
            file.unlink()
        (tmp_path / name).rmdir()
        (tmp_path / name).write_text("")
        # When the backend stores something
        # Then the call raises an error, even if the cache itself raises none
        with pytest.raises(
            BackendError, match=r"FileBasedCache\.get\(\) has failed with NotADir|FileSystemCache did not store"
        ):
            CacheBackend(cache).update("m", enqueue())


def test_a_delete_that_deletes_nothing_is_an_error(message_id: str = "m") -> None:
    # Given a cache that cannot delete, and returns False
    backend = CacheBackend(shelf_with(set=SETS["ttl"][0], delete=lambda self, key: False))
    backend.update(message_id, enqueue())
    # When a status is deleted
    # Then that is an error
    with pytest.raises(BackendError, match="OwnShelf did not delete"):
        backend.delete(message_id)


def test_djangos_databases_need_settings_and_its_caches_do_not(tmp_path: Path) -> None:
    # Given a program that has loaded Django's databases, without settings, and a cache on disk
    assert "django.db" in sys.modules and not settings.configured
    backend = CacheBackend(django_caches("filebased.FileBasedCache", tmp_path)["default"])
    backend.update("m", enqueue())
    (path,) = tmp_path.iterdir()
    # When a call fails, after which broken connections are closed
    path.write_bytes(b"x")
    # Then closing them raises no error, because there are none
    assert backend.read("m") is None


@pytest.mark.parametrize("damage", [b"", b"\xff" * 200, b"x", b"cut"], ids=["empty", "garbage", "short", "cut off"])
@pytest.mark.parametrize("kind", ["django", "cachelib"])
def test_a_damaged_file_is_a_missing_record(tmp_path: Path, kind: str, damage: bytes) -> None:
    # Given a cache on disk whose only file was damaged
    cache: Any = FileSystemCache(str(tmp_path), threshold=0)
    if kind == "django":
        cache = django_caches("filebased.FileBasedCache", tmp_path)["default"]
    backend = CacheBackend(cache)
    backend.update("m", enqueue())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-20] if damage == b"cut" else damage)
    # When it is read, and a run restores it
    found = backend.read("m"), backend.update("m", write(1, 2, create=True, step="1"))
    # Then it is missing first, and complete later
    record = backend.read("m")
    assert found == (None, Outcome.APPLIED) and record is not None and record[":step"] == "1"


# Single libraries


def test_the_expiration_time_of_a_region_does_not_count() -> None:
    # Given a region of dogpile.cache with values that expire at once
    region = make_region().configure("dogpile.cache.memory", expiration_time=-1)
    backend = CacheBackend(region)
    backend.update("m", enqueue())
    # When a status is read, and read once more after all values were invalidated
    found = [backend.read("m") is not None]
    region.invalidate()
    found.append(backend.read("m") is not None)
    # Then it was there although its value had expired in the region, and is gone after the invalidation
    assert found == [True, False]


def test_djangos_cache_of_each_thread() -> None:
    # Given Django's `cache`, behind which each thread has its own object
    backend = CacheBackend(ConnectionProxy(django_caches("locmem.LocMemCache", uuid4().hex), "default"))
    backend.update("m", start(1))

    # When several threads increment the progress at the same time
    def count() -> None:
        for _ in range(200):
            backend.update("m", outside(increment=1))

    together(*[count] * 4)
    # Then the sum is exact
    record = backend.read("m")
    assert record is not None and record[PROGRESS] == "800"


def test_a_repr_shows_no_secret() -> None:
    backend = CacheBackend(shelf_with(set=SETS["ttl"][0]), namespace="shop")
    assert repr(backend) == "<CacheBackend 'shop' in OwnShelf>"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_inherits_no_lock() -> None:
    # Given a thread in the middle of an update
    reached, go_on = threading.Event(), threading.Event()

    class Slow(SimpleCache):
        def get(self, key: str) -> Any:
            if threading.current_thread() is thread:
                reached.set()
                assert go_on.wait(60)
            return super().get(key)

    backend = CacheBackend(Slow())
    thread = threading.Thread(target=lambda: backend.update("m", enqueue()))
    thread.start()
    assert reached.wait(60)
    # When the process forks, and the child writes to the same message
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            code = 0 if backend.update("m", start(1)) is Outcome.APPLIED else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join(60)
    # Then it does not wait for a lock that a thread of its parent holds
    assert os.waitstatus_to_exitcode(status) == 0


# A worker


def test_a_job_on_djangos_cache() -> None:
    # Given a worker whose statuses are in Django's cache
    broker = make_broker(CacheBackend(ConnectionProxy(django_caches("locmem.LocMemCache", uuid4().hex), "default")))

    @dramatiq.actor(broker=broker)
    def count_rows(rows: int) -> None:
        current_status().update(step="counting", total=rows)
        for _ in range(rows):
            current_progress().increment()
        if rows == 3:
            raise ValueError("three")

    # When jobs are done
    messages = [count_rows.send_with_options(args=(rows,), status={"user_id": 42}) for rows in (50, 3)]
    queued = StatusRegistry.read_many(messages, broker=broker)
    run(broker)
    # Then each status was stored, from its enqueue to its end
    assert [snapshot and (snapshot.state, snapshot["user_id"]) for snapshot in queued] == [("queued", 42)] * 2
    done, failed = StatusRegistry.read_many(messages, broker=broker)
    assert done is not None and (done.state, done.progress, done["step"], done["user_id"]) == (
        "completed",
        1.0,
        "counting",
        42,
    )
    assert failed is not None and failed.state == "failed" and failed.exception is not None
    assert failed.exception["message"] == "three"
