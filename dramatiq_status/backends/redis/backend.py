"""The Redis backend: a hash a message, a script call for any number of updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ssl import CERT_NONE
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ... import _time as time
from ...backend import Listed, Query, StatusBackend, answered, escape_namespace
from ...checks import check_number
from ...cursor import Cursor
from ...decoding import take_texts
from ...errors import BackendError
from ...fields import plain_number
from ...record import ACTOR_NAME, QUEUE_NAME, STATE, Record, from_pairs
from ...snapshot import Snapshot
from ...update import Outcome, Update
from .._query import wanted_by
from .._timed import quieten
from ..url import check_login, mask
from .connection import Connections, Link, coded, failure_of
from .driver import any_driver, check_client, errors
from .protocol import OUTCOMES, IndexArguments, delete_arguments, may_repeat, update_arguments
from .script import TIME, Script, ScriptCall, ServerClock, checked
from .sentinel import SentinelConnections
from .subscription import RedisSubscription

if TYPE_CHECKING:
    import redis

    from .shards import Shards

FoundT = TypeVar("FoundT")

#: redis-py, or valkey-py where only that is installed.
DRIVER: Final = any_driver()

#: The script that mirrors ``update.apply``, and the one that reads its index.
UPDATE: Final = Script.load(*(f"update/{part}.lua" for part in ("head", "index", "record", "history", "apply", "main")))
LIST: Final = Script.load("list.lua")

#: How many messages of one state, queue and actor can be listed.
DEFAULT_MAX_LISTED: Final = 100_000

#: How many updates one script call carries at most.  Redis serves
#: nobody else while a script runs; this many take about a millisecond.
UPDATES_A_CALL: Final = 128

#: How many hashes one pipeline reads at most.
READS_A_CALL: Final = 2000

#: How often a page is asked for again at most, while the script drops
#: what has expired and has not come to its end.
PASSES_A_PAGE: Final = 64

#: What the script is told in place of a cursor for the first page.
NEWEST: Final = ("", "")

#: Among how many unfinished messages a count looks for expired ones.
CHECKED_A_COUNT: Final = 1000


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
        if parameters.get("ssl"):
            _check_hostname(parameters)
        seconds = self.timeout / 1000
        if client is not None:
            check_client(client)
        elif sentinels is not None:
            client = _master_client(sentinels, service_name, sentinel_kwargs, parameters, seconds)
        elif cluster_nodes is not None:
            client = _node_client(cluster_nodes, parameters)
        else:
            client = quieten(_url_client(url) if url else DRIVER.client(**parameters))
        #: The client that was passed, or one that connects in the same way; on a cluster that is one of its nodes.
        self.client: Any = client
        prefix = escape_namespace(namespace)
        self._prefix = prefix + ":"
        #: What the keys of the index start with. No message's key does: the first ":" of those
        #: comes before their first space.
        self._index = prefix + " index:"
        self._max_listed = check_number("max_listed", max_listed)
        self._index_arguments = (self._max_listed, len(self._prefix), self._index if self._max_listed else "")
        self._shards: Shards | None = None
        if cluster_nodes is not None or hasattr(client, "nodes_manager"):
            self._shards = self._make_shards(prefix, cluster_nodes)
        else:
            pool = client.connection_pool
            kind = SentinelConnections if getattr(pool, "is_master", False) else Connections
            self._connections = kind(pool, seconds)
        self._script = UPDATE
        self._clock = ServerClock()
        #: The present moment that the script is told; by default what we know of the server's clock.
        self._script_now = ""

    def __repr__(self) -> str:
        # Not the client: it may show a password.
        return f"<{type(self).__name__} {self.namespace!r}>"

    def _make_shards(self, prefix: str, addresses: Sequence[tuple[str, int]] | None) -> Shards:
        # Not everybody has a cluster.
        from .cluster import Cluster
        from .shards import Shards

        client, remap = self.client, None
        if addresses is None:
            addresses = [(node.host, node.port) for node in client.get_nodes()]
            remap = getattr(client.nodes_manager, "address_remap", None)
            connection = getattr(client, "get_redis_connection", None) or client.get_valkey_connection
            client = connection(client.get_default_node())
        cluster = Cluster(client.connection_pool, addresses, self.timeout / 1000, remap)
        return Shards(self, cluster, prefix, self._max_listed)

    why_no_list = "it was made with max_listed=0."

    # Writing

    def update(self, message_id: str, update: Update) -> Outcome:
        if self._shards is not None:
            return self._shards.update(message_id, update)
        return self._evaluate(((message_id, update),))[0]

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if self._shards is not None:
            return self._shards.update_many(updates)
        if len(updates) <= UPDATES_A_CALL:
            return self._evaluate(updates)
        outcomes = self._evaluate(updates[:UPDATES_A_CALL])
        try:
            for first in range(UPDATES_A_CALL, len(updates), UPDATES_A_CALL):
                outcomes += self._evaluate(updates[first : first + UPDATES_A_CALL])
        except BackendError:
            # What is done must not be sent again.
            outcomes += [Outcome.UNAVAILABLE] * (len(updates) - len(outcomes))
        return outcomes

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        """Send the update; its reply is read by what this returns."""
        if self._shards is not None:
            return self._shards.begin_update(message_id, update)
        updates = ((message_id, update),)
        request = self._request(updates)
        complete = self._connections.begin(request.packed, request.read, again=may_repeat(updates))
        return lambda: OUTCOMES[complete()[0]]

    def _evaluate(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        if not updates:
            return []
        request = self._request(updates)
        numbers = self._connections.call(request.packed, request.read, again=may_repeat(updates))
        return [OUTCOMES[number] for number in numbers]

    def _request(self, updates: Sequence[tuple[str, Update]]) -> ScriptCall:
        prefix, clock = self._prefix, self._clock
        keys = [prefix + message_id for message_id, _ in updates]
        arguments = self._arguments(updates, clock, self._index_arguments)
        return ScriptCall(self._script, keys, arguments, None if arguments[0] else clock)

    def _arguments(self, updates: Sequence[tuple[str, Update]], clock: ServerClock, index: IndexArguments) -> list[Any]:
        """What the script is told.

        Parameters:
          updates(Sequence[tuple[str, Update]])
          clock(ServerClock): That of the server that will carry them out.
          index(IndexArguments)
        """
        return update_arguments(updates, self._script_now or clock.text(), clock, index)

    # Reading

    def read_many(self, message_ids: Sequence[str]) -> list[Record | BackendError | None]:
        return raise_if_all([to_record(reply) for reply in self._read(message_ids)])

    def snapshot(self, message_id: str) -> Snapshot | None:
        return answered(self.snapshots((message_id,))[0])

    def snapshots(self, message_ids: Sequence[str]) -> list[Snapshot | BackendError | None]:
        replies = self._read(message_ids)
        now = self.now()
        return raise_if_all(
            [
                take_texts(message_id, reply[::2], reply[1::2], now)
                if reply and reply.__class__ is list
                else absence(reply)
                for message_id, reply in zip(message_ids, replies)
            ]
        )

    def _read(self, message_ids: Sequence[str]) -> list[Any]:
        """Ask the server for messages.

        Returns:
          list[object]: Names and texts in turn for each message, nothing, or an error.
        """
        read = self._hashes if self._shards is None else self._shards.read_many
        found: list[Any] = []
        for first in range(0, len(message_ids), READS_A_CALL):
            found += read(message_ids[first : first + READS_A_CALL])
        return found

    def _hashes(self, message_ids: Sequence[str]) -> list[Any]:
        prefix = self._prefix
        asked = time.monotonic()
        clock = None if self._clock.known else self._clock
        request = []
        for message_id in message_ids:
            key = prefix + message_id
            size = len(key) if key.isascii() else len(key.encode())
            request.append(f"*2\r\n$7\r\nHGETALL\r\n${size}\r\n{key}\r\n")
        packed = "".join(request).encode()

        def read(link: Link) -> list[Any]:
            if clock:
                clock.set(checked(link.read()), asked)
            return link.read_many(len(message_ids))

        return self._connections.call(TIME + packed if clock else packed, read)

    def now(self) -> int:
        """The present moment by the server's clock, as the last calls have seen it."""
        return (self._clock if self._shards is None else self._shards.cluster.clock).now()

    # Listing

    def find(self, query: Query, *, limit: int, after: Cursor | None) -> list[Listed]:
        self._check_index()
        if self._shards is not None:
            return self._shards.find(query, limit=limit, after=after)
        for _ in range(PASSES_A_PAGE):
            more, page = self._list(query, limit, *(after or NEWEST))
            if not more:
                break
        return [Listed(message_id, from_pairs(reply), int(position)) for position, message_id, reply in page]

    def count(self, query: Query) -> int:
        self._check_index()
        if self._shards is not None:
            return self._shards.count(query)
        number: int = self._list(query, 0, CHECKED_A_COUNT, "")
        return number

    def _check_index(self) -> None:
        if not self._max_listed:
            raise self.cannot_list()

    def _list(self, query: Query, *arguments: Any) -> Any:
        request = ScriptCall(LIST, [self._index], [*filter_of(query), *arguments, self._prefix, 1], None)
        return self._connections.call(request.packed, request.read)

    # Following

    def subscribe(self, message_ids: Sequence[str]) -> RedisSubscription:
        """Begin to hear of changes, over a connection that lasts as long as the subscription."""
        channels, timeout = self._channels(message_ids), self.timeout / 1000
        if self._shards is not None:
            # All nodes hear of everything.
            return self._shards.cluster.connect(lambda connection: RedisSubscription(connection, channels, timeout))
        try:
            connection = self._connections.fresh(time.monotonic() + timeout)
        except errors() as e:
            raise BackendError(f"Redis: {type(e).__name__}: {e}") from e
        return RedisSubscription(connection, channels, timeout)

    def _channels(self, message_ids: Iterable[str]) -> dict[str, str]:
        """The ids by the names of the channels on which the script tells of them."""
        return {self._key(message_id): message_id for message_id in message_ids}

    def _key(self, message_id: str) -> str:
        """The key of a message's record, and its channel."""
        return self._prefix + message_id if self._shards is None else self._shards.key(message_id)

    # Deleting and closing

    def delete(self, message_id: str) -> bool:
        if self._shards is not None:
            return self._shards.delete(message_id)
        request = ScriptCall(UPDATE, [self._prefix + message_id], delete_arguments(self._index_arguments), None)
        return OUTCOMES[self._connections.call(request.packed, request.read)[0]] is Outcome.APPLIED

    def close(self) -> None:
        if self._shards is not None:
            self._shards.cluster.close()
        else:
            self._connections.close()


