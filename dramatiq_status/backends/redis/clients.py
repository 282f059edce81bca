"""Clients of the driver, and transports that use the connection parameters of a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ssl import CERT_NONE
from typing import Any, Final, NamedTuple

from .._timed import quieten
from ..url import check_login, mask
from .connection import Address, ServerPool
from .driver import any_driver, check_client
from .keys import Keys, ShardedKeys
from .sentinel import MasterPool
from .transport import ServerTransport, Transport

#: redis-py, or valkey-py if only that is installed.
DRIVER: Final = any_driver()


class ClientAccess(NamedTuple):
    """A client of a store, and a transport that connects as the client does.

    Parameters:
      client: The client that was passed, or one that connects in the same way; on a cluster, to one of its nodes.
      transport(Transport)
      keys(type[Keys]): Class of the names of the store's keys.
    """

    client: Any
    transport: Transport
    keys: type[Keys]


def make_access(
    timeout: float,
    parameters: dict[str, Any],
    *,
    client: Any | None = None,
    url: str | None = None,
    sentinels: Sequence[Address] | None = None,
    service_name: str | None = None,
    sentinel_kwargs: Mapping[str, Any] | None = None,
    cluster_nodes: Sequence[Address] | None = None,
) -> ClientAccess:
    """Make a client and a transport.

    This function and those that it calls choose between a single server, a master and a cluster.

    Parameters:
      timeout(float): Seconds that one call may take.
      parameters(dict[str, object]): Connection parameters.

    Raises:
      TypeError: When the driver does not support a parameter, or `client` is not a synchronous client of redis-py or
        valkey-py.
      ValueError: When a value is wrong.
    """
    if parameters.get("ssl"):
        _check_hostname(parameters)
    if client is not None:
        check_client(client)
    elif sentinels is not None:
        client = _master_client(sentinels, service_name, sentinel_kwargs, parameters, timeout)
    elif cluster_nodes is not None:
        client = _node_client(cluster_nodes, parameters)
    else:
        client = quieten(_url_client(url, parameters) if url else DRIVER.client(**parameters))
    if cluster_nodes is not None or hasattr(client, "nodes_manager"):
        return ClientAccess(client, _cluster_transport(client, cluster_nodes, timeout), ShardedKeys)
    pool = client.connection_pool
    kind = MasterPool if getattr(pool, "is_master", False) else ServerPool
    return ClientAccess(client, ServerTransport(kind(pool, timeout)), Keys)


def _url_client(url: str, parameters: Mapping[str, Any]) -> Any:
    """Make a client of the server that a URL names.  Each part of the URL replaces a parameter."""
    if not isinstance(url, str):
        raise TypeError(f"url must be a str, not {type(url).__name__}.")
    try:
        check_login(url)
        client = DRIVER.client.from_url(url, **parameters)
    except ValueError:
        client = None
    if client is None:
        # The driver's message is left out, because it may quote a password.
        raise ValueError(
            f"url, {mask(url)!r}, is wrong: write it like 'redis://[[user]:password@]host[:port][/db]', "
            "with names and passwords percent-encoded, or see backend_from_url."
        )
    pool = client.connection_pool
    if issubclass(pool.connection_class, DRIVER.find("connection", "SSLConnection")):
        _check_hostname(pool.connection_kwargs)
    return client


def _check_hostname(parameters: dict[str, Any]) -> None:
    """Make the driver compare the name in a server's certificate with the host, unless the caller has set
    ``ssl_check_hostname`` or requires no certificate.

    redis-py makes this comparison by default from 6.0 on.  Earlier versions and valkey-py do not make it by default.
    """
    if parameters.get("ssl_cert_reqs", "required") not in (None, "none", CERT_NONE):
        parameters.setdefault("ssl_check_hostname", True)


def _master_client(
    sentinels: Sequence[Address],
    service_name: str | None,
    sentinel_kwargs: Mapping[str, Any] | None,
    parameters: Mapping[str, Any],
    timeout: float,
) -> Any:
    """Make a client of the master that Sentinels list under a name."""
    if not service_name:
        raise ValueError("service_name must be the Sentinels' name of the master, such as 'mymaster'.")
    if not sentinels:
        raise ValueError("sentinels must not be empty: pass the host and port of one at least.")
    sentinel_kwargs = dict(sentinel_kwargs or {})
    if sentinel_kwargs.get("ssl"):
        _check_hostname(sentinel_kwargs)
    quick = {"socket_timeout": timeout, "socket_connect_timeout": timeout, "retry": DRIVER.no_retry}
    sentinel = DRIVER.find("sentinel", "Sentinel")(
        list(sentinels), sentinel_kwargs={**quick, **sentinel_kwargs}, **parameters
    )
    # Make a connection to a Sentinel now, so that a wrong parameter raises its error here. In the first call, it would
    # look like an outage.
    ServerPool(sentinel.sentinels[0].connection_pool, timeout)
    for client in sentinel.sentinels:
        quieten(client)
    return quieten(sentinel.master_for(service_name))


def _node_client(cluster_nodes: Sequence[Address], parameters: Mapping[str, Any]) -> Any:
    """Make a client of a node of a cluster."""
    if not cluster_nodes:
        raise ValueError("cluster_nodes must not be empty: pass the host and port of one at least.")
    if parameters.get("db"):
        raise ValueError(f"db must be 0, not {parameters['db']!r}: a cluster has no other database.")
    host, port = cluster_nodes[0]
    return quieten(DRIVER.client(host=host, port=port, **parameters))


def _cluster_transport(client: Any, addresses: Sequence[Address] | None, timeout: float) -> Transport:
    """Make a transport to the nodes of a cluster.

    Parameters:
      client(redis.Redis | redis.RedisCluster): A client of one node, or of the cluster.
      addresses(Sequence[tuple[str, int]]): Hosts and ports of some nodes; None for the nodes of the cluster client.
      timeout(float): In seconds.
    """
    # Import the cluster's modules only for a cluster, because most stores are not clusters.
    from .cluster import ClusterTransport
    from .cluster_map import ClusterMap

    remap = None
    if addresses is None:
        addresses = [(node.host, node.port) for node in client.get_nodes()]
        remap = getattr(client.nodes_manager, "address_remap", None)
        connection = getattr(client, "get_redis_connection", None) or client.get_valkey_connection
        client = connection(client.get_default_node())
    return ClusterTransport(ClusterMap(client.connection_pool, addresses, timeout, remap))
