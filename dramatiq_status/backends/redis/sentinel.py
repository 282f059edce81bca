"""Connections to the master that Sentinels name."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Final

from ... import _time as time
from ...errors import BackendError
from .._timed import half_of
from .clock import ServerClock
from .connection import Address, Connection, ServerPool
from .driver import driver_of
from .requests import Command
from .transport import ServerTransport

#: Seconds until the next query of the Sentinels: after a query with an answer, and after a query without one.
MASTER_TRUST: Final = (1.0, 15.0)


class _HostClock(ServerClock):
    """The clock of this host.  Sentinels have no command that returns the time of their own clock."""

    __slots__ = ()

    known = True


class MasterPool(ServerPool):
    """Connections to the present master.

    A new connection queries the Sentinels for the master.  That is not enough: when the Sentinels replace a master that
    has not failed, the old master takes writes for about ten seconds until they demote it, and all these writes would
    be lost.  So a call that finds an idle connection also queries the Sentinels, at most once a second.

    The driver (redis-py 6.4 and 7.1) would wait a whole time-out for each Sentinel, and its error would quote passwords
    if no Sentinel lists the master.
    """

    def __init__(self, pool: Any, timeout: float) -> None:
        super().__init__(pool, timeout)
        self._manager = pool.sentinel_manager
        self._service = pool.service_name
        self._unknown = driver_of(pool.connection_class).find("sentinel", "MasterNotFoundError")
        #: Connections to each Sentinel; the one that has answered last comes first.
        self.sentinels: list[ServerTransport] = [
            _transport_to(one.connection_pool, timeout) for one in self._manager.sentinels
        ]
        #: The address of the present master, as the Sentinels have named it last.
        self.address: Address | None = None
        #: Time of the next query of the Sentinels, by the monotonic clock.
        self.query_at: float = 0.0

    def take(self, deadline: float | None = None) -> Connection:
        if deadline is None:
            deadline = time.monotonic() + self.timeout
        # A new connection queries the Sentinels in any case.
        if self.has_idle and self.is_due:
            self.locate_again(deadline)
        return super().take(deadline)

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next query of the Sentinels."""
        return time.monotonic() >= self.query_at

    def locate_again(self, deadline: float) -> None:
        """Query the Sentinels, and keep the present address if none names a master: it may still be right."""
        _, not_answered = MASTER_TRUST
        self.query_at = time.monotonic() + not_answered
        try:
            self.locate(deadline)
        except self._unknown:
            pass

    def fresh(self, deadline: float) -> Any:
        connection = super().fresh(deadline)
        # When the driver connects, it gets the address from a method of its pool.
        connection.connection_pool = located = copy(connection.connection_pool)
        located.get_master_address = lambda: self.locate(deadline)
        return connection

    def locate(self, deadline: float) -> Address:
        """Query the Sentinels for the master, one after the other.

        Each Sentinel has half of the time that is left, so that there is time for the next one, and for the master.

        Parameters:
          deadline(float): Deadline of the call, by the monotonic clock.

        Raises:
          MasterNotFoundError: The driver's error, when no Sentinel names a master.
        """
        for sentinel in self.sentinels:
            address = self._query(sentinel, half_of(deadline))
            if address is not None:
                self.sentinels = [sentinel, *(other for other in self.sentinels if other is not sentinel)]
                answered, _ = MASTER_TRUST
                self.query_at = time.monotonic() + answered
                if address != self.address:
                    self.address = address
                    self.close()
                return address
        all_parameters = [one.pool.parameters for one in self.sentinels]
        hosts = ", ".join(f"{parameters.get('host')}:{parameters.get('port')}" for parameters in all_parameters)
        raise self._unknown(
            f"no Sentinel names a master {self._service!r}: those at {hosts} "
            f"do not answer, refuse the login, or find no such master."
        )

    def _query(self, sentinel: ServerTransport, deadline: float) -> Address | None:
        own = time.monotonic() + sentinel.pool.timeout
        try:
            replies = sentinel.query(Command(0, "SENTINEL", "MASTERS"), min(deadline, own))
        except BackendError:
            return None
        for reply in replies:
            state = dict(zip(reply[::2], reply[1::2]))
            if state["name"] == self._service and self._is_usable(state):
                return getattr(self._manager, "_force_master_ip", None) or state["ip"], int(state["port"])
        return None

    def _is_usable(self, state: Mapping[str, str]) -> bool:
        """Return whether the master is up and the Sentinel lists enough other Sentinels, as the driver checks it."""
        flags = state["flags"].split(",")
        others = int(state["num-other-sentinels"])
        is_up = "master" in flags and "s_down" not in flags and "o_down" not in flags
        return is_up and others >= self._manager.min_other_sentinels


def _transport_to(pool: Any, timeout: float) -> ServerTransport:
    """Make a transport to a Sentinel.  It keeps the time-out that was set for the Sentinel, if that is shorter."""
    own = pool.connection_kwargs.get("socket_timeout")
    return ServerTransport(ServerPool(pool, min(timeout, own) if own else timeout), _HostClock())
