"""Code of a user that reads statuses, for type checkers alone: see ``tests/test_typing.py``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import dramatiq
from typing_extensions import assert_type

from dramatiq_status import BackendError, Batch, BatchSnapshot, Run, Snapshot, State, Status, StatusRegistry, aio
from dramatiq_status.backend import StatusBackend


def read(message: dramatiq.Message[int]) -> None:
    assert_type(StatusRegistry.get(message), Status)
    found = StatusRegistry.read(message.message_id)
    assert_type(found, Snapshot | None)
    print(found.state)  # error: union-attr reportOptionalMemberAccess
    assert_type(StatusRegistry.read_many(["a", message]), list[Snapshot | None])
    assert_type(StatusRegistry.read_many(["a"], return_errors=True), list[Snapshot | BackendError | None])
    assert_type(StatusRegistry.wait(message, timeout=timedelta(seconds=5)), Snapshot)
    assert_type(StatusRegistry.watch(message), Iterator[Snapshot])
    assert_type(StatusRegistry.list(state="failed", after="cursor"), list[Snapshot])
    assert_type(StatusRegistry.count(State.WORKING), int)
    StatusRegistry.read(5)  # error: arg-type reportArgumentType
    StatusRegistry.wait(message, timeout="5 s")  # error: arg-type reportArgumentType


def show(found: Snapshot) -> None:
    assert_type(found.state, State)
    assert_type(found.started_at, datetime | None)
    assert_type(found.time_remaining, timedelta | None)
    assert_type(found.runs, tuple[Run, ...])
    assert_type(found.to_dict(), dict[str, Any])
    if found.state == "failed" and found.exception:
        assert_type(found.exception["type"], str)
    found.state = State.FAILED  # error: misc reportAttributeAccessIssue
    found["step"] = "x"  # error: index reportIndexIssue


def follow(message: dramatiq.Message[int], group: dramatiq.group, pipeline: dramatiq.pipeline) -> list[Batch]:
    nested = [group, pipeline, message, message.message_id]
    aio.StatusRegistry.batch(group)
    batch = StatusRegistry.batch(nested)
    assert_type(batch.read(), BatchSnapshot)
    assert_type(batch.read().children, Mapping[str, Snapshot | None])
    assert_type(batch.watch(), Iterator[BatchSnapshot])
    StatusRegistry.batch(5)  # error: arg-type reportArgumentType
    return [batch, StatusRegistry.batch(group), StatusRegistry.batch(pipeline)]


async def read_async(message: dramatiq.Message[int]) -> None:
    assert_type(await aio.StatusRegistry.read(message), Snapshot | None)
    assert_type(await aio.StatusRegistry.read_many(["a"]), list[Snapshot | None])
    assert_type(await aio.StatusRegistry.wait("a"), Snapshot)
    assert_type(aio.StatusRegistry.watch("a"), AsyncGenerator[Snapshot, None])
    status = aio.StatusRegistry.get(message)
    await status.update(step="x")
    assert_type(await status.state, State | None)
    status["step"] = "x"  # error: index reportIndexIssue
    for found in aio.StatusRegistry.watch("a"):  # error: attr-defined reportGeneralTypeIssues
        print(found)


class HalfABackend(StatusBackend):
    def delete(self, message_id: str) -> int:  # error: override reportIncompatibleMethodOverride
        return 5


HalfABackend()  # error: abstract reportAbstractUsage
