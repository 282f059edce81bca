"""The servers of a memcached backend: which of them has a key, connections to each, and which of them answer."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from selectors import EVENT_READ, DefaultSelector
from ssl import SSLEOFError, SSLZeroReturnError
from typing import Any, Final, TypeVar

from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.rendezvous import RendezvousHash
from pymemcache.exceptions import MemcacheError, MemcacheUnexpectedCloseError

from ..._interrupts import WeakList
from ..._process import at_fork
from ..._time import monotonic, sleep
from ...errors import BackendError
from ...outage import Outage
from .protocol import Connection, Login

#: A connection that was idle for this many seconds is looked at before
#: it is used again: the server may have closed it.
IDLE_CHECK: Final = 1.0

#: For how many seconds a server that has answered counts as one that does.
HEARD_LATELY: Final = 0.1

#: Seconds after the end of a call in which it reads replies that arrived while it waited for another server.
GRACE: Final = 0.05

#: What a server's hanging up looks like.
_HUNG_UP: Final = (ConnectionError, MemcacheUnexpectedCloseError, SSLEOFError, SSLZeroReturnError)

#: What a server's failing looks like.
_FAILURES: Final = (MemcacheError, OSError)

T = TypeVar("T")

#: Steps of an exchange over a connection.  Behind each step a reply is due, or the exchange continues at a time by
#: the monotonic clock.
Steps = Iterator["float | None"]
Talk = Callable[[Connection], Steps]


class Pool:
    """The idle connections to one server; the one used last is taken first.

    Parameters:
      client(pymemcache.Client): Says where and how to connect.
      timeout(float): Seconds for each call, which may have to connect.
      meta(bool): See :class:`Connection`.
      login(Login): See :class:`Connection`.
    """

    def __init__(self, client: Any, *, timeout: float, meta: bool, login: Login | None = None) -> None:
        self._client = copy.copy(client)
        self._client.sock = None
        self._client.no_delay = True
        self.timeout = timeout
        self._meta = meta
        self._login = login
        self._idle: deque[tuple[Connection, float]] = deque()
        _pools.add(self)

    @property
    def down(self) -> bool:
        """Whether it is known not to answer."""
        return False

    @property
    def has_idle(self) -> bool:
        """Whether there is an idle connection."""
        return bool(self._idle)

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
        now = monotonic()
        deadline = now + self.timeout
        try:
            connection, used = self._idle.pop()
            if now - used > IDLE_CHECK:
                connection = self._checked(connection)
        except IndexError:
            connection = None
        if connection is not None:
            connection.begin(deadline)
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
            connection = self.connect(deadline)
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
        deadline = monotonic() + self.timeout
        idle = self.take()
        try:
            if idle is not None:
                connection = idle
                connection.begin(deadline)
            else:
                connection = self.connect(deadline)
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
        # The time until the caller requests the reply does not count for the time-out.
        left = deadline - monotonic()

        def read(call: Callable[[Connection], T]) -> T:
            connection.deadline = monotonic() + left
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

    def check(self) -> None:
        """Raise an error where it is too early to try the server again.

        Raises:
          BackendError: With what happened the last time.
        """

    def succeeded(self) -> None:
        """Note that the server has answered."""

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

    def connect(self, deadline: float | None = None) -> Connection:
        """Make a connection, until a deadline by the monotonic clock."""
        connection = self.open(monotonic() + self.timeout if deadline is None else deadline)
        try:
            for _ in connection.greet():
                pass
        except BaseException:
            connection.close()
            raise
        return connection

    def open(self, deadline: float) -> Connection:
        """Make a connection, before :meth:`Connection.greet`."""
        client = copy.copy(self._client)
        return Connection(client, timeout=self.timeout, deadline=deadline, meta=self._meta, login=self._login)

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
        self.check()
        result = super().call(call, *arguments, again=again)
        self.succeeded()
        return result

    def begin(self, send: Callable[[Connection], bool]) -> Callable[[Callable[[Connection], T]], T] | None:
        self.check()
        begun = super().begin(send)
        if begun is None:
            return None
        read = begun

        def read_and_note(call: Callable[[Connection], T]) -> T:
            result: T = read(call)
            self.succeeded()
            return result

        return read_and_note

    def check(self) -> None:
        if self.outage.blocked:
            raise super().failed(self._failure) from self._failure

    def succeeded(self) -> None:
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


class Conversation:
    """An exchange with one of several servers, which runs beside those with the others.

    Parameters:
      pool(Pool): The server.
      talk(Callable): Makes the steps, given a connection.
      again(Callable): Whether to begin again where the server has hung up on an idle connection.
      deadline(float): End of the call, by the monotonic clock.

    Attributes:
      over(bool): Whether it has come to its end.
      error(BackendError): Why that was no good one.
      wake_at(float): Moment of the next step by the monotonic clock, None where a reply is due.
    """

    def __init__(self, pool: Pool, talk: Talk, again: Callable[[], bool], deadline: float) -> None:
        self.pool = pool
        self.over = False
        self.error: BackendError | None = None
        self.wake_at: float | None = None
        self.connection: Connection | None = None
        self._deadline = deadline
        self._talk = talk
        self._again = again
        self._steps: Steps | None = None
        self._idle = True

    def advance(self) -> None:
        """Go on until a reply is due, or there is another reason to wait."""
        while not self.over:
            try:
                self.wake_at = next(self._open() if self._steps is None else self._steps)
                return
            except StopIteration:
                self._end()
            except BackendError as e:
                self.over, self.error = True, e
            except _FAILURES as e:
                self.close()
                if self._idle and hung_up(e) and self._again():
                    self.pool.close()
                    self._idle, self._steps = False, None
                else:
                    self.over, self.error = True, self.pool.failed(e)
                    self.error.__cause__ = e

    def _open(self) -> Steps:
        self.pool.check()
        self.connection = self.pool.take() if self._idle else None
        if self.connection is not None:
            self.connection.begin(self._deadline)
            self._steps = self._talk(self.connection)
        else:
            self._idle = False
            self.connection = connection = self.pool.open(self._deadline)
            self._steps = chain(connection.greet(), self._talk(connection))
        return self._steps

    def _end(self) -> None:
        connection, self.connection = self.connection, None
        self.over = True
        if connection is not None:
            self.pool.give(connection)
        self.pool.succeeded()

    def close(self) -> None:
        """Close its connection, if a reply on it is still due."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def ends_at(self) -> float:
        """The time at which it goes on even without a reply, by the monotonic clock."""
        if self.wake_at is not None:
            return self.wake_at
        return self._deadline if self.connection is None else self.connection.deadline


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
        self._timeout: float = parameters["timeout"]

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

    def talk(self, talks: Iterable[tuple[Pool, Talk, Callable[[], bool]]]) -> list[BackendError | None]:
        """Carry out exchanges with several servers at the same time, for at most the time of one call.

        Parameters:
          talks(Iterable[tuple]): Servers, the exchange with each, and whether it may be repeated.

        Returns:
          list[BackendError | None]: For each server the error, None for no error.
        """
        if self.only is not None:
            return [_talk_to(*talk) for talk in talks]
        deadline = monotonic() + self._timeout
        conversations = [Conversation(*talk, deadline) for talk in talks]
        _converse(conversations, lambda: False)
        return [conversation.error for conversation in conversations]

    def goes_on(self, deadline: float) -> bool:
        """Whether one of many servers has failed, and not all: those that
        have not answered lately are asked, until the end of the call.
        """
        now = monotonic()
        members = self._members.values()
        if any(not member.down and now - member.heard < HEARD_LATELY for member in members):
            return True
        if deadline - now < GRACE:
            # No time is left: it is enough that one of them may not be down.
            return not all(member.down for member in members)
        pings = [Conversation(member, Connection.ping, _always, deadline) for member in members]
        _converse(pings, lambda: any(ping.over and ping.error is None for ping in pings))
        return any(ping.over and ping.error is None for ping in pings)

    def close(self) -> None:
        """Close the idle connections."""
        for pool in (self.only, *self._members.values()):
            if pool is not None:
                pool.close()


