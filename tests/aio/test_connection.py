"""The one connection of an event loop: a caller that is alone sends and receives itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from dramatiq_status import BackendError, Snapshot, aio
from dramatiq_status.aio import connection as aio_connection
from dramatiq_status.aio.tasks import CATCH_UP
from dramatiq_status.backends import RedisBackend

from ..jobs import Job
from ..recording import answered
from ..servers import RedisServer
from .test_registry import answered_in_loop, in_loop


@pytest.fixture
def backend(server: RedisServer) -> Iterator[RedisBackend]:
    with closing(RedisBackend(url=server.url, timeout=300)) as backend:
        yield backend


def paused_reads(server: RedisServer, backend: RedisBackend, job: Job, count: int) -> list[asyncio.Task[object]]:
    """Begin reads that the server does not answer."""
    server.pause()
    return [asyncio.create_task(aio.StatusRegistry.read(job.message_id, backend=backend)) for _ in range(count)]


def test_the_time_limit_of_a_lone_call_cancels_no_task(server: RedisServer, backend: RedisBackend) -> None:
    job = answered(Job(backend).enqueue)

    async def main() -> None:
        # Given a connection, and a task that reads over it alone
        assert await answered_in_loop(lambda: aio.StatusRegistry.read(job.message_id, backend=backend))
        task = asyncio.current_task()
        assert task is not None
        # When the server does not answer several calls
        server.pause()
        for _ in range(2):
            with pytest.raises(BackendError, match="no answer within 300 milliseconds"):
                await aio.StatusRegistry.read(job.message_id, backend=backend)
            # Then the task can still wait for other events
            assert not hasattr(task, "cancelling") or task.cancelling() == 0
            await asyncio.sleep(0.01)
        # And when the server answers again, it gets replies
        server.resume()
        found = await answered_in_loop(lambda: aio.StatusRegistry.read(job.message_id, backend=backend))
        assert found is not None and found.queued

    in_loop(main)


def test_a_lone_call_that_is_cancelled_leaves_no_reply_to_the_next(server: RedisServer, patient: RedisBackend) -> None:
    first, second = Job(patient).enqueue().start().write(n=1), Job(patient).enqueue().start().write(n=2)

    async def main() -> None:
        await aio.StatusRegistry.read(first.message_id, backend=patient)
        # Given a read that waits for its reply, and other reads behind it
        alone, *others = paused_reads(server, patient, first, 3)
        await asyncio.sleep(0.02)
        # When it is cancelled
        alone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await alone
        server.resume()
        # Then the other reads get their own replies, and so does the next read
        assert [found["n"] for found in await asyncio.gather(*others)] == [1, 1]  # type: ignore[index]
        found = await aio.StatusRegistry.read(second.message_id, backend=patient)
        assert found is not None and found["n"] == 2

    in_loop(main)


def test_a_lone_call_that_is_cancelled_at_its_time_limit_is_cancelled(
    server: RedisServer, backend: RedisBackend
) -> None:
    job = answered(Job(backend).enqueue)

    async def read_after_a_cancelled_read() -> Snapshot | None:
        await answered_in_loop(lambda: aio.StatusRegistry.read(job.message_id, backend=backend))
        (alone,) = paused_reads(server, backend, job, 1)
        await asyncio.sleep(0)
        # When a read is cancelled while its time limit ends it
        asyncio.get_running_loop().call_later(0.3, alone.cancel)
        await asyncio.wait([alone])
        server.resume()
        # Then it ends with CancelledError or BackendError, and the next read gets its reply
        assert alone.cancelled() or isinstance(alone.exception(), BackendError)
        return await aio.StatusRegistry.read(job.message_id, backend=backend)

    assert in_loop(lambda: answered_in_loop(read_after_a_cancelled_read))


def test_closing_the_backend_ends_a_lone_call(server: RedisServer, patient: RedisBackend) -> None:
    job = Job(patient).enqueue()

    async def main() -> None:
        await aio.StatusRegistry.read(job.message_id, backend=patient)
        (alone,) = paused_reads(server, patient, job, 1)
        await asyncio.sleep(0.02)
        # When the backend is closed while a read waits
        await aio.close(backend=patient)
        # Then the read raises BackendError
        with pytest.raises(BackendError, match="the connection was closed"):
            await alone
        # And the backend may be used again
        server.resume()
        assert await aio.StatusRegistry.read(job.message_id, backend=patient)

    in_loop(main)


def test_a_connection_that_lone_calls_use_is_not_idle(
    server: RedisServer, patient: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a loop that closes idle connections soon
    monkeypatch.setattr(aio_connection, "IDLE_TIMEOUT", 0.2)
    job = Job(patient).enqueue()

    async def main() -> None:
        await aio.StatusRegistry.read(job.message_id, backend=patient)
        before = patient.client.info("stats")["total_connections_received"]
        # When a lone caller uses the connection for longer than that, with short pauses
        for _ in range(20):
            await asyncio.sleep(0.02)
            await aio.StatusRegistry.read(job.message_id, backend=patient)
        # Then the connection is still the same one
        assert patient.client.info("stats")["total_connections_received"] == before

    in_loop(main)


def test_a_loop_that_was_blocked_reads_the_reply_of_a_lone_call(server: RedisServer, backend: RedisBackend) -> None:
    job = answered(Job(backend).enqueue)

    async def read_late() -> Snapshot | None:
        await answered_in_loop(lambda: aio.StatusRegistry.read(job.message_id, backend=backend))
        alone = asyncio.create_task(aio.StatusRegistry.read(job.message_id, backend=backend))
        await asyncio.sleep(0)
        # When the loop is blocked for longer than the time limit, and the reply arrives meanwhile
        time.sleep(backend.timeout / 1000 + 2 * CATCH_UP)
        # Then the read returns the reply
        return await alone

    found = in_loop(lambda: answered_in_loop(read_late))
    assert found is not None and found.queued
