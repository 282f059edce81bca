"""The driver: redis-py or valkey-py.  They differ little except in their names."""

from __future__ import annotations

from importlib import import_module
from inspect import iscoroutinefunction
from ssl import SSLEOFError, SSLZeroReturnError
from typing import Any, Final

#: Packages, and the prefix of the names of their classes.
PACKAGES: Final = {"redis": "Redis", "valkey": "Valkey"}

_loaded: dict[str, Driver] = {}


class Driver:
    """A client package for Redis and Valkey.

    Parameters:
      package(str): Its name.

    Raises:
      ModuleNotFoundError: When it is not installed.
    """

    def __init__(self, package: str) -> None:
        exceptions = import_module(f"{package}.exceptions")
        self.package = package
        #: The base class of its errors.
        self.error: type[Exception] = getattr(exceptions, f"{PACKAGES[package]}Error")
        #: The class of errors with which a server has replied.
        self.response_error: type[Exception] = exceptions.ResponseError
        self.connection_error: type[Exception] = exceptions.ConnectionError
        #: The class of errors of replies that are not of the protocol.
        self.invalid_response: type[Exception] = exceptions.InvalidResponse
        #: The class of clients of one server.
        self.client: Any = self.find("client", PACKAGES[package])
        #: A policy without retries.
        self.no_retry: Any = self.find("retry", "Retry")(self.find("backoff", "NoBackoff")(), 0)

    def find(self, module: str, name: str) -> Any:
        """Return a class by its module and name."""
        return getattr(import_module(f"{self.package}.{module}"), name)


def driver(package: str) -> Driver:
    """Load a driver.

    Raises:
      ModuleNotFoundError: When it is not installed.
    """
    if package not in _loaded:
        _loaded[package] = Driver(package)
    return _loaded[package]


def any_driver() -> Driver:
    """Load redis-py, or valkey-py if only that is installed.

    Raises:
      ModuleNotFoundError: When neither is installed.  The error names redis-py.
    """
    try:
        return driver("redis")
    except ModuleNotFoundError as missing:
        try:
            return driver("valkey")
        except ModuleNotFoundError:
            raise missing from None


def driver_of(found: type) -> Driver:
    """Load the driver that defines a class, or one of its base classes."""
    for base in found.__mro__:
        package = base.__module__.partition(".")[0]
        if package in PACKAGES:
            return driver(package)
    raise TypeError(f"client must be one of redis-py's or valkey-py's, not one made with {found.__qualname__}.")


def check_client(client: Any) -> None:
    """Check a client that a user passes.  The backend takes the settings of its own connections from it.

    Raises:
      TypeError: When it is no client, or a client whose settings the backend cannot take.
    """
    name = client.__class__.__qualname__
    if iscoroutinefunction(getattr(client, "execute_command", None)):
        raise TypeError(
            f"client must not be asynchronous, as {client.__class__.__module__}'s {name} is: threads call the backend, "
            f"too. Pass the synchronous client, or a URL; dramatiq_status.aio connects asynchronously all the same."
        )
    if not hasattr(client, "connection_pool") and not hasattr(client, "nodes_manager"):
        raise TypeError(f"client must be a Redis or RedisCluster of redis-py's, or a Valkey one, not a {name}.")
    kind = getattr(getattr(client, "connection_pool", None), "connection_class", None)
    if any(base.__module__.partition(".")[0] == "fakeredis" for base in getattr(kind, "__mro__", ())):
        raise TypeError(
            f"client must not be fakeredis's {name}, which has no sockets: start its TcpFakeServer and pass the "
            f"address, or keep the statuses of a test in a StubBackend."
        )


def errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a call to a server may raise."""
    return (OSError, *[driver.error for driver in list(_loaded.values())])


def hang_ups() -> tuple[type[Exception], ...]:
    """Return the exceptions of a connection that the server has closed, or did not accept."""
    return (ConnectionError, SSLEOFError, SSLZeroReturnError, *[d.connection_error for d in list(_loaded.values())])


def response_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that the drivers raise for an error reply of the server."""
    return tuple([driver.response_error for driver in list(_loaded.values())])
