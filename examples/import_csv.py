"""A worker imports a CSV file; another process shows the progress.

    python examples/import_csv.py generate
    dramatiq examples.import_csv --processes 1 --threads 1          # in a terminal of its own
    python examples/import_csv.py follow "$(python examples/import_csv.py send)"

The CSV file and the SQLite database are written to dramatiq-status-import/ in the system's temporary directory, in most
cases /tmp.  Another path behind generate and send changes that.  The files stay until you delete them.

All commands read these environment variables. Behind each semicolon is the default:

    REDIS_URL         URL of the broker's Redis; redis://127.0.0.1:6379/0
    STATUS_STORE      store of the statuses, redis or memcached; redis
    STATUS_URL        URL of the statuses' Redis; redis://127.0.0.1:6379/1
    MEMCACHED_SERVER  address of the statuses' memcached, host:port; 127.0.0.1:11211
"""

from __future__ import annotations

import argparse
import csv
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from dramatiq_status import Snapshot, StatusMiddleware, StatusRegistry, current_status, track
from dramatiq_status.backend import StatusBackend

ROWS = 50_000
COUNTRIES = ("at", "be", "de", "fr", "it", "nl")
DEFAULT_PATH = Path(tempfile.gettempdir()) / "dramatiq-status-import" / "orders.csv"

#: Number of rows of one transaction.
BATCH = 500


def status_backend() -> StatusBackend:
    """Make the backend of the store that the environment names."""
    store = os.environ.get("STATUS_STORE", "redis")
    if store == "redis":
        from dramatiq_status.backends import RedisBackend

        return RedisBackend(url=os.environ.get("STATUS_URL", "redis://127.0.0.1:6379/1"))
    if store == "memcached":
        from dramatiq_status.backends import MemcachedBackend

        return MemcachedBackend(servers=os.environ.get("MEMCACHED_SERVER", "127.0.0.1:11211"))
    raise SystemExit(f"STATUS_STORE must be redis or memcached, not {store!r}.")


broker = RedisBroker(url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
broker.add_middleware(StatusMiddleware(backend=status_backend()))
dramatiq.set_broker(broker)


# The worker's part


@dramatiq.actor(status_throttle=100, status_ttl=86_400_000)
def import_csv(path: str, database: str, pause: int = 0) -> None:
    """Import the orders of a CSV file into a SQLite database.

    Importing a file again does no harm: each order replaces the one with the same number.

    Parameters:
      path(str): The CSV file.
      database(str): The SQLite file.
      pause(int): Milliseconds to sleep after each batch, in place of the time that a database on another host takes.
    """
    status = current_status()
    status["step"] = "counting"
    with open(path, newline="", encoding="utf-8") as file:
        total = sum(1 for _ in csv.DictReader(file))

    imported = rejected = 0
    with open(path, newline="", encoding="utf-8") as file, closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, country TEXT, cents INTEGER)"
        )
        rows = track(csv.DictReader(file), total=total, step="importing")
        for count, row in enumerate(rows, start=1):
            order = parse(row)
            if order is None:
                rejected += 1
            else:
                connection.execute("REPLACE INTO orders VALUES (?, ?, ?)", order)
                imported += 1
            if count % BATCH == 0:
                connection.commit()
                status.update(rows=imported, rejected=rejected)
                time.sleep(pause / 1000)
        connection.commit()

        status["step"] = "adding up"
        sums = dict(connection.execute("SELECT country, sum(cents) FROM orders GROUP BY country"))
    status.update(step="done", rows=imported, rejected=rejected, cents_by_country=sums)


def parse(row: dict[str, str]) -> tuple[int, str, int] | None:
    """Convert a row to an order; None if it is no order."""
    try:
        number, cents = int(row["number"]), int(row["cents"])
    except ValueError:
        return None
    return (number, row["country"], cents) if row["country"] in COUNTRIES and cents >= 0 else None


# The part of other processes


def made_up_rows() -> Iterator[tuple[int, str, int | str]]:
    """Yield orders, always the same ones.  Every thousandth order has no amount."""
    for number in range(1, ROWS + 1):
        yield number, COUNTRIES[number % len(COUNTRIES)], number * 7919 % 20_000 if number % 1000 else "?"


def generate(path: Path) -> None:
    """Write the CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("number", "country", "cents"))
        writer.writerows(made_up_rows())
    print(f"{ROWS} rows written to {path}")


def send(path: Path, database: Path | None, pause: int) -> None:
    """Enqueue the import, and print the id of its message."""
    path = path.resolve()
    database = (database or path.with_suffix(".sqlite3")).resolve()
    message = import_csv.send_with_options(args=(str(path), str(database), pause), status={"file": path.name})
    print(message.message_id)


def follow(message_id: str) -> None:
    """Print a line for each change, and at the end the whole status as JSON."""
    snapshot = None
    for snapshot in StatusRegistry.watch(message_id):
        print(describe(snapshot), flush=True)
    if snapshot is not None:
        print(snapshot.to_json())
        raise SystemExit(0 if snapshot.completed else 1)


def describe(snapshot: Snapshot) -> str:
    """Describe a status in one line: ``working    20500/50000  41.0 %  step=importing  rows=20480  2.9 s left``."""
    words = [f"{snapshot.state:<9}"]
    if snapshot.percent is not None:
        words.append(f"{snapshot['progress']}/{snapshot.total}  {snapshot.percent} %")
    words += [f"{name}={snapshot[name]}" for name in ("step", "rows") if name in snapshot]
    if snapshot.time_remaining is not None:
        words.append(f"{snapshot.time_remaining.total_seconds():.1f} s left")
    return "  ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    generating = commands.add_parser("generate", help="write the CSV file")
    generating.add_argument("path", nargs="?", type=Path, default=DEFAULT_PATH)
    sending = commands.add_parser("send", help="enqueue the import and print the message id")
    sending.add_argument("path", nargs="?", type=Path, default=DEFAULT_PATH)
    sending.add_argument("database", nargs="?", type=Path, help="the SQLite file; by default beside the CSV file")
    sending.add_argument("--pause", type=int, default=40, help="milliseconds to rest after each batch; by default 40")
    following = commands.add_parser("follow", help="print the status until the import is finished")
    following.add_argument("message_id")
    arguments = vars(parser.parse_args())
    {"generate": generate, "send": send, "follow": follow}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
