"""Every scenario with statuses that are sent with the commands of the broker, and what that costs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, Shutdown, TimeLimitExceeded
from redis.backoff import NoBackoff
from redis.retry import Retry

from dramatiq_status import StatusMiddleware
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend
from dramatiq_status.backends.redis.connection import Connection
from dramatiq_status.writer import Writer

from ..conftest import StartServer
from ..proxy import BUFFER, Proxy
from ..recording import eventually, start_worker
from ..servers import RedisServer
from .crew import ROOT
from .recorder import RecordingRedisBackend
from .scenarios import DONE, RETRIED, SCENARIOS, End, Scenario
from .stage import Stage
from .test_interrupts import Aim, Case, Struck, strikes
from .test_scenarios import check_scenario, end_of


@pytest.fixture(
    scope="module",
    params=[("last", True), ("last", False), ("first", True)],
    ids=["last", "last-no-retries", "first"],
)
def stage(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Stage]:
    """Yield one stage and its worker for all scenarios; each scenario reads its own messages only."""
    position, retries = request.param
    backend = RecordingRedisBackend(url=redis_server.url, namespace=f"s-{uuid4()}", timeout=20_000)
    stage = Stage(redis_server.url, backend, position=position, name=f"q-{uuid4()}", retries=retries, piggyback=True)
    with stage.working():
        yield stage
    stage.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_readers_see_the_states_of_each_scenario(stage: Stage, scenario: Scenario) -> None:
    # A message that another middleware refused has no status.
    check_scenario(stage, scenario, refused=End("", 0))


# Round trips


def make_broker(url: str, *, namespace: str = "dramatiq-status", piggyback: bool = True) -> RedisBroker:
    backend = RedisBackend(url=url, namespace=namespace, timeout=20_000)
    broker = RedisBroker(**({"client": backend.broker_client()} if piggyback else {"url": url}))
    broker.add_middleware(StatusMiddleware(backend=backend, heartbeat_interval=3_600_000))
    return broker


def backend_of(broker: dramatiq.Broker) -> StatusBackend:
    return next(found.backend for found in broker.middleware if isinstance(found, StatusMiddleware))


def state_of(broker: dramatiq.Broker, message: dramatiq.Message[Any]) -> str | None:
    snapshot = backend_of(broker).snapshot(message.message_id)
    return None if snapshot is None else snapshot.state


class Done(Middleware):
    """Middleware that counts the messages that were acknowledged or rejected."""

    def __init__(self) -> None:
        self.count = 0

    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self.count += 1

    after_nack = after_ack


class InterruptOnce(Middleware):
    """Middleware that interrupts the first enqueue of an actor, as a shut-down does."""

    is_over = False

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        if message.actor_name == "child" and not self.is_over:
            self.is_over = True
            raise Shutdown


def test_an_interrupted_enqueue_holds_up_no_later_one(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job whose enqueue is interrupted before the broker gets the message
    broker = make_broker(redis_server.url, namespace=f"i-{uuid4()}")
    broker.add_middleware(InterruptOnce())
    waits: list[Any] = []

    @dramatiq.actor(broker=broker)
    def child() -> None: ...

    @dramatiq.actor(broker=broker)
    def parent() -> None:
        with suppress(Shutdown):
            child.send()
        # When it sends a message without a status
        wait = Writer.wait
        monkeypatch.setattr(Writer, "wait", lambda *args: waits.append(args) or wait(*args))
        child.send_with_options(track_status=False)
        monkeypatch.undo()
        waits.append("sent")

    message = parent.send()
    worker = start_worker(broker, threads=1)
    eventually(lambda: state_of(broker, message) == "completed")
    worker.stop()
    # Then that message waits for no reply
    assert waits == ["sent"]


def test_a_job_takes_the_round_trips_that_it_takes_without_tracking(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server without other clients, and jobs that are short on any machine
    monkeypatch.setattr("dramatiq_status.deliveries._START_AFTER", 60.0)
    redis_url = start_server(RedisServer()).url
    broker = make_broker(redis_url)
    done = Done()
    broker.add_middleware(done)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    admin = redis.Redis.from_url(redis_url)

    def reads() -> int:
        return int(admin.info("stats")["total_reads_processed"])

    # When messages are sent, after the first one has loaded the scripts
    work.send()
    before = reads()
    messages = [work.send() for _ in range(50)]
    # Then each takes one round trip; the other one is of the command that counts them
    assert reads() - before == 51
    # When they are processed
    before = reads()
    fetches = admin.info("commandstats")["cmdstat_evalsha"]["calls"]
    worker = start_worker(broker, threads=4)
    try:
        eventually(lambda: done.count == 51)
    finally:
        worker.stop()
    # Then each takes one more, besides those with which the broker fetches
    fetches = admin.info("commandstats")["cmdstat_evalsha"]["calls"] - fetches - 2 * 51
    connects = reads() - before - 51 - fetches - 3
    assert 0 <= connects <= 4 * (4 + 2), connects
    assert {state_of(broker, message) for message in messages} == {"completed"}
    broker.close()


def test_a_job_that_takes_longer_is_shown_at_once(redis_url: str) -> None:
    # Given a job that writes nothing
    broker = make_broker(redis_url)
    end = threading.Event()

    @dramatiq.actor(broker=broker)
    def work() -> None:
        assert end.wait(30)

    message = work.send()
    worker = start_worker(broker, threads=1)
    try:
        # When it runs, it is shown as working, and when it has ended, as completed
        eventually(lambda: state_of(broker, message) == "working")
        end.set()
        eventually(lambda: state_of(broker, message) == "completed")
    finally:
        worker.stop()


# The broker and the store have the message, or neither has it


def test_a_message_that_the_broker_refuses_leaves_no_status(redis_server: RedisServer, redis_url: str) -> None:
    # Given a broker whose user may write statuses, and no queues
    admin = redis.Redis.from_url(redis_url)
    admin.acl_setuser(
        "sender", enabled=True, passwords=["+secret"], keys=["dramatiq-status*"], categories=["+@all", "-@dangerous"]
    )
    try:
        broker = make_broker(f"redis://sender:secret@127.0.0.1:{redis_server.port}/0")

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        message = work.message()
        # When a message is sent
        with pytest.raises(redis.ResponseError):
            broker.enqueue(message)
        # Then it is unknown
        assert state_of(broker, message) is None
    finally:
        admin.acl_deluser("sender")


def test_a_user_without_rights_to_transactions_or_to_statuses_can_still_send(
    redis_server: RedisServer, redis_url: str
) -> None:
    # Given users who may not open transactions, or may not write statuses
    admin = redis.Redis.from_url(redis_url)
    users = {
        "plain": (["+@all", "-multi", "-@dangerous"], ["dramatiq*"]),
        "blind": (["+@all"], ["dramatiq", "dramatiq:*"]),
    }
    for name, (categories, keys) in users.items():
        rights = {"categories": [right for right in categories if "@" in right], "keys": keys}
        admin.acl_setuser(name, enabled=True, passwords=["+secret"], commands=["-multi"] * (name == "plain"), **rights)
    try:
        for name, expected in (("plain", "queued"), ("blind", None)):
            broker = make_broker(f"redis://{name}:secret@127.0.0.1:{redis_server.port}/0")

            @dramatiq.actor(broker=broker, queue_name=name)
            def work() -> None: ...

            # When they send a message
            message = work.send()
            # Then the broker has it
            assert broker.do_qsize(name) == 1
            found = RedisBackend(url=redis_url, timeout=20_000).snapshot(message.message_id)
            assert (None if found is None else found.state) == expected
    finally:
        for name in users:
            admin.acl_deluser(name)


def test_a_broker_of_another_database_goes_without_the_statuses(redis_server: RedisServer, redis_url: str) -> None:
    # Given a broker with a client, a backend of another database, and a backend that was made of the broker's client
    client = RedisBackend(url=redis_server.database(1), timeout=20_000).broker_client()
    other, same = RedisBackend(url=redis_url, timeout=20_000), RedisBackend(client=client)
    broker = RedisBroker(client=client)
    # Then only the second backend's statuses are sent with the broker's commands
    assert other.update_attacher(broker) is None and same.update_attacher(broker) is not None
    assert RedisBackend(url=redis_url, timeout=20_000).update_attacher(RedisBroker(url=redis_url)) is None
    # And statuses are stored in either case
    for backend in (other, same):
        broker = RedisBroker(client=client)
        broker.add_middleware(StatusMiddleware(backend=backend))

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        assert state_of(broker, work.send()) == "queued"


# Interrupts


#: Whether each line is struck, and a connection cut after each byte.
EXHAUSTIVE = bool(os.environ.get("PIGGYBACK_EXHAUSTIVE"))
EVERY = 1 if EXHAUSTIVE else 5


@pytest.fixture
def struck(redis_url: str) -> Iterator[Stage]:
    """Yield a stage whose hooks interrupts strike."""
    backend = RecordingRedisBackend(url=redis_url, timeout=20_000)
    # No heartbeat wakes a writer that an interrupt has left asleep
    stage = Stage(redis_url, backend, ours=Struck, piggyback=True, heartbeat_interval=3_600_000)
    yield stage
    stage.close()


@pytest.mark.parametrize(
    "case",
    [
        Case("before_ack", DONE),
        Case("after_ack", DONE),
        Case("before_enqueue", RETRIED, ("raise", "return")),
        Case("after_enqueue", RETRIED, ("raise", "return")),
    ],
    ids=lambda case: case.hook,
)
def test_an_interrupt_after_the_actor_does_not_change_the_outcome(struck: Stage, case: Case) -> None:
    # Given a message whose actor has returned or raised
    # When an interrupt strikes before any line of a hook of this package
    lines = 0
    for aim, message_id in strikes(struck, case.hook, *case.script, every=EVERY, **case.options):
        # Then the message ends as it would have without the interrupt
        assert (aim.hit, end_of(struck, message_id)) == (aim.hit, case.end)
        lines += 1
    assert lines > 2


def test_an_interrupt_in_a_command_leaves_no_reply_to_the_next(redis_url: str) -> None:
    # Given a broker
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    work.send()
    # When interrupts strike its command, each before another line
    evalsha = broker.client.evalsha
    line, expected = 0, 1
    while True:
        line += 1
        aim = Aim("evalsha", line)

        def struck(*arguments: Any, aim: Aim = aim) -> Any:
            with aim.taken():
                return evalsha(*arguments)

        broker.client.evalsha = struck
        message = work.message()
        try:
            broker.enqueue(message)
        except TimeLimitExceeded:
            pass
        finally:
            del broker.client.evalsha
        # Then the next command has its own reply, and the queue and the status agree
        size = broker.do_qsize("default")
        assert size in (expected, expected + 1), aim.hit
        assert (state_of(broker, message) == "queued") is (size > expected), aim.hit
        expected = size
        if aim.hit is None:
            break
    assert line > 30


# Faults


class Cutting(Proxy):
    """A proxy that ends a connection after some bytes of a request with a transaction; once, or each time."""

    cut: int | None = None
    once = False
    transactions = 0

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(BUFFER):
                self.transactions += data.count(b"MULTI")
                if self.cut is not None and b"MULTI" in data:
                    server.sendall(data[: self.cut])
                    if self.once:
                        self.cut = None
                    break
                server.sendall(data)
        except OSError:
            pass
        _shut(server, client)


def _shut(*peers: socket.socket) -> None:
    for peer in peers:
        try:
            peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def test_a_cut_connection_leaves_both_or_neither(redis_server: RedisServer, redis_url: str) -> None:
    # Given a broker behind a proxy that cuts its transactions
    admin = make_broker(redis_url)
    with Cutting(redis_server.port) as proxy:
        broker = make_broker(f"redis://127.0.0.1:{proxy.port}/0")

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        work.send()
        size, seen = 1, set()
        # When it cuts a transaction after each number of bytes
        for cut in CUTS:
            proxy.cut = cut
            message = work.message()
            # The reply may still arrive if no byte is missing.
            with suppress(redis.ConnectionError):
                broker.enqueue(message)
            proxy.cut = None
            # Then the server has the message and its status, or neither
            admin.client.ping()
            found = admin.do_qsize("default")
            assert (found > size) is (state_of(admin, message) == "queued"), cut
            seen.add(found > size)
            size = found
    assert seen == {True, False}


def test_the_retry_after_a_broken_connection_takes_the_status_along(redis_server: RedisServer, redis_url: str) -> None:
    # Given a broker whose client tries again, behind a proxy that cuts one transaction
    admin = make_broker(redis_url)
    with Cutting(redis_server.port) as proxy:
        client = redis.Redis(port=proxy.port, retry=Retry(NoBackoff(), 1))
        backend = RedisBackend(client=client, timeout=20_000)
        broker = RedisBroker(client=backend.broker_client())
        broker.add_middleware(StatusMiddleware(backend=backend))

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        work.send()
        before, proxy.cut, proxy.once = proxy.transactions, 10, True
        # When a message is sent
        message = work.send()
        # Then the second transaction has the message and its status
        assert proxy.transactions == before + 2
        assert admin.do_qsize("default") == 2
        assert state_of(admin, message) == "queued"


#: Numbers of bytes of a transaction after which its connection is cut: all within MULTI, and some of the rest.
CUTS = range(1, 1200) if EXHAUSTIVE else [*range(1, 18), *range(40, 1200, 45)]


@pytest.mark.parametrize("moment", ["before the request", "within the request", "before the reply"])
def test_a_process_that_is_killed_leaves_queue_and_status_in_agreement(
    redis_url: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process that processes one message, however slowly, and dies at a system call of its acknowledgement
    monkeypatch.setattr("dramatiq_status.deliveries._START_AFTER", 60.0)
    broker = make_broker(redis_url)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    message = work.send()
    child = os.fork()
    if not child:
        try:
            _die_in_the_acknowledgement(broker, moment)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    # When it is dead
    acknowledged = broker.client.hlen("dramatiq:default.msgs") == 0
    # Then the message is finished if the broker has its acknowledgement, and only then
    assert acknowledged is (moment == "before the reply")
    assert (state_of(broker, message) == "completed") is acknowledged


def _die_in_the_acknowledgement(broker: RedisBroker, moment: str) -> None:
    consumer = broker.consume("default", prefetch=1, timeout=10)
    message = next(consumer)
    assert message is not None
    broker.emit_after("worker_thread_boot", threading.current_thread())
    broker.emit_before("process_message", message)
    broker.emit_after("process_message", message, result=None)
    broker.emit_before("ack", message)

    def dying(connection: Connection, request: bytes) -> None:
        if moment != "before the request":
            send(connection, request if moment == "before the reply" else request[:-10])
        if moment == "before the reply":
            # The server has carried the transaction out.
            connection.read()
        os.kill(os.getpid(), signal.SIGKILL)

    send = Connection.send
    Connection.send = dying  # type: ignore[method-assign]
    consumer.ack(message)


@pytest.mark.parametrize("lost", ["scripts", "everything"])
def test_a_server_that_has_lost_its_scripts(start_server: StartServer, lost: str) -> None:
    # Given a worker whose statuses were sent with the broker's commands
    server = start_server(RedisServer())
    broker = make_broker(server.url)
    done = Done()
    broker.add_middleware(done)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    worker = start_worker(broker)
    try:
        work.send()
        eventually(lambda: done.count == 1)
        # When the server loses its scripts, or is restarted
        if lost == "scripts":
            broker.client.script_flush()
        else:
            server.restart()
        message = work.send()
        # Then the next message still has its statuses. (`Done` is called before StatusMiddleware.)
        eventually(lambda: done.count == 2)
        eventually(lambda: state_of(broker, message) == "completed")
    finally:
        worker.stop()


# Greenlets

_GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, time
import dramatiq, gevent
from dramatiq.brokers.redis import RedisBroker
from dramatiq_status import StatusMiddleware, current_progress
from dramatiq_status.backends import RedisBackend

backend = RedisBackend(url=sys.argv[1], timeout=20_000)
broker = RedisBroker(client=backend.broker_client())
broker.add_middleware(StatusMiddleware(backend=backend))
assert backend.update_attacher(broker) is not None

@dramatiq.actor(broker=broker)
def work(number):
    time.sleep(number / 1000)
    current_progress().progress = number

senders = [gevent.spawn(work.send, number) for number in range(30)]
gevent.joinall(senders)
worker = dramatiq.Worker(broker, worker_threads=8, worker_timeout=50)
worker.start()
broker.join("default")
worker.stop(timeout=1_000)
found = backend.snapshots([sender.value.message_id for sender in senders])
print([(snapshot.state.value, snapshot["progress"]) for snapshot in found])
"""


def test_greenlets_have_their_own_statuses(redis_url: str) -> None:
    # When greenlets send messages and process them, all over one client
    done = subprocess.run(
        [sys.executable, "-c", _GREENLETS, redis_url], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    # Then each message has its own status
    assert done.stdout.strip() == str([("completed", number) for number in range(30)]), done.stderr
