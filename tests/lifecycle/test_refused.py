"""Messages that a broker refuses: a reader finds no status, as for a message that was never sent."""

from __future__ import annotations

import threading
import time
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, Pipelines, Shutdown
from dramatiq.middleware.threading import raise_thread_exception
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from dramatiq_status import StatusMiddleware, StatusMissing, StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.update import Kind

from ..conftest import StartServer
from ..proxy import Proxy
from ..recording import Broken, RecordingBackend, eventually, run
from ..servers import RabbitmqServer, RedisServer
from .test_repeated_enqueue import RepeatingBroker


def state_of(backend: StatusBackend, message: Any) -> str | None:
    return StatusRegistry.get(message, backend=backend).state


def refusing(backend: StatusBackend, *, copies: bool = False) -> tuple[RepeatingBroker, dramatiq.Message[Any]]:
    """Make a broker that takes messages and then fails, and a message for it."""
    broker = RepeatingBroker([StatusMiddleware(backend=backend)], copies=copies)
    broker.refuses = True

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    return broker, work.message()


@pytest.mark.parametrize("delay", [None, 60_000], ids=["", "delayed"])
def test_a_message_that_a_dead_broker_refuses_is_unknown(
    every_backend: StatusBackend, start_server: StartServer, delay: int | None
) -> None:
    # Given a broker that dies after it has taken a message
    server = start_server(RedisServer())
    middleware = StatusMiddleware(backend=every_backend)
    broker = RedisBroker(url=server.url, retry=Retry(NoBackoff(), 0), middleware=[middleware])

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    taken, refused = work.message(), work.message()
    broker.enqueue(taken, delay=delay)
    server.kill()
    # When it refuses another message
    with pytest.raises(RedisConnectionError):
        broker.enqueue(refused, delay=delay)
    # Then the refused message is unknown, and the other one waits
    assert (state_of(every_backend, taken), state_of(every_backend, refused)) == ("queued", None)
    with pytest.raises(StatusMissing):
        StatusRegistry.wait(refused, missing_timeout=0, backend=every_backend)
    # And when the broker is back and takes the message, it waits as well
    server.start()
    broker.enqueue(refused, delay=delay)
    assert state_of(every_backend, refused) == "queued"


def test_a_message_that_a_stopped_rabbitmq_refuses_is_unknown(start_server: StartServer) -> None:
    # Given a RabbitMQ that stops after it has taken a message
    server, backend = start_server(RabbitmqServer()), RecordingBackend()
    broker = RabbitmqBroker(url=server.url, middleware=[StatusMiddleware(backend=backend)])

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    taken, refused = work.send(), work.message()
    server.stop()
    # When it refuses another message, whose enqueue the broker begins several times
    with pytest.raises(ConnectionClosed):
        broker.enqueue(refused)
    # Then the refused message is unknown, and the other one waits
    assert (state_of(backend, taken), state_of(backend, refused)) == ("queued", None)
    assert len(backend.updates(refused.message_id, Kind.ENQUEUE)) > 1


@pytest.mark.parametrize("copies", [False, True], ids=["same", "copies"])
def test_a_run_of_a_message_that_was_refused_makes_a_record(every_backend: StatusBackend, copies: bool) -> None:
    # Given a broker that takes a message and then fails
    broker, message = refusing(every_backend, copies=copies)
    with pytest.raises(ConnectionClosed):
        broker.enqueue(message)
    assert state_of(every_backend, message) is None
    # When a worker runs it
    run(broker)
    # Then its status is that of the run
    snapshot = StatusRegistry.read(message, backend=every_backend)
    assert snapshot is not None and snapshot.completed and snapshot.attempts == 1


def test_a_run_that_has_begun_keeps_its_status() -> None:
    # Given a message that a worker has run when its sender gets the error
    backend = RecordingBackend()
    broker, message = refusing(backend)
    with pytest.raises(ConnectionClosed):
        broker.enqueue(message)
    run(broker)
    (enqueue_id,) = {update.enqueue_id for update in backend.updates(message.message_id, Kind.WITHDRAWAL)}
    # When the store gets the error's update late
    (late,) = backend.updates(message.message_id, Kind.WITHDRAWAL)
    backend.update_many([(message.message_id, late)])
    # Then the status stays
    assert late.enqueue_id == enqueue_id and state_of(backend, message) == "completed"


def test_the_first_enqueue_of_a_broker_without_actors(start_server: StartServer) -> None:
    # Given a process that only sends, without a declared actor or queue, and a broker that is down
    server, backend = start_server(RedisServer()), RecordingBackend()
    server.stop()
    broker = RedisBroker(url=server.url, retry=Retry(NoBackoff(), 0), middleware=[StatusMiddleware(backend=backend)])
    refused, taken = (
        dramatiq.Message[Any](queue_name="q", actor_name="work", args=(), kwargs={}, options={}) for _ in range(2)
    )
    # When it sends its first message, then this message is unknown
    with pytest.raises(RedisConnectionError):
        broker.enqueue(refused)
    assert state_of(backend, refused) is None
    # When the broker takes the first message, then it waits
    server.start()
    del broker.enqueue  # type: ignore[method-assign]
    broker.enqueue(taken)
    assert state_of(backend, taken) == "queued"


class _Announcer(Middleware):
    """Middleware that sends messages before each message of an actor."""

    def __init__(self, number: int) -> None:
        self._number = number

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        if message.actor_name == "work":
            for _ in range(self._number):
                with pytest.raises(RedisConnectionError):
                    broker.enqueue(message.copy(actor_name="announce", message_id=str(uuid4())))


