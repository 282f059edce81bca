"""The nodes of a Redis Cluster, and the shards that each of them owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ... import _time as time
from ..._interrupts import WeakList
from ..._process import at_fork
from ...circuit_breaker import CircuitBreaker
from ...errors import BackendError
from .._timed import half_of
from .clock import ServerClock
from .connection import Address, ServerPool
from .keys import SHARDS, TAGS, slot_of
from .requests import Command
from .transport import ServerTransport

#: Seconds for which a map of the cluster is used at least.
_MAP_TRUST: Final = 0.1

#: Slots of the shards.
_SLOTS: Final = tuple(map(slot_of, TAGS))


class Node:
    """A node of a cluster.

    Parameters:
      address(tuple[str, int]): Its host and port.
      pool(ServerPool): Connections to it.
    """

    def __init__(self, address: Address, pool: ServerPool) -> None:
        self.address = address
        self.pool = pool
        self.clock: ServerClock = ServerClock()
        self.transport: ServerTransport = ServerTransport(pool, self.clock)
        #: The last error of a connection.
        self.failure: BaseException = ConnectionError()
        self.forget()

    def forget(self) -> None:
        """Make a new circuit breaker.  A forked process must not use that of its parent, whose lock another thread may
        hold at the fork.
        """
        self.breaker: CircuitBreaker = CircuitBreaker("Redis at {}:{}".format(*self.address))

    def fail(self, error: BaseException) -> None:
        """Note that the node did not answer."""
        self.failure = error
        self.breaker.failed(error)

    @property
    def has_failed(self) -> bool:
        """Whether the node did not answer the last time."""
        return self.breaker.down

    @property
    def is_blocked(self) -> bool:
        """Whether the node has failed so recently that no request is sent to it."""
        return self.breaker.blocked


class ClusterMap:
    """The nodes of a cluster, and the owner of each shard according to the last replies.

    Parameters:
      pool(redis.ConnectionPool): A pool of the driver's, with the parameters of connections.
      addresses(Sequence[tuple[str, int]]): Hosts and ports of some nodes.
      timeout(float): In seconds.
      remap(Callable): Takes the address of a node in the cluster, and returns the address that this host uses for it.
    """

    def __init__(
        self, pool: Any, addresses: Sequence[Address], timeout: float, remap: Callable[[Address], Address] | None
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._remap = remap
        self.nodes: dict[Address, Node] = {}
        self._owners: list[Node | None] = [None] * SHARDS
        self._first = [self._node(address) for address in addresses]
        #: Whether the map may be out of date.
        self.stale: bool = True
        # Time of the last map, by the monotonic clock.
        self._mapped = float("-inf")
        #: The clock of the node that has answered last.
        self.clock: ServerClock = self._first[0].clock
        _all.add(self)

    @property
    def pool(self) -> ServerPool:
        """Connections to one of the nodes."""
        return self._first[0].pool

    def owner(self, shard: int) -> Node:
        """Return the node that owns a shard."""
        # For a shard without a known owner, any node will do: it redirects the request, or refuses it.
        return self._owners[shard] or self._first[0]

    def move(self, shard: int, node: Node) -> None:
        """Note that a shard has moved to a node."""
        self._owners[shard] = node

    def node_of(self, sender: Node, redirection: str) -> Node:
        """Return the node to which a redirection leads.

        Parameters:
          sender(Node): The node that has sent it.
          redirection(str): Slot, host and port, such as ``5 10.0.0.2:6379``.
        """
        host, _, port = redirection.split(" ")[1].rpartition(":")
        return self._node_at(sender, host, int(port))

    def _node(self, address: Address) -> Node:
        node = self.nodes.get(address)
        if node is None:
            node = self.nodes[address] = Node(address, ServerPool(self._pool, self._timeout, address))
        return node

    def _node_at(self, sender: Node, host: str | None, port: int) -> Node:
        """Return the node at an address that a node has sent.  An address without a host has the sender's host."""
        if not host or host == "?":
            return self._node((sender.address[0], port))
        return self._node(self._remap((host, port)) if self._remap else (host, port))

    # Nodes that fail

    def answered(self, node: Node) -> None:
        """Note that a node has answered."""
        self.clock = node.clock
        if node.breaker.down:
            node.breaker.succeeded()
            for other in self.nodes.values():
                # Nodes that failed at the same time may answer again at the same time.
                other.breaker.retry_at = 0.0

    @property
    def is_down(self) -> bool:
        """Whether all nodes have failed.  Then requests are sent to blocked nodes as well: an attempt that comes too
        early costs nothing.
        """
        return all(node.has_failed for node in self.nodes.values())

    def available(self) -> list[Node]:
        """Return the nodes that are not blocked, or all nodes if all are blocked.  Nodes with shards come first."""
        nodes = [node for node in dict.fromkeys([*self._owners, *self._first, *self.nodes.values()]) if node]
        return [node for node in nodes if not node.is_blocked] or nodes

    # Maps

    def renew(self, deadline: float) -> bool:
        """Make a new map if the present one may be out of date.

        Parameters:
          deadline(float): Deadline of the call, by the monotonic clock.

        Returns:
          bool: False when a new map is needed, and no node has answered.
        """
        return not self.stale or time.monotonic() - self._mapped < _MAP_TRUST or self.query(deadline)

    def query(self, deadline: float) -> bool:
        """Query one node after the other for a new map, and return whether one has answered.

        Each node has half of the time that is left, so that there is time left for the next one.
        """
        for node in sorted(self.available(), key=lambda node: node.has_failed):
            if time.monotonic() > deadline:
                break
            try:
                ranges = node.transport.query(Command(0, "CLUSTER", "SLOTS"), half_of(deadline))
            except BackendError as e:
                node.fail(e.__cause__ or e)
                continue
            self.answered(node)
            owners: list[Node | None] = [None] * SHARDS
            for first, last, (host, port, *_), *_ in ranges:
                owner = self._node_at(node, host, port)
                for shard, slot in enumerate(_SLOTS):
                    if first <= slot <= last:
                        owners[shard] = owner
            self._owners = owners
            self._mapped = time.monotonic()
            # While the owner of a shard does not answer, another node may become the owner of the shard.
            self.stale = any(owner is None or owner.has_failed for owner in owners)
            return True
        return False

    def close(self) -> None:
        """Close the idle connections."""
        for node in list(self.nodes.values()):
            node.pool.close()

    def forget(self) -> None:
        """Make new circuit breakers for the nodes, in a forked process."""
        for node in self.nodes.values():
            node.forget()


_all: Final = WeakList[ClusterMap]()


def _forget_all() -> None:
    for cluster_map in _all:
        cluster_map.forget()


at_fork(after_in_child=_forget_all)
