"""Three jobs and their statuses, in one process and without a server.

    python examples/quickstart.py

The main thread follows each job by its message id, as a web process would; the jobs run on a worker's threads.
"""

from __future__ import annotations

import logging
import sys
import time

import dramatiq
from dramatiq.brokers.stub import StubBroker

from dramatiq_status import Snapshot, StatusMiddleware, StatusRegistry, current_status, track
from dramatiq_status.backends import StubBackend

BAR_WIDTH = 30

broker = StubBroker()
broker.add_middleware(StatusMiddleware(backend=StubBackend()))
dramatiq.set_broker(broker)


@dramatiq.actor
def import_rows(count: int) -> None:
    for _ in track(range(count), step="reading"):
        time.sleep(0.008)
    for _ in track(range(count // 2), step="indexing"):
        time.sleep(0.008)
    current_status()["step"] = "done"


@dramatiq.actor(min_backoff=800, max_backoff=800)
def fetch_prices() -> None:
    """Fails the first time; Dramatiq runs it again."""
    snapshot = current_status().read()
    if snapshot is not None and snapshot.attempts == 1:
        raise ConnectionError("the shop does not answer")
    for _ in track(["bread", "milk", "tea"], step="fetching"):
        time.sleep(0.2)


@dramatiq.actor(max_retries=0)
def send_report(address: str) -> None:
    for page in track(range(10), step="printing"):
        time.sleep(0.05)
        if page == 6:
            raise ValueError(f"there is no {address}")


def follow(title: str, message: dramatiq.Message[None]) -> None:
    """Show a job until it is finished: as one moving line on a terminal, else as a line for every new tenth."""
    print(f"{title}: message {message.message_id}")
    shown: object = None
    width = 0
    for snapshot in StatusRegistry.watch(message, timeout=60_000):
        line = describe(snapshot)
        if sys.stdout.isatty():
            print("\r" + line.ljust(width), end="", flush=True)
            width = len(line)
            continue
        news = (snapshot.state, snapshot.retrying, snapshot.get("step"), int((snapshot.percent or 0) // 10))
        if news != shown:
            print(line, flush=True)
            shown = news
    print("\n" if sys.stdout.isatty() else "")


def describe(snapshot: Snapshot) -> str:
    """One line: ``  working    [#########---------------------]  30.0 %  step=reading``."""
    filled = round(BAR_WIDTH * (snapshot.progress or 0))
    percent = "     -" if snapshot.percent is None else f"{snapshot.percent:5.1f} %"
    line = f"  {snapshot.state:<9}  [{'#' * filled:-<{BAR_WIDTH}}]  {percent}"
    if "step" in snapshot:
        line += f"  step={snapshot['step']}"
    if snapshot.retrying:
        line += "  retrying"
    if snapshot.attempts > 1:
        line += f"  attempts={snapshot.attempts}"
    if "exception" in snapshot and not snapshot.working:
        line += "  {type}: {message}".format_map(snapshot["exception"])
    return line


def main() -> None:
    # Dramatiq logs what goes wrong in a job with its traceback; here that would tear the bars apart.
    logging.getLogger("dramatiq").setLevel(logging.CRITICAL + 1)
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        message = import_rows.send_with_options(args=(250,), status={"user_id": 42})
        follow("A job with two steps", message)
        follow("A job that is retried", fetch_prices.send())
        follow("A job that fails", send_report.send("nobody@example.com"))
        print("What was stored of the first, as JSON:")
        print(StatusRegistry.get(message.message_id).to_json())
    finally:
        worker.stop()
        broker.close()


if __name__ == "__main__":
    main()
