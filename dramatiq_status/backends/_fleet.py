"""The servers of a memcached backend: which of them has a key, connections to each, and which of them answer."""

from __future__ import annotations

import copy
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from ssl import SSLEOFError, SSLZeroReturnError
from typing import Any, Final, TypeVar

from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import MemcacheError, MemcacheUnexpectedCloseError

from .._process import at_fork
from .._time import monotonic
from ..errors import BackendError
from ..outage import Outage
from ._meta import Connection, Login

#: A connection that was idle for this many seconds is looked at before
#: it is used again: the server may have closed it.
IDLE_CHECK: Final = 1.0

#: For how many seconds a server that has answered counts as one that does.
HEARD_LATELY: Final = 0.1

#: What a server's hanging up looks like.
_HUNG_UP: Final = (ConnectionError, MemcacheUnexpectedCloseError, SSLEOFError, SSLZeroReturnError)

#: What a server's failing looks like.
_FAILURES: Final = (MemcacheError, OSError)

T = TypeVar("T")


class Pool:
    """The idle connections to one server; the one used last is taken first.

    Parameters:
      client(pymemcache.Client): Says where and how to connect.
      timeout(float): Seconds to connect, and for each call.
      meta(bool): See :class:`Connection`.
      login(Login): See :class:`Connection`.
    """

    def __init__(self, client: Any, *, timeout: float, meta: bool, login: Login | None = None) -> None:
        self._client = copy.copy(client)
        self._client.sock = None
        self._client.timeout = self._client.connect_timeout = timeout
        self._client.no_delay = True
        self._meta = meta
        self._login = login
        self._idle: deque[tuple[Connection, float]] = deque()
        _pools.add(self)

    @property
    def down(self) -> bool:
        """Whether it is known not to answer."""
        return False

    @property
    def address(self) -> str:
        """Where the server is, for people."""
        server = self._client.server
        return f"{server[0]}:{server[1]}" if isinstance(server, tuple) else str(server)

    def call(self, call: Callable[..., T], *arguments: Any, again: Callable[[], bool] | None = None) -> T:
        """Call with a connection, and the arguments; once again with a new
        connection where the server has hung up on one that had been
        idle, if `again` does not forbid it.

        Raises:
          BackendError: When the server does not answer, or with an error.
        """
        connection: Connection | None
        try:
            connection, used = self._idle.pop()
            if monotonic() - used > IDLE_CHECK:
                connection = self._checked(connection)
        except IndexError:
            connection = None
        if connection is not None:
            try:
                result = call(connection, *arguments)
            except BaseException as e:
                # An interrupt (time limit, abort, shutdown) may have struck
                # between a request and its reply: never use this one again.
                connection.close()
                if not isinstance(e, _FAILURES):
                    raise
                if not hung_up(e) or (again is not None and not again()):
                    raise self.failed(e) from e
                # The other idle ones are no younger.
                self.close()
            else:
                self._idle.append((connection, monotonic()))
                return result
        try:
            connection = self.connect()
            try:
                result = call(connection, *arguments)
            except BaseException:
                connection.close()
                raise
        except _FAILURES as e:
            raise self.failed(e) from e
        self.give(connection)
        return result

    def begin(self, send: Callable[[Connection], bool]) -> Callable[[Callable[[Connection], T]], T] | None:
        """Send a request and return what reads its replies; None where
        `send` has sent nothing, or an idle connection was closed.

        Raises:
          BackendError: When the server cannot be reached; what is
            returned raises it too.
        """
        idle = self.take()
        try:
            connection = idle or self.connect()
            try:
                sent = send(connection)
            except BaseException:
                connection.close()
                raise
        except _FAILURES as e:
            if idle is not None and hung_up(e):
                return None
            raise self.failed(e) from e
        if not sent:
            self.give(connection)
            return None

        def read(call: Callable[[Connection], T]) -> T:
            connection.wait_anew()
            try:
                result = call(connection)
            except BaseException as e:
                connection.close()
                if isinstance(e, _FAILURES):
                    raise self.failed(e) from e
                raise
            self.give(connection)
            return result

        return read

    def failed(self, error: BaseException) -> BackendError:
        """The server did not answer, or with an error: say so, and where."""
        return BackendError(f"memcached at {self.address}: {type(error).__name__}: {error}")

    def take(self) -> Connection | None:
        """Take an idle connection; None where there is none that is well."""
        try:
            connection, used = self._idle.pop()
        except IndexError:
            return None
        return self._checked(connection) if monotonic() - used > IDLE_CHECK else connection

    def _checked(self, connection: Connection) -> Connection | None:
        if connection.is_quiet():
            return connection
        connection.close()
        return None

    def connect(self) -> Connection:
        """Make a connection."""
        return Connection(copy.copy(self._client), meta=self._meta, login=self._login)

    def give(self, connection: Connection) -> None:
        """Give a connection back on which nothing is owed."""
        self._idle.append((connection, monotonic()))

    def close(self) -> None:
        """Close the idle connections."""
        while True:
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                return
            connection.close()

    def forget(self) -> None:
        """Drop the idle connections without a word to the server."""
        self._idle = deque()


