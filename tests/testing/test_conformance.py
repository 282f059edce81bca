"""Tests that the conformance suite fails for backends with wrong subscriptions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import pytest

from dramatiq_status.backends import StubBackend
from dramatiq_status.record import VERSION
from dramatiq_status.testing.conformance import BackendConformance, enqueue
from dramatiq_status.testing.conformance import subscriptions as suite
from dramatiq_status.update import Outcome, Update

Change = tuple[str, int]

#: Function from one change to the changes that the subscription returns.
Tell = Callable[["Heard", Change], Iterable[Change]]


class Heard(NamedTuple):
    """A subscription of :class:`TellingBackend`."""

    message_ids: Sequence[str]
    changes: SimpleQueue[Change]
    listeners: list[Any]

    def wait(self, timeout: float) -> dict[str, int]:
        try:
            return dict([self.changes.get(timeout=timeout)])
        except Empty:
            return {}

    def close(self) -> None:
        self.listeners.remove(self)


class TellingBackend(StubBackend):
    """A stub backend with subscriptions, whose faults a test chooses."""

    def __init__(self, tell: Tell, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._tell = tell
        self._listeners: list[Heard] = []

    def subscribe(self, message_ids: Sequence[str]) -> Heard:
        heard = Heard(message_ids, SimpleQueue(), self._listeners)
        self._listeners.append(heard)
        return heard

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        outcomes = super().update_many(updates)
        for message_id, _ in updates:
            record = self.read(message_id)
            self._say((message_id, int(record[VERSION]) if record else 0))
        return outcomes

    def delete(self, message_id: str) -> bool:
        deleted = super().delete(message_id)
        self._say((message_id, 0))
        return deleted

    def _say(self, change: Change) -> None:
        for heard in self._listeners:
            for told in self._tell(heard, change):
                heard.changes.put(told)


def tell(heard: Heard, change: Change) -> list[Change]:
    """Return the change unchanged."""
    return [change] if change[0] in heard.message_ids else []


#: Faults of a subscription, each with the test that finds it.
WRONG: dict[str, tuple[Tell, str]] = {
    "never tells": (lambda heard, change: [], "test_a_change_is_received"),
    "tells no version": (lambda heard, change: [(id, 1) for id, _ in tell(heard, change)], "test_a_change_is_received"),
    "tells of no delete": (lambda heard, change: tell(heard, change) if change[1] else [], "test_a_delete_is_received"),
    "tells of all": (lambda heard, change: [change], "test_changes_of_other_messages_are_not_received"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_suite_fails_for_wrong_subscriptions(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a backend with a wrong subscription
    monkeypatch.setattr(suite, "CHANGE_TIMEOUT", 0.05)
    wrong, test = WRONG[name]
    backend = TellingBackend(wrong)
    backend.update("message", enqueue())
    # When the suite is run against it
    # Then a test fails
    with pytest.raises(AssertionError):
        getattr(BackendConformance(), test)(backend, backend.subscribe(("message",)), "message")


@pytest.mark.parametrize("test", sorted({test for _, test in WRONG.values()}))
def test_the_suite_passes_for_right_subscriptions(test: str) -> None:
    # Given a backend with a right subscription
    backend = TellingBackend(tell)
    backend.update("message", enqueue())
    # When the suite is run against it
    # Then no test fails
    getattr(BackendConformance(), test)(backend, backend.subscribe(("message",)), "message")


def test_the_suite_fails_for_changes_from_before_the_subscription() -> None:
    # Given a backend whose subscription returns changes from before it began
    backend = TellingBackend(tell)
    early = backend.subscribe(("message",))
    backend.update("message", enqueue())
    # When the suite is run against it
    # Then a test fails
    with pytest.raises(AssertionError):
        BackendConformance().test_earlier_changes_are_not_received(backend, early, "message")
