"""Servers that do not answer, or answer with errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from ...backend import Query, StatusBackend
from ...errors import BackendError
from ...registry import StatusRegistry
from ...update import Outcome
from ..updates import enqueue, outside, start, write
from .store import PausableServer, StoreTests, until_answered


class Outages(StoreTests):
    """Tests of servers that are down, or answer with errors."""

    def test_a_server_that_does_not_answer(self, outage: tuple[PausableServer, StatusBackend], message_id: str) -> None:
        # Given a server that accepts connections and sends no replies
        server, backend = outage
        until_answered(lambda: backend.update(message_id, start(1)))
        server.pause()
        # When a call uses an open connection, and others open new ones
        # Then each call raises BackendError with a cause
        for call in (backend.read, lambda m: backend.update(m, outside(step="1")), backend.delete, backend.read):
            with pytest.raises(BackendError) as caught:
                call(message_id)
            assert caught.value.__cause__ is not None

    def test_late_replies_are_dropped(self, outage: tuple[PausableServer, StatusBackend]) -> None:
        # Given calls whose time-out has passed
        server, backend = outage
        ids = [uuid4().hex for _ in range(5)]
        updates = [(message_id, start(1, mark=f'"{message_id}"')) for message_id in ids]
        until_answered(lambda: backend.update_many(updates))
        server.pause()
        for message_id in ids[:2]:
            with pytest.raises(BackendError):
                backend.read(message_id)
        # When the server sends their replies
        server.resume()
        # Then later calls get their own replies
        found = [until_answered(partial(backend.read, message_id)) for message_id in ids]
        assert [record and record[":mark"] for record in found] == [f'"{message_id}"' for message_id in ids]

    def test_a_server_that_is_down(self, outage: tuple[PausableServer, StatusBackend], message_id: str) -> None:
        # Given a server that is down, and a backend with connections to it
        server, backend = outage
        until_answered(lambda: backend.update(message_id, start(1)))
        server.stop()
        # When a caller reads, writes or deletes
        # Then the call raises BackendError
        for call in (backend.read, lambda m: backend.update(m, enqueue()), backend.delete, lambda m: backend.read(m)):
            with pytest.raises(BackendError) as caught:
                call(message_id)
            assert caught.value.__cause__ is not None

    def test_a_message_of_a_server_that_is_down_is_not_unknown(
        self, outage: tuple[PausableServer, StatusBackend], message_id: str
    ) -> None:
        # Given a running message, and a server that is down
        server, backend = outage
        until_answered(lambda: backend.update(message_id, start(1)))
        server.stop()
        for call in reads_of(backend, message_id):
            # When the message's status is read in any way
            # Then the call raises BackendError
            with pytest.raises(BackendError):
                call()

    def test_a_message_that_cannot_be_read_is_not_unknown(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message, and a store that answers reads with an error
        backend.update(message_id, start(1))
        assert backend.read(message_id) is not None
        for name, refusal in self.refusals(backend).items():
            with refusal:
                for call in reads_of(backend, message_id):
                    # When the message's status is read in any way
                    # Then the call raises BackendError
                    with pytest.raises(BackendError, match=name):
                        call()
            # And after that the message's status is the same
            assert StatusRegistry.get(message_id, backend=backend).working

    def test_begun_updates_and_a_server_that_is_down(
        self, outage: tuple[PausableServer, StatusBackend], message_id: str
    ) -> None:
        # Given a server that is down, and a backend with connections to it
        server, backend = outage
        until_answered(lambda: backend.update(message_id, start(1)))
        server.stop()
        # When an update is begun and completed
        # Then one of the two calls raises BackendError
        with pytest.raises(BackendError):
            backend.begin_update(message_id, enqueue())()

    def test_a_server_that_is_back(self, outage: tuple[PausableServer, StatusBackend], message_id: str) -> None:
        # Given a server that is down, and a call that has failed because of it
        server, backend = outage
        until_answered(lambda: backend.update(message_id, start(1)))
        server.stop()
        with pytest.raises(BackendError):
            backend.read(message_id)
        # When the server starts again, without records
        server.start()
        # Then the same backend uses it again
        for update, outcome in (write(1, 2), Outcome.MISSING), (write(1, 2, create=True), Outcome.APPLIED):
            assert until_answered(partial(backend.update, message_id, update)) is outcome
        assert until_answered(lambda: backend.read(message_id)) is not None

    @pytest.mark.parametrize("name", ["update", "read"])
    def test_a_restart_between_two_calls(
        self, outage: tuple[PausableServer, StatusBackend], message_id: str, name: str
    ) -> None:
        server, backend = outage

        def call_after_restart() -> Any:
            # Given a connection that the server has closed between two calls
            until_answered(lambda: backend.update(message_id, enqueue()))
            server.stop()
            server.start()
            # When the backend makes the next call
            return backend.update(message_id, enqueue()) if name == "update" else backend.read(message_id)

        # Then it opens a new connection
        assert until_answered(call_after_restart) is (Outcome.APPLIED if name == "update" else None)


def reads_of(backend: StatusBackend, message_id: str) -> list[Callable[[], Any]]:
    """Return calls that read a message in all ways, and list it if the backend lists."""
    status, batch = StatusRegistry.get(message_id, backend=backend), StatusRegistry.batch([message_id], backend=backend)
    reads: list[Callable[[], Any]] = [
        lambda: backend.read(message_id),
        lambda: backend.read_many([message_id, "another"]),
        lambda: backend.snapshot(message_id),
        lambda: backend.snapshots([message_id, "another"]),
        lambda: StatusRegistry.read_many([message_id, "another"], backend=backend, return_errors=True),
        lambda: StatusRegistry.wait(message_id, backend=backend),
        lambda: StatusRegistry.progress(message_id, backend=backend).total,
        lambda: status.state,
        lambda: status.get("step"),
        status.to_json,
        batch.read,
        batch.wait,
    ]
    if type(backend).find is not StatusBackend.find:
        reads += [lambda: backend.find(Query(), limit=50, after=None), lambda: backend.count(Query())]
    return reads
