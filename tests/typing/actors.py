"""Code of a user inside of actors, for type checkers alone: see ``tests/test_typing.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dramatiq
from typing_extensions import assert_type

from dramatiq_status import Progress, Snapshot, State, Status, StatusMiddleware, current_progress, current_status, track
from dramatiq_status.backends import RedisBackend, SQLiteBackend, backend_from_url
from dramatiq_status.testing import assert_status_sequence, bound_status, stub_statuses, wait_for_final_state


def set_up(broker: dramatiq.Broker) -> None:
    broker.add_middleware(StatusMiddleware(backend=RedisBackend(url="redis://127.0.0.1:6379/1")))
    broker.add_middleware(StatusMiddleware(backend=SQLiteBackend(Path("status.db")), status_ttl=timedelta(days=1)))
    broker.add_middleware(StatusMiddleware(backend=backend_from_url("memory://"), includes={"result"}))
    StatusMiddleware(backend="redis://127.0.0.1")  # error: arg-type reportArgumentType
    StatusMiddleware(ttl=5)  # error: call-arg reportCallIssue


def write() -> None:
    status, progress = current_status(), current_progress()
    assert_type(status, Status)
    assert_type(progress, Progress)
    status["step"] = "reading"
    status["pages"] = [1, 2]
    status.update(step="indexing", total=50)
    status.update({"not an identifier": 1}, force=True)
    status.increment("rows", 500)
    status.increment("rows", "500")  # error: arg-type reportArgumentType
    progress.total = None
    progress.increment(0.5)
    progress.add_total("5")  # error: arg-type reportArgumentType
    progress.fraction = 0.5  # error: misc reportAttributeAccessIssue
    assert_type(status["step"], Any)
    assert_type(status.state, State | None)
    assert_type(status.progress, float | None)
    assert_type(status.flush(), bool)


def loop(paths: Iterator[Path]) -> None:
    for path in track(paths, step="reading"):
        assert_type(path, Path)
    for number in track(range(5), total=5.5):
        assert_type(number, int)
    for letter in track("abc", "3"):  # error: arg-type reportArgumentType
        letter.upper()
    track(5)  # error: arg-type reportArgumentType


async def loop_async(pages: AsyncIterator[bytes]) -> None:
    async for page in track(pages, total=12):
        assert_type(page, bytes)


def test_an_actor(message: dramatiq.Message[int]) -> None:
    with bound_status("job") as status:
        assert_type(status, Status)
    with stub_statuses() as backend:
        assert_type(backend.expires_in("job"), int | None)
        assert_type(wait_for_final_state(message, State.COMPLETED, timeout=5), Snapshot)
        assert_status_sequence(message, ["queued", State.WORKING])
        assert_status_sequence(message, [1])  # error: list-item reportArgumentType
