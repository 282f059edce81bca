"""The Redis backend: a hash a message, a script call for any number of updates."""

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
from .subscription import RedisSubscription
from .transport import Transport, drive

if TYPE_CHECKING:
    import redis

#: Maximum number of messages of one state, queue and actor that can be listed.
DEFAULT_MAX_LISTED: Final = 100_000


class RedisBackend(StatusBackend):
    """Keeps statuses in Redis_ (or Valkey) 6.2 or newer.

    Updates of any number of messages take one round trip, and so do reads.
    Moments in a record come from the server's clock, where
    it is the server that acts (``updated_at``, ``heartbeat_at``).

    It opens connections of its own, as many as there are threads that
    talk to Redis at the same time, and without redis-py's retries.  `timeout` is
    that of a whole call: asking Sentinels or other nodes, connecting, sending, and reading all
    replies, once more on a new connection if need be.  They are safe across forks.

    With Sentinels, they are asked for the present master whenever a connection is
    made, and once a second.  What the old master had taken and not sent to its replicas is lost with
    it: a job that still runs restores its status with its next
    write if there is none, one that had
    finished just before keeps what the new master knows.  For less of that,
    let the master take writes only while it has replicas (``min-replicas-to-write``).

    On a Redis Cluster, messages are spread by the CRC-32 of their ids over 64 shards
    of one slot each, so that a message and the index that lists
    it are always on the same node.  Requests to different nodes run at the same
    time, one script call for each shard.  While a slot moves, all reads and updates of its
    messages are exact.  A page of a list
    takes two or three round trips, to all nodes, and the client merges it; where a shard
    does not answer, or its slot is moving for longer than `timeout`, lists and counts raise
    :class:`.BackendError`.  `max_listed` is divided evenly among
    the shards, and their nodes' clocks decide what is newest.
    Changes are published to the whole cluster, because sharded
    channels exist only from Redis 7.0 on, and move with their slots.
    While a node does not answer, reads have an error in the place of each of its messages,
    and the other messages are read as always.

    A page of a list costs about the same wherever it is, however many messages there are.
    It grows with the number of sets that it is put together from, five to twenty
    microseconds of the server for each: one for each queue and actor that has messages in a state,
    and for each `status_ttl` of finished ones.  A filter leaves out the others.

    An unfinished status that has expired is dropped from the index when a list meets
    it.  A count searches 1,000 unfinished statuses for expired ones, and is exact if
    there are no more.  Otherwise it searches the oldest and some others,
    and counts expired statuses among the rest until a count or a list finds them.

    Parameters:
      client(redis.Redis | redis.RedisCluster): An optional client, or one
        of valkey-py's.  If this is passed, all that follows up to `namespace` and all
        connection parameters are ignored; it says how to connect.
      url(str): An optional connection URL.  If both a URL and
        connection parameters are provided, the URL is used.
      sentinels(Sequence[tuple[str, int]]): Hosts and ports of Sentinels, in place of a URL.
      service_name(str): What they call the master.
      sentinel_kwargs(dict[str, object]): Connection parameters for the
        Sentinels themselves; `parameters` are for the master.
      cluster_nodes(Sequence[tuple[str, int]]): Hosts and ports of some
        nodes of a cluster, in place of a URL.
      namespace(str): What all keys start with.
      timeout(int): How long one call may take, in milliseconds.  A request or reply may
        take a second longer for every 500 kB.
      max_field_size(int): The largest encoded field, in bytes.
      max_listed(int): About how many messages of each state, queue and actor
        can be listed and counted, the newest ones.  0 for no index: it takes
        about 150 bytes a message, and some microseconds of the server when a message changes its state.
      **parameters: Connection parameters for :class:`redis.Redis`.

    Raises:
      TypeError: When a parameter is unknown to the driver, or `client` is none of a synchronous driver's.
      ValueError: When one is wrong, or a part of the URL.

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

    def __repr__(self) -> str:
        # Not the client: it may show a password.
        return f"<{type(self).__name__} {self.namespace!r}>"

    why_no_list = "it was made with max_listed=0."

    # Writing

    def update(self, message_id: str, update: Update) -> Outcome:
        return drive(self.transport, self.operations.update(message_id, update))

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

    # Following, and the end

    def subscribe(self, message_ids: Sequence[str]) -> RedisSubscription:
        """Subscribe to changes, over a connection that lasts as long as the subscription."""
        return self.transport.subscribe(self.keys.channels(message_ids))

    def close(self) -> None:
        self.transport.close()
