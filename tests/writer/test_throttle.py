"""Tests of throttling: which writes wait, for how long, and that none is lost."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import dramatiq
import pytest

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress, current_status, track
from dramatiq_status.record import COMPLETED, PROGRESS, TOTAL
from dramatiq_status.update import EnqueueId, Kind, Update

from ..recording import PATIENCE, RecordingBackend, eventually, make_broker, run, working

HOUR = 3_600_000


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def broker(backend: RecordingBackend) -> dramatiq.Broker:
    return make_broker(backend)


def test_a_throttle_of_an_hour_loses_nothing(backend, broker):
    # Given an actor with a throttle of an hour
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def count():
        progress = current_progress()
        for _ in range(100):
            progress.increment()

    # When it makes a hundred steps
    message = count.send()
    run(broker)

    # Then the store has all of them
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot.completed
    assert snapshot["progress"] == 100


def test_a_throttle_of_an_hour_loses_no_fields(backend, broker):
    # Given an actor with a throttle of an hour
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def update():
        for number in range(50):
            current_status().update({f"field{number}": number, "last": number})

    # When it updates many fields
    message = update.send()
    run(broker)

    # Then the store has all of them
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot.fields == {**{f"field{number}": number for number in range(50)}, "last": 49}


def test_a_throttle_of_an_hour_loses_nothing_when_the_job_fails(backend, broker):
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def fail():
        for _ in range(7):
            current_progress().increment()
        current_status().update(step="last")
        raise ValueError("on purpose")

    # When a throttled job fails
    message = fail.send()
    run(broker)

    # Then the store has its writes
    snapshot = StatusRegistry.read(message, backend=backend)
    assert snapshot.failed
    assert (snapshot["progress"], snapshot["step"]) == (7, "last")


def test_a_retry_carries_what_was_throttled(backend, broker):
    runs = []

    @dramatiq.actor(broker=broker, status_throttle=HOUR, max_retries=1)
    def fail_once():
        status, progress = current_status(), current_progress()
        runs.append(dict(status.read().fields))
        if len(runs) == 1:
            status.update(first="old")
            progress.increment()
            status.flush()
            # (From here on, all writes wait, and a retry's own fields only fill gaps.)
            status.update(first="new")
            progress.increment()
            raise ValueError("on purpose")

    # When the first run of a throttled job fails, and the second succeeds
    message = fail_once.send()
    run(broker)

    # Then the last writes of the first run were stored before the second began
    assert runs == [{}, {"first": "new"}]
    assert StatusRegistry.read(message, backend=backend)["first"] == "new"
    # And so was its progress
    assert sum(update.increment for update in backend.writes(message.message_id)) == 2


def test_the_first_throttled_update_goes_at_once(backend, broker):
    go_on = threading.Event()

    # Given a job that waits for the test
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def count():
        eventually(lambda: len(backend.writes()) == 1)  # its start
        current_progress().increment()
        assert go_on.wait(PATIENCE)

    message = count.send()
    with working(broker):
        # Then its first increment is stored, although the hour is not over
        backend.wait_for(lambda: backend.field(message.message_id, PROGRESS) == "1")
        go_on.set()
        StatusRegistry.wait(message, backend=backend)


def test_later_updates_go_when_the_interval_ends(backend, broker):
    go_on = threading.Event()

    # Given a job with a short throttle that waits for the test
    @dramatiq.actor(broker=broker, status_throttle=50)
    def count():
        progress = current_progress()
        for _ in range(10):
            progress.increment()
        assert go_on.wait(PATIENCE)

    message = count.send()
    with working(broker):
        # Then all its increments are stored without a later write
        backend.wait_for(lambda: backend.field(message.message_id, PROGRESS) == "10")
        go_on.set()
        StatusRegistry.wait(message, backend=backend)


def test_later_fields_go_when_the_interval_ends(backend, broker):
    go_on = threading.Event()

    # Given a job with a short throttle that waits for the test
    @dramatiq.actor(broker=broker, status_throttle=50)
    def update():
        for number in range(10):
            current_status().update(number=number)
        assert go_on.wait(PATIENCE)

    message = update.send()
    with working(broker):
        # Then the last value is stored without a later write
        backend.wait_for(lambda: backend.field(message.message_id, ":number") == "9")
        go_on.set()
        StatusRegistry.wait(message, backend=backend)


def test_increments_after_the_interval_go_in_the_next(backend, broker):
    again, go_on = threading.Event(), threading.Event()

    # Given a job that increments again after an interval has ended
    @dramatiq.actor(broker=broker, status_throttle=50)
    def count():
        progress = current_progress()
        for _ in range(10):
            progress.increment()
        assert again.wait(PATIENCE)
        for _ in range(5):
            progress.increment()
        assert go_on.wait(PATIENCE)

    message = count.send()
    with working(broker):
        backend.wait_for(lambda: backend.field(message.message_id, PROGRESS) == "10")
        again.set()
        # Then the later increments are stored as well
        backend.wait_for(lambda: backend.field(message.message_id, PROGRESS) == "15")
        go_on.set()
        StatusRegistry.wait(message, backend=backend)


def test_a_throttled_job_sends_few_updates(backend, broker):
    # Given an actor with a throttle of an hour
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def count():
        for number in range(20_000):
            current_progress().increment()
            current_status().update(number=number)

    # When it makes thousands of increments
    message = count.send()
    run(broker)

    # Then few updates reach the store: the start, the first increment, the end
    assert len(backend.writes(message.message_id)) <= 4
    snapshot = StatusRegistry.read(message, backend=backend)
    assert (snapshot["progress"], snapshot["number"]) == (20_000, 19_999)


def _set_field(status: Any, progress: Any) -> None:
    status["marker"] = 1


def _force(status: Any, progress: Any) -> None:
    status.update(marker=1, force=True)


def _set_total(status: Any, progress: Any) -> None:
    progress.total = 1


def _set_progress(status: Any, progress: Any) -> None:
    progress.progress = 77


def _finish(status: Any, progress: Any) -> None:
    progress.finish()


@pytest.mark.parametrize(
    ("write", "stored_name", "text"),
    [
        (_set_field, ":marker", "1"),
        (_force, ":marker", "1"),
        (_set_total, TOTAL, "1"),
        (_set_progress, PROGRESS, "77"),
        (_finish, PROGRESS, "100"),
    ],
)
def test_writes_that_are_not_throttled(backend, broker, write, stored_name, text):
    go_on = threading.Event()

    # Given a job whose throttled updates have to wait for an hour
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def work():
        status, progress = current_status(), current_progress()
        progress.increment()
        status.flush()
        status.update(held="back")
        # When it makes a write that is not throttled
        write(status, progress)
        assert go_on.wait(PATIENCE)

    message = work.send()
    with working(broker):
        # Then it is stored at once, together with the writes that waited
        backend.wait_for(lambda: backend.field(message.message_id, stored_name) == text)
        assert backend.field(message.message_id, ":held") == '"back"'
        go_on.set()
        StatusRegistry.wait(message, backend=backend)


@pytest.mark.parametrize(
    "write",
    [
        lambda status, progress: progress.increment(),
        lambda status, progress: progress.decrement(),
        lambda status, progress: status.update(number=1),
    ],
    ids=["increment", "decrement", "update"],
)
def test_throttled_writes_wait(backend, broker, write):
    # Given a job whose throttled updates have to wait for an hour
    counts = []

    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def work():
        status, progress = current_status(), current_progress()
        progress.increment()
        status.flush()
        before = len(backend.writes(status.message_id))
        # When it makes many throttled writes
        for _ in range(1000):
            write(status, progress)
        # (An update of another message, or a heartbeat, sends none of them either.)
        other = StatusRegistry.get(waiting, backend=backend)
        other["seen"] = True
        assert other.flush() and backend.field(waiting.message_id, ":seen") == "true"
        counts.append(len(backend.writes(status.message_id)) - before)

    # And another message is sent and waits in its queue
    waiting = dramatiq.Message(queue_name="other", actor_name="other", args=(), kwargs={}, options={})
    backend.update(waiting.message_id, Update(Kind.ENQUEUE, EnqueueId(1, 1)))
    work.send()
    run(broker)

    # Then none is stored by the time that the other message is
    assert counts == [0]


def test_flush_does_not_wait_for_the_interval(backend, broker):
    found = []

    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def work():
        status = current_status()
        for _ in range(3):
            current_progress().increment()
            status.flush()
            found.append(backend.field(status.message_id, PROGRESS))

    # When a throttled job flushes
    work.send()
    run(broker)

    # Then all writes are stored when the flush returns
    assert found == ["1", "2", "3"]


def test_track_ends_complete_under_a_throttle(backend, broker):
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def work():
        for _ in track(range(250), step="counting"):
            pass

    message = work.send()
    run(broker)

    snapshot = StatusRegistry.read(message, backend=backend)
    assert (snapshot["progress"], snapshot["total"], snapshot["step"]) == (250, 250, "counting")


def test_a_final_state_always_carries_the_last_progress(backend, broker):
    # Given a throttled job
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def count():
        for _ in range(100):
            current_progress().increment()

    # When it ends
    message = count.send()
    run(broker)

    # Then the update with the final state contains, or follows, the last increment
    states = [update.state for update in backend.writes(message.message_id)]
    assert states[-1] == COMPLETED
    assert sum(update.increment for update in backend.writes(message.message_id)) == 100


def test_the_throttle_is_each_message_own(backend, broker):
    go_on = threading.Event()

    # Given two jobs of an actor with a throttle of an hour
    @dramatiq.actor(broker=broker, status_throttle=HOUR)
    def count():
        current_progress().increment()
        assert go_on.wait(PATIENCE)

    first, second = count.send(), count.send()
    with working(broker, threads=2):
        # Then the first update of each is sent at once
        for message in (first, second):
            backend.wait_for(lambda message=message: backend.field(message.message_id, PROGRESS) == "1")
        go_on.set()
        for message in (first, second):
            StatusRegistry.wait(message, backend=backend)


def test_the_writer_keeps_no_finished_jobs_until_their_interval_ends(backend, broker):
    # Given an actor with a throttle of an hour
    @dramatiq.actor(broker=broker, status_throttle=timedelta(hours=1))
    def count():
        for _ in range(10):
            current_progress().increment()
            current_status().update(number=1)

    # When many of its jobs have finished
    for _ in range(50):
        count.send()
    with working(broker) as worker:
        broker.join(count.queue_name)
        worker.join()
        (middleware,) = (m for m in broker.middleware if isinstance(m, StatusMiddleware))
        writer = middleware._writer
        # Then the writer keeps none of their buffers
        assert len(writer._queue.later) <= 2