@pytest.mark.parametrize("number", [0, 2])
def test_the_first_enqueues_of_a_broker_in_which_another_middleware_sends_messages(number: int) -> None:
    # Given a process that only sends, with a broker that is down, and a middleware that sends messages in an enqueue
    backend = RecordingBackend()
    middleware: list[Middleware] = [_Announcer(number), StatusMiddleware(backend=backend)]
    broker = RedisBroker(url="redis://127.0.0.1:1", retry=Retry(NoBackoff(), 0), middleware=middleware)
    message = dramatiq.Message[Any](queue_name="q", actor_name="work", args=(), kwargs={}, options={})
    for _ in range(2):
        # When its first message is sent, and sent again
        with pytest.raises(RedisConnectionError):
            broker.enqueue(message)
        # Then that message is unknown
        assert state_of(backend, message) is None


class _Cutter(Proxy):
    """A proxy that ends each connection on which it gets a message, and does not pass it on."""

    message_id = b""

    def on_request(self, data: bytes) -> None:
        if self.message_id in data:
            raise ConnectionError


def test_the_first_enqueue_of_a_broker_that_declares_the_queue_in_it(rabbitmq_server: RabbitmqServer) -> None:
    # Given a process that only sends, without a declared actor or queue
    backend = RecordingBackend()
    message = dramatiq.Message[Any](queue_name=f"q-{uuid4()}", actor_name="work", args=(), kwargs={}, options={})
    with _Cutter(rabbitmq_server.port) as proxy:
        proxy.message_id = message.message_id.encode()
        url = rabbitmq_server.url.replace(str(rabbitmq_server.port), str(proxy.port))
        broker = RabbitmqBroker(url=url, confirm_delivery=True, middleware=[StatusMiddleware(backend=backend)])
        # When its first enqueue declares the queue, and then fails
        with pytest.raises(ConnectionClosed):
            broker.enqueue(message)
        # Then the message is unknown
        assert state_of(backend, message) is None
        # When the broker takes the message, then it waits
        proxy.message_id = b"none"
        broker.enqueue(message)
        assert state_of(backend, message) == "queued"
        broker.close()


def test_a_stage_that_the_broker_refuses_is_unknown() -> None:
    # Given a pipeline whose second message the broker refuses
    backend = RecordingBackend()
    broker = RepeatingBroker([Pipelines(), StatusMiddleware(backend=backend)])

    @dramatiq.actor(broker=broker)
    def work(*args: Any) -> None:
        broker.refuses = True

    pipeline = dramatiq.pipeline([work.message(), work.message()], broker=broker)
    pipeline.run()
    # When the first one is run, and the queue loses the second one
    enqueue = broker.queues["default"].put

    def put(message: bytes) -> None:
        if not broker.refuses:
            enqueue(message)

    broker.queues["default"].put = put  # type: ignore[method-assign]
    run(broker)
    # Then it is completed, and the second one is unknown
    first, second = pipeline.messages
    assert (state_of(backend, first), state_of(backend, second)) == ("completed", None)


class _Interrupter(Proxy):
    """A proxy that interrupts the main thread when it gets a message."""

    message_id = b""

    def on_request(self, data: bytes) -> None:
        if self.message_id and self.message_id in data:
            raise_thread_exception(threading.main_thread().ident, Shutdown)  # type: ignore[no-untyped-call]


def test_an_interrupted_enqueue_leaves_a_message_that_waits(redis_server: RedisServer) -> None:
    # Given a thread that is interrupted while the broker takes a message
    backend = RecordingBackend()
    with _Interrupter(redis_server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        broker = RedisBroker(url=url, namespace="interrupted", middleware=[StatusMiddleware(backend=backend)])

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        # The server has Dramatiq's script already.
        work.send()
        message = work.message()
        proxy.message_id = message.message_id.encode()
        with pytest.raises(Shutdown):
            broker.enqueue(message)
        # When the broker has the message
        while broker.do_qsize("default") < 2:
            time.sleep(0.01)
    # Then it waits
    assert state_of(backend, message) == "queued" and not backend.updates(message.message_id, Kind.WITHDRAWAL)


def test_the_writer_takes_it_back_after_an_outage_of_the_store() -> None:
    # Given a store that fails between the enqueue and its error
    backend = RecordingBackend()
    broker, message = refusing(backend)
    broken = Broken(backend)
    backend.before = lambda updates: None
    original = broker.queues["default"].put

    def put(message: bytes) -> None:
        backend.before = broken._fail

    broker.queues["default"].put = put  # type: ignore[method-assign]
    with pytest.raises(ConnectionClosed):
        broker.enqueue(message)
    broker.queues["default"].put = original  # type: ignore[method-assign]
    assert state_of(backend, message) == "queued"
    # When the store is back
    broken.down = False
    backend.wait_for(lambda: backend.updates(message.message_id, Kind.WITHDRAWAL))
    # Then the message is unknown
    assert state_of(backend, message) is None


def test_a_message_that_is_sent_again_waits_although_the_store_takes_it_back_late() -> None:
    # Given a message that the broker has refused, and a store that has failed since
    backend = RecordingBackend()
    broker, message = refusing(backend, copies=True)
    broken = Broken(backend)
    backend.before = lambda updates: broken._fail(updates) if updates[0][1].kind is Kind.WITHDRAWAL else None
    with pytest.raises(ConnectionClosed):
        broker.enqueue(message)
    assert broken.failures and state_of(backend, message) == "queued"
    # When the broker takes the same message, and the store is back
    broker.refuses = False
    broker.enqueue(message)
    broken.down = False
    backend.wait_for(lambda: backend.updates(message.message_id, Kind.WITHDRAWAL))
    # Then it waits
    eventually(lambda: state_of(backend, message) == "queued")
    assert backend.updates(message.message_id)[-1].kind is Kind.ENQUEUE
