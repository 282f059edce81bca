"""Event loops on Redis: many watchers through one connection, losses and outages, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from dramatiq_status import BackendError, Snapshot, State, StatusRegistry, StatusTimeout, aio
from dramatiq_status.aio import connection as aio_connection
from dramatiq_status.aio import redis as aio_redis
from dramatiq_status.aio.connector import Connector
from dramatiq_status.aio.store import async_backend
from dramatiq_status.backends import RedisBackend

from ..conftest import StartServer
from ..jobs import Job
from ..recording import PATIENCE, answered, eventually
from ..servers import RedisCluster, RedisSentinels, RedisServer
from .test_registry import answered_in_loop, in_loop, last_of

ROOT = Path(__file__).parents[2]

#: Interval in milliseconds that is longer than any test.
NEVER = 3_600_000

#: Client name of the event loops' connections on the server.
NAME = "loop"


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    """Yield the backend of the watchers.  It polls only once an hour, so that a watcher sees a change only if it was
    published.
    """
    with closing(named(redis_url, timeout=20_000)) as backend:
        backend.recheck_interval = NEVER
        yield backend


def named(url: str, **parameters: Any) -> RedisBackend:
    return RedisBackend(url=f"{url}?client_name={NAME}", **parameters)


def connections(jobs: RedisBackend) -> Counter[str]:
    """Return numbers of connections of event loops by kind: subscriptions ("listens"), and requests ("asks")."""
    clients = jobs.client.client_list()
    return Counter("listens" if int(client["sub"]) else "asks" for client in clients if client["name"] == NAME)


async def until(predicate: Callable[[], Any]) -> None:
    """Wait in a thread until a condition is true."""
    await asyncio.to_thread(eventually, predicate)


class TestManyWatchers:
    def test_many_watchers_share_two_connections(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given jobs, each of which is watched by ten watchers
        work = [Job(jobs).enqueue() for _ in range(200)]
        ended: list[tuple[str, State, Any]] = []

        async def watch(job: Job) -> None:
            last = await last_of(job, backend)
            ended.append((last.message_id, last.state, last["n"]))

        async def main() -> None:
            watchers = [asyncio.create_task(watch(job)) for job in work for _ in range(10)]
            await until(lambda: sum(int(client["sub"]) for client in jobs.client.client_list()) == 200)
            # When all watchers have begun
            # Then they share one subscription and one connection for requests
            assert connections(jobs) == {"listens": 1, "asks": 1}
            # And when the jobs run and end
            await asyncio.to_thread(run_all, work)
            await asyncio.gather(*watchers)
            # Then each watcher has received the end of its own job
            assert Counter(ended) == {(job.message_id, State.COMPLETED, index): 10 for index, job in enumerate(work)}
            # And the connection of the subscription is closed
            await until(lambda: connections(jobs) == {"asks": 1})

        def run_all(work: list[Job]) -> None:
            for job in work:
                job.start()
            for index, job in enumerate(work):
                job.write(n=index)
            for job in work:
                job.finish()

        in_loop(main)

    def test_watchers_that_begin_together_share_a_read(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given messages that have ended
        work = [Job(jobs).enqueue().finish() for _ in range(100)]
        reads: list[int] = []

        async def main() -> None:
            store = await async_backend(backend)
            snapshots = store.snapshots

            async def count(message_ids: Sequence[str]) -> list[Snapshot | None]:
                reads.append(len(message_ids))
                return await snapshots(message_ids)

            store.snapshots = count  # type: ignore[method-assign]
            # When ten watchers watch each of them at the same time
            await asyncio.gather(*(last_of(job, backend) for job in work for _ in range(10)))
            # Then one call reads all of them, each once
            assert reads == [100]
            # And there is no subscription
            assert connections(jobs) == {"asks": 1}

        in_loop(main)

    def test_watch_misses_no_change_before_the_subscription(
        self, jobs: RedisBackend, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a job that ends after the first read, before the watcher has subscribed
        job = Job(jobs).enqueue()
        add = aio_redis.RedisSubscription.add

        async def late(self: Any, message_ids: Sequence[str]) -> None:
            job.start().finish()
            await add(self, message_ids)

        monkeypatch.setattr(aio_redis.RedisSubscription, "add", late)

        async def main() -> list[State]:
            # When it is watched
            return [found.state async for found in aio.StatusRegistry.watch(job.message_id, backend=backend)]

        # Then the watcher receives the end
        assert in_loop(main) == [State.QUEUED, State.COMPLETED]

    def test_a_watcher_that_stops_unsubscribes(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given two watched messages
        first, second = Job(jobs).enqueue(), Job(jobs).enqueue()

        def subscribed() -> int:
            return sum(int(client["sub"]) for client in jobs.client.client_list())

        async def main() -> None:
            other = asyncio.create_task(last_of(second, backend))
            async with aclosing(aio.StatusRegistry.watch(first.message_id, backend=backend)) as snapshots:
                assert (await anext(snapshots)).queued
                await until(lambda: subscribed() == 2)
            # When the first message is no longer watched
            # Then the server publishes only changes of the second message to this connection
            await until(lambda: subscribed() == 1)
            # And when the first message is watched again, the server publishes changes of both
            again = asyncio.create_task(last_of(first, backend))
            await until(lambda: subscribed() == 2)
            await asyncio.to_thread(lambda: (first.finish(), second.finish()))
            assert (await again).completed and (await other).completed

        in_loop(main)

    def test_a_watcher_that_is_dropped_closes_its_connection(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given a watcher whose loop is left by ``break``
        job = Job(jobs).enqueue()

        async def main() -> None:
            async for found in aio.StatusRegistry.watch(job.message_id, backend=backend):
                assert found.queued
                await until(lambda: connections(jobs)["listens"])
                break
            # When its generator is gone
            # Then its subscription is closed. (A read that this cancels also closes the connection for requests.)
            await until(lambda: connections(jobs) in ({"asks": 1}, {}))

        in_loop(main)

    def test_a_watcher_of_a_batch_that_is_dropped_unsubscribes(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given messages that are watched as a batch, and another one that is watched alone
        work, other = [Job(jobs).enqueue() for _ in range(20)], Job(jobs).enqueue()

        def subscribed() -> int:
            return sum(int(client["sub"]) for client in jobs.client.client_list())

        async def main() -> None:
            hub = (await async_backend(backend)).hub
            watching = asyncio.create_task(last_of(other, backend))
            batch = aio.StatusRegistry.batch([job.message_id for job in work], backend=backend)
            async with aclosing(batch.watch()) as snapshots:
                assert (await anext(snapshots)).queued
                await until(lambda: subscribed() == 21)
            # When the loop over the batch is left
            # Then the hub no longer watches these messages
            assert list(hub._watched) == [other.message_id]
            await until(lambda: subscribed() == 1)
            # And when the other message ends, the hub watches no message
            await asyncio.to_thread(other.finish)
            assert (await watching).completed and not hub._watched
            await until(lambda: not connections(jobs)["listens"])

        in_loop(main)

    def test_watches_one_after_another(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given a loop in which messages are watched one after another
        async def main() -> None:
            for _ in range(20):
                job = Job(jobs).enqueue()
                # When each watch begins as the watch before it ends
                async for found in aio.StatusRegistry.watch(job.message_id, backend=backend):
                    if found.queued:
                        await asyncio.to_thread(job.finish)
                # Then each watcher receives the end of its message
                assert found.completed

        in_loop(main)

    def test_event_loops_in_threads_have_their_own_connections(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given loops in three threads, and a message
        job = Job(jobs).enqueue()
        seen: list[State] = []

        def work() -> None:
            seen.append(in_loop(lambda: last_of(job, backend)).state)

        threads = [threading.Thread(target=work) for _ in range(3)]
        # When a watcher in each loop watches it
        for thread in threads:
            thread.start()
        # Then each loop has its own connections
        eventually(lambda: connections(jobs) == {"listens": 3, "asks": 3})
        job.start().finish()
        for thread in threads:
            thread.join(PATIENCE)
        assert seen == [State.COMPLETED] * 3
        # And no connection is left
        eventually(lambda: not connections(jobs))

    def test_one_event_loop_after_another(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given a process that has one loop after another
        left: list[weakref.ref[asyncio.AbstractEventLoop]] = []

        async def main(job: Job) -> None:
            left.append(weakref.ref(asyncio.get_running_loop()))
            broken_off = aio.StatusRegistry.watch(Job(jobs).enqueue().message_id, backend=backend)
            assert (await anext(broken_off)).queued
            async for found in aio.StatusRegistry.watch(job.message_id, backend=backend):
                if found.queued:
                    await asyncio.to_thread(job.finish)
            assert found.completed

        for _ in range(3):
            job = Job(jobs).enqueue()
            # When messages are watched in each loop, one of them not to its end
            in_loop(partial(main, job))
            # Then all watches work, and no connection and no loop is left
            eventually(lambda: not connections(jobs))
            gc.collect()
            assert [reference() for reference in left] == [None] * len(left)


class TestLosses:
    def test_watch_subscribes_again_after_a_lost_connection(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given watchers
        work = [Job(jobs).enqueue() for _ in range(20)]

        async def main() -> None:
            watchers = [asyncio.create_task(last_of(job, backend)) for job in work for _ in range(3)]
            await until(lambda: connections(jobs)["listens"] == 1)
            # When the connection of the subscription is lost, and messages change meanwhile
            jobs.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            for job in work[:10]:
                job.start().finish()
            # Then the watchers receive the changes
            await asyncio.gather(*watchers[:30])
            # And they receive the changes after the next subscription, too
            await until(lambda: connections(jobs)["listens"] == 1)
            for job in work[10:]:
                job.start().finish()
            await asyncio.gather(*watchers)

        in_loop(main)

    def test_watch_subscribes_again_after_a_failure(
        self, jobs: RedisBackend, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a loop that does not poll, and a server that refuses the first two subscriptions
        backend.poll_interval = (NEVER, NEVER)
        job = Job(jobs).enqueue()
        add = aio_redis.RedisSubscription.add
        failures = iter(range(2))

        async def failing(self: Any, message_ids: Sequence[str]) -> None:
            if next(failures, None) is not None:
                raise BackendError("too slow")
            await add(self, message_ids)

        monkeypatch.setattr(aio_redis.RedisSubscription, "add", failing)

        async def main() -> None:
            # When a message is watched
            watching = asyncio.create_task(last_of(job, backend))
            # Then the loop subscribes again
            await until(lambda: connections(jobs)["listens"])
            job.finish()
            assert (await watching).completed

        in_loop(main)

    def test_watch_reads_again_after_a_failed_read(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given a watcher with a subscription
        job = Job(jobs).enqueue()

        async def main() -> None:
            store = await async_backend(backend)
            snapshots = store.snapshots
            failures = iter(())

            async def failing(message_ids: Sequence[str]) -> list[Snapshot | None]:
                if next(failures, None) is not None:
                    raise BackendError("away")
                return await snapshots(message_ids)

            store.snapshots = failing  # type: ignore[method-assign]
            watching = asyncio.create_task(last_of(job, backend))
            await until(lambda: connections(jobs)["listens"])
            # When the end is published, and the first read fails
            failures = iter(range(3))
            await asyncio.to_thread(job.finish)
            # Then the watcher reads again
            assert (await watching).completed

        in_loop(main)

    def test_a_closed_subscription_does_not_connect_again(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given a subscription that was closed
        async def main() -> None:
            store = await async_backend(backend)
            assert isinstance(store, aio_redis.AsyncRedis)
            subscription = await store.subscribe()
            await subscription.close()
            await until(lambda: not connections(jobs))
            # When a command is sent over it
            with pytest.raises(BackendError, match="closed"):
                await subscription.add(["m"])
            # Then the subscription does not connect again
            assert not connections(jobs)

        in_loop(main)

    def test_watch_continues_after_an_outage(self, server: RedisServer, patient: RedisBackend) -> None:
        # Given watchers
        with closing(RedisBackend(url=server.url, timeout=2_000)) as backend:
            work = [Job(patient).enqueue().start() for _ in range(10)]

            async def main() -> None:
                watchers = [
                    asyncio.create_task(
                        aio.StatusRegistry.wait(job.message_id, timeout=None, missing_timeout=NEVER, backend=backend)
                    )
                    for job in work
                ]
                batch = aio.StatusRegistry.batch([job.message_id for job in work], backend=backend)
                together = asyncio.create_task(batch.wait(timeout=None, missing_timeout=NEVER))
                await until(lambda: any(int(client["sub"]) for client in backend.client.client_list()))
                # When the server ends, and comes back without its memory, and the jobs are restored by their runs
                server.kill()
                await asyncio.to_thread(server.start)
                for job in work:
                    job.restore(step="again").finish()
                # Then all watchers receive the end
                assert all(found.completed for found in await asyncio.gather(*watchers))
                assert (await together).completed

            in_loop(main)

    def test_watch_raises_after_its_timeout_in_an_outage(
        self, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a message that is watched for a while
        server = start_server(RedisServer())
        with (
            closing(RedisBackend(url=server.url, timeout=20_000)) as backend,
            closing(RedisBackend(url=server.url, timeout=200)) as hasty,
        ):
            job = Job(backend).enqueue()

            async def main() -> None:
                store, hasty_store = await async_backend(backend), await async_backend(hasty)
                snapshots = aio.StatusRegistry.watch(job.message_id, timeout=500, backend=backend)
                assert (await anext(snapshots)).queued
                # When the server is frozen, and a call has a short time-out
                server.pause()
                monkeypatch.setattr(store, "snapshots", hasty_store.snapshots)
                monkeypatch.setattr(store, "subscribe", hasty_store.subscribe)
                # Then the watch still ends with StatusTimeout
                with pytest.raises(StatusTimeout):
                    await anext(snapshots)
                # And a read raises BackendError
                with pytest.raises(BackendError, match="Redis"):
                    await aio.StatusRegistry.read(job.message_id, backend=hasty)
                # And when the server continues, the status can be read
                monkeypatch.undo()
                server.resume()
                found = await aio.StatusRegistry.read(job.message_id, backend=backend)
                assert found is not None and found.queued

            in_loop(main)

    def test_a_server_that_hangs_is_noticed(self, start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a subscription that soon pings a server that is silent
        monkeypatch.setattr(aio_redis, "PING_AFTER", 0.02)
        server = start_server(RedisServer())
        with closing(RedisBackend(url=server.url, timeout=2_000)) as backend:
            job = Job(backend).enqueue()

            async def main() -> None:
                store = await async_backend(backend)
                assert isinstance(store, aio_redis.AsyncRedis)
                subscription = await store.subscribe()
                # When the server is silent before and after the subscription
                await asyncio.sleep(0.05)
                await subscription.add([job.message_id])
                receive = asyncio.create_task(subscription.receive())
                assert await receive == (job.message_id, None)
                receive = asyncio.create_task(subscription.receive())
                await asyncio.sleep(0.05)
                # Then later changes are received
                await asyncio.to_thread(job.start)
                assert await receive == (job.message_id, 2)
                # And when the server hangs, the subscription raises an error
                server.pause()
                with pytest.raises(BackendError, match="does not answer any more"):
                    await subscription.receive()
                server.resume()
                await subscription.close()

            in_loop(main)

    def test_reads_connect_again_if_the_server_has_closed_the_connection(
        self, jobs: RedisBackend, backend: RedisBackend
    ) -> None:
        # Given a connection that was used
        job = Job(jobs).enqueue()

        async def main() -> None:
            assert await aio.StatusRegistry.read(job.message_id, backend=backend)
            # When the server closes the connection
            for client in jobs.client.client_list():
                if client["name"] == NAME:
                    jobs.client.client_kill_filter(_id=client["id"])
            # Then no read raises an error
            found = await asyncio.gather(
                *(aio.StatusRegistry.read(job.message_id, backend=backend) for _ in range(10)),
                aio.StatusRegistry.get(job.message_id, backend=backend).update(a=1),
            )
            assert all(found[:-1])

        in_loop(main)

    def test_an_increment_is_not_repeated(self, start_server: StartServer) -> None:
        # Given a message, and a connection that was used
        server = start_server(RedisServer())
        with (
            closing(named(server.url, timeout=1_000)) as backend,
            closing(RedisBackend(url=server.url, timeout=20_000)) as jobs,
        ):
            job = Job(jobs).enqueue()

            async def main() -> None:
                progress = aio.StatusRegistry.progress(job.message_id, backend=backend)
                await progress.increment()
                # When the connection is lost after an increment was sent, so that it is unknown whether the server has
                # carried it out
                server.pause()
                with pytest.raises(BackendError, match="Redis"):
                    await progress.increment()
                server.resume()
                # Then it was not counted twice
                assert await progress.progress in (1, 2)

            in_loop(main)

    def test_calls_raise_if_the_server_is_down(self, start_server: StartServer) -> None:
        # Given a server that has ended
        server = start_server(RedisServer())
        server.kill()
        with closing(RedisBackend(url=server.url)) as backend:

            async def main() -> None:
                # When a call is made
                # Then the call raises BackendError
                with pytest.raises(BackendError, match="Redis"):
                    await aio.StatusRegistry.read("m", backend=backend)
                with pytest.raises(BackendError, match="Redis"):
                    await aio.StatusRegistry.wait("m", timeout=None, backend=backend)

            in_loop(main)


class TestOneLineForAll:
    def test_cancelled_reads_do_not_affect_others(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given messages
        work = [Job(jobs).enqueue().start().write(n=n) for n in range(50)]

        async def main() -> None:
            for _ in range(20):
                # When all are read at the same time, and every third read is cancelled at some time
                tasks = [asyncio.create_task(aio.StatusRegistry.read(job.message_id, backend=backend)) for job in work]
                for index, task in enumerate(tasks):
                    if index % 3 == 0:
                        await asyncio.sleep(0)
                        task.cancel()
                found = await asyncio.gather(*tasks, return_exceptions=True)
                # Then the other reads get their own replies
                for index, one in enumerate(found):
                    if index % 3:
                        assert not isinstance(one, BaseException) and one is not None and one["n"] == index

        in_loop(main)

    def test_an_error_of_one_call_does_not_affect_others(self, start_server: StartServer) -> None:
        # Given a user who may read, and not write
        server = start_server(RedisServer())
        with closing(RedisBackend(url=server.url, timeout=20_000)) as jobs:
            work = [Job(jobs).enqueue() for _ in range(10)]
            jobs.client.execute_command("ACL", "SETUSER", "reader", "on", "nopass", "~*", "&*", "+@all", "-evalsha")
        with closing(RedisBackend(url=server.url.replace("redis://", "redis://reader:x@"), timeout=20_000)) as backend:

            async def main() -> None:
                status = aio.StatusRegistry.get(work[0].message_id, backend=backend)
                # When a task reads and another one writes at the same time
                written, *found = await asyncio.gather(
                    status.update(a=1),
                    *(aio.StatusRegistry.read(job.message_id, backend=backend) for job in work),
                    return_exceptions=True,
                )
                # Then only the write fails
                assert isinstance(written, BackendError) and "evalsha" in str(written)
                assert all(one is not None and not isinstance(one, BaseException) for one in found)

            in_loop(main)

    def test_subscriptions_of_a_user_who_may_not_unsubscribe(self, start_server: StartServer) -> None:
        # Given a user without the right to unsubscribe, and subscriptions to two jobs
        server = start_server(RedisServer())
        with closing(RedisBackend(url=server.url, timeout=20_000)) as writer:
            writer.client.execute_command(
                "ACL", "SETUSER", "bound", "on", "nopass", "~*", "&*", "+@all", "-unsubscribe"
            )
            first, second = Job(writer).enqueue(), Job(writer).enqueue()
            with closing(
                RedisBackend(url=server.url.replace("redis://", "redis://bound:x@"), timeout=20_000)
            ) as reader:

                async def main() -> None:
                    subscription = await (await async_backend(reader)).subscribe()
                    assert subscription is not None
                    await subscription.add([first.message_id, second.message_id])
                    subscribed = {await subscription.receive() for _ in range(2)}
                    assert subscribed == {(first.message_id, None), (second.message_id, None)}
                    # When one of them ends, and the server refuses to unsubscribe it
                    await subscription.remove([first.message_id])
                    await asyncio.to_thread(second.start)
                    # Then the other subscription continues
                    assert await subscription.receive() == (second.message_id, 2)
                    await subscription.close()

                in_loop(main)

    def test_updates_raise_on_a_master_that_was_demoted(self, start_server: StartServer) -> None:
        # Given a master to which there is a connection
        server, master = start_server(RedisServer()), start_server(RedisServer())
        with (
            closing(RedisBackend(url=server.url, timeout=20_000)) as backend,
            redis.Redis.from_url(server.url) as client,
        ):
            job = Job(backend).enqueue()

            async def main() -> None:
                status = aio.StatusRegistry.get(job.message_id, backend=backend)
                await status.update(a=1)
                # When it becomes a replica
                client.replicaof("127.0.0.1", master.port)
                # Then the call raises BackendError
                with pytest.raises(BackendError, match="READONLY"):
                    await status.update(a=2)
                # And when the server is a master again, updates are stored
                client.replicaof("NO", "ONE")
                await asyncio.to_thread(job.requeue)
                await status.update(a=3)
                assert await status["a"] == 3

            in_loop(main)

    def test_an_update_that_a_replica_refuses_is_repeated_over_a_new_connection(
        self, start_server: StartServer
    ) -> None:
        # Given an event loop that is connected to a master
        server, other = start_server(RedisServer()), start_server(RedisServer())
        with closing(named(server.url)) as backend, redis.Redis.from_url(server.url) as client:
            job = answered(Job(backend).enqueue)

            def connections_of_loops() -> set[str]:
                return {found["id"] for found in client.client_list() if found["name"] == NAME}

            async def main() -> None:
                status = aio.StatusRegistry.get(job.message_id, backend=backend)
                await answered_in_loop(lambda: status.update(a=1))
                before = connections_of_loops()
                # When the master becomes a replica, and refuses an update
                client.replicaof("127.0.0.1", other.port)
                with pytest.raises(BackendError):
                    await status.update(a=2)
                # Then the loop has connected again, because the address may lead to another master now
                assert connections_of_loops() - before

            in_loop(main)

    def test_concurrent_updates_load_the_script_again(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given a server that has forgotten the script
        job = Job(jobs).enqueue()

        async def main() -> None:
            status = aio.StatusRegistry.get(job.message_id, backend=backend)
            for _ in range(3):
                jobs.client.script_flush()
                # When many updates are sent at once
                await asyncio.gather(
                    *(aio.StatusRegistry.progress(status.message_id, backend=backend).increment() for _ in range(20))
                )
            # Then each update is stored once
            assert await aio.StatusRegistry.progress(status.message_id, backend=backend).progress == 60

        in_loop(main)

    def test_more_messages_than_one_pipeline_reads(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given more messages than one pipeline reads
        job = Job(jobs).enqueue()

        async def main() -> None:
            ids = [job.message_id, *(f"unknown-{n}" for n in range(4_500)), job.message_id]
            # When all are read in one call
            found = await aio.StatusRegistry.read_many(ids, backend=backend)
            # Then the call returns a result for each id, in their order
            assert len(found) == 4_502 and found[0] == found[-1] and found[0] is not None and not any(found[1:-1])

        in_loop(main)

    def test_an_idle_connection_is_closed(
        self, jobs: RedisBackend, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a loop that closes its connections soon
        monkeypatch.setattr(aio_connection, "IDLE_TIMEOUT", 0.02)
        job = Job(jobs).enqueue()

        async def main() -> None:
            for _ in range(3):
                # When the loop makes a call, and then none for a while
                assert await aio.StatusRegistry.read(job.message_id, backend=backend)
                # Then the connection is closed
                await until(lambda: not connections(jobs))

        in_loop(main)

    def test_clients_with_connections_of_their_own_run_in_threads(self, redis_url: str) -> None:
        # Given a client with a connection class of its own
        class Peculiar(redis.Connection):
            pass

        client = redis.Redis(connection_pool=redis.ConnectionPool.from_url(redis_url, connection_class=Peculiar))
        with closing(RedisBackend(client=client, timeout=20_000)) as backend:
            job = Job(backend).enqueue()

            async def main() -> None:
                # When an event loop uses it
                store = await async_backend(backend)
                # Then its calls run in threads
                assert not isinstance(store, aio_redis.AsyncRedis)
                await asyncio.to_thread(job.finish)
                assert (await last_of(job, backend)).completed

            in_loop(main)

    def test_parameters_that_an_event_loop_cannot_use_raise(self) -> None:
        # Given a client with a check of certificates that redis.asyncio does not have
        def connector(**parameters: Any) -> Connector | None:
            pool = redis.ConnectionPool(connection_class=redis.SSLConnection, host="h", **parameters)
            return Connector.of(RedisBackend(client=redis.Redis(connection_pool=pool)).transport)

        # When an event loop looks for a connector
        # Then there is no connector, because its connections would leave out this check
        assert connector(ssl_validate_ocsp=True) is None
        assert connector(redis_connect_func=print) is None
        assert connector(ssl_ca_certs="x") is not None


class TestManyServers:
    def test_watch_on_a_master_of_sentinels(self, redis_sentinels: RedisSentinels) -> None:
        # Given a master that is found by sentinels
        redis_sentinels.reset()
        with closing(
            RedisBackend(sentinels=redis_sentinels.addresses, service_name=redis_sentinels.service_name, timeout=20_000)
        ) as backend:
            job = Job(backend).enqueue()

            async def main() -> None:
                assert isinstance(await async_backend(backend), aio_redis.AsyncRedis)
                # When a message is watched and changes
                seen = []
                async for found in aio.StatusRegistry.watch(job.message_id, backend=backend):
                    seen.append(found.state)
                    await asyncio.to_thread(job.start if found.queued else job.finish)
                # Then the watcher receives all changes
                assert seen == [State.QUEUED, State.WORKING, State.COMPLETED]
                assert await aio.StatusRegistry.get(job.message_id, backend=backend).finished

            in_loop(main)

    def test_watch_on_a_cluster(self, redis_cluster: RedisCluster) -> None:
        # Given a cluster, and messages on all nodes
        redis_cluster.reset()
        with closing(RedisBackend(cluster_nodes=redis_cluster.addresses, timeout=20_000)) as backend:
            backend.recheck_interval = NEVER
            backend.poll_interval = (NEVER, NEVER)
            work = [Job(backend).enqueue() for _ in range(50)]

            async def main() -> None:
                watchers = [asyncio.create_task(last_of(job, backend)) for job in work]
                nodes = [redis_cluster.client(number) for number in range(3)]
                await until(lambda: [n for node in nodes for c in node.client_list() if (n := int(c["sub"]))] == [50])
                # When they run and end
                await asyncio.to_thread(lambda: [job.start().finish() for job in work])
                # Then the one node to which the loop has subscribed publishes all changes
                assert all(found.completed for found in await asyncio.gather(*watchers))
                assert await aio.StatusRegistry.count(backend=backend) == 50
                await aio.StatusRegistry.progress(work[0].message_id, backend=backend).increment()
                assert await aio.StatusRegistry.delete(work[0].message_id, backend=backend)

            in_loop(main)


class TestClosing:
    def test_watchers_raise_when_the_backend_is_closed(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given a watcher of one message, and a watcher of a batch
        job = Job(jobs).enqueue()

        async def main() -> None:
            watching = asyncio.create_task(last_of(job, backend))
            batch = aio.StatusRegistry.batch([job.message_id], backend=backend)
            waiting = asyncio.create_task(batch.wait())
            await until(lambda: connections(jobs) == {"listens": 1, "asks": 1})
            # When the backend is closed
            await aio.close(backend=backend)
            await aio.close(backend=backend)
            # Then both watchers raise BackendError
            for task in (watching, waiting):
                with pytest.raises(BackendError, match="closed"):
                    await task
            await until(lambda: not connections(jobs))
            # And the backend can be used again
            job.finish()
            assert (await last_of(job, backend)).completed

        in_loop(main)

    @pytest.mark.parametrize(
        "body",
        [
            "await watch()",
            "task = asyncio.create_task(watch()); await asyncio.sleep(0.2)",
            "found = aio.StatusRegistry.watch('m', backend=backend); await anext(found); await asyncio.sleep(0.1)",
            "async for _ in aio.StatusRegistry.watch('m', backend=backend): break",
            "await asyncio.gather(*(read() for _ in range(100)))",
            "task = asyncio.create_task(read()); await asyncio.sleep(0)",
            "await read(); task = asyncio.create_task(read())",
            "await read(); await aio.close(backend=backend)",
            "await read(); server.kill()",
            "task = asyncio.create_task(watch()); await asyncio.sleep(0.2); server.kill(); await asyncio.sleep(0.2)",
            "server.kill()\n    try:\n        await read()\n    except BackendError:\n        pass",
        ],
    )
    def test_scripts_end_without_warnings(self, body: str) -> None:
        # Given a script that watches and reads, and ends
        script = textwrap.dedent(
            """
            import asyncio, gc
            from dramatiq_status import BackendError, StatusTimeout, aio
            from dramatiq_status.backends import RedisBackend
            from tests.jobs import Job
            from tests.servers import RedisServer

            async def watch():
                try:
                    await aio.StatusRegistry.wait("m", timeout=300, backend=backend)
                except (StatusTimeout, BackendError):
                    # On a busy machine, the first read may come after the end of the server.
                    pass

            async def read():
                await aio.StatusRegistry.read("m", backend=backend)

            async def main():
                # On a busy machine, asyncio would warn of slow callbacks.
                asyncio.get_running_loop().slow_callback_duration = 60
                BODY

            with RedisServer() as server:
                backend = RedisBackend(url=server.url, timeout=20_000)
                Job(backend, "m").enqueue()
                asyncio.run(main(), debug=True)
                gc.collect()
                backend.close()
            """
        ).replace("BODY", body)
        # When it runs with all warnings on
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-W", "always", "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE * 3,
        )
        # Then there is no warning
        assert (done.returncode, done.stderr) == (0, "")

    def test_event_loops_that_were_closed_without_notice(self, jobs: RedisBackend, backend: RedisBackend) -> None:
        # Given event loops that were closed without shutdown_asyncgens
        job = Job(jobs).enqueue()
        for _ in range(3):
            loop = asyncio.new_event_loop()
            assert loop.run_until_complete(aio.StatusRegistry.read(job.message_id, backend=backend))
            loop.run_until_complete(aio.close(backend=backend))
            loop.close()
        # When another loop begins
        # Then reads in this loop work, and reads outside of a loop, too
        assert in_loop(lambda: aio.StatusRegistry.read(job.message_id, backend=backend))
        assert StatusRegistry.read(job.message_id, backend=jobs)
