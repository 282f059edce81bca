"""The nodes of a Redis Cluster, and the shards that each of them owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ... import _time as time
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


class Node(ServerPool):
    """Connections to a node of a cluster, and whether it answers.

    Parameters:
      address(tuple[str, int]): Its host and port.
      pool(redis.ConnectionPool): A pool of the driver's, with the parameters of connections.
      timeout(float): Seconds that one call may take.
    """

    def __init__(self, address: Address, pool: Any, timeout: float) -> None:
        self.address = address
        super().__init__(pool, timeout, address)
        self.clock: ServerClock = ServerClock()
        #: The last error of a connection.  Before the first one, it is the error of calls that had no time left for
        #: this node.
        self.failure: BaseException = ConnectionError("no node of the cluster has answered.")
        self.forget()

    def forget(self) -> None:
        super().forget()
        #: Its circuit breaker.  A child process makes a new one, because a thread of the parent may hold the lock of
        #: this one.
        self.breaker: CircuitBreaker = CircuitBreaker("Redis at {}:{}".format(*self.address))

    def fail(self, error: BaseException) -> None:
        """Note that the node did not answer."""
        self.failure = error
        self.breaker.failed(error)


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
        #: The nodes with the given addresses.
        self.first: list[Node] = [self._node(address) for address in addresses]
        #: Whether the map may be out of date.
        self.stale: bool = True
        # Time of the last map, by the monotonic clock.
        self._mapped = float("-inf")
        #: The clock of the node that has answered last.
        self.clock: ServerClock = self.first[0].clock

    def owner(self, shard: int) -> Node:
        """Return the node that owns a shard."""
        # For a shard without a known owner, any node will do: it redirects the request, or refuses it.
        return self._owners[shard] or self.first[0]

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
            node = self.nodes[address] = Node(address, self._pool, self._timeout)
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
            for other in list(self.nodes.values()):
                # Nodes that failed at the same time may answer again at the same time.
                other.breaker.retry_at = 0.0

    @property
    def is_down(self) -> bool:
        """Whether all nodes have failed.  Then requests are sent to blocked nodes as well: an attempt that comes too
        early costs nothing.
        """
        return all(node.breaker.down for node in list(self.nodes.values()))

    def available(self) -> list[Node]:
        """Return the nodes that are not blocked, or all nodes if all are blocked.  Nodes with shards come first."""
        nodes = [node for node in dict.fromkeys([*self._owners, *self.first, *self.nodes.values()]) if node]
        return [node for node in nodes if not node.breaker.blocked] or nodes

    # Maps

    def renew(self, deadline: float) -> bool:
        """Make a new map if the present one may be out of date.

        Parameters:
          deadline(float): Deadline of the call, by the monotonic clock.

        Returns:
          bool: False when a new map is needed, and no node has answered.  After the deadline, the present map is used.
        """
        now = time.monotonic()
        return not self.stale or now - self._mapped < _MAP_TRUST or now > deadline or self.query(deadline)

    def query(self, deadline: float) -> bool:
        """Query one node after the other for a new map, and return whether one has answered.

        Each node has half of the time that is left, so that there is time left for the next one.
        """
        for node in sorted(self.available(), key=lambda node: node.breaker.down):
            if time.monotonic() > deadline:
                break
            try:
                ranges = ServerTransport(node, node.clock).query(Command(0, "CLUSTER", "SLOTS"), half_of(deadline))
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
            self.stale = any(owner is None or owner.breaker.down for owner in owners)
            return True
        return False

    def close(self) -> None:
        """Close the idle connections."""
        for node in list(self.nodes.values()):
            node.close()
