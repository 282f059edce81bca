"""The Redis backend: a hash for each message, and one script call for up to 128 updates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...backend import Listed, Query, StatusBackend, escape_namespace
from ...checks import check_number
from ...cursor import Cursor
from ...errors import BackendError
from ...fields import plain_number
from ...record import Record
from ...snapshot import Snapshot
from ...update import Outcome, Update
from .clients import make_access
from .keys import Keys
from .operations import Operations
from .protocol import OUTCOMES, UNLISTED
from .subscription import RedisSubscription
from .transport import Transport, drive

if TYPE_CHECKING:
    import redis

    from .broker_calls import RedisUpdateAttacher
    from .broker_client import BrokerClient

#: Default of `max_listed`.
DEFAULT_MAX_LISTED: Final = 100_000


class RedisBackend(StatusBackend):
    """A backend that stores statuses in Redis_ (or Valkey) 6.2 or newer.

    Up to 128 updates take one round trip, and so do up to 2,000 reads.  The timestamps that the server adds to a record
    (``updated_at``, ``heartbeat_at``) are by the server's clock.

    The backend opens its own connections, one for each thread that uses it at the same time.  They have none of
    redis-py's retries.  `timeout` is the time of a whole call.  It includes queries of Sentinels or of other nodes,
    connecting, sending, and reading all replies, and a second attempt over a new connection.  The backend may be used
    after a fork.

    **Sentinels.** A new connection queries the Sentinels for the present master.  While calls go on, the backend also
    queries them once a second, or 15 seconds after a query without an answer.  A failover loses the updates that the
    old master had not sent to its replicas.  A running job restores its status with its next write if the new master
    does not have it.  The status of a job that had just finished stays as the new master has it.  With
    ``min-replicas-to-write``, a master takes writes only while it has replicas, and a failover loses fewer updates.

    **Cluster.** The CRC-32 of a message's id assigns it to one of 64 shards.  A shard has one slot, so a message and
    the index that lists it are always on one node.  Requests to different nodes run at the same time, with one script
    call for each shard.  While a slot moves, all reads and updates of its messages are exact.  While a node does not
    answer, reads have an error in the place of each of the node's messages, and the other messages are read as always.
    The backend merges a page of a list from the replies of all nodes, in two or three round trips.  Lists and counts
    raise :class:`.BackendError` if a shard does not answer, or if its slot is moving for longer than `timeout`.  The
    shards have equal parts of `max_listed`, and the clocks of their nodes decide which messages are the newest.
    Changes are published to the whole cluster, because sharded channels exist only from Redis 7.0 on, and move with
    their slots.

    **Lists.** The cost of a page hardly depends on its place and on the number of messages.  It grows with the number
    of sets from which the page is merged, by 5 to 20 microseconds of the server for each set.  There is a set for each
    state, queue and actor that messages have together, and for finished messages also for each `status_ttl`.  A filter
    excludes sets.

    A list removes expired unfinished statuses from the index when it finds them.  A count looks for expired statuses
    among 1,000 unfinished ones, and on a cluster among 64 of each shard.  It is exact if there are at most that
    many unfinished statuses.  If there are more, it looks at the oldest and at some others.  Expired statuses at which
    it has not looked are counted until a count or a list finds them.

    Parameters:
      client(redis.Redis | redis.RedisCluster): An optional client, of redis-py or of valkey-py.  It determines how the
        backend connects: the backend ignores `url`, the parameters for Sentinels, and all connection parameters.  With
        `cluster_nodes`, it must be a client of one node: the backend uses its login and its options for all nodes.
      url(str): An optional connection URL.  Its parts take precedence over `parameters`.
      sentinels(Sequence[tuple[str, int]]): Hosts and ports of Sentinels, in place of a URL.
      service_name(str): The Sentinels' name of the master.
      sentinel_kwargs(dict[str, object]): Connection parameters for the Sentinels; `parameters` are for the master.
      cluster_nodes(Sequence[tuple[str, int]]): Hosts and ports of some nodes of a cluster, in place of a URL.
      namespace(str): Prefix of all keys.
      timeout(int): Maximum duration of a call, in milliseconds.  A request or a reply may take one second longer for
        every 500 kB.
      max_field_size(int): Maximum size of an encoded field, in bytes.
      max_listed(int): Approximate maximum number of messages of each state, queue and actor that lists and counts
        include: the newest ones.  0 for no index.  The index takes about 150 bytes for each message, and some
        microseconds of the server when a message changes its state.
      **parameters: Connection parameters for :class:`redis.Redis`.

    Raises:
      TypeError: When the driver does not support a parameter, or `client` is not a synchronous client of redis-py or
        valkey-py.
      ValueError: When the value of a parameter, or a part of the URL, is wrong.

    .. _Redis: https://redis.io
    """

    def __init__(
        self,
        *,
        client: redis.Redis | redis.RedisCluster | Any | None = None,
        url: str | None = None,
        sentinels: Sequence[tuple[str, int]] | None = None,
        service_name: str | None = None,
        sentinel_kwargs: Mapping[str, Any] | None = None,
        cluster_nodes: Sequence[tuple[str, int]] | None = None,
        namespace: str = "dramatiq-status",
        max_listed: int = DEFAULT_MAX_LISTED,
        **parameters: Any,
    ) -> None:
        own = {name: parameters.pop(name) for name in ("timeout", "max_field_size") if name in parameters}
        super().__init__(namespace=namespace, **own)
        for name in ("port", "db"):
            # The driver cannot send a number that is not plain.
            if plain_number(parameters.get(name)) is not None:
                parameters[name] = check_number(name, parameters[name])
        access = make_access(
            self.timeout / 1000,
            parameters,
            client=client,
            url=url,
            sentinels=sentinels,
            service_name=service_name,
            sentinel_kwargs=sentinel_kwargs,
            cluster_nodes=cluster_nodes,
        )
        #: The client that was passed, or one that connects in the same way; on a cluster, to one of its nodes.
        self.client: Any = access.client
        self.transport: Transport = access.transport
        self.keys: Keys = access.keys(escape_namespace(namespace), check_number("max_listed", max_listed))
        self.operations: Operations = Operations(self.keys, self.transport)
        # The last result of `update_attacher`.
        self._attacher: RedisUpdateAttacher | None = None

    def __repr__(self) -> str:
        # The client is left out, because it may show a password.
        return f"<{type(self).__name__} {self.namespace!r}>"

    why_no_list = "it was made with max_listed=0."

    # Writing

    def update(self, message_id: str, update: Update) -> Outcome:
        # The steps of `Operations.update`, without a generator, which would cost 3 % of an update's time.
        call = self.operations.call_of(message_id, update)
        self.transport.run((call,))
        if call.error is None and not call.arriving:
            number = call.replies[0][0]
            if number < UNLISTED:
                return OUTCOMES[number]
        return drive(self.transport, self.operations.complete(call))

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        return drive(self.transport, self.operations.update_many(updates))

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Send the update, and return a function that reads the reply."""
        steps = self.operations.update(message_id, update, lenient=True)
        complete = self.transport.begin(next(steps))
        return lambda: drive(self.transport, steps, complete())

    def delete(self, message_id: str) -> bool:
        return drive(self.transport, self.operations.delete(message_id))

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | BackendError | None]:
        return drive(self.transport, self.operations.read_many(message_ids))

    def snapshot(self, message_id: str) -> Snapshot | None:
        return drive(self.transport, self.operations.snapshot(message_id))

    def snapshots(self, message_ids: Sequence[str]) -> list[Snapshot | BackendError | None]:
        return drive(self.transport, self.operations.snapshots(message_ids))

    def read_cancels(self, position: Any) -> tuple[dict[int, str], list[int]]:
        return drive(self.transport, self.operations.read_cancels(position or {}))

    def now(self) -> int:
        """Return the time by the server's clock, as the last calls have shown it, in epoch milliseconds."""
        return self.transport.clock.now()

    # Listing

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        self.check_index()
        return drive(self.transport, self.operations.find(query, limit, after))

    def count(self, query: Query) -> int:
        self.check_index()
        return drive(self.transport, self.operations.count(query))

    def check_index(self) -> None:
        """Raise :class:`.NotSupported` unless this backend keeps an index."""
        if not self.keys.max_listed:
            raise self.cannot_list()

    # The broker

    def update_attacher(self, broker: Any) -> RedisUpdateAttacher | None:
        """Return an attacher for the broker's client, if :meth:`broker_client` of this backend has made the client;
        otherwise None.
        """
        client: Any = getattr(broker, "client", None)
        found = self._attacher
        if found is not None and found.client is client:
            return found
        if getattr(client, "broker_calls", None) is None or client.connection_pool is not self.client.connection_pool:
            return None
        from .broker_calls import RedisUpdateAttacher

        self._attacher = RedisUpdateAttacher(client, self.operations)
        return self._attacher

    def broker_client(self) -> BrokerClient:
        """Make a client for Dramatiq's Redis broker.  It sends the updates of this backend in one transaction with the
        broker's commands, and its calls are faster than those of other clients.

        >>> broker = RedisBroker(client=backend.broker_client())

        Returns:
          redis.Redis: A client of the same server and database, with the connection parameters of ``client``.

        Raises:
          NotSupported: On a cluster, where Dramatiq's broker cannot store its queues, and with valkey-py, whose errors
            the broker does not catch.
        """
        # Dramatiq's broker needs redis-py; this backend does not.
        from .broker_client import make_broker_client

        return make_broker_client(self.client, is_cluster=len(self.keys.shards) > 1)

    # Following, and the end

    def subscribe(self, message_ids: Sequence[str]) -> RedisSubscription:
        """Subscribe to changes, over a connection that lasts as long as the subscription."""
        return self._subscribe(self.keys.channels(message_ids))

    def subscribe_cancels(self) -> RedisSubscription:
        """Subscribe to the log of cancelled messages, over a connection that lasts as long as the subscription."""
        return self._subscribe({key: key for key in self.keys.cancels})

    def _subscribe(self, channels: Mapping[str, str]) -> RedisSubscription:
        return self.transport.connect(lambda connection: RedisSubscription(connection, channels, self.timeout / 1000))

    def close(self) -> None:
        self.transport.close()
