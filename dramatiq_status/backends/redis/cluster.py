"""The transport to a Redis Cluster.  It sends requests to many nodes at once, and follows slots and nodes that move."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from ... import _time as time
from ...errors import BackendError
from .._timed import half_of
from .clock import ServerClock
from .cluster_map import ClusterMap, Node
from .connection import Connection, ServerPool
from .driver import errors, hang_ups
from .requests import Exchange, Request, failure_of, refusal_of
from .transport import T

#: Seconds before a request is sent again to a node that could not carry it out yet: the first time, and at most.
_PAUSES: Final = (0.002, 0.05)

#: Number of redirections of a request after which it waits before it is sent again.
_REDIRECTIONS: Final = 4

#: Maximum number of times that a request is sent again because of a lost connection.
_RETRIES: Final = 2

#: Divisor of the time-out for the query whether another node answers, after a node has failed.
_PROBE_FRACTION: Final = 4

#: Codes of the errors of a node that redirects a request, or that cannot carry it out yet.
_REDIRECTS: Final = ("ASK", "MOVED", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN")


class _RoutedRequest:
    """A request, the node to which it is sent next, and the numbers of its redirections and retries."""

    __slots__ = ("node", "redirections", "request", "retries")

    def __init__(self, request: Request) -> None:
        self.request = request
        #: Node to which the request was redirected; None for the owner of its shard.
        self.node: Node | None = None
        self.redirections = self.retries = 0

    def send_home(self) -> None:
        """Send the request to the owner of its shard next."""
        self.node, self.request.arriving = None, False

    def split(self) -> Sequence[_RoutedRequest]:
        """Return a route for each key of the request; only this route if the request has one key."""
        parts = self.request.split()
        if len(parts) == 1:
            return (self,)
        for part in parts:
            part.error = _failed(self.request, None).error
        return [_RoutedRequest(part) for part in parts]


class _NodeRequests:
    """Requests that are sent to one node together, and their replies."""

    def __init__(self, node: Node, routes: list[_RoutedRequest]) -> None:
        self.node = node
        self.routes = routes
        self.exchange = Exchange([route.request for route in routes], node.clock)
        #: Error because of which the last requests have no replies; None for none.
        self.error: BaseException | None = None
        #: Whether the connection was established, so that the node may have received the requests.
        self.sent = False
        #: Whether the connection was taken from the pool of idle connections.
        self.used = False
        self._connection: Connection | None = None

    def send(self, deadline: float, *, last: bool) -> None:
        """Send all requests.  An error of the connection is kept for later.

        Parameters:
          deadline(float): Deadline of the call, by the monotonic clock.
          last(bool): Whether nothing is sent to other nodes after this.  Otherwise, connecting to the node takes at
            most half of the time.
        """
        try:
            connection = self._connection = self.node.take(deadline if last else half_of(deadline))
            self.used = connection.used > 0
            connection.connect()
            self.sent = True
            connection.deadline = deadline
            connection.send(self.exchange.packed)
        except errors() as e:
            self._fail(e)

    def receive(self, deadline: float) -> float:
        """Read all replies.  An error of the connection is kept.

        Returns:
          float: The deadline, which large replies make later.
        """
        connection, exchange = self._connection, self.exchange
        if connection is None:
            return deadline
        connection.deadline = deadline
        try:
            while exchange.expected:
                exchange.take(connection.read_many(exchange.expected))
        except errors() as e:
            self._fail(e)
        else:
            self._connection = None
            self.node.give(connection)
        return connection.deadline

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self.close()
        if self.used and isinstance(error, hang_ups()):
            # The node has closed a connection that was idle.  The other idle connections have been idle for longer, so
            # the node has probably closed them too.
            self.node.close()
        else:
            self.node.fail(error)

    def close(self) -> None:
        """Close the connection if replies are missing."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class ClusterTransport:
    """The transport to the nodes of a cluster.

    Parameters:
      cluster_map(ClusterMap): The nodes.
    """

    pipelines = False

    def __init__(self, cluster_map: ClusterMap) -> None:
        self._map = cluster_map
        self.pool: ServerPool = cluster_map.first[0]

    @property
    def clock(self) -> ServerClock:
        return self._map.clock

    def run(self, requests: Sequence[Request]) -> Sequence[Request]:
        return self.begin(requests)()

    def begin(self, requests: Sequence[Request]) -> Callable[[], Sequence[Request]]:
        deadline = time.monotonic() + self.pool.timeout
        groups = self._send([_RoutedRequest(request) for request in requests], deadline)
        left = deadline - time.monotonic()

        def complete() -> Sequence[Request]:
            return self._complete(groups, time.monotonic() + left)

        return complete

    def is_down(self, failure: BackendError) -> bool:
        # The operation has taken its time already, so this query gets only a fraction of the time-out.
        deadline = time.monotonic() + self.pool.timeout / _PROBE_FRACTION
        return "cluster is down" in str(failure) or not self._map.query(deadline)

    def connect(self, use: Callable[[Any], T]) -> T:
        # Any node will do: each of them publishes the changes of all nodes.
        deadline = time.monotonic() + self.pool.timeout
        nodes = self._map.available()
        random.shuffle(nodes)
        nodes.sort(key=lambda node: node.breaker.down)
        for node in nodes[:-1]:
            try:
                return use(node.fresh(half_of(deadline)))
            except BackendError as e:
                node.fail(e.__cause__ or e)
        return use(nodes[-1].fresh(deadline))

    def close(self) -> None:
        self._map.close()

    # Sending and receiving

    def _send(self, routes: Sequence[_RoutedRequest], deadline: float) -> list[_NodeRequests]:
        any_answers = self._map.renew(deadline)
        routes_by_node: dict[Node, list[_RoutedRequest]] = {}
        for route in routes:
            routes_by_node.setdefault(route.node or self._map.owner(route.request.shard), []).append(route)
        groups = [_NodeRequests(node, on_node) for node, on_node in routes_by_node.items()]
        # Nodes that take the longest to fail come last.
        groups.sort(key=lambda group: (group.node.breaker.down, not group.node.has_idle))
        try:
            for group in groups:
                if not any_answers or (group.node.breaker.blocked and not self._map.is_down):
                    group.error = failure_of(group.node.failure)
                else:
                    group.send(deadline, last=group is groups[-1])
        except BaseException:
            _close(groups)
            raise
        return groups

    def _complete(self, groups: list[_NodeRequests], deadline: float) -> Sequence[Request]:
        pause, longest = _PAUSES
        done: list[Request] = []
        while True:
            try:
                for group in groups:
                    deadline = group.receive(deadline)
                    if group.error is None:
                        self._map.answered(group.node)
            except BaseException:
                # After an interrupt, the number of replies that are still to come is unknown.
                _close(groups)
                raise
            again: list[_RoutedRequest] = []
            wait = False
            for group in groups:
                wait |= self._process_replies(group, deadline, done, again)
            if not again:
                return done
            if time.monotonic() + pause > deadline:
                return [*done, *(_failed(route.request, None) for route in again)]
            if wait:
                time.sleep(pause)
                pause = min(2 * pause, longest)
            groups = self._send(again, deadline)

    def _process_replies(
        self, group: _NodeRequests, deadline: float, done: list[Request], again: list[_RoutedRequest]
    ) -> bool:
        """Append each request to `done`, or to `again` if it has to be sent again.

        Returns:
          bool: Whether to wait before they are sent again.
        """
        wait = False
        for route in group.routes[: group.exchange.answered]:
            request = route.request
            word, _, rest = str(_redirect_of(request) or "").partition(" ")
            if word == "ASK":
                # The slot is moving, and keys of the request are not on this node any more, or were never there.
                parts = route.split()
                if len(parts) == 1:
                    route.node, request.arriving = self._map.node_of(group.node, rest), True
                again += parts
            elif word == "MOVED":
                self._map.move(request.shard, self._map.node_of(group.node, rest))
                route.send_home()
                again.append(route)
            elif word:
                if word != "TRYAGAIN":
                    self._map.stale = True
                route.send_home()
                parts = route.split()
                again += parts
                wait |= len(parts) == 1
            elif request.unknown:
                again.append(route)
            else:
                done.append(request)
                continue
            route.redirections += 1
            wait |= route.redirections > _REDIRECTIONS
        if group.error is not None:
            self._process_failure(group, group.error, deadline, done, again)
        return wait

    def _process_failure(
        self,
        group: _NodeRequests,
        error: BaseException,
        deadline: float,
        done: list[Request],
        again: list[_RoutedRequest],
    ) -> None:
        """Append each request whose reply was lost to `done`, or to `again`."""
        hung_up = isinstance(error, hang_ups())
        if not group.used:
            self._map.stale = True
            if hung_up:
                self._map.renew(deadline)
        failure = error if isinstance(error, BackendError) else failure_of(error)
        for route in group.routes[group.exchange.answered :]:
            request = _failed(route.request, failure)
            route.send_home()
            route.retries += 1
            may_repeat = not group.sent or (hung_up and request.repeatable)
            elsewhere = group.used or self._map.owner(request.shard) is not group.node
            if may_repeat and elsewhere and route.retries <= _RETRIES:
                again.append(route)
            else:
                done.append(request)


def _redirect_of(request: Request) -> Exception | None:
    """Return the first reply that redirects the request to another node, or is the error of a node that cannot carry
    it out yet.
    """
    for reply in request.replies:
        if isinstance(reply, Exception) and str(reply).partition(" ")[0] in _REDIRECTS:
            return reply
    return None


def _failed(request: Request, error: BackendError | None) -> Request:
    """Note why a request was not carried out.

    Parameters:
      request(Request)
      error(BackendError): Reason why it could not be sent again; None if the time is over.
    """
    redirect = _redirect_of(request)
    # If the node has replied TRYAGAIN, the error names the moving slot.  That explains more than the failure of the
    # next attempt.
    if redirect is not None and (error is None or str(redirect).startswith("TRYAGAIN")):
        error = refusal_of(redirect)
        if str(redirect).startswith("ASK"):
            error = BackendError(
                f"Redis: A slot with statuses is moving to another node of the cluster, and the time of the call is "
                f"over ({redirect})."
            )
    request.error = error or request.error
    return request


def _close(groups: Iterable[_NodeRequests]) -> None:
    for group in groups:
        group.close()