def _talk_to(pool: Pool, talk: Talk, again: Callable[[], bool]) -> BackendError | None:
    try:
        pool.call(say, talk, again=again)
    except BackendError as e:
        return e
    return None


def say(connection: Connection, talk: Talk) -> None:
    """Carry out all steps of the exchange with a single server."""
    for wake_at in talk(connection):
        if wake_at is not None:
            sleep(max(0.0, wake_at - monotonic()))


def _converse(conversations: list[Conversation], enough: Callable[[], bool]) -> None:
    """Carry on conversations side by side until all are over, or until `enough` returns True."""
    try:
        # Conversations that need a new connection come last: connecting may take all the time that is left.
        for conversation in sorted(conversations, key=lambda conversation: not conversation.pool.has_idle):
            conversation.advance()
        while not enough() and (going := [conversation for conversation in conversations if not conversation.over]):
            for conversation in _wait(going):
                conversation.advance()
    finally:
        for conversation in conversations:
            conversation.close()


def _wait(conversations: list[Conversation]) -> list[Conversation]:
    """Wait for conversations that can go on: a reply has arrived, or their time has come."""
    ready: list[Conversation] = []
    with DefaultSelector() as selector:
        for conversation in conversations:
            if conversation.wake_at is None and conversation.connection is not None:
                selector.register(conversation.connection, EVENT_READ, conversation)
        timeout = min(conversation.ends_at() for conversation in conversations) - monotonic()
        if selector.get_map():
            ready = [key.data for key, _ in selector.select(max(0.0, timeout))]
        else:
            sleep(max(0.0, timeout))
    now = monotonic()
    for conversation in ready:
        connection = conversation.connection
        if connection is not None and connection.deadline < now + GRACE:
            # Another server has used up the time: this one has not failed.
            connection.deadline = now + GRACE
    return ready + [found for found in conversations if found not in ready and found.ends_at() <= now]


def _always() -> bool:
    return True


def hung_up(error: BaseException) -> bool:
    """Whether the server has closed the connection."""
    return isinstance(error, _HUNG_UP)


_pools: Final = WeakList[Pool]()


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
