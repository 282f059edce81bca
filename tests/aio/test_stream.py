"""The stream of an event loop's connection: it takes the place of the driver once the driver has connected."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import pytest

from dramatiq_status import BackendError, aio
from dramatiq_status.aio import stream
from dramatiq_status.aio.store import async_backend
from dramatiq_status.backends import RedisBackend
from dramatiq_status.update import Kind, Update

from ..jobs import Job
from ..proxy import Proxy
from ..servers import RedisServer
from .test_registry import in_loop

#: A field that is larger than what a transport buffers (64 KiB).
LARGE = "x" * 60_000


def proxied(proxy: Proxy) -> str:
    return f"redis://127.0.0.1:{proxy.port}"


async def stream_to(backend: RedisBackend) -> Any:
    """Return the stream of the running loop."""
    found: Any = await async_backend(backend)
    return found._connection._stream


def test_the_driver_has_what_the_stream_uses(patient: RedisBackend) -> None:
    job = Job(patient).enqueue()

    async def main() -> None:
        # When a loop reads
        assert await aio.StatusRegistry.read(job.message_id, backend=patient)
        # Then its connection is used without the driver, which still has the writer that the stream takes over
        assert isinstance(await stream_to(patient), stream.TransportStream)

    in_loop(main)


def test_requests_that_are_larger_than_the_buffer(server: RedisServer, patient: RedisBackend) -> None:
    job = Job(patient).enqueue()

    async def main() -> None:
        handle = aio.StatusRegistry.get(job.message_id, backend=patient)
        assert await handle.read()
        # Given a server that reads nothing for a while
        server.pause()
        # When a loop sends more than the buffers of both ends have room for
        writes = [asyncio.create_task(handle.update({f"f{n}": LARGE})) for n in range(200)]
        found = await stream_to(patient)
        while not found._is_full:
            await asyncio.sleep(0.001)
        server.resume()
        await asyncio.gather(*writes)
        # Then all of it arrives
        snapshot = await handle.read()
        assert snapshot is not None and [snapshot[f"f{n}"] for n in range(200)] == [LARGE] * 200

    in_loop(main)


def test_a_connection_that_the_server_closes_while_it_is_idle(server: RedisServer, patient: RedisBackend) -> None:
    job = Job(patient).enqueue()

    async def main() -> None:
        handle = aio.StatusRegistry.get(job.message_id, backend=patient)
        assert await handle.read()
        before = await stream_to(patient)
        # When the server closes the connection between two reads
        patient.client.client_kill_filter(_type="normal", skipme=True)
        while not before._is_lost:
            await asyncio.sleep(0.001)
        # Then the second one uses a new connection
        assert await handle.read()
        assert await stream_to(patient) is not before

    in_loop(main)


class Talkative(Proxy):
    """A proxy that sends something without a request, after a reply."""

    addition = b""

    def on_reply(self, data: bytes) -> bytes:
        addition, self.addition = self.addition, b""
        return data + addition


def test_bytes_without_a_request_are_no_reply(server: RedisServer) -> None:
    with Talkative(server.port) as proxy, closing(RedisBackend(url=proxied(proxy), timeout=20_000)) as backend:
        job = Job(backend).enqueue()

        async def main() -> None:
            handle = aio.StatusRegistry.get(job.message_id, backend=backend)
            assert await handle.read()
            # Given a server that adds something to a reply
            proxy.addition = b"+more\r\n:7\r\n"
            assert await handle.read()
            before = await stream_to(backend)
            while not before._reader.has_data():
                await asyncio.sleep(0.001)
            # When the loop sends the next requests
            # Then each has its own reply, over another connection
            for step in range(3):
                await handle.update(step=step)
                assert (await handle.read())["step"] == step  # type: ignore[index]
            assert await stream_to(backend) is not before

        in_loop(main)


def test_a_large_reply_may_take_longer_than_the_time_out(server: RedisServer) -> None:
    # Given a status of 3 MB, and a connection that carries 2 MB a second
    with (
        Proxy(server.port) as proxy,
        closing(RedisBackend(url=server.url, timeout=20_000, max_field_size=4_000_000)) as direct,
        closing(RedisBackend(url=proxied(proxy), timeout=500)) as backend,
    ):
        job = Job(direct).enqueue()
        direct.update(job.message_id, Update(Kind.OUTSIDE, fields={":large": f'"{"x" * 3_000_000}"'}))

        async def main() -> None:
            await aio.StatusRegistry.read("another", backend=backend)
            proxy.drip = (20_000, 0.01)
            # When an event loop reads it with a time-out of half a second
            found = await aio.StatusRegistry.read(job.message_id, backend=backend)
            # Then it arrives
            assert found is not None and len(found["large"]) == 3_000_000

        in_loop(main)


def test_a_server_that_closes_connections_raises_no_other_errors(server: RedisServer, patient: RedisBackend) -> None:
    job = Job(patient).enqueue()

    async def read() -> None:
        for _ in range(200):
            try:
                assert await aio.StatusRegistry.read(job.message_id, backend=patient)
            except BackendError:
                pass
            await asyncio.sleep(0)

    async def main() -> None:
        # When the server closes all connections while tasks read
        readers = [asyncio.create_task(read()) for _ in range(20)]
        while not all(reader.done() for reader in readers):
            await asyncio.to_thread(patient.client.client_kill_filter, _type="normal", skipme=True)
            await asyncio.sleep(0.02)
        # Then each read ends with the status, or with an error of the store
        await asyncio.gather(*readers)
        assert await aio.StatusRegistry.read(job.message_id, backend=patient)

    in_loop(main)


def test_a_connection_that_is_lost_before_the_stream_begins(server: RedisServer, patient: RedisBackend) -> None:
    job = Job(patient).enqueue()

    async def main() -> None:
        handle = aio.StatusRegistry.get(job.message_id, backend=patient)
        connection = await (await async_backend(patient))._connector.connect()  # type: ignore[attr-defined]
        # When the server closes a connection before the stream takes it over
        server.restart()
        while not connection._reader.at_eof():
            await asyncio.sleep(0.001)
        found = stream.stream_of(connection, len)
        # Then a request over it fails at once
        with pytest.raises(ConnectionError):
            await found.send([b"*1\r\n$4\r\nPING\r\n"])
        await found.close(nowait=False)
        # And the next call succeeds
        assert await handle.read() is None

    in_loop(main)
