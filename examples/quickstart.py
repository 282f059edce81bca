"""Three jobs, and another process that shows their statuses. No server and no set-up is needed.

    python examples/quickstart.py

This process runs the jobs on a worker's threads. The other one, `quickstart_reader.py`, does not import the jobs: it
reads their statuses by the ids of their messages, as a web process does. The statuses are in a SQLite file.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import dramatiq
from dramatiq.brokers.stub import StubBroker

from dramatiq_status import StatusMiddleware, StatusRegistry, current_status, track
from dramatiq_status.backends import SQLiteBackend

READER = Path(__file__).with_name("quickstart_reader.py")

directory = TemporaryDirectory(prefix="dramatiq-status-")
backend = SQLiteBackend(Path(directory.name) / "status.db")
# Dramatiq's in-memory broker is enough, because one process sends and runs the jobs.
broker = StubBroker()
broker.add_middleware(StatusMiddleware(backend=backend))
dramatiq.set_broker(broker)


@dramatiq.actor
def import_rows(count: int) -> None:
    for _ in track(range(count), step="reading"):
        time.sleep(0.008)
    for _ in track(range(count // 2), step="indexing"):
        time.sleep(0.008)
    current_status()["step"] = "done"


@dramatiq.actor(min_backoff=800, max_backoff=800)
def fetch_prices(shops: list[str]) -> None:
    """Fail in the first run; Dramatiq retries the message."""
    snapshot = current_status().read()
    for shop in track(shops, step="fetching"):
        time.sleep(0.3)
        if shop == "market" and snapshot is not None and snapshot.attempts == 1:
            raise ConnectionError(f"{shop} is closed")


@dramatiq.actor(max_retries=0)
def send_report(name: str) -> None:
    for page in track(range(10), step="printing"):
        time.sleep(0.1)
        if page == 6:
            raise ValueError(f"who is {name}?")


def main() -> int:
    # Dramatiq logs the exceptions of jobs with their tracebacks, which would overwrite the bars.
    logging.getLogger("dramatiq").setLevel(logging.CRITICAL + 1)
    messages = [
        import_rows.send_with_options(args=(250,), status={"user_id": 42}),
        fetch_prices.send(["bakery", "dairy", "market", "tea house"]),
        send_report.send("Nobody"),
    ]
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
    try:
        reader = subprocess.Popen([sys.executable, READER, backend.path, *(message.message_id for message in messages)])
        # The worker starts when the reader has written its process id, so that the reader sees the jobs wait.
        while reader.poll() is None and "reader" not in StatusRegistry.get(messages[0]):
            time.sleep(0.02)
        worker.start()
        return reader.wait()
    except KeyboardInterrupt:
        return reader.wait()
    finally:
        worker.stop()
        broker.close()
        backend.close()
        directory.cleanup()


if __name__ == "__main__":
    sys.exit(main())