class Member(Pool):
    """One server of many: it may be down while the others are not, and is
    then left alone for a while after each attempt.
    """

    # What happened when it last failed.
    _failure: BaseException

    def __init__(self, client: Any, **parameters: Any) -> None:
        super().__init__(client, **parameters)
        self.forget()

    @property
    def down(self) -> bool:
        return self.outage.down

    def call(self, call: Callable[..., T], *arguments: Any, again: Callable[[], bool] | None = None) -> T:
        self._check()
        result = super().call(call, *arguments, again=again)
        self._succeeded()
        return result

    def begin(self, send: Callable[[Connection], bool]) -> Callable[[Callable[[Connection], T]], T] | None:
        self._check()
        begun = super().begin(send)
        if begun is None:
            return None
        read = begun

        def read_and_note(call: Callable[[Connection], T]) -> T:
            result: T = read(call)
            self._succeeded()
            return result

        return read_and_note

    def _check(self) -> None:
        if self.outage.blocked:
            raise super().failed(self._failure) from self._failure

    def _succeeded(self) -> None:
        self.heard = monotonic()
        if self.outage.down:
            self.outage.succeeded()

    def failed(self, error: BaseException) -> BackendError:
        self._failure = error
        self.outage.failed(error)
        return super().failed(error)

    def forget(self) -> None:
        super().forget()
        #: What is known of its outages; it has a lock, which a fork may find taken.
        self.outage = Outage(f"memcached at {self.address}")
        #: When it last answered, by the monotonic clock.
        self.heard = float("-inf")
        self._failure = ConnectionError()


class Fleet:
    """One server or many.

    Parameters:
      hasher(Any): Chooses the node of a key.
      clients(dict): The nodes, with a client of pymemcache's each.
      **parameters: See :class:`Pool`.
    """

    def __init__(self, hasher: Any, clients: dict[Any, Any], **parameters: Any) -> None:
        #: The only server, None where there are many.
        self.only: Pool | None = None
        self._members: dict[Any, Member] = {}
        if len(clients) == 1:
            self.only = Pool(next(iter(clients.values())), **parameters)
        else:
            self._members = {node: Member(client, **parameters) for node, client in clients.items()}
        self._hasher = hasher

    def pool_of(self, key: bytes) -> Pool:
        """The server that has a key, up or down."""
        return self.only or self._members[self._hasher.get_node(key.decode())]

    def by_server(self, items: Iterable[T], pool_of: Callable[[T], Pool]) -> list[tuple[Pool, list[T]]]:
        """Items by their servers; those that are down come last."""
        if self.only is not None:
            return [(self.only, list(items))]
        groups: dict[Pool, list[T]] = {}
        for item in items:
            groups.setdefault(pool_of(item), []).append(item)
        return sorted(groups.items(), key=lambda group: group[0].down)

    def goes_on(self) -> bool:
        """Whether one of many servers has failed, and not all: those that
        were not heard of lately are asked, one round trip each.
        """
        now = monotonic()
        members = self._members.values()
        if any(not member.down and now - member.heard < HEARD_LATELY for member in members):
            return True
        return any(map(self._answers, members))

    def _answers(self, member: Member) -> bool:
        try:
            member.call(Connection.ping)
        except BackendError:
            return False
        return True

    def close(self) -> None:
        """Close the idle connections."""
        for pool in (self.only, *self._members.values()):
            if pool is not None:
                pool.close()


def hung_up(error: BaseException) -> bool:
    """Whether the server has closed the connection."""
    return isinstance(error, _HUNG_UP)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_connections() -> None:
    for pool in _pools:
        pool.forget()


# The sockets belong to the parent.
at_fork(after_in_child=_forget_connections)


def clients_of(client: Any) -> tuple[Any, dict[Any, Any]]:
    """Take the servers and how to reach them from a client of pymemcache's.

    Returns:
      tuple: What chooses a key's node, and the nodes with a client each.
    """
    if isinstance(client, HashClient):
        # A copy: the original moves keys elsewhere while a server is down.
        hasher = copy.deepcopy(client.hasher)
        for server in client._dead_clients:
            hasher.add_node(client._make_client_key(server))
        return hasher, {node: _client_of(inner) for node, inner in client.clients.items()}
    inner = _client_of(client)
    return RendezvousHash([inner.server]), {inner.server: inner}


def clients_for(servers: Any, parameters: dict[str, Any]) -> tuple[Any, dict[Any, Any]]:
    """The same for servers by their addresses.  Keys go where a
    ``HashClient`` would send them.
    """
    if isinstance(servers, str) or (isinstance(servers, tuple) and len(servers) == 2 and isinstance(servers[1], int)):
        servers = [servers]
    if not servers:
        raise ValueError("servers must name at least one server, like 'host:11211'.")
    return clients_of(HashClient(servers, **parameters))


def _client_of(client: Any) -> Any:
    if isinstance(client, PooledClient):
        return client._create_client()
    if isinstance(client, Client):
        return client
    raise TypeError(f"client must be a pymemcache Client, PooledClient or HashClient, not {type(client).__name__}.")
