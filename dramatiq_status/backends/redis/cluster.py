"""A Redis Cluster: which node has which messages, and requests to many nodes at once."""

from __future__ import annotations

import random
from binascii import crc_hqx
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar
from zlib import crc32

from ... import _time as time
from ..._interrupts import WeakList
from ..._process import at_fork
from ...circuit_breaker import CircuitBreaker
from ...errors import BackendError
from .._timed import half_of
from .connection import Connections, Link, ServerError, pack
from .driver import errors, hang_ups
from .script import TIME, Script, ServerClock, checked

#: Over how many shards messages are spread.  A shard is what shares a
#: slot, and so a node: a message, and the index that lists it.
SHARDS: Final = 64

#: How many slots a cluster has.
SLOTS: Final = 16_384

#: How long to wait before a node is asked again that could not answer
#: yet, in seconds: the first time, and at most.
_PAUSES: Final = (0.002, 0.05)

#: After how many redirections in a row it is waited before the next.
_REDIRECTIONS: Final = 4

#: How often a request is sent again because of a lost connection.
_RETRIES: Final = 2

#: Part of the time-out that a node may take to show that the cluster goes on without another one.
_SIGN_OF_LIFE: Final = 4

#: How long a map of the cluster is believed at least, in seconds.
_MAP_TRUST: Final = 0.1

_ASKING: Final = b"*1\r\n$6\r\nASKING\r\n"

#: What a node says that cannot answer yet.
_LATER: Final = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN")

T = TypeVar("T")


