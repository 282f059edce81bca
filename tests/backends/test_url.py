"""Tests of backends from URLs: parameters, errors, and passwords that are never shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from hypothesis import given, settings
from hypothesis import strategies as st

from dramatiq_status import BackendError, StatusMiddleware, backend_from_url, backends
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend, SQLiteBackend, StubBackend
from dramatiq_status.testing.conformance import enqueue

from ..conftest import StartServer
from ..servers import MemcachedServer, RedisCluster, RedisSentinels, RedisServer, free_port

MASTERS = {"sentinels": [("h1", 26379), ("h2", 26380)], "service_name": "mymaster", "db": 0}

#: URLs, each with the class and the parameters that it makes.
MEANINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "redis://": ("RedisBackend", {"host": "127.0.0.1", "port": 6379, "db": 0}),
    "redis://db": ("RedisBackend", {"host": "db", "port": 6379, "db": 0}),
    "redis://db:7000/3": ("RedisBackend", {"host": "db", "port": 7000, "db": 3}),
    "redis://[::1]:7000/": ("RedisBackend", {"host": "::1", "port": 7000, "db": 0}),
    "redis://:s3cret@db": ("RedisBackend", {"host": "db", "port": 6379, "db": 0, "password": "s3cret"}),
    "redis://ann:s%2F%40%3A3@db/1": (
        "RedisBackend",
        {"host": "db", "port": 6379, "db": 1, "username": "ann", "password": "s/@:3"},
    ),
    "redis://db?namespace=shop&timeout=250&max_field_size=1000&max_listed=0&client_name=web": (
        "RedisBackend",
        {"host": "db", "port": 6379, "db": 0, "namespace": "shop", "timeout": 250, "max_field_size": 1000}
        | {"max_listed": 0, "client_name": "web"},
    ),
    "rediss://db?ssl_ca_certs=/ca.pem&ssl_check_hostname=false": (
        "RedisBackend",
        {"host": "db", "port": 6379, "db": 0, "ssl": True, "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
    ),
    "valkey://db:7000/3": ("RedisBackend", {"host": "db", "port": 7000, "db": 3}),
    "valkeys://db": ("RedisBackend", {"host": "db", "port": 6379, "db": 0, "ssl": True}),
    "unix:///run/redis%20a.sock?db=2": ("RedisBackend", {"unix_socket_path": "/run/redis a.sock", "db": 2}),
    "redis+sentinel://h1,h2:26380/mymaster": ("RedisBackend", MASTERS),
    "redis+sentinel://ann:s3cret@h1,h2:26380/mymaster/4?sentinel_password=other": (
        "RedisBackend",
        MASTERS | {"db": 4, "username": "ann", "password": "s3cret", "sentinel_kwargs": {"password": "other"}},
    ),
    "rediss+sentinel://h1,h2:26380/mymaster": (
        "RedisBackend",
        MASTERS | {"ssl": True, "sentinel_kwargs": {"ssl": True}},
    ),
    "redis+cluster://h1:7000,h2:7001": ("RedisBackend", {"cluster_nodes": [("h1", 7000), ("h2", 7001)]}),
    "rediss+cluster://:s3cret@h1:7000/0": (
        "RedisBackend",
        {"cluster_nodes": [("h1", 7000)], "password": "s3cret", "ssl": True},
    ),
    "memcached://h1,h2:11212?meta=no": ("MemcachedBackend", {"servers": [("h1", 11211), ("h2", 11212)], "meta": False}),
    "memcached://ann:s3cret@h1": (
        "MemcachedBackend",
        {"servers": [("h1", 11211)], "username": "ann", "password": "s3cret"},
    ),
    "memcached:///run/memcached.sock": ("MemcachedBackend", {"servers": "unix:/run/memcached.sock"}),
    "sqlite:///status.db": ("SQLiteBackend", {"path": "status.db"}),
    "sqlite:////var/lib/a%20b@c.db?timeout=5000": ("SQLiteBackend", {"path": "/var/lib/a b@c.db", "timeout": 5000}),
    "memory://": ("StubBackend", {}),
    "memory://?namespace=shop": ("StubBackend", {"namespace": "shop"}),
}

#: Wrong URLs, each with the text of its error.
WRONG = {
    "": "There is no URL|write it like",
    "db:6379": "write it like",
    "postgres://db": "'postgres' is none of redis, rediss",
    "redis://h1,h2": "more than one host",
    "redis://db:port": "hosts are written like",
    "redis://db:0": "port must be from 1 to 65535",
    "redis://db:65536": "port must be from 1 to 65535",
    "redis://db/one": "number of a database",
    "redis://db?namespce=shop": "'namespce' is none of namespace, timeout",
    "redis://db?timeout=1s": "'timeout' must be a number, not '1s'",
    "redis://db?timeout": "parameters are written like",
    "rediss://db?ssl_check_hostname=maybe": "'true' or 'false'",
    "rediss://db?ssl_cert_reqs=bogus": "'ssl_cert_reqs' must be 'none', 'optional' or 'required', not 'bogus'",
    "rediss://db?ssl_cert_reqs=none&ssl_check_hostname=true": "ssl_check_hostname needs a certificate",
    "redis://db?ssl_ca_certs=/ca.pem": "'ssl_ca_certs' is for TLS, as with rediss://",
    "redis+sentinel://h1/m?ssl_ca_certs=/ca.pem": "is for TLS",
    "unix:///run/redis.sock?ssl_cert_reqs=none": "is for TLS",
    "memcached://h1?ssl_ca_certs=/ca.pem": "'ssl_ca_certs' is none of",
    "unix://run/redis.sock": "three slashes",
    "redis+sentinel://h1:26379": "name of the master",
    "redis+sentinel:///mymaster": "the URL has no host",
    "redis+cluster://h1:7000/1": "a cluster has only database 0",
    "redis+cluster://": "the URL has no host",
    "memcached://": "the URL has no host",
    "memcached://h1/x": "only parameters may follow",
    "sqlite://status.db": "three slashes",
    "sqlite:///": "three slashes",
    "memory://here": "only parameters may follow",
    # Passwords that were not encoded.
    "redis://ann:s3cret/s3cret@db": "percent-encoded|hosts are written like",
    "redis://ann:12/s3cret@db": "percent-encoded",
    "redis://ann:s3cret#s3cret@db": "write it like|hosts",
    "memcached://ann:12/s3cret@db": "percent-encoded",
    "redis+sentinel://ann:12/s3cret@db/mymaster": "percent-encoded",
    "redis://:s3cret@db/one": "number of a database",
    "redis+sentinel://h1/m?sentinel_password=s3cret&timeout=x": "must be a number",
    "redis://ann:34/s3cret?@db": "percent-encoded",
    "redis://ann:34?timeout=s3cret@db": "percent-encoded",
    "redis://ann:34?namespace=s3 cret@db": "percent-encoded",
    "redis://ann:12#s3cret": "'redis://\\*\\*\\*', is wrong: write it like",
    "redis://ann:12?s3cret@db": "percent-encoded",
    "redis://ann:12?s3cret=s3cret@db": "'[?]' is %3F",
    "redis://:s3cret": "hosts are written like",
    "redis://ann:s3cret": "hosts are written like",
    "redis://:s3cret\n@db/one": "number of a database",
    "redis://db/0?timeout=5&auth=s3cret": "'auth' is none of",
    "redis://db?pass=s3cret": "'pass' is none of",
    "redis+sentinel://h1/m?Sentinel_Password=s3cret": "'Sentinel_Password' is none of",
    "redis+sentinel://h1/m?sentinel%5Fpassword=s3cret&timeout=x": "must be a number",
    "redis+sentinel://h1/m?sentinel_password=a@s3cret&timeout=x": "percent-encoded",
    "redis+sentinel://h1/m?sentinel_password=x#s3cret": "write it like",
    "redis+sentinel://h1/m?sentinel_password=x&s3cret": "parameters are written like",
    "redis+sentinel://h1/m?sentinel_password=x&s3cret=y": "'&' is %26",
    # Texts that are no URLs.
    "ann:s3cret@db:6379": "'\\*\\*\\*', is wrong: write it like",
    "redis:/ann:s3cret@db": "write it like",
    "redis:ann:s3cret@db": "write it like",
    "redis//ann:s3cret@db": "write it like",
    "Redis://ann:s3cret@db": "write it like",
}


@pytest.mark.parametrize("url", MEANINGS)
def test_a_url_makes_a_backend_with_its_parameters(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given classes that only keep their parameters
    made: list[tuple[str, dict[str, Any]]] = []
    for name in ("RedisBackend", "MemcachedBackend", "SQLiteBackend", "StubBackend"):
        make: Callable[..., None] = lambda name=name, **parameters: made.append((name, parameters))  # noqa: E731
        monkeypatch.setattr(backends, name, make, raising=False)
    # When a backend is made from a URL
    backend_from_url(url)
    # Then it is of the right class, with the right parameters
    assert made == [MEANINGS[url]]


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_url_raises_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAMATIQ_STATUS_URL", raising=False)
    # Given a URL that is wrong
    # When a backend is made from it
    with pytest.raises(ValueError, match=WRONG[url]) as caught:
        backend_from_url(url)
    # Then the error names the problem, and contains no password
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret/x@db",
        "redis://:s3cret@db:port",
        "redis://:s3cret@db:6379999",
        "http://:s3cret@db",
        "redis://ann:s3/cret@db/0?max_connections=s3cret",
        "redis://[s3cret@db",
    ],
)
def test_a_wrong_url_of_a_backend_raises_an_error(url: str) -> None:
    # Given a URL that redis-py cannot parse, so that its error may contain the password
    # When a Redis backend is made with it
    with pytest.raises(ValueError, match=r"url, '[a-z]+://.*', is wrong: write it like") as caught:
        RedisBackend(url=url)
    # Then the error names what is expected, and contains no password
    assert "s3cret" not in str(caught.value) and "s3/cret" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


SECRET = "Q7wX9zK4"

#: Characters with a meaning in URLs, to put between the parts of a password that is not percent-encoded.
passwords = st.lists(
    st.one_of(
        st.sampled_from(["34", "1234", "0", *"/?#@:,%&= []\n", "://", "timeout=", "namespace="]), st.just(SECRET)
    ),
    max_size=7,
).map(lambda parts: "".join([*parts[:3], SECRET, *parts[3:]]))


@settings(max_examples=1000, deadline=None)
@given(
    scheme=st.sampled_from(
        ["redis", "rediss", "valkey", "unix", "redis+sentinel", "redis+cluster", "memcached", "memory"]
    ),
    separator=st.sampled_from(["://", ":", "//", ""]),
    password=passwords,
    rest=st.sampled_from(
        ["h", "h:1/0", "h/m", "h1,h2:7/m/0?timeout=5", "", "/run/socket", "h?namespace=x&", "h:x/y#z"]
    ),
    own=st.booleans(),
)
def test_no_error_contains_a_part_of_a_password(
    scheme: str, separator: str, password: str, rest: str, own: bool
) -> None:
    # Given a URL with a password that was not encoded
    url = f"{scheme}{separator}user:{password}@{rest}"
    # When a backend is made from it
    texts: list[str] = []
    try:
        made = RedisBackend(url=url) if own else backend_from_url(url)
    except (ValueError, TypeError) as e:
        error: BaseException | None = e
        while error is not None:
            texts += [str(error), repr(error)]
            error = error.__cause__ or error.__context__
    else:
        texts += [str(made), repr(made)]
        made.close()
    # Then neither it nor the error, with all its causes, shows four characters of it
    parts = [SECRET[first : first + 4] for first in range(len(SECRET) - 3)]
    assert not [text for text in texts for part in parts if part in text]


def test_parameters_that_connections_do_not_take() -> None:
    # Given parameters that redis-py checks when it makes a connection
    ca = {"ssl_ca_certs": "/ca.pem"}
    sentinels = {"sentinels": [("h1", 26379)], "service_name": "m"}
    # When a backend is made with them
    # Then an error is raised at once, which is no BackendError
    with pytest.raises(TypeError, match=r"connection parameter, passed or in the URL, is wrong: .*'timeout'"):
        RedisBackend(url="redis://:s3cret@db?timeout=250")
    with pytest.raises(TypeError, match="'ssl_ca_certs'"):
        RedisBackend(**sentinels, **ca)
    with pytest.raises(ValueError, match=r"connection parameter, .* is wrong: .*bogus"):
        RedisBackend(url="rediss://db?ssl_cert_reqs=bogus")
    with pytest.raises(ValueError, match="bogus"):
        RedisBackend(**sentinels, sentinel_kwargs={"ssl": True, "ssl_cert_reqs": "bogus"})
    with pytest.raises(ValueError, match="bogus"):
        RedisBackend(cluster_nodes=[("h1", 7000)], ssl=True, ssl_cert_reqs="bogus")
    with pytest.raises(TypeError, match="url must be a str, not int"):
        RedisBackend(url=6379)  # type: ignore[arg-type]


def test_parameters_replace_those_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a URL with a parameter, which is passed as well
    # When a backend is made
    backend = backend_from_url("memory://?namespace=shop&timeout=250", namespace="other")
    # Then the passed value is used
    assert isinstance(backend, StubBackend) and (backend.namespace, backend.timeout) == ("other", 250)


def test_the_environment_variable_has_the_default_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a URL in the environment
    monkeypatch.setenv("DRAMATIQ_STATUS_URL", f"sqlite:///{tmp_path}/status.db")
    # When a backend is made without a URL
    backend = backend_from_url()
    # Then this URL is used
    assert isinstance(backend, SQLiteBackend) and backend.update("m", enqueue())
    # And the error of a wrong URL names the variable
    monkeypatch.setenv("DRAMATIQ_STATUS_URL", "redis://:s3cret@db/one")
    with pytest.raises(ValueError, match="in DRAMATIQ_STATUS_URL, 'redis://\\*\\*\\*@db/one', is wrong"):
        backend_from_url()
    # And without a URL, an error names both ways to pass one
    monkeypatch.delenv("DRAMATIQ_STATUS_URL")
    with pytest.raises(ValueError, match="environment variable DRAMATIQ_STATUS_URL"):
        backend_from_url()


def test_a_url_of_another_type_raises_an_error() -> None:
    with pytest.raises(TypeError, match="url must be a str, not int"):
        backend_from_url(6379)  # type: ignore[arg-type]


def test_backends_from_urls_work_on_real_servers(
    redis_server: RedisServer, redis_url: str, memcached_server: MemcachedServer, memcached_url: str, tmp_path: Path
) -> None:
    # Given URLs of running stores
    urls: dict[str, type] = {
        redis_url + "?namespace=url": RedisBackend,
        redis_server.database(1).replace("redis://", "valkey://") + "?namespace=url": RedisBackend,
        f"memcached://{memcached_server.address}?namespace=url": MemcachedBackend,
        f"sqlite:///{tmp_path}/status.db?timeout=20000": SQLiteBackend,
        "memory://": StubBackend,
    }
    for url, kind in urls.items():
        # When backends are made from them
        # Then they work
        assert type(works(url)) is kind


def test_a_backend_from_the_url_of_a_socket_works(start_server: StartServer, tmp_path: Path) -> None:
    # Given a Redis on a Unix socket that requires a login
    server = start_server(RedisServer("--unixsocket", str(tmp_path / "redis.sock")))
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">s3c/ret", "~*", "&*", "+@all")
    # When a backend is made from its URL
    # Then it works
    backend = works(f"unix://ann:s3c%2Fret@{tmp_path}/redis.sock?db=2")
    assert isinstance(backend, RedisBackend) and backend.client.connection_pool.connection_kwargs["db"] == 2


def test_a_backend_from_the_url_of_sentinels_works(redis_sentinels: RedisSentinels) -> None:
    redis_sentinels.reset()
    # Given Sentinels, and users of the master
    with redis.Redis.from_url(redis_sentinels.master.url) as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">s3cret", "~*", "&*", "+@all")
        hosts = ",".join(f"{host}:{port}" for host, port in redis_sentinels.addresses)
        try:
            # When a backend is made from their URL
            works(f"redis+sentinel://ann:s3cret@{hosts}/{redis_sentinels.service_name}/3?namespace=url")
            # Then it uses the database in the URL
            client.select(3)
            assert client.exists("url:m")
        finally:
            client.acl_deluser("ann")


def test_a_backend_from_the_url_of_a_cluster_works(redis_cluster: RedisCluster) -> None:
    redis_cluster.reset()
    # Given a cluster
    hosts = ",".join(f"{host}:{port}" for host, port in redis_cluster.addresses[1:])
    # When a backend is made from the URL of some of its nodes
    # Then it works
    backend = works(f"redis+cluster://{hosts}")
    assert isinstance(backend, RedisBackend) and not backend.transport.pipelines


def works(url: str) -> StatusBackend:
    """Make a backend with a long time-out, write to it, read from it, and close it."""
    with closing(backend_from_url(url, timeout=20_000)) as backend:
        backend.update("m", enqueue(step='"x"'))
        found = backend.snapshot("m")
        assert found is not None and found["step"] == "x"
    return backend


@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:s3cret@127.0.0.1:{port}/1",
        "redis://:s%333cret@127.0.0.1:{port}",
        "rediss://ann:s3cret@127.0.0.1:{port}/1",
        "redis+sentinel://ann:s3cret@127.0.0.1:{port}/mymaster?sentinel_password=s3cret",
        "redis+cluster://ann:s3cret@127.0.0.1:{port}",
        "memcached://ann:s3cret@127.0.0.1:{port}",
    ],
)
def test_a_password_is_never_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    # Given a backend with a password, whose store is down, and an actor that uses it
    backend = backend_from_url(url.format(port=free_port()))
    broker = StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend))

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    caplog.set_level(logging.DEBUG)
    # When it is used
    with pytest.raises(BackendError) as caught:
        backend.read("m")
    work.send()
    # Then its repr, its errors with all their causes, and the log do not contain the password
    texts, error = [repr(backend), str(backend), caplog.text], caught.value
    while error is not None:
        texts += [str(error), repr(error)]
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    assert "127.0.0.1" in caplog.text
    assert not [text for text in texts if "s3cret" in text]
