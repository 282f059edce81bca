"""The servers of a memcached backend, the assignment of keys to servers, and exchanges with several servers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.rendezvous import RendezvousHash

from ..._time import monotonic
from ...errors import BackendError
from .exchange import GRACE, Exchange, RunningExchange, run_together
from .protocol import Connection, Credentials
from .server import Server, ServerWithBreaker

#: Seconds for which a server that has answered is assumed to answer.
ANSWER_TRUST: Final = 0.1

T = TypeVar("T")


class Servers:
    """One server or many.

    Parameters:
      hasher(Any): Object whose ``get_node`` returns the node of a key.
      clients(dict): The nodes, and a client of pymemcache for each.
      timeout(float): Seconds for each call.
      meta(bool): See :class:`.Connection`.
      login(Credentials): See :class:`.Connection`.

    Attributes:
      only(Server): The only server, None if there are many.
      by_node(dict): The servers by their nodes, if there are many.
    """

    def __init__(
        self, hasher: Any, clients: dict[Any, Any], *, timeout: float, meta: bool, login: Credentials | None
    ) -> None:
        self._hasher = hasher
        self._timeout = timeout
        self.only: Server | None = None
        self.by_node: dict[Any, ServerWithBreaker] = {}
        if len(clients) == 1:
            (client,) = clients.values()
            self.only = Server(client, timeout=timeout, meta=meta, login=login)
        else:
            for node, client in clients.items():
                self.by_node[node] = ServerWithBreaker(client, timeout=timeout, meta=meta, login=login)

    def server_of(self, key: bytes) -> Server:
        """Return the server that has a key, even if it is down."""
        return self.only or self.by_node[self._hasher.get_node(key.decode())]

    def group(self, items: Iterable[T], server_of: Callable[[T], Server]) -> list[tuple[Server, list[T]]]:
        """Group items by their servers.  Servers that are down come last."""
        if self.only is not None:
            return [(self.only, list(items))]
        groups: dict[Server, list[T]] = {}
        for item in items:
            groups.setdefault(server_of(item), []).append(item)
        return sorted(groups.items(), key=lambda group: group[0].is_down)

    def run(self, exchanges: Sequence[Exchange]) -> list[BackendError | None]:
        """Carry out exchanges with several servers at the same time.  Each part of an exchange, up to a call of
        :meth:`.Stream.renew`, takes at most the time of one call.

        Returns:
          list[BackendError | None]: The error of each exchange, None for none.
        """
        if self.only is not None:
            return [exchange.run() for exchange in exchanges]
        deadline = monotonic() + self._timeout
        running = [RunningExchange(exchange, deadline) for exchange in exchanges]
        run_together(running, lambda: False)
        return [exchange.error for exchange in running]

    def has_answer(self, deadline: float) -> bool:
        """Return whether one of many servers answers, although another one has failed.

        If no server has answered in the last :data:`ANSWER_TRUST` seconds, send a request to each server and wait for
        the first reply.

        Parameters:
          deadline(float): End of the call, by the monotonic clock.
        """
        now = monotonic()
        servers = self.by_node.values()
        if any(not server.is_down and now - server.answered_at < ANSWER_TRUST for server in servers):
            return True
        if deadline - now < GRACE:
            # No time is left to query the servers.
            return not all(server.is_down for server in servers)
        pings = [RunningExchange(Exchange(server, Connection.ping, always), deadline) for server in servers]

        def has_reply() -> bool:
            return any(ping.done and ping.error is None for ping in pings)

        run_together(pings, has_reply)
        return has_reply()

    def close(self) -> None:
        """Close the idle connections."""
        for server in (self.only, *self.by_node.values()):
            if server is not None:
                server.close()


def always() -> bool:
    """Return True: reads, and additions to the log of cancelled messages, may always be repeated."""
    return True


def nodes_of(client: Any) -> tuple[Any, dict[Any, Any]]:
    """Return the servers of a client of pymemcache.

    Returns:
      tuple[Any, dict]: An object whose ``get_node`` returns the node of a key; and the nodes, with a client for each.
    """
    if isinstance(client, HashClient):
        # A copy, because the client's own hasher moves keys to other servers while a server is down.
        hasher = copy.deepcopy(client.hasher)
        for server in client._dead_clients:
            hasher.add_node(client._make_client_key(server))
        return hasher, {node: _client_of(inner) for node, inner in client.clients.items()}
    inner = _client_of(client)
    return RendezvousHash([inner.server]), {inner.server: inner}


def nodes_at(servers: Any, parameters: dict[str, Any]) -> tuple[Any, dict[Any, Any]]:
    """Return servers by their addresses, see :func:`nodes_of`.  Each key has the same server as with a ``HashClient``.

    Parameters:
      servers(str | tuple | list): One address, or a list of them.
      parameters(dict): Connection parameters of pymemcache.
    """
    if isinstance(servers, str) or (isinstance(servers, tuple) and len(servers) == 2 and isinstance(servers[1], int)):
        servers = [servers]
    if not servers:
        raise ValueError("servers must name at least one server, like 'host:11211'.")
    return nodes_of(HashClient(servers, **parameters))


def _client_of(client: Any) -> Any:
    if isinstance(client, PooledClient):
        return client._create_client()
    if isinstance(client, Client):
        return client
    raise TypeError(f"client must be a pymemcache Client, PooledClient or HashClient, not {type(client).__name__}.")
