"""A worker process to measure: ``python -m benchmarks.worker`` takes parameters and prints figures as JSON.

It enqueues the messages, starts a worker, and measures the time from the first message to the last acknowledgement.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import count
from threading import Event
from typing import Any
from unittest.mock import patch

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as ResultBackend
from dramatiq.worker import Worker

from dramatiq_status import StatusMiddleware
from dramatiq_status.backends import backend_from_url
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.broker_calls import EXEC, HEAD, MULTI, BrokerCalls, refusal_of
from dramatiq_status.record import ACTOR_NAME, COMPLETED, ENQUEUED_AT, FINISHED_AT, QUEUE_NAME, STARTED_AT
from dramatiq_status.update import EnqueueId, Kind, Update
from dramatiq_status.writer import Confirmation, MessageBuffer, Writer


class ThreadWriter(Writer):
    """A writer whose background thread sends all updates, while the threads that acknowledge only wait."""

    def confirm(self, buffer: MessageBuffer, confirmation: Confirmation, deadline: float | None = None) -> bool:
        self.put(buffer)
        return self.wait(confirmation)


class PreparedCalls(BrokerCalls):
    """The broker's calls, each with the status of its message in one transaction.  The statuses were packed before, so
    that they cost nothing in Python: no hook can cost less.

    Parameters:
      backend(RedisBackend)
    """

    #: Placeholder of a message's id in the packed calls.
    ID = "0" * 36

    def __init__(self, backend: RedisBackend) -> None:
        super().__init__(backend.client.connection_pool)
        # Loads the script, and measures the server's clock.
        backend.update(self.ID, Update(Kind.ENQUEUE, EnqueueId(1, 1)))
        backend.delete(self.ID)
        now = str(backend.now())
        queued = {ACTOR_NAME: '"job"', QUEUE_NAME: '"default"', ENQUEUED_AT: now}
        ended = {STARTED_AT: now, FINISHED_AT: now}
        updates = {
            "enqueue": Update(Kind.ENQUEUE, EnqueueId(2, 1), fields=queued),
            "ack": Update(Kind.RUN, EnqueueId(2, 1), 3, 1, start=True, state=COMPLETED, fields=ended),
        }
        self.packed: dict[str, list[bytes]] = {}
        for command, update in updates.items():
            (request,) = backend.operations.requests_of([(self.ID, update)])
            self.packed[command] = request.pack(backend.operations.clock).split(self.ID.encode())

    def call(self, sha: str, arguments: tuple[Any, ...]) -> Any:
        command = self._pack(sha, arguments)
        parts = self.packed.get(arguments[1])
        if parts is None:
            reply = self._exchange(command, 1)[0]
        else:
            replies = self._exchange(MULTI + arguments[HEAD].encode().join(parts) + command + EXEC, 4)[-1]
            reply = replies if isinstance(replies, Exception) else replies[-1]
        if isinstance(reply, Exception):
            raise refusal_of(reply)
        return reply


class Stopwatch(Middleware):
    """A stopwatch from the first message to the last acknowledgement."""

    def __init__(self, jobs: int) -> None:
        self.begin = self.end = 0.0
        self.processed = count(1)
        self.jobs = jobs
        self.done = Event()

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        if not self.begin:
            self.begin = time.perf_counter()

    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        if next(self.processed) == self.jobs:
            self.end = time.perf_counter()
            self.done.set()


def run(
    url: str, mode: str, jobs: int, sleep: float, threads: int = 8, store: str | None = None, broker_url: str = ""
) -> dict[str, float]:
    """Process messages.

    Parameters:
      url: A Redis database, which is emptied.  The store uses it unless `store` is given, and the broker uses it
        unless `broker_url` is given.
      mode: "off" without our middleware, "on" with it, "thread" with it and a :class:`ThreadWriter`, "results" with
        Dramatiq's ``Results``, "client" with our broker client, "piggyback" with our middleware and our broker client,
        "piggyback+results" with ``Results`` as well, "prepared" with our broker client and :class:`PreparedCalls`.
      jobs: Number of messages.
      sleep: Seconds that a job sleeps.
      threads: Number of the worker's threads.
      store: The URL of another store, which may be down.
      broker_url: The URL of a RabbitMQ server, or "stub" for a broker in this process.
    """
    # `flush_all` of a new broker finds no queue.
    RedisBroker(url=url).client.flushdb()
    backend = backend_from_url(store or url)
    if mode in ("client", "prepared", "piggyback", "piggyback+results") and isinstance(backend, RedisBackend):
        client = backend.broker_client()
        if mode == "prepared":
            client.broker_calls = PreparedCalls(backend)
        broker: dramatiq.Broker = RedisBroker(client=client)
    else:
        broker = broker_of(broker_url or url)
    options = {}
    if mode in ("results", "piggyback+results"):
        broker.add_middleware(Results(backend=ResultBackend(url=url)))
        options = {"store_results": True}
    if mode in ("on", "thread", "piggyback", "piggyback+results"):
        with patch("dramatiq_status.middleware.Writer", ThreadWriter if mode == "thread" else Writer):
            broker.add_middleware(StatusMiddleware(backend=backend))
    stopwatch = Stopwatch(jobs)
    broker.add_middleware(stopwatch)

    # Each process has its own queue, because RabbitMQ delivers unacknowledged messages to the queue's next process.
    @dramatiq.actor(broker=broker, queue_name=f"jobs-{os.getpid()}", **options)
    def job() -> None:
        if sleep:
            time.sleep(sleep)

    for _ in range(jobs):
        job.send()
    worker = Worker(broker, worker_threads=threads)
    cpu = time.process_time()
    worker.start()
    if not stopwatch.done.wait(120):
        raise TimeoutError("The worker did not finish.")
    cpu = time.process_time() - cpu
    return {"seconds": stopwatch.end - stopwatch.begin, "cpu": cpu}


def broker_of(url: str) -> dramatiq.Broker:
    if url == "stub":
        return StubBroker()
    return RabbitmqBroker(url=url) if url.startswith("amqp:") else RedisBroker(url=url)


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))), flush=True)
    # It takes seconds to stop the threads of a worker.
    os._exit(0)
