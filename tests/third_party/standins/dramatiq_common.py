"""What Dramatiq's tests import from ``tests/common.py``, which its source distribution lacks."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pika
import pytest

RABBITMQ_USERNAME = RABBITMQ_PASSWORD = "guest"
RABBITMQ_CREDENTIALS = pika.credentials.PlainCredentials(RABBITMQ_USERNAME, RABBITMQ_PASSWORD)

skip_in_ci = pytest.mark.skipif(os.environ.get("CI") == "true", reason="Takes long.")
skip_on_windows = pytest.mark.skipif(sys.platform == "win32", reason="Not on Windows.")
skip_on_pypy = pytest.mark.skipif(platform.python_implementation() == "PyPy", reason="Not on PyPy.")


def skip_unless_rabbit_mq(test: Any) -> Any:
    """Skip no test, because there is always a RabbitMQ."""
    return test


@contextmanager
def worker(broker: dramatiq.Broker, **options: Any) -> Iterator[dramatiq.Worker]:
    """Run a worker for the length of a block."""
    found = dramatiq.Worker(broker, **options)
    found.start()
    try:
        yield found
    finally:
        found.stop()
