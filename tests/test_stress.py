"""Many jobs at once in many real worker processes: every final record is exact.

``STRESS_MESSAGES=500 pytest tests/test_stress.py`` is for the impatient.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from dramatiq_status import StatusRegistry

from . import stress_app
from .recording import eventually
from .servers import RedisServer

ROOT = Path(__file__).parent.parent

MESSAGES = int(os.environ.get("STRESS_MESSAGES", "20000"))
PROCESSES = 3
THREADS = 8

#: Maximum number of milliseconds until a message is finished, also if all others run before it.
PATIENCE = 20_000 + 20 * MESSAGES


#: Timestamps, and values that contain timestamps.
TIMED = {"enqueued_at", "started_at", "finished_at", "updated_at", "duration", "runs"}


def exact(number: int, message_id: str) -> dict[str, Any]:
    """Return all values of a status at the end, except for the timestamps."""
    return {
        "message_id": message_id,
        "actor_name": "work",
        "queue_name": "default",
        "status": "completed",
        "progress": stress_app.INCREMENTS,
        "attempts": 1,
        "user_id": number * 7,
        "number": number,
        "step": "done",
        "percent": float(stress_app.INCREMENTS),
        "finished": True,
        "retrying": False,
        "scheduled": False,
        "stalled": False,
        "time_remaining": None,
    }


def without_timestamps(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMED}


@contextmanager
def command(broker_url: str, store_url: str) -> Iterator[None]:
    """Run worker processes, as a user does."""
    worker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dramatiq",
            "tests.stress_app",
            "--processes",
            str(PROCESSES),
            "--threads",
            str(THREADS),
        ],
        cwd=ROOT,
        env={**os.environ, "STRESS_BROKER": broker_url, "STRESS_STORE": store_url, "dramatiq_worker_timeout": "50"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(60)


@pytest.mark.timeout(120 + PATIENCE // 1000)
@pytest.mark.parametrize(
    ("piggyback", "count"), [(False, MESSAGES), (True, MESSAGES // 10)], ids=["apart", "piggyback"]
)
def test_three_processes_store_exact_records(
    redis_server: RedisServer, redis_url: str, redis_broker_url: str, piggyback: bool, count: int
) -> None:
    if piggyback:
        redis_broker_url = redis_url
    broker = stress_app.make_broker(redis_broker_url, redis_url)
    actor = dramatiq.actor(stress_app.work, broker=broker)
    client = redis.Redis.from_url(redis_broker_url, decode_responses=True)
    # Given three worker processes with eight threads each
    with command(redis_broker_url, redis_url):
        eventually(lambda: client.llen(stress_app.BOOTED) == PROCESSES)
        # When they get very many messages
        messages = [actor.send_with_options(args=(number,), status={"user_id": number * 7}) for number in range(count)]
        for message in reversed(messages):
            StatusRegistry.wait(message, timeout=PATIENCE, broker=broker)
    # Then every record is exact
    found = [snapshot.to_dict() if snapshot else {} for snapshot in StatusRegistry.read_many(messages, broker=broker)]
    expected = [exact(number, message.message_id) for number, message in enumerate(messages)]
    assert [without_timestamps(record) for record in found] == expected
    assert all(set(record) >= TIMED for record in found)
    assert all([run["attempt"] for run in record["runs"]] == [record["attempts"]] for record in found)
    # And the workers have logged no warnings
    assert client.lrange(stress_app.LOGGED, 0, -1) == []
    broker.close()