def _url_client(url: str) -> Any:
    """A client of the server that a URL names."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}.")
    try:
        check_login(url)
        client = DRIVER.client.from_url(url)
    except ValueError:
        client = None
    if client is None:
        # Without the driver's words: they may quote a password.
        raise ValueError(
            f"url, {mask(url)!r}, is wrong: write it like 'redis://[[user]:password@]host[:port][/db]', "
            "with names and passwords percent-encoded, or see backend_from_url."
        )
    pool = client.connection_pool
    if issubclass(pool.connection_class, DRIVER.find("connection", "SSLConnection")):
        _check_hostname(pool.connection_kwargs)
    return client


def _check_hostname(parameters: dict[str, Any]) -> None:
    """Make the driver compare the name in a server's certificate with the host, unless the caller has chosen.

    It does so by default from redis-py 6.0 on; earlier ones and valkey-py do not.
    """
    if parameters.get("ssl_cert_reqs", "required") not in (None, "none", CERT_NONE):
        parameters.setdefault("ssl_check_hostname", True)


def _master_client(
    sentinels: Sequence[tuple[str, int]],
    service_name: str | None,
    sentinel_kwargs: Mapping[str, Any] | None,
    parameters: Mapping[str, Any],
    timeout: float,
) -> Any:
    """A client of the master that Sentinels know by a name."""
    if not service_name:
        raise ValueError("service_name must say which master to ask the sentinels for, such as 'mymaster'.")
    if not sentinels:
        raise ValueError("sentinels must not be empty: pass the host and port of one at least.")
    sentinel_kwargs = dict(sentinel_kwargs or {})
    if sentinel_kwargs.get("ssl"):
        _check_hostname(sentinel_kwargs)
    quick = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": DRIVER.no_retry}
    sentinel = DRIVER.find("sentinel", "Sentinel")(
        list(sentinels), sentinel_kwargs={**quick, **sentinel_kwargs}, **parameters
    )
    # What is wrong with their parameters would be no outage either.
    Connections(sentinel.sentinels[0].connection_pool, timeout)
    for asked in sentinel.sentinels:
        quieten(asked)
    return quieten(sentinel.master_for(service_name))


def _node_client(cluster_nodes: Sequence[tuple[str, int]], parameters: Mapping[str, Any]) -> Any:
    """A client of a node of a cluster."""
    if not cluster_nodes:
        raise ValueError("cluster_nodes must not be empty: pass the host and port of one at least.")
    if parameters.get("db"):
        raise ValueError(f"db must be 0, not {parameters['db']!r}: a cluster has no other database.")
    host, port = cluster_nodes[0]
    return quieten(DRIVER.client(host=host, port=port, **parameters))


def filter_of(query: Query) -> tuple[str, str, str]:
    """What the script that lists is told to look for: state, queue and actor."""
    wanted = wanted_by(query)
    return wanted.get(STATE, ""), wanted.get(QUEUE_NAME, ""), wanted.get(ACTOR_NAME, "")


def to_record(reply: Any) -> Record | BackendError | None:
    """Decode the reply to HGETALL."""
    return from_pairs(reply) if reply and reply.__class__ is list else absence(reply)


def absence(reply: Any) -> BackendError | None:
    """Return what a reply without a record means: None where the message is unknown, or
    something foreign lies under its key; an error where the server could not read it.
    """
    if isinstance(reply, BackendError):
        return reply
    if not isinstance(reply, Exception):
        return None
    error = coded(reply)
    return None if str(error).startswith("WRONGTYPE") else failure_of(error)


def raise_if_all(found: list[FoundT]) -> list[FoundT]:
    """Raise the first error where nothing but errors was found."""
    # A look at the last one is enough as a rule.
    if found and isinstance(found[-1], BackendError) and all(isinstance(one, BackendError) for one in found):
        raise found[0]  # type: ignore[misc]
    return found
