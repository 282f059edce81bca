"""Messages that the store refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ... import _time as time
from ...backend import StatusBackend, answered
from ...circuit_breaker import CircuitBreaker
from ...record import HEARTBEAT_AT, STATE
from ...update import EnqueueId
from ...writer import Start, Writer
from .store import StoreTests


class Refused(StoreTests):
    """Tests of the writer with a store that refuses one message."""

    def test_a_refused_message_delays_no_other(
        self, backend: StatusBackend, message_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Given a writer, a message that the store refuses, and others
        refused, others = f"x{message_id}", [f"{n}{message_id}" for n in range(3)]
        writer = Writer(backend, CircuitBreaker(type(backend).__name__), heartbeat_interval=50)
        buffers = {
            name: writer.begin_run(name, run_token=5, enqueue_id=EnqueueId(7, 1), throttle=0, base=dict)
            for name in (others[0], refused, *others[1:])
        }

        def write_until(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 30
            while not condition():
                assert time.monotonic() < deadline
                buffers[others[0]].increment()
                time.sleep(0.01)

        with self.refusing(backend, refused):
            # When the run of each message writes
            for buffer in buffers.values():
                writer.running[buffer] = None
                buffer.add(Start({}, 1))
                buffer.write({":step": "1"})
            write_until(lambda: writer.breaker.health(0, 0).dropped > 0)
            # Then all others are stored and have heartbeats, and the store counts as up
            write_until(lambda: all(HEARTBEAT_AT in (answered(found) or {}) for found in backend.read_many(others)))
            health = writer.breaker.health(*writer.count_unsent())
            assert health.up and health.failures
            # When the run writes another field, then this write is dropped as well, and the log names the message once
            buffers[refused].write({":step": "2"})
            write_until(lambda: writer.breaker.health(0, 0).dropped > health.dropped)
            lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
            assert sum("refuses updates" in line and refused in line for line in lines) == 1
        # When the store accepts the message again, then the record has all values of the run
        buffers[refused].write({":more": "3"})
        assert buffers[refused].flush(30)
        record = backend.read(refused)
        assert record is not None and (record[STATE], record[":step"], record[":more"]) == ("1", "2", "3")
        writer.running.clear()
        assert writer.drain(30)
