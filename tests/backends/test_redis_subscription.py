"""Tests of the changes that Redis publishes, and of subscriptions."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from dramatiq.middleware import TimeLimitExceeded
from dramatiq.threading import raise_thread_exception

from dramatiq_status import BackendError, StatusRegistry
from dramatiq_status.backends import MemcachedBackend, RedisBackend, StubBackend
from dramatiq_status.backends.redis import subscription as redis_subscription
from dramatiq_status.backends.redis.subscription import RedisSubscription

from ..conftest import StartServer
from ..jobs import Job
from ..recording import PATIENCE, eventually
from ..servers import RedisServer


@pytest.fixture
def backend(redis_url: str) -> Iterator[RedisBackend]:
    with closing(RedisBackend(url=redis_url, timeout=20_000)) as backend:
        yield backend


@pytest.fixture
def job(backend: RedisBackend) -> Job:
    return Job(backend).enqueue()


@pytest.fixture
def subscription(backend: RedisBackend, job: Job) -> Iterator[RedisSubscription]:
    with closing(backend.subscribe((job.message_id,))) as subscription:
        yield subscription


def version(job: Job) -> int:
    snapshot = StatusRegistry.read(job.message_id, backend=job.backend)
    assert snapshot is not None
    return snapshot.version


def heard_in_all(subscription: RedisSubscription, message_id: str, until: int) -> list[int]:
    """Receive the versions of a message up to a given one."""
    versions = []
    while not versions or versions[-1] != until:
        heard = subscription.wait(PATIENCE)
        assert set(heard) == {message_id}, heard
        versions.append(heard[message_id])
    return versions


def test_every_change_is_published(job: Job, subscription: RedisSubscription) -> None:
    # Given a subscription to a message
    # When anything is done to it
    steps = [
        job.start,
        lambda: job.write(step="a"),
        lambda: StatusRegistry.progress(job.message_id, backend=job.backend).increment(),
        lambda: StatusRegistry.get(job.message_id, backend=job.backend).update(step="b"),
        job.requeue,
        job.start,
        job.finish,
    ]
    for step in steps:
        step()
        # Then its new version is told
        assert subscription.wait(PATIENCE) == {job.message_id: version(job)}


def test_many_changes_are_received_as_few_versions(job: Job, subscription: RedisSubscription) -> None:
    # Given a message that one listens to
    # When much happens before anybody asks
    for n in range(100):
        job.write(n=n) if n else job.start()
    # Then it is told of in few answers, the last being the newest
    versions = heard_in_all(subscription, job.message_id, version(job))
    assert versions == sorted(versions) and len(versions) < 100


def test_a_delete_is_received(job: Job, subscription: RedisSubscription) -> None:
    # Given a message that one listens to
    # When it is deleted
    job.backend.delete(job.message_id)
    # Then that is told
    assert subscription.wait(PATIENCE) == {job.message_id: 0}


def test_a_heartbeat_is_not_published(job: Job, subscription: RedisSubscription) -> None:
    # Given a message that runs
    job.start()
    subscription.wait(PATIENCE)
    # When its worker sends a heartbeat, and then a field
    job.beat().write(step="a")
    # Then only the other is told
    assert subscription.wait(PATIENCE) == {job.message_id: version(job)}
    assert subscription.wait(0) == {}


def test_many_messages(backend: RedisBackend) -> None:
    # Given many messages that one listens to, and one more
    jobs = [Job(backend).enqueue() for _ in range(50)]
    other = Job(backend).enqueue()
    with closing(backend.subscribe([job.message_id for job in jobs])) as subscription:
        # When something happens to all
        for job in [other, *jobs]:
            job.start()
        # Then it is told of each that was asked for
        heard: dict[str, int] = {}
        while len(heard) < len(jobs):
            heard |= subscription.wait(PATIENCE)
        assert heard == {job.message_id: version(job) for job in jobs}


def test_nothing_happens(subscription: RedisSubscription) -> None:
    # Given a message to which nothing happens
    # When one listens for a moment
    # Then nothing was heard
    assert subscription.wait(0.01) == {}
    assert subscription.wait(0) == {}


def test_namespaces(redis_url: str, job: Job, subscription: RedisSubscription) -> None:
    # Given a message of the same id in another namespace
    with closing(RedisBackend(url=redis_url, namespace="other")) as other:
        # When it changes
        Job(other, job.message_id).enqueue()
    # Then those who listen to the one do not hear of the other
    job.start()
    assert subscription.wait(PATIENCE) == {job.message_id: version(job)}


def test_a_text_of_another_program_on_the_channel_is_version_0(
    backend: RedisBackend, job: Job, subscription: RedisSubscription
) -> None:
    # Given another program that publishes a text that is no version
    # When it is heard
    backend.client.publish(f"{backend.namespace}:{job.message_id}", "hello")
    # Then the change is received with version 0, so that the watcher reads
    assert subscription.wait(PATIENCE) == {job.message_id: 0}


def test_a_lost_connection(backend: RedisBackend, subscription: RedisSubscription) -> None:
    # Given a subscription
    # When the server closes the connection
    backend.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    # Then that is said
    with pytest.raises(BackendError, match="Redis"):
        subscription.wait(PATIENCE)


def test_a_server_that_hangs(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given somebody who listens to a server, and asks a silent one soon
    monkeypatch.setattr(redis_subscription, "PING_AFTER", 0.02)
    server = start_server(RedisServer())
    with closing(RedisBackend(url=server.url, timeout=2_000)) as backend:
        job = Job(backend).enqueue()
        with closing(backend.subscribe((job.message_id,))) as subscription:
            # When it is silent, but there
            assert subscription.wait(0.1) == {}
            # Then what it tells later is heard
            job.start()
            assert subscription.wait(PATIENCE) == {job.message_id: version(job)}
            # And when it hangs, that is noticed
            server.pause()
            with pytest.raises(BackendError, match="does not answer any more"):
                subscription.wait(PATIENCE)


def test_a_server_that_is_away(start_server: StartServer) -> None:
    # Given a server that has ended
    server = start_server(RedisServer())
    with closing(RedisBackend(url=server.url)) as backend:
        server.kill()
        # When one wants to listen
        # Then that is said
        with pytest.raises(BackendError, match="Redis"):
            backend.subscribe(("m",))


def test_a_login_that_may_not_listen(start_server: StartServer) -> None:
    # Given a user who must not subscribe
    server = start_server(RedisServer())
    with closing(RedisBackend(url=server.url)) as backend:
        backend.client.execute_command("ACL", "SETUSER", "poor", "on", "nopass", "~*", "+@all", "-subscribe")
    url = server.url.replace("redis://", "redis://poor:x@")
    # When it wants to listen
    # Then that is said
    with closing(RedisBackend(url=url)) as backend, pytest.raises(BackendError, match="subscribe"):
        backend.subscribe(("m",))


def test_closing(backend: RedisBackend, subscription: RedisSubscription) -> None:
    # Given somebody who listens
    def listening() -> int:
        return sum(int(client["sub"]) for client in backend.client.client_list())

    assert listening() == 1
    # When it hears no more
    subscription.close()
    # Then the connection is gone
    eventually(lambda: listening() == 0)


def test_listening_in_a_thread(job: Job, subscription: RedisSubscription) -> None:
    # Given a thread that listens
    heard: list[dict[str, int]] = []
    thread = threading.Thread(target=lambda: heard.append(subscription.wait(PATIENCE)))
    thread.start()
    # When something happens
    job.start()
    # Then it wakes
    thread.join(PATIENCE)
    assert heard == [{job.message_id: version(job)}]


def test_an_interrupt(subscription: RedisSubscription, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a thread that listens, and would do so for an hour
    monkeypatch.setattr(redis_subscription, "PING_AFTER", 3_600)
    begun, ended = threading.Event(), threading.Event()

    def listen() -> None:
        begun.set()
        try:
            subscription.wait(3_600)
        except TimeLimitExceeded:
            ended.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert begun.wait(PATIENCE)
    # When its time limit strikes
    assert thread.ident is not None
    raise_thread_exception(thread.ident, TimeLimitExceeded)
    # Then it ends
    assert ended.wait(PATIENCE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_cannot_use_the_subscription(job: Job, subscription: RedisSubscription) -> None:
    # Given somebody who listens
    # When the process forks, and the child tries to, and closes what it has
    if (child := os.fork()) == 0:
        try:
            subscription.wait(PATIENCE)
        except BackendError:
            subscription.close()
            os._exit(0)
        finally:
            os._exit(1)
    # Then the call in the child raises BackendError
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # And the parent hears what it heard before
    job.start()
    assert subscription.wait(PATIENCE) == {job.message_id: version(job)}


def test_backends_without_subscriptions_return_none(memcached_url: str) -> None:
    # Given stores without subscriptions
    with closing(MemcachedBackend(servers=memcached_url.removeprefix("memcached://"))) as memcached:
        # When they are asked to
        # Then subscribe() returns None
        assert memcached.subscribe(("m",)) is None
        assert StubBackend().subscribe(("m",)) is None
