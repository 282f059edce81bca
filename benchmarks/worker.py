"""A worker process to measure: ``python -m benchmarks.worker`` with the parameters as JSON; prints its figures as JSON.

It enqueues the messages, then starts a worker and tells how long that took from the first message to the last ack.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import count
from threading import Event
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend as ResultBackend
from dramatiq.worker import Worker

from dramatiq_status import StatusMiddleware
from dramatiq_status.backends.redis import RedisBackend


class Stopwatch(Middleware):
    """Takes the time from the first message to the last acknowledgement."""

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


def run(url: str, mode: str, jobs: int, sleep: float, threads: int = 8, store: str | None = None) -> dict[str, float]:
    """Process messages.

    Parameters:
      url: A Redis database, which is emptied; the broker's, and the store's unless `store` is given.
      mode: "off", "on" for our middleware, "results" for Dramatiq's own.
      jobs: How many messages.
      sleep: How many seconds each takes.
      threads: How many threads the worker has.
      store: The URL of another store, which may be down.
    """
    broker = RedisBroker(url=url)
    broker.flush_all()
    options = {}
    if mode == "on":
        broker.add_middleware(StatusMiddleware(backend=RedisBackend(url=store or url)))
    elif mode == "results":
        broker.add_middleware(Results(backend=ResultBackend(url=url)))
        options = {"store_results": True}
    stopwatch = Stopwatch(jobs)
    broker.add_middleware(stopwatch)

    @dramatiq.actor(broker=broker, **options)
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


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))), flush=True)
    # Worker threads take seconds to stop.
    os._exit(0)