def _make_tags() -> list[str]:
    """A hash tag for each shard, in the shard's own part of the slots:
    nodes that share the slots evenly then share the shards evenly.
    """
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < SHARDS:
        tag = str(number)
        tags.setdefault(slot_of(tag) * SHARDS // SLOTS, tag)
        number += 1
    return [tags[shard] for shard in range(SHARDS)]


def slot_of(tag: str) -> int:
    """The slot of the keys with a hash tag.

    >>> slot_of("123456789")
    12739
    """
    return crc_hqx(tag.encode(), 0) % SLOTS


def shard_of(message_id: str) -> int:
    """The shard of a message: the CRC-32 of its id, modulo the number of shards.

    It must never change: what was stored would no longer be found.

    >>> shard_of("0e1ee3ff-0e0e-4a5c-9d7a-0d1c4a3c9c3c") < SHARDS
    True
    """
    return crc32(message_id.encode()) % SHARDS


#: The hash tags of the shards, and their slots.
TAGS: Final = tuple(_make_tags())
_SLOTS: Final = tuple(map(slot_of, TAGS))


class Node:
    """A node of a cluster.

    Parameters:
      address(tuple[str, int]): Its host and port.
      connections(Connections)
    """

    def __init__(self, address: tuple[str, int], connections: Connections) -> None:
        self.address = address
        self.connections = connections
        self.clock = ServerClock()
        #: Scripts that it has to be told before it is sent anything else.
        self.unknown: set[Script] = set()
        self.failure: BaseException = ConnectionError()
        self.forget()

    def forget(self) -> None:
        #: What is known of its outages; it has a lock, which a fork may find taken.
        self.breaker = CircuitBreaker("Redis at {}:{}".format(*self.address))

    def failed(self, error: BaseException) -> None:
        """It did not answer."""
        self.failure = error
        self.breaker.failed(error)


class Errand:
    """A command about keys of one shard, and what became of it.

    Parameters:
      shard(int)
      again(bool): Whether it may be carried out twice where its reply was lost.
    """

    __slots__ = ("again", "asking", "error", "node", "redirections", "reply", "retries", "shard")

    def __init__(self, shard: int, *, again: bool = True) -> None:
        self.shard = shard
        self.again = again
        #: What it was answered with, an error included.
        self.reply: Any = None
        #: Why there is no reply.
        self.error: BaseException | None = None
        #: The node to which it was redirected; None for the shard's own.
        self.node: Node | None = None
        #: Whether that node does not have the slot yet: of the keys in
        #: it, only those of this command are sure to be nowhere else.
        self.asking = False
        self.redirections = self.retries = 0

    @property
    def script(self) -> Script | None:
        """The script that it calls."""
        return None

    def command(self, node: Node) -> bytes:
        """The packed command."""
        raise NotImplementedError

    def parts(self) -> Sequence[Errand]:
        """The same with one key each; itself alone where it has one."""
        return (self,)


class Command(Errand):
    """A plain command with one key, packed."""

    __slots__ = ("_packed",)

    def __init__(self, shard: int, packed: bytes) -> None:
        super().__init__(shard)
        self._packed = packed

    def command(self, node: Node) -> bytes:
        return self._packed


class _Flight:
    """Commands on their way to one node and back."""

    def __init__(self, node: Node, errands: list[Errand]) -> None:
        self.node = node
        self.errands = errands
        #: Why the last ones have no reply, whether the node has got
        #: them, and whether the connection was an old one.
        self.error: BaseException | None = None
        self.sent = self.old = False
        self.answered = 0
        self._link: Link | None = None
        self._clock: ServerClock | None = None
        self._asked = 0.0
        self._scripts: set[Script] = set()

    def send(self, deadline: float, *, last: bool) -> None:
        """Send all; an error of the connection is kept for later.

        Parameters:
          deadline(float): When the call has to end, by the monotonic clock.
          last(bool): Whether nothing is sent to other nodes after this; a node
            that is still to be connected to takes half of the time, at most, from them.
        """
        node = self.node
        request: list[bytes] = []
        self._asked = time.monotonic()
        if not node.clock.known:
            self._clock = node.clock
            request.append(TIME)
        self._scripts, node.unknown = node.unknown, set()
        request += [pack("SCRIPT", "LOAD", script.text) for script in self._scripts]
        for errand in self.errands:
            if errand.asking:
                request.append(_ASKING)
            request.append(errand.command(node))
        try:
            link = self._link = node.connections.take(deadline if last else half_of(deadline))
            self.old = link.used > 0
            link.connect()
            self.sent = True
            link.deadline = deadline
            link.send(b"".join(request))
        except errors() as e:
            self._fail(e)

    def receive(self, deadline: float) -> float:
        """Read all replies; an error of the connection is kept.

        Returns:
          float: The deadline, which large replies make later.
        """
        link = self._link
        if link is None:
            return deadline
        link.deadline = deadline
        try:
            if self._clock:
                self._clock.set(checked(link.read()), self._asked)
            for _ in self._scripts:
                checked(link.read())
            for errand in self.errands:
                if errand.asking:
                    checked(link.read())
                errand.reply = link.read()
                self.answered += 1
        except _failures() as e:
            self._fail(e)
        else:
            self._link = None
            self.node.connections.give(link)
        return link.deadline

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self.close()

    def close(self) -> None:
        """Close the connection where replies are still to come."""
        if self._link is not None:
            self._link.close()
            self._link = None


class Cluster:
    """Sends errands to the nodes that have their shards, and follows them
    where slots move and nodes come and go.

    Parameters:
      pool(redis.ConnectionPool): Says how to connect; host and port are those of the nodes.
      addresses(Sequence[tuple[str, int]]): Some of the nodes.
      timeout(float): In seconds.
      remap(Callable): What a node's address, as the cluster knows it, is for us.
    """

    def __init__(
        self,
        pool: Any,
        addresses: Sequence[tuple[str, int]],
        timeout: float,
        remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None,
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._remap = remap
        self._nodes: dict[tuple[str, int], Node] = {}
        self._owners: list[Node | None] = [None] * SHARDS
        self._first = [self._node(address) for address in addresses]
        #: Whether the map may be out of date, and when it was made.
        self._stale = True
        self._mapped = float("-inf")
        #: The clock of the node that has answered last.
        self.clock = self._first[0].clock
        _all.add(self)

    def run(self, errands: Sequence[Errand]) -> list[Errand]:
        """Carry out errands, those for different nodes at the same time.

        Returns:
          list[Errand]: Each with its reply or its error, in any order; the
          parts of one in its place where its keys were on different nodes.

        Raises:
          BackendError: When no node answers.
        """
        return self.begin(errands)()

    def begin(self, errands: Sequence[Errand]) -> Callable[[], list[Errand]]:
        """Send errands, and return what waits for their replies; see :meth:`run`.

        What the caller does in between does not count for the time-out.
        """
        deadline = time.monotonic() + self._timeout
        flights = self._send(errands, deadline)
        left = deadline - time.monotonic()

        def complete() -> list[Errand]:
            return self._complete(flights, time.monotonic() + left)

        return complete

    def goes_on(self) -> bool:
        """Whether a node answers; one round trip."""
        try:
            # Another call has taken its time already.
            self._make_map(time.monotonic() + self._timeout / _SIGN_OF_LIFE)
        except BackendError:
            return False
        return True

    def connect(self, use: Callable[[Any], T]) -> T:
        """Give a new connection, to any node that answers.

        Parameters:
          use(Callable): Takes a connection that is not connected yet, and
            raises :class:`.BackendError` where it cannot be.
        """
        deadline = time.monotonic() + self._timeout
        nodes = self._living()
        random.shuffle(nodes)
        nodes.sort(key=_has_failed)
        for node in nodes[:-1]:
            try:
                return use(node.connections.fresh(half_of(deadline)))
            except BackendError as e:
                node.failed(e)
        return use(nodes[-1].connections.fresh(deadline))

    def close(self) -> None:
        """Close the idle connections."""
        for node in list(self._nodes.values()):
            node.connections.close()

    # Requests

    def _send(self, errands: Sequence[Errand], deadline: float) -> list[_Flight]:
        now = time.monotonic()
        if self._stale and now - self._mapped > _MAP_TRUST and now < deadline:
            self._make_map(deadline)
        groups: dict[Node, list[Errand]] = {}
        for errand in errands:
            groups.setdefault(errand.node or self._owner(errand.shard), []).append(errand)
        flights = [_Flight(node, group) for node, group in groups.items()]
        # Those that take the longest to fail come last.
        flights.sort(key=lambda flight: (flight.node.breaker.down, not flight.node.connections.is_idle))
        try:
            for flight in flights:
                if flight.node.breaker.blocked and not self._is_down():
                    flight.error = flight.node.failure
                else:
                    flight.send(deadline, last=flight is flights[-1])
        except BaseException:
            _close(flights)
            raise
        return flights

    def _complete(self, flights: list[_Flight], deadline: float) -> list[Errand]:
        pause, longest = _PAUSES
        done: list[Errand] = []
        while True:
            try:
                for flight in flights:
                    deadline = flight.receive(deadline)
                    if flight.error is None:
                        self._answered(flight.node)
            except BaseException:
                # An interrupt: nobody knows what is still to come on these.
                _close(flights)
                raise
            again: list[Errand] = []
            wait = False
            for flight in flights:
                wait |= self._judge(flight, deadline, done, again)
            if not again:
                return done
            if time.monotonic() + pause > deadline:
                return done + _given_up(again, None)
            if wait:
                time.sleep(pause)
                pause = min(2 * pause, longest)
            try:
                flights = self._send(again, deadline)
            except BackendError as e:
                # What is done is done.
                return done + _given_up(again, e)

    def _judge(self, flight: _Flight, deadline: float, done: list[Errand], again: list[Errand]) -> bool:
        """Sort errands that have come back into those that are done and
        those to be sent again, and tell whether to wait before that.
        """
        wait = False
        for errand in flight.errands[: flight.answered]:
            errand.error = None
            problem = str(errand.reply) if isinstance(errand.reply, Exception) else ""
            word, _, rest = problem.partition(" ")
            if word == "ASK":
                again += self._ask(flight.node, errand, rest)
            elif word == "MOVED":
                self._owners[errand.shard] = self._named(flight.node, rest)
                self._send_home(errand)
                again.append(errand)
            elif word in _LATER:
                self._stale = self._stale or word != "TRYAGAIN"
                self._send_home(errand)
                parts = errand.parts()
                again += parts
                wait |= len(parts) == 1
            elif word == "NOSCRIPT" and errand.script is not None:
                flight.node.unknown.add(errand.script)
                again.append(errand)
            else:
                done.append(errand)
                continue
            errand.redirections += 1
            wait |= errand.redirections > _REDIRECTIONS
        if flight.error is not None:
            self._judge_lost(flight, flight.error, deadline, done, again)
        return wait

    def _judge_lost(
        self, flight: _Flight, error: BaseException, deadline: float, done: list[Errand], again: list[Errand]
    ) -> None:
        """The same for those whose replies were lost."""
        node = flight.node
        hung_up = isinstance(error, hang_ups())
        if flight.old and hung_up:
            # The node has closed a connection that was idle; the others are no younger.
            node.connections.close()
        elif not node.breaker.blocked:
            node.failed(error)
        if not flight.old:
            self._stale = True
            if hung_up and time.monotonic() - self._mapped > _MAP_TRUST:
                try:
                    self._make_map(deadline)
                except BackendError:
                    pass
        for errand in flight.errands[flight.answered :]:
            errand.error = error
            self._send_home(errand)
            elsewhere = flight.old or self._owner(errand.shard) is not node
            errand.retries += 1
            if (
                (hung_up or not flight.sent)
                and (errand.again or not flight.sent)
                and elsewhere
                and errand.retries <= _RETRIES
            ):
                again.append(errand)
            else:
                done.append(errand)

    def _ask(self, asked: Node, errand: Errand, rest: str) -> Sequence[Errand]:
        """The slot is moving, and the keys are on their way."""
        parts = errand.parts()
        if len(parts) > 1:
            return parts
        errand.node, errand.asking = self._named(asked, rest), True
        return parts

    @staticmethod
    def _send_home(errand: Errand) -> None:
        errand.node, errand.asking = None, False

    # The map

    def _owner(self, shard: int) -> Node:
        # A shard without an owner: any node says that it has none, or where it is.
        return self._owners[shard] or self._first[0]

    def _node(self, address: tuple[str, int]) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(address, Connections(self._pool, self._timeout, address))
        return node

    def _named(self, speaker: Node, rest: str) -> Node:
        """The node that a redirection names: slot, host and port."""
        host, _, port = rest.split(" ")[1].rpartition(":")
        return self._reached(speaker, host, int(port))

    def _reached(self, speaker: Node, host: str | None, port: int) -> Node:
        """The node that another one calls so; without a host, it has the speaker's."""
        if not host or host == "?":
            return self._node((speaker.address[0], port))
        return self._node(self._remap((host, port)) if self._remap else (host, port))

    def _answered(self, node: Node) -> None:
        """Take note that a node has answered."""
        self.clock = node.clock
        if node.breaker.down:
            node.breaker.succeeded()
            for other in self._nodes.values():
                # What was away together may be back together.
                other.breaker.retry_at = 0.0

    def _is_down(self) -> bool:
        """Whether all nodes have failed; nothing is lost then by trying one too early."""
        return all(node.breaker.down for node in self._nodes.values())

    def _living(self) -> list[Node]:
        """Nodes that may answer: those with slots first."""
        nodes = [node for node in dict.fromkeys([*self._owners, *self._first, *self._nodes.values()]) if node]
        return [node for node in nodes if not node.breaker.blocked] or nodes

    def _make_map(self, deadline: float) -> None:
        """Ask for the map of the cluster; one round trip, or more where nodes do not answer.

        Each node has half of the time that is left, so that there is time left for the next one.

        Raises:
          BackendError: When nobody answers.
        """
        request = pack("CLUSTER", "SLOTS")
        for node in sorted(self._living(), key=_has_failed):
            if time.monotonic() > deadline:
                break
            try:
                ranges = node.connections.call(request, lambda link: checked(link.read()), deadline=half_of(deadline))
            except BackendError as e:
                node.failed(e.__cause__ or e)
                continue
            self._answered(node)
            owners: list[Node | None] = [None] * SHARDS
            for first, last, (host, port, *_), *_ in ranges:
                owner = self._reached(node, host, port)
                for shard, slot in enumerate(_SLOTS):
                    if first <= slot <= last:
                        owners[shard] = owner
            self._owners = owners
            self._mapped = time.monotonic()
            # While a node with slots is away, another one may get them.
            self._stale = any(owner is None or owner.breaker.down for owner in owners)
            return
        failure = node.failure
        raise BackendError(f"Redis: no node of the cluster answers: {type(failure).__name__}: {failure}") from failure

    def forget(self) -> None:
        """Leave what is known of outages to the parent process."""
        for node in self._nodes.values():
            node.forget()


_all: Final = WeakList[Cluster]()


def _forget_all() -> None:
    for cluster in _all:
        cluster.forget()


at_fork(after_in_child=_forget_all)


def _has_failed(node: Node) -> bool:
    return node.breaker.down


def _failures() -> tuple[type[Exception], ...]:
    return (ServerError, *errors())


def _given_up(errands: list[Errand], error: BackendError | None) -> list[Errand]:
    for errand in errands:
        errand.error = error or errand.error or BackendError(f"Redis: {errand.reply}")
    return errands


def _close(flights: Iterable[_Flight]) -> None:
    for flight in flights:
        flight.close()
