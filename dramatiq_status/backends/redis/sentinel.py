"""Connections to the master that Sentinels name."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ... import _time as time
from ...errors import BackendError
from .._timed import half_of, timed
from .connection import Connections, Link, pack
from .driver import driver_of
from .script import checked

#: Seconds for which the master is assumed to stay the same: where a Sentinel has answered, and where none has.
MASTER_TRUST: Final = (1.0, 15.0)

#: Flags in a Sentinel's reply about a master, by the names that the driver's check uses.
_FLAGS: Final = {
    "is_master": "master",
    "is_slave": "slave",
    "is_sdown": "s_down",
    "is_odown": "o_down",
    "is_sentinel": "sentinel",
    "is_disconnected": "disconnected",
    "is_master_down": "master_down",
}

Address = tuple[str, int]


class _Place(NamedTuple):
    """The address of a master, in the place of the pool that the driver's connection queries for it."""

    address: Address
    service_name: str
    check_connection: bool
    is_master: bool = True

    def get_master_address(self) -> Address:
        return self.address


class SentinelConnections(Connections):
    """Connections to the present master.

    A new connection queries the Sentinels for the master.  That is not enough: when the Sentinels replace a
    master that has not failed, it takes writes for about ten seconds until they demote it, and all these
    writes would be lost.

    The driver would wait the whole time-out for each Sentinel, and quote passwords in its error where no Sentinel
    lists the master (6.4, 7.1).
    """

    def __init__(self, pool: Any, timeout: float) -> None:
        self._check_connection = bool(getattr(pool, "check_connection", False))
        super().__init__(pool, timeout)
        self._parameters.pop("connection_pool")
        self._manager = pool.sentinel_manager
        self._service = pool.service_name
        self._unknown = driver_of(pool.connection_class).find("sentinel", "MasterNotFoundError")
        #: Connections to each Sentinel; those first that have answered last.
        self._sentinels = [_connections_to(one.connection_pool, timeout) for one in self._manager.sentinels]
        self._address: Address | None = None
        #: When to ask who the master is.
        self.ask_at = 0.0

    def take(self, deadline: float | None = None) -> Link:
        now = time.monotonic()
        if deadline is None:
            deadline = now + self.timeout
        # A new connection asks anyhow.
        if now >= self.ask_at and self.is_idle:
            _, not_answered = MASTER_TRUST
            self.ask_at = now + not_answered
            try:
                self.locate(deadline)
            except self._unknown:
                # What there is may well be right.
                pass
        return super().take(deadline)

    def fresh(self, deadline: float) -> Any:
        place = _Place(self.locate(deadline), self._service, self._check_connection)
        connection = timed(self._class)(**self._parameters, connection_pool=place)
        connection.deadline = deadline
        return connection

    def locate(self, deadline: float) -> Address:
        """Query the Sentinels for the master, one after the other.

        Each has half of the time that is left, so that there is time left for the next one, and for the master.

        Parameters:
          deadline(float): When the call has to end, by the monotonic clock.

        Raises:
          MasterNotFoundError: The driver's error, when no Sentinel names a master.
        """
        for sentinel in self._sentinels:
            address = self._ask(sentinel, half_of(deadline))
            if address is not None:
                self._sentinels = [sentinel, *(other for other in self._sentinels if other is not sentinel)]
                answered, _ = MASTER_TRUST
                self.ask_at = time.monotonic() + answered
                if address != self._address:
                    self._address = address
                    self.close()
                return address
        places = ", ".join(f"{one._parameters.get('host')}:{one._parameters.get('port')}" for one in self._sentinels)
        raise self._unknown(
            f"no Sentinel names a master {self._service!r}: those at {places} "
            f"do not answer, refuse the login, or see none."
        )

    def _ask(self, sentinel: Connections, deadline: float) -> Address | None:
        own = time.monotonic() + sentinel.timeout
        try:
            replies = sentinel.call(_MASTERS, lambda link: checked(link.read()), deadline=min(deadline, own))
        except BackendError:
            return None
        for reply in replies:
            state = _state_of(reply)
            if state["name"] == self._service and self._manager.check_master_state(state, self._service):
                return getattr(self._manager, "_force_master_ip", None) or state["ip"], state["port"]
        return None


_MASTERS: Final = pack("SENTINEL", "MASTERS")


def _connections_to(pool: Any, timeout: float) -> Connections:
    """Make connections to a Sentinel; they keep the time-out that was set for it, where that is shorter."""
    own = pool.connection_kwargs.get("socket_timeout")
    return Connections(pool, min(timeout, own) if own else timeout)


def _state_of(reply: list[str]) -> dict[str, Any]:
    """What a Sentinel says of a master, as the driver's :meth:`check_master_state` takes it."""
    state: dict[str, Any] = dict(zip(reply[::2], reply[1::2]))
    flags = state["flags"].split(",")
    numbers = {name: int(text) for name, text in state.items() if name != "name" and text.isdecimal()}
    return {**state, **numbers, **{name: flag in flags for name, flag in _FLAGS.items()}}
