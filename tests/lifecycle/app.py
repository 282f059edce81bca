"""Module that the ``dramatiq`` command loads: a stage as the environment describes it."""

from __future__ import annotations

import os

import dramatiq

from .recorder import CountingMemcachedBackend, Recorder, RecordingRedisBackend
from .stage import Stage


def make_stage(broker_url: str, store_url: str, *, position: str, name: str, retries: bool = True) -> Stage:
    """Make the same stage in the worker and in the test."""
    backend: Recorder
    if store_url.startswith("memcached://"):
        servers = store_url.removeprefix("memcached://")
        backend = CountingMemcachedBackend(servers=servers, namespace=name, timeout=20_000)
    else:
        backend = RecordingRedisBackend(url=store_url, namespace=name, timeout=20_000)
    return Stage(broker_url, backend, position=position, name=name, retries=retries, heartbeat_interval=200)


if "STAGE_NAME" in os.environ:
    stage = make_stage(
        os.environ["STAGE_BROKER"],
        os.environ["STAGE_STORE"],
        position=os.environ["STAGE_POSITION"],
        name=os.environ["STAGE_NAME"],
        retries=os.environ["STAGE_RETRIES"] == "True",
    )
    dramatiq.set_broker(stage.broker)
