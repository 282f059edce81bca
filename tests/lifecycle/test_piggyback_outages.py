"""Outages of the Redis that has both the broker's queues and the statuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries

from dramatiq_status import (
    BackendError,
    Cancellation,
    StatusMiddleware,
    StatusRegistry,
    current_progress,
    current_status,
)
from dramatiq_status.backends import RedisBackend
from dramatiq_status.snapshot import Snapshot
from dramatiq_status.update import Kind, Update

from ..conftest import started
from ..proxy import Proxy
from ..recording import PATIENCE, eventually, raised_by, working
from ..servers import RedisServer

#: Milliseconds that a call of the backend may take.  The broker's own calls have no time-out.
TIMEOUT = 500


@pytest.fixture(scope="module")
def lasting_server() -> Iterator[RedisServer]:
    """Yield a Redis that keeps its data while it is stopped, and that can save a snapshot."""
    with started(RedisServer("--appendonly", "yes", "--appendfsync", "always")) as server:
        yield server


@pytest.fixture
def site(lasting_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    lasting_server.reset()
    # Dramatiq waits for seconds before it tries a command again.
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.05)
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)
    found = Site(lasting_server)
    yield found
    found.close()


@dataclass
class Site:
    """A broker, and an actor whose jobs run until they may end."""

    server: RedisServer
    user: str = ""
    end: threading.Event = field(default_factory=threading.Event)
    running: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    done: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend = RedisBackend(url=self.url(self.user), timeout=TIMEOUT)
        retries = Retries(max_retries=1, min_backoff=1, max_backoff=2)
        self.broker = RedisBroker(client=self.backend.broker_client(), middleware=[retries], maintenance_chance=0)
        self.middleware = StatusMiddleware(backend=self.backend)
        self.broker.add_middleware(self.middleware)
        assert self.backend.update_attacher(self.broker) is not None
        # A client of its own, which looks at the server whatever befalls the broker's.
        self.admin = redis.Redis.from_url(self.server.url)
        self.reader = RedisBackend(url=self.server.url, timeout=20_000)
        tried: set[int] = set()

        @dramatiq.actor(broker=self.broker, queue_name=f"q-{uuid4()}")
        def work(n: int, wait: bool = False, fail: bool = False) -> None:
            current_progress().increment(n)
            self.running.release()
            if wait:
                assert self.end.wait(PATIENCE)
            current_status()["n"] = n
            self.done.append(n)
            if fail and n not in tried:
                tried.add(n)
                raise ValueError("on purpose")

        self.work = work

    def send(self, count: int, **arguments: bool) -> list[Any]:
        """Send messages until the statuses of all are stored, which takes a second time if a reply is late."""

        def send_all() -> list[Any] | None:
            self.broker.flush(self.work.queue_name)
            messages = [self.work.send(n, **arguments) for n in range(count)]
            return messages if self.states(messages) == ["queued"] * count else None

        return eventually(send_all)  # type: ignore[no-any-return]

    def url(self, user: str = "") -> str:
        return self.server.url.replace("//", f"//{user}@") if user else self.server.url

    def snapshots(self, messages: list[Any]) -> list[Snapshot | None]:
        return [self.reader.snapshot(message.message_id) for message in messages]

    def states(self, messages: list[Any]) -> list[str | None]:
        return [None if found is None else found.state.value for found in self.snapshots(messages)]

    def unfinished(self) -> int:
        """Return the number of messages that the broker still has."""
        name = self.work.queue_name
        return sum(int(self.admin.hlen(f"dramatiq:{queue}.msgs")) for queue in (name, f"{name}.DQ"))  # type: ignore[arg-type]

    def close(self) -> None:
        self.broker.close()
        self.backend.close()
        self.reader.close()
        self.admin.close()


# Outages of the server


def stop(site: Site) -> Callable[[], object]:
    site.server.stop()
    return site.server.start


def freeze(site: Site) -> Callable[[], object]:
    site.server.pause()
    return site.server.resume


def fill_memory(site: Site) -> Callable[[], object]:
    site.admin.config_set("maxmemory", 1)
    return lambda: site.admin.config_set("maxmemory", 0)


def fill_disk(site: Site) -> Callable[[], object]:
    # The server cannot put its snapshot in the place of a directory, and then takes no writes.
    blocker = site.server.directory / "dump.rdb"
    blocker.unlink(missing_ok=True)
    (blocker / "blocker").mkdir(parents=True)
    site.admin.config_set("save", "3600 1")
    site.admin.bgsave()
    eventually(lambda: site.admin.info("persistence")["rdb_last_bgsave_status"] == "err")

    def mend() -> None:
        site.admin.config_set("save", "")
        (blocker / "blocker").rmdir()
        blocker.rmdir()

    return mend


def lose_leadership(site: Site) -> Callable[[], object]:
    site.admin.replicaof("127.0.0.1", "1")
    return lambda: site.admin.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (stop, redis.ConnectionError),
        (freeze, None),
        (fill_memory, redis.ResponseError),
        (fill_disk, redis.ResponseError),
        (lose_leadership, redis.ReadOnlyError),
    ],
)
def test_jobs_run_to_their_end_in_an_outage_of_the_one_server(
    site: Site, fault: Callable[[Site], Callable[[], object]], error: type[Exception] | None
) -> None:
    with ExitStack() as stack, working(site.broker, threads=3):
        stack.callback(site.end.set)
        # Given running jobs
        messages = [site.work.send(n, wait=True) for n in (1, 2, 3)]
        for _ in messages:
            assert site.running.acquire(timeout=PATIENCE)
        eventually(lambda: site.states(messages) == ["working"] * 3)
        # When the server stops, hangs or refuses writes
        mend = fault(site)
        stack.callback(mend)
        # And a message is sent, then the sender gets the broker's error, or waits
        refused = site.work.message(7)
        if error is None:
            sender = threading.Thread(target=site.broker.enqueue, args=(refused,))
            sender.start()
        else:
            with pytest.raises(error):
                site.broker.enqueue(refused)
        # And the jobs run to their end
        site.end.set()
        eventually(lambda: sorted(site.done) == [1, 2, 3])
        # When the server works again
        mend()
        stack.pop_all()
        # Then all statuses are right
        eventually(lambda: site.states(messages) == ["completed"] * 3)
        shown = [found and (found["n"], found["progress"], found.attempts) for found in site.snapshots(messages)]
        assert shown == [(1, 1, 1), (2, 2, 1), (3, 3, 1)]
        # And refused messages are unknown, and messages that have waited are not
        if error is None:
            sender.join(PATIENCE)
            eventually(lambda: site.states([refused]) == ["completed"])
        else:
            assert site.states([refused]) == [None]
        # And statuses are sent with the broker's commands again
        last = site.work.send(9)
        eventually(lambda: site.states([last]) == ["completed"])
        eventually(lambda: site.backend.update_attacher(site.broker) and not site.middleware.health().down_since)
        if error in (redis.ConnectionError, None):
            # Dramatiq acknowledges again only after errors of connections.
            eventually(lambda: not site.unfinished())


class Slow(Proxy):
    """A proxy that delays each request."""

    def on_request(self, data: bytes) -> None:
        time.sleep(0.1)


@pytest.mark.parametrize("begins", [True, False], ids=["start sent before", "at once"])
def test_final_states_are_sent_with_the_commands_of_a_broker_that_is_slower_than_the_backend_waits(
    site: Site, begins: bool
) -> None:
    # Given a server that has the scripts, and answers all calls of the backend too late. The broker's have no time-out
    site.reader.update("m", Update(Kind.HEARTBEAT))
    with Slow(site.server.port) as proxy, ExitStack() as stack:
        backend = RedisBackend(url=f"redis://127.0.0.1:{proxy.port}/0", timeout=20)
        stack.callback(backend.close)
        middleware = StatusMiddleware(backend=backend)
        broker = RedisBroker(client=backend.broker_client(), middleware=[middleware])
        stack.callback(broker.close)
        end = threading.Event()

        @dramatiq.actor(broker=broker, queue_name=site.work.queue_name)
        def work() -> None:
            current_status()["n"] = 7
            if begins:
                current_status().flush()
                eventually(lambda: middleware.health().down_since)
                current_status()["n"] = 8
            assert end.wait(PATIENCE)

        message = work.send()
        with working(broker, threads=1):
            stack.callback(end.set)
            eventually(lambda: middleware.health().down_since)
            # When a job ends
            end.set()
            eventually(lambda: not site.unfinished())
            # Then its final state is stored when the broker has the acknowledgement
            (found,) = site.snapshots([message])
            assert found is not None and found.completed and found["n"] == (8 if begins else 7)


def test_an_outage_ends_although_the_writer_has_nothing_to_send(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a worker after a failed call, whose updates were then sent with a command of the broker
    message = site.work.message(1, wait=True)
    update_many, failures = site.backend.update_many, [BackendError("on purpose")]

    def fail_once(updates: Any) -> Any:
        if failures:
            # The job ends before the writer tries again.
            site.end.set()
            raise failures.pop()
        return update_many(updates)

    with working(site.broker, threads=1):
        monkeypatch.setattr(site.backend, "update_many", fail_once)
        site.broker.enqueue(message)
        eventually(lambda: site.states([message]) == ["completed"])
        # When the worker has no further job
        # Then it finds that the store answers
        assert eventually(lambda: site.middleware.health().up)
        # And a message that is cancelled now does not run
        waiting = site.work.message(2)
        site.broker.enqueue(waiting, delay=1500)
        assert StatusRegistry.cancel(waiting, broker=site.broker) is Cancellation.CANCELLED
        eventually(lambda: not site.unfinished())
    assert site.done == [1]


# Statuses that the server refuses while it takes the broker's commands


def test_a_user_who_may_not_write_statuses_loses_no_job(site: Site) -> None:
    # Given a worker whose user may use the broker's keys alone
    site.admin.acl_setuser(
        "blind", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["dramatiq", "dramatiq:*"]
    )
    blind = Site(site.server, user="blind:secret")
    try:
        with working(blind.broker, threads=2):
            # When jobs are sent and run, one of them twice
            messages = [blind.work.send(n, fail=n == 1) for n in range(5)]
            eventually(lambda: len(blind.done) == 6 and not blind.unfinished())
            # Then the broker has no message left, and no status is stored
            assert sorted(blind.done) == [0, 1, 1, 2, 3, 4]
            assert site.states(messages) == [None] * 5
            # When the user may write statuses, the statuses of further jobs are stored
            site.admin.acl_setuser("blind", enabled=True, keys=["dramatiq-status*"], categories=["+@all"])
            eventually(lambda: blind.backend.update_attacher(blind.broker) and not blind.middleware.health().down_since)
            later = [blind.work.send(n) for n in range(5)]
            eventually(lambda: site.states(later) == ["completed"] * 5)
    finally:
        blind.close()
        site.admin.acl_deluser("blind")


def test_a_key_that_holds_no_status_stops_no_job(site: Site) -> None:
    # Given messages, and a value of another kind at the key of one message's status
    messages = site.send(4, fail=True)
    (key,) = [key for key in site.admin.keys("dramatiq-status*") if messages[1].message_id.encode() in key]
    site.admin.delete(key)
    site.admin.set(key, "not a status")
    # When they run, each of them twice
    with working(site.broker, threads=2):
        eventually(lambda: len(site.done) == 8 and not site.unfinished())
        # Then the broker has no message left, and all messages have their statuses
        assert site.states(messages) == ["completed"] * 4
        assert [found and found.attempts for found in site.snapshots(messages)] == [2] * 4


# Enqueues that end in an error


def test_a_message_that_the_server_takes_after_the_time_out_has_its_status(site: Site) -> None:
    # Given a broker whose calls have a time-out, and a server that is frozen
    backend = RedisBackend(url=f"{site.url()}?socket_timeout=0.3", timeout=TIMEOUT)
    broker = RedisBroker(client=backend.broker_client(), middleware=[StatusMiddleware(backend=backend)])

    @dramatiq.actor(broker=broker, queue_name=site.work.queue_name)
    def work() -> None: ...

    message, refused = work.message(), work.message()

    def send() -> bool:
        error = raised_by(lambda: broker.enqueue(message))
        assert error is None or isinstance(error, redis.TimeoutError)
        return error is None and site.states([message]) == ["queued"]

    # (The message is sent again if a reply is late, so the broker may have it twice.)
    eventually(send)
    before = site.unfinished()
    site.server.pause()
    # When a message is sent, and the server carries out its transaction after the sender has got the error
    with pytest.raises(redis.TimeoutError):
        broker.enqueue(refused)
    site.server.resume()
    # Then the broker has it, and it is shown as queued
    eventually(lambda: site.unfinished() == before + 1)
    assert site.states([message, refused]) == ["queued", "queued"]
    broker.close()
    backend.close()


def test_a_message_that_is_refused_after_its_status_is_unknown(site: Site) -> None:
    def states_of_a_refused_message() -> list[str | None]:
        # Given a server that has the scripts, and a queue at whose key is a value of another kind, so that the broker's
        # command fails in the transaction
        site.send(1)
        site.admin.set(f"dramatiq:{site.work.queue_name}", "not a queue")
        message = site.work.message(1)
        # When a message is sent
        with pytest.raises(redis.ResponseError):
            site.broker.enqueue(message)
        # Then it is unknown
        states = site.states([message])
        # When the queue is as before, and the same message is sent, then it waits
        site.admin.delete(f"dramatiq:{site.work.queue_name}")
        site.broker.enqueue(message)
        return states + site.states([message])

    # (The status of the refused message stays if the reply about its withdrawal is late.)
    eventually(lambda: states_of_a_refused_message() == [None, "queued"])


@pytest.mark.parametrize("moment", ["in the transaction", "before it"])
def test_a_message_of_a_job_that_is_refused_after_its_status_is_unknown(site: Site, moment: str) -> None:
    # Given a worker, and a message that its job sends and the server refuses, before or in the transaction
    site.admin.acl_setuser("worker", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"])
    worker = Site(site.server, user="worker:secret")
    child, other = worker.work.message(7), f"q-{uuid4()}"
    child = child.copy(queue_name=other)
    errors: list[Exception] = []

    @dramatiq.actor(broker=worker.broker, queue_name=f"q-{uuid4()}")
    def send() -> None:
        if moment == "before it":
            site.admin.acl_setuser("worker", enabled=True, reset_keys=True, keys=["dramatiq-status*"])
        else:
            site.admin.set(f"dramatiq:{other}", "not a queue")
        try:
            worker.broker.enqueue(child)
        except redis.ResponseError as e:
            errors.append(e)
        finally:
            site.admin.acl_setuser("worker", enabled=True, keys=["*"], categories=["+@all"])

    try:
        # When it runs
        with working(worker.broker, threads=1):
            parent = send.send()
            eventually(lambda: site.states([parent]) == ["completed"])
        # Then the job is completed, and its message is unknown
        assert len(errors) == 1
        assert site.states([parent, child]) == ["completed", None]
    finally:
        worker.close()
        site.admin.acl_deluser("worker")
