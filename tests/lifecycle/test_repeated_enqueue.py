"""Enqueues that a broker begins more than once: one message, of which any of the copies may reach a worker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, Retries

from dramatiq_status import StatusMiddleware, StatusRegistry
from dramatiq_status.options import ENQUEUE_ID_OPTION
from dramatiq_status.record import GENERATION
from dramatiq_status.update import Kind

from ..recording import PATIENCE, RecordingBackend, run, working
from ..servers import RabbitmqServer


class RepeatingBroker(StubBroker):
    """A broker that begins each enqueue three times.  The copy of the first time reaches the queue.

    Parameters:
      copies: Whether each try is made with a new copy of the message, as dramatiq-pg does, or with the same one.
      refuses: Whether the enqueue ends in an error.
    """

    def __init__(self, middleware: list[Middleware], *, copies: bool = False) -> None:
        super().__init__(middleware)
        self.copies = copies
        self.refuses = False
        self.begun: list[list[int]] = []

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        queue_name = message.queue_name
        if delay is not None:
            queue_name = dq_name(queue_name)
            message = message.copy(queue_name=queue_name, options={"eta": current_millis() + delay})
        given, reached = message, None
        for _ in range(3):
            if self.copies:
                message = given.copy()
            self.emit_before("enqueue", message, delay)
            self.begun.append(message.options[ENQUEUE_ID_OPTION])
            reached = reached or message.encode()
        self.queues[queue_name].put(reached)
        if self.refuses:
            raise ConnectionClosed(OSError("refused"))
        self.emit_after("enqueue", message, delay)
        return message


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


def numbers(backend: RecordingBackend, message_id: str) -> list[int]:
    """Return the generations of the stored enqueues of a message, which have one origin."""
    enqueue_ids = [update.enqueue_id for update in backend.updates(message_id, Kind.ENQUEUE)]
    assert len({enqueue_id.origin for enqueue_id in enqueue_ids}) == 1
    return [enqueue_id.generation for enqueue_id in enqueue_ids]


@pytest.mark.parametrize("copies", [False, True], ids=["same", "copies"])
@pytest.mark.parametrize("delay", [None, 0], ids=["", "delayed"])
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("retries", [0, 1])
def test_an_enqueue_that_is_begun_again_is_the_same_enqueue(
    backend: RecordingBackend, copies: bool, delay: int | None, inside: bool, retries: int
) -> None:
    broker = RepeatingBroker(
        [Retries(max_retries=0, min_backoff=1, max_backoff=2), StatusMiddleware(backend=backend)], copies=copies
    )
    runs: list[str] = []

    @dramatiq.actor(broker=broker, max_retries=retries)
    def work() -> None:
        runs.append("work")
        if len(runs) <= retries:
            raise ValueError("once more")

    message = work.message()

    @dramatiq.actor(broker=broker)
    def outer() -> None:
        broker.enqueue(message, delay=delay)

    # When a broker that begins each enqueue three times sends a message, with and without a retry
    if inside:
        outer.send()
    else:
        outer.fn()
    run(broker)
    # Then the run of the queued copy owns the status
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.completed and snapshot.attempts == 1 + retries
    assert numbers(backend, message.message_id) == [1, 1, 1] + [2, 2, 2] * retries


@pytest.mark.parametrize("copies", [False, True], ids=["same", "copies"])
def test_a_refused_message_that_is_sent_again_is_the_same_enqueue(backend: RecordingBackend, copies: bool) -> None:
    broker = RepeatingBroker([StatusMiddleware(backend=backend)], copies=copies)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # Given a message that the broker has taken, although the sender got an error
    message = work.message()
    broker.refuses = True
    with pytest.raises(ConnectionClosed):
        broker.enqueue(message)
    # When many other messages are sent, and this one is sent again and refused again
    for _ in range(3):
        with pytest.raises(ConnectionClosed):
            work.send()
    with pytest.raises(ConnectionClosed):
        broker.enqueue(message)
    # Then the run of the first delivered copy owns the status
    run(broker)
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.completed
    assert set(numbers(backend, message.message_id)) == {1}


class Sender(Middleware):
    """Middleware that sends another message before each message; the broker may refuse it."""

    def __init__(self) -> None:
        self.messages: list[dramatiq.Message[Any]] = []
        self.refuses = False

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        if message.actor_name == "work":
            other = broker.get_actor("other").message()
            self.messages.append(other)
            assert isinstance(broker, RepeatingBroker)
            broker.refuses = self.refuses
            try:
                broker.enqueue(other)
            except ConnectionClosed:
                pass
            broker.refuses = False


@pytest.mark.parametrize("refuses", [False, True], ids=["", "refused"])
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_messages_that_a_middleware_sends_have_enqueues_of_their_own(
    backend: RecordingBackend, first: bool, refuses: bool
) -> None:
    # Given a middleware that sends another message before each one
    ours, sender = StatusMiddleware(backend=backend), Sender()
    broker = RepeatingBroker([ours, sender] if first else [sender, ours])
    sender.refuses = refuses

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    @dramatiq.actor(broker=broker)
    def other() -> None: ...

    # When a message is sent
    message = work.send()
    run(broker)
    # Then all messages are completed, each after one enqueue
    for found in (message, *sender.messages):
        snapshot = StatusRegistry.read(found, broker=broker)
        assert snapshot is not None and snapshot.completed and numbers(backend, found.message_id) == [1, 1, 1]


def test_a_message_that_is_sent_twice_has_two_enqueues(backend: RecordingBackend) -> None:
    broker = RepeatingBroker([StatusMiddleware(backend=backend)])

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    # When a message is sent twice
    message = work.send()
    broker.enqueue(message)
    # Then these are two enqueues, and the newer one owns the status
    assert [number for _, number in broker.begun] == [1, 1, 1, 2, 2, 2]
    assert backend.field(message.message_id, GENERATION) == "2"
    # And another message with the same id repeats neither
    broker.refuses = True
    for timestamp in (1, 2):
        with pytest.raises(ConnectionClosed):
            broker.enqueue(work.message().copy(message_id="daily", message_timestamp=timestamp))
    origins = [origin for origin, _ in broker.begun[-6:]]
    assert len(set(origins[:3])) == len(set(origins[3:])) == 1 and origins[0] != origins[3]


class Cut:
    """A proxy of a server that cuts the connection after a marked message, before the answer comes back.

    Parameters:
      port: Port of the server.
      heals: Whether the proxy takes further connections after that.
    """

    def __init__(self, port: int, *, heals: bool) -> None:
        self.mark: bytes | None = None
        self._port, self._heals = port, heals
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ways: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            self._ways.append((client, server))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.mark is not None and self.mark in data:
                    self.mark = None
                    self._cut(source, target, data)
                    return
                target.sendall(data)
        except OSError:
            pass

    def _cut(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        if not self._heals:
            self._listener.shutdown(socket.SHUT_RDWR)
        # The client receives nothing any more; the server receives the message before the end of the connection.
        client.shutdown(socket.SHUT_RDWR)
        server.sendall(data)
        server.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for ends in ((self._listener,), *self._ways):
            for end in ends:
                end.close()


@contextmanager
def rabbitmq(url: str, port: int, backend: RecordingBackend, name: str) -> Iterator[RabbitmqBroker]:
    """Yield a broker that waits until RabbitMQ confirms each message, with an actor and a queue of its own."""
    middleware: list[Middleware] = [StatusMiddleware(backend=backend)]
    server_port = url.rpartition(":")[2].partition("/")[0]
    broker = RabbitmqBroker(url=url.replace(server_port, str(port)), middleware=middleware, confirm_delivery=True)

    @dramatiq.actor(broker=broker, queue_name=name)
    def work() -> None: ...

    try:
        yield broker
    finally:
        broker.close()


@pytest.mark.parametrize("heals", [True, False])
def test_a_message_is_one_enqueue_if_the_connection_to_rabbitmq_is_cut(
    backend: RecordingBackend, rabbitmq_url: str, rabbitmq_server: RabbitmqServer, heals: bool
) -> None:
    name = f"cut-{uuid4()}"
    with ExitStack() as stack:
        cut = Cut(rabbitmq_server.port, heals=heals)
        stack.callback(cut.close)
        # Given a sender whose connection is cut after RabbitMQ has got its message, and before it confirms that
        sender = stack.enter_context(rabbitmq(rabbitmq_url, cut.port, backend, name))
        work = sender.get_actor("work")
        assert work.send() is not None
        message = work.message()
        cut.mark = message.message_id.encode()
        # When the message is sent, and the broker sends it again, or cannot
        if heals:
            sender.enqueue(message)
        else:
            with pytest.raises(ConnectionClosed):
                sender.enqueue(message)
        began = numbers(backend, message.message_id)
        assert len(began) == 2 if heals else len(began) > 1
        # Then all of this is one enqueue
        assert set(began) == {1}
        # And the run of the first delivered copy owns the status
        worker = stack.enter_context(rabbitmq(rabbitmq_url, rabbitmq_server.port, backend, name))
        stack.callback(lambda: [worker.channel.queue_delete(f"{name}{suffix}") for suffix in ("", ".DQ", ".XQ")])
        with working(worker):
            snapshot = StatusRegistry.wait(message, broker=worker, timeout=int(PATIENCE * 1000))
        assert snapshot.completed
