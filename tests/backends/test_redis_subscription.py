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
from ..recording import PATIENCE, answered, eventually
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
    # When it is updated in each way
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
        # Then the subscription receives each new version
        assert subscription.wait(PATIENCE) == {job.message_id: version(job)}


def test_many_changes_are_received_as_few_versions(job: Job, subscription: RedisSubscription) -> None:
    # Given a subscription to a message
    # When the message changes many times before a call of wait()
    for n in range(100):
        job.write(n=n) if n else job.start()
    # Then few calls receive all changes, the newest version last
    versions = heard_in_all(subscription, job.message_id, version(job))
    assert versions == sorted(versions) and len(versions) < 100


def test_a_delete_is_received(job: Job, subscription: RedisSubscription) -> None:
    # Given a subscription to a message
    # When the message is deleted
    job.backend.delete(job.message_id)
    # Then the subscription receives that
    assert subscription.wait(PATIENCE) == {job.message_id: 0}


def test_a_heartbeat_is_not_published(job: Job, subscription: RedisSubscription) -> None:
    # Given a message that runs
    job.start()
    subscription.wait(PATIENCE)
    # When its worker sends a heartbeat, and then a field
    job.beat().write(step="a")
    # Then the subscription receives only the change of the field
    assert subscription.wait(PATIENCE) == {job.message_id: version(job)}
    assert subscription.wait(0) == {}


def test_a_subscription_receives_changes_of_its_messages_alone(backend: RedisBackend) -> None:
    # Given a subscription to many messages, and another message
    jobs = [Job(backend).enqueue() for _ in range(50)]
    other = Job(backend).enqueue()
    with closing(backend.subscribe([job.message_id for job in jobs])) as subscription:
        # When all of them change
        for job in [other, *jobs]:
            job.start()
        # Then the subscription receives the changes of its own messages alone
        heard: dict[str, int] = {}
        while len(heard) < len(jobs):
            heard |= subscription.wait(PATIENCE)
        assert heard == {job.message_id: version(job) for job in jobs}


def test_a_wait_without_a_change_returns_an_empty_dict(subscription: RedisSubscription) -> None:
    # Given a subscription to a message that does not change
    # When wait() waits for a moment
    # Then it returns no change
    assert subscription.wait(0.01) == {}
    assert subscription.wait(0) == {}


def test_changes_in_another_namespace_are_not_received(
    redis_url: str, job: Job, subscription: RedisSubscription
) -> None:
    # Given a message with the same id in another namespace
    with closing(RedisBackend(url=redis_url, namespace="other", timeout=20_000)) as other:
        # When that message changes
        Job(other, job.message_id).enqueue()
    # Then the subscription receives no change
    job.start()
    assert subscription.wait(PATIENCE) == {job.message_id: version(job)}


def test_a_text_of_another_program_on_the_channel_is_version_0(
    backend: RedisBackend, job: Job, subscription: RedisSubscription
) -> None:
    # Given another program that publishes a text that is no version
    # When the text is received
    backend.client.publish(f"{backend.namespace}:{job.message_id}", "hello")
    # Then the change is received with version 0, so that the watcher reads
    assert subscription.wait(PATIENCE) == {job.message_id: 0}


def test_a_lost_connection_raises(backend: RedisBackend, subscription: RedisSubscription) -> None:
    # Given a subscription
    # When the server closes the connection
    backend.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    # Then the call raises BackendError
    with pytest.raises(BackendError, match="Redis"):
        subscription.wait(PATIENCE)


def test_a_server_that_hangs_raises(start_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a subscription that soon pings a server that is silent
    monkeypatch.setattr(redis_subscription, "PING_AFTER", 0.02)
    server = start_server(RedisServer())
    with (
        closing(RedisBackend(url=server.url, timeout=2_000)) as backend,
        closing(RedisBackend(url=server.url, timeout=20_000)) as patient,
    ):
        job = Job(patient).enqueue()
        with closing(answered(lambda: backend.subscribe((job.message_id,)))) as subscription:
            # When the server runs, but is silent
            assert subscription.wait(0.1) == {}
            # Then later changes are received
            job.start()
            assert subscription.wait(PATIENCE) == {job.message_id: version(job)}
            # And when the server hangs, the call raises BackendError
            server.pause()
            with pytest.raises(BackendError, match="does not answer any more"):
                subscription.wait(PATIENCE)


def test_a_server_that_is_down_raises(start_server: StartServer) -> None:
    # Given a server that has ended
    server = start_server(RedisServer())
    with closing(RedisBackend(url=server.url)) as backend:
        server.kill()
        # When a subscription begins
        # Then the call raises BackendError
        with pytest.raises(BackendError, match="Redis"):
            backend.subscribe(("m",))


def test_a_user_without_the_right_to_subscribe_raises(start_server: StartServer) -> None:
    # Given a user without the right to subscribe
    server = start_server(RedisServer())
    with closing(RedisBackend(url=server.url, timeout=20_000)) as backend:
        backend.client.execute_command("ACL", "SETUSER", "poor", "on", "nopass", "~*", "+@all", "-subscribe")
    url = server.url.replace("redis://", "redis://poor:x@")
    # When the backend subscribes
    # Then the call raises BackendError
    with closing(RedisBackend(url=url, timeout=20_000)) as backend, pytest.raises(BackendError, match="subscribe"):
        backend.subscribe(("m",))


def test_close_closes_the_connection(backend: RedisBackend, subscription: RedisSubscription) -> None:
    # Given a subscription
    def listening() -> int:
        return sum(int(client["sub"]) for client in backend.client.client_list())

    assert listening() == 1
    # When the subscription is closed
    subscription.close()
    # Then its connection is closed
    eventually(lambda: listening() == 0)


def test_a_thread_waits_for_changes(job: Job, subscription: RedisSubscription) -> None:
    # Given a thread that waits for changes
    heard: list[dict[str, int]] = []
    thread = threading.Thread(target=lambda: heard.append(subscription.wait(PATIENCE)))
    thread.start()
    # When the message changes
    job.start()
    # Then the thread continues
    thread.join(PATIENCE)
    assert heard == [{job.message_id: version(job)}]


def test_an_interrupt_ends_a_wait(subscription: RedisSubscription, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a thread that waits for changes for up to an hour
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
    # When an interrupt strikes it
    assert thread.ident is not None
    raise_thread_exception(thread.ident, TimeLimitExceeded)
    # Then the thread ends
    assert ended.wait(PATIENCE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_cannot_use_the_subscription(job: Job, subscription: RedisSubscription) -> None:
    # Given a subscription
    # When the process forks, and the child calls wait() and closes its copy
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
    # And the parent still receives changes
    job.start()
    assert subscription.wait(PATIENCE) == {job.message_id: version(job)}


def test_backends_without_subscriptions_return_none(memcached_url: str) -> None:
    # Given stores without subscriptions
    with closing(MemcachedBackend(servers=memcached_url.removeprefix("memcached://"))) as memcached:
        # When a caller subscribes
        # Then subscribe() returns None
        assert memcached.subscribe(("m",)) is None
        assert StubBackend().subscribe(("m",)) is None
