"""`dramatiq_status.testing`: statuses for unit tests that the registry finds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from dramatiq_status import StatusMiddleware, StatusRegistry, aio, current_progress, current_status
from dramatiq_status.backends import StubBackend
from dramatiq_status.context import current_binding
from dramatiq_status.testing import bound_status


@pytest.fixture(autouse=True)
def backend() -> Iterator[StubBackend]:
    """Yield the backend of the default broker, which is not called."""
    backend, broker = StubBackend(), StubBroker()
    broker.add_middleware(StatusMiddleware(backend=backend))
    dramatiq.set_broker(broker)
    yield backend
    dramatiq.set_broker(None)  # type: ignore[arg-type]


def import_part(rows: int, parent_id: str) -> None:
    """Increment the progress of a parent, as the actor of a child does."""
    for _ in range(rows):
        current_progress().increment()
    current_status()["parent"] = parent_id
    StatusRegistry.progress(parent_id).increment()


def test_a_child_finds_its_parent(backend: StubBackend) -> None:
    # Given a parent and a child that are bound
    with bound_status("parent") as parent:
        current_status().update(total=2)
        with bound_status("child") as child:
            # When the function of the child's actor is called
            import_part(3, "parent")
            # Then each handle has the values of its own message
            assert (child.message_id, child["progress"], child["parent"]) == ("child", 3, "parent")
        # And the parent is bound again
        assert current_status().message_id == parent.message_id == "parent"
        assert (parent["progress"], parent["total"], parent.progress) == (1, 2, 0.5)
    # And no binding is left, and the broker's own backend has got no update
    assert current_binding() is None
    assert backend.read_many(["parent", "child"]) == [None, None]


def test_the_whole_registry_finds_a_bound_status() -> None:
    with bound_status("job") as status:
        status["step"] = "reading"
        snapshot = StatusRegistry.read("job")
        assert snapshot is not None and snapshot.working and snapshot["step"] == "reading"
        assert [found and found["step"] for found in StatusRegistry.read_many(["job", "other"])] == ["reading", None]
        assert StatusRegistry.batch(["job"]).read().working
        assert [found.message_id for found in StatusRegistry.list()] == ["job"]
        found = asyncio.run(aio.StatusRegistry.read("job"))
        assert found is not None and found["step"] == "reading"
        StatusRegistry.get("job")["status"] = "failed"
        assert StatusRegistry.wait("job").failed
        assert StatusRegistry.delete("job") and not status


def test_a_given_backend_comes_before_that_of_a_bound_status(backend: StubBackend) -> None:
    with bound_status("job"):
        assert StatusRegistry.read("job", backend=backend) is None
        assert StatusRegistry.read("job", broker=dramatiq.get_broker()) is None


def test_a_status_without_an_id_leaves_the_registry_alone(backend: StubBackend) -> None:
    with bound_status():
        assert StatusRegistry.list() == [] and not StatusRegistry.get("job")
        assert StatusRegistry.list(backend=backend) == []


def test_blocks_that_are_not_nested_share_nothing() -> None:
    with bound_status("first"):
        pass
    with bound_status("second"):
        assert StatusRegistry.read("first") is None


@pytest.mark.parametrize(("message_id", "error"), [("", ValueError), ("a\nb", ValueError), (5, TypeError)])
def test_a_wrong_message_id_is_refused(message_id: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="message_id"), bound_status(message_id):  # type: ignore[arg-type]
        pass
    assert current_binding() is None
