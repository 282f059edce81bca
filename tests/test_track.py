"""Iterating while reporting progress."""

from __future__ import annotations

import asyncio
import io
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

import dramatiq
import pytest

from dramatiq_status import Snapshot, StatusRegistry, aio, current_progress, current_status, track
from dramatiq_status.backend import StatusBackend
from dramatiq_status.record import PROGRESS, TOTAL
from dramatiq_status.rollup import Rollup
from dramatiq_status.testing import bound_status
from dramatiq_status.update import Changes, EnqueueId, Kind, Update

from .recording import RecordingBackend, make_broker, raised_by, run


class Bar:
    """Progress and total after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None]] = []

    def look(self) -> None:
        progress = current_progress()
        self.seen.append((progress.progress, progress.total))

    def rises(self) -> bool:
        counts = [count for count, _ in self.seen]
        return counts == sorted(counts)


@pytest.fixture
def bar() -> Iterator[Bar]:
    with bound_status():
        yield Bar()


def generator(n: int) -> Iterator[int]:
    yield from range(n)


async def agenerator(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


class Stream:
    """An object that is iterable and async iterable, as some files are."""

    def __iter__(self) -> Iterator[int]:
        return generator(3)

    def __aiter__(self) -> AsyncIterator[int]:
        return agenerator(3)


class OldSequence:
    """A sequence that has only ``__getitem__``."""

    def __getitem__(self, index: int) -> int:
        return [7, 8, 9][index]


class Inbox:
    """An async iterator whose wait can be cancelled and repeated.  The item None ends it."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int | None] = asyncio.Queue()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> int:
        item = await self.items.get()
        if item is None:
            raise StopAsyncIteration
        return item


def queue(*items: int | None) -> SimpleQueue[int | None]:
    found: SimpleQueue[int | None] = SimpleQueue()
    for item in items:
        found.put(item)
    return found


# What can be tracked


@pytest.mark.parametrize(
    ("make", "total"),
    [
        (lambda: [0, 1, 2], 3),
        (lambda: range(3), 3),
        (lambda: {"a": 1, "b": 2, "c": 3}, 3),
        (lambda: {"a": 1, "b": 2, "c": 3}.items(), 3),
        (lambda: {1, 2, 3}, 3),
        (lambda: "abc", 3),
        (lambda: b"abc", 3),
        (lambda: deque([0, 1, 2]), 3),
        (lambda: io.StringIO("a\nb\nc\n"), None),
        (lambda: iter(queue(0, 1, 2, None).get, None), None),
        (lambda: iter([0, 1, 2]), 3),
        (lambda: generator(3), None),
        (lambda: map(str, [0, 1, 2]), None),
        (lambda: (n for n in range(3)), None),
        (OldSequence, None),
        (Stream, None),
    ],
)
def test_kinds_of_iterables(bar: Bar, make: Callable[[], Any], total: int | None) -> None:
    # Given three items
    expected = list(make())
    # When it is iterated over in track()
    found = []
    for item in track(make()):
        bar.look()
        found.append(item)
    bar.look()
    # Then the loop gets all items, and each item counts when the loop is done with it
    assert found == expected
    assert bar.seen[:3] == [(0, total), (1, total), (2, total)]
    # And at the end the total is the number of items
    assert bar.seen[3] == (3, 3)


@pytest.mark.parametrize("make", [lambda: agenerator(3), Stream])
def test_async_iterables(bar: Bar, make: Callable[[], Any]) -> None:
    async def work() -> list[int]:
        found = []
        async for item in track(make(), total=4):
            bar.look()
            found.append(item)
        return found

    # Given an async iterable
    # When it is iterated over in track()
    assert asyncio.run(work()) == [0, 1, 2]
    # Then it counts like any other iterable
    bar.look()
    assert bar.seen == [(0, 4), (1, 4), (2, 4), (3, 3)]


def test_an_empty_iterable(bar: Bar) -> None:
    # Given an empty iterable
    # When it is iterated over in track()
    assert list(track([])) == []
    # Then the progress is complete
    assert (current_progress().fraction, current_progress().total) == (1.0, 0)


@pytest.mark.parametrize("total", [2, 5])
def test_a_wrong_total_is_corrected_at_the_end(bar: Bar, total: int) -> None:
    # Given a total that is wrong
    # When the loop has ended
    assert len(list(track(generator(3), total=total))) == 3
    # Then the status has the number of items
    bar.look()
    assert bar.seen == [(3, 3)]


@pytest.mark.parametrize("length", [2**53 + 1, 2**64])
def test_a_length_that_is_too_large_is_unknown(bar: Bar, length: int) -> None:
    # Given an iterable with a length of more than 2**53
    # When track() is called with it
    for item in track(range(length)):
        if item == 2:
            break
    # Then it counts like an iterable without a length
    bar.look()
    assert bar.seen == [(2, None)]


def rest_of(items: Iterable[Any]) -> tuple[float, float | None, float | None]:
    """Iterate over items, and return what the status has at the last one."""
    for _ in items:
        progress = current_progress()
        seen = progress.progress, progress.total, progress.fraction
    return seen


def test_an_unknown_total(bar: Bar) -> None:
    # Given loops over iterables without a length: as the first one, after a loop with a length, and after a left loop
    # When they run
    # Then the total is unknown until the end
    assert rest_of(track(generator(3))) == (2, None, None)
    assert rest_of(track([1, 2])) == (1, 2, 0.5)
    assert rest_of(track(generator(3))) == (2, None, None)
    next(iter(track([1, 2])))
    assert rest_of(track(generator(3))) == (2, None, None)
    assert (current_progress().progress, current_progress().total, current_progress().fraction) == (3, 3, 1.0)


def test_a_total_that_the_actor_has_set_stays_during_the_loop(bar: Bar) -> None:
    # Given a total that the actor has set
    # When it iterates over an iterable without a length
    # Then the total stays until the end
    current_progress().total = 8
    assert rest_of(track(generator(3))) == (2, 8, 0.25)
    assert current_progress().total == 3
    current_status().update(total=16, progress=0)
    assert rest_of(track(generator(3))) == (2, 16, 0.125)
    # And a total that the actor has set to None stays unknown
    current_progress().total = None
    assert rest_of(track(generator(3))) == (2, None, None)


def test_a_progress_without_a_total(bar: Bar) -> None:
    # Given a total that was set to None
    progress = current_progress()
    progress.total = None
    # When the progress is incremented
    progress.increment(250)
    # Then the status has no fraction
    assert progress.to_dict() == {"progress": 250, "total": None, "fraction": None, "rate": None}
    # And finish() sets the total to the progress
    progress.finish()
    assert (progress.progress, progress.total, progress.fraction) == (250, 250, 1.0)


def test_an_unknown_total_in_every_store(every_backend: StatusBackend) -> None:
    broker = make_broker(every_backend)
    seen: list[Snapshot] = []

    def look() -> None:
        snapshot = current_status().read()
        assert snapshot is not None
        seen.append(snapshot)

    # Given a job that tracks an iterable without a length after a list, and a job that sets its total to None
    @dramatiq.actor(broker=broker)
    def work() -> None:
        list(track([1, 2, 3]))
        for number in track(n for n in range(250)):
            if number == 200:
                look()

    @dramatiq.actor(broker=broker)
    def count() -> None:
        progress = current_progress()
        progress.increment(250)
        progress.total = None
        look()

    # When they run
    messages = [work.send(), count.send_with_options(status={"total": None, "step": "x"})]
    run(broker, threads=1)
    # Then neither has a percentage or a time remaining
    # Dramatiq 1.17 runs them in the order of their actors' names.
    seen.sort(key=lambda snapshot: snapshot["progress"])
    assert [snapshot["progress"] for snapshot in seen] == [200, 250]
    for snapshot in seen:
        assert (snapshot.progress, snapshot.percent, snapshot.total, snapshot.time_remaining) == (None,) * 4
        assert str(snapshot) == "working" and snapshot.to_dict()["total"] is None and snapshot["total"] is None
        assert json.loads(snapshot.to_json())["total"] is None
    # And a roll-up counts neither as complete
    batch = Rollup([(snapshot.message_id,) for snapshot in seen]).take(seen)
    assert (batch.progress, str(batch)) == (0.0, "working (0%: 2 working)")
    # And at the end the first job has its known total, and the second one has none
    first, second = StatusRegistry.read_many(messages, backend=every_backend)
    assert first is not None and (str(first), first["total"]) == ("completed (100%)", 250)
    assert second is not None and (str(second), second["total"]) == ("completed", None)
    # And other processes may set the total to None, too
    progress = StatusRegistry.progress(messages[0], backend=every_backend)
    progress.total = None
    assert (progress.total, progress.fraction, progress.progress) == (None, None, 250)
    progress.finish()
    assert progress.to_dict()["total"] == 250

    async def set_in_a_loop() -> None:
        progress = aio.StatusRegistry.progress(messages[0], backend=every_backend)
        await progress.set(total=None)
        assert (await progress.total, await progress.fraction) == (None, None)
        await progress.set(progress=7)
        assert (await progress.to_dict()) == {"progress": 7, "total": None, "fraction": None, "rate": None}
        await progress.finish()
        assert (await progress.progress, await progress.total) == (7, 7)

    asyncio.run(set_in_a_loop())


def test_the_end_of_a_count_is_at_the_total_of_the_store(every_backend: StatusBackend) -> None:
    broker = make_broker(every_backend)
    ends: list[Snapshot | None] = []

    @dramatiq.actor(broker=broker, max_retries=1)
    def work() -> None:
        # Given a retry, which keeps the total that the run before has set, and a message that adds to this total
        message_id, progress = current_status().message_id, current_progress()
        if current_status().read().attempts == 1:  # type: ignore[union-attr]
            progress.total = 50
            progress.increment(5)
            raise RuntimeError("It does not work.")
        progress.increment(3)
        progress.flush()
        StatusRegistry.progress("parent", backend=every_backend).finish()
        every_backend.update(message_id, Update(Kind.OUTSIDE, changes=Changes({TOTAL: 10})))
        # When the retry ends its count
        progress.finish()
        ends.append(current_status().read())

    # When another process ends the count of a message that has not run, on both kinds of handle
    every_backend.update("parent", Update(Kind.ENQUEUE, EnqueueId(7, 1), fields={TOTAL: "4"}))
    message = work.send()
    run(broker, threads=1)
    ends += StatusRegistry.read_many([message, "parent"], backend=every_backend)
    StatusRegistry.progress("parent", backend=every_backend).add_total(2)
    asyncio.run(aio.StatusRegistry.progress("parent", backend=every_backend).finish())
    ends.append(StatusRegistry.read("parent", backend=every_backend))
    # Then the progress is the total that the store has
    found = [(end["progress"], end["total"], end.percent) for end in ends if end is not None]
    assert found == [(60, 60, 100.0), (60, 60, 100.0), (4, 4, 100.0), (6, 6, 100.0)]


def test_the_length_is_taken_when_the_loop_begins(bar: Bar) -> None:
    # Given a list that is filled after the call of track()
    rows: list[int] = []
    tracked = track(rows)
    assert len(tracked) == 0 and tracked
    rows += [1, 2]
    # When the loop begins
    # Then the total is the length at that time
    assert len(tracked) == 2 and rest_of(tracked) == (1, 2, 0.5)
    rows += [3, 4]
    assert rest_of(tracked) == (3, 4, 0.75)


class Unsure(list[int]):
    def __len__(self) -> int:
        raise NotImplementedError("nobody has counted them")


def test_an_error_of_the_length_is_ignored(bar: Bar) -> None:
    # Given an iterable whose length raises an error
    # When it is iterated over in track()
    # Then it counts like an iterable without a length
    assert rest_of(track(Unsure([7, 8, 9]))) == (2, None, None)


def test_track_has_the_length_of_its_iterable(bar: Bar) -> None:
    # Given iterables with a length and without
    # When they are tracked
    # Then track() has the same length
    assert (len(track([1, 2, 3])), len(track(range(5), total=9)), len(track(track("abc")))) == (3, 5, 3)
    assert list(track(generator(3))) == [0, 1, 2]
    with pytest.raises(TypeError, match="generator"):
        len(track(generator(3)))
    with pytest.raises(TypeError, match="async_generator"):
        len(track(agenerator(3), total=3))


def test_fields_are_written_with_the_total() -> None:
    backend = RecordingBackend()
    broker = make_broker(backend)

    # Given an actor that passes fields to track()
    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status().flush()
        for _ in track(range(2), step="reading", file="a.csv"):
            current_status().flush()

    # When it runs
    message = work.send()
    run(broker)
    # Then one update has set them, with the total and the progress
    update = next(update for update in backend.writes(message.message_id) if ":step" in update.fields)
    found = {name: update.fields.get(name) for name in (":step", ":file", TOTAL, PROGRESS)}
    assert found == {":step": '"reading"', ":file": '"a.csv"', TOTAL: "2", PROGRESS: "0"}


def test_track_continues_from_a_given_progress(bar: Bar) -> None:
    # Given ten rows, four of which an earlier run has imported
    # When a loop tracks the other rows
    for _ in track(range(4, 10), total=10, progress=4):
        bar.look()
    bar.look()
    # Then the progress goes on from four
    assert bar.seen == [(4, 10), (5, 10), (6, 10), (7, 10), (8, 10), (9, 10), (10, 10)]


def test_track_outside_of_a_worker() -> None:
    # Given no worker
    # When an iterable is tracked
    # Then the loop gets all items
    assert list(track(range(3), step="x")) == [0, 1, 2]

    async def work() -> list[int]:
        return [item async for item in track(agenerator(3))]

    assert asyncio.run(work()) == [0, 1, 2]


# Leaving early


def test_a_loop_that_is_left_by_break(bar: Bar) -> None:
    # Given a loop
    # When it is left in the middle of the third item
    for item in track(range(10)):
        if item == 2:
            break
    # Then two items count
    bar.look()
    assert bar.seen == [(2, 10)]


def test_a_loop_that_is_left_by_an_exception(bar: Bar) -> None:
    # Given a loop
    def work() -> None:
        for item in track(range(10)):
            if item == 2:
                raise ValueError

    # When the third item fails
    assert isinstance(raised_by(work), ValueError)
    # Then two items count
    bar.look()
    assert bar.seen == [(2, 10)]


def test_an_iterable_that_raises(bar: Bar) -> None:
    def rows() -> Iterator[int]:
        yield from range(2)
        raise OSError

    # Given rows whose iterator raises an error
    # When they are tracked
    assert isinstance(raised_by(lambda: list(track(rows(), total=10))), OSError)
    # Then the progress stays where the error was raised
    bar.look()
    assert bar.seen == [(2, 10)]


def test_an_async_loop_that_is_left(bar: Bar) -> None:
    async def work(leave: Callable[[], Any]) -> None:
        try:
            async for item in track(agenerator(10), total=10):
                if item == 2 and leave():
                    break
        except ValueError:
            pass
        bar.look()

    def fail() -> None:
        raise ValueError

    # Given async loops
    # When they are left by a break and by an exception
    asyncio.run(work(lambda: True))
    asyncio.run(work(fail))
    # Then two items count in each
    assert bar.seen == [(2, 10), (2, 10)]


def test_a_generator_that_is_closed(bar: Bar) -> None:
    # Given an iterator that was closed in the middle of its second item, and that still has a reference
    rows = iter(track(range(50)))
    assert (next(rows), next(rows)) == (0, 1)
    assert isinstance(rows, Generator)
    rows.close()
    bar.look()
    # When another loop begins
    for _ in track(range(2)):
        bar.look()
    # Then the new loop is not inside of the old one
    assert bar.seen == [(1, 50), (0, 2), (1, 2)]


def test_kept_exceptions_do_not_keep_a_leg_open(bar: Bar) -> None:
    kept: list[BaseException | None] = []

    def rows(good: int) -> Iterator[int]:
        yield from range(good)
        if good < 10:
            raise ConnectionError

    def attempt(good: int) -> None:
        for _ in track(rows(good), total=10):
            pass
        bar.look()

    # Given loops whose iterables raised errors, which other code keeps with their tracebacks
    for good in (5, 3):
        kept.append(raised_by(lambda good=good: attempt(good)))  # type: ignore[misc]
    # When another loop begins
    kept.append(raised_by(lambda: attempt(10)))
    # Then it is not inside of the old ones
    assert [type(exception) for exception in kept] == [ConnectionError, ConnectionError, type(None)]
    assert bar.seen == [(10, 10)]


def test_kept_exceptions_of_async_iterables_do_not_keep_a_leg_open(bar: Bar) -> None:
    kept: list[BaseException] = []

    async def rows(good: int) -> AsyncIterator[int]:
        for i in range(good):
            yield i
        if good < 10:
            raise ConnectionError

    async def work() -> None:
        for good in (5, 3, 10):
            try:
                async for _ in track(rows(good), total=10):
                    pass
            except ConnectionError as e:
                kept.append(e)

    # Given async iterables that raise errors, which other code keeps
    # When further loops run until one ends without an error
    asyncio.run(work())
    # Then the last loop was not inside of an earlier one
    bar.look()
    assert len(kept) == 2 and bar.seen == [(10, 10)]


def test_an_exception_in_an_inner_leg(bar: Bar) -> None:
    kept: list[BaseException] = []
    # Given files, one of which cannot be read at first
    for name in track(["a", "b"]):
        for good in (2, 4):
            try:
                for row in track(range(4)):
                    bar.look()
                    if name == "a" and row == good:
                        raise OSError
            except OSError as e:
                kept.append(e)
            else:
                break
    bar.look()
    # When the file is read again
    # Then the progress counts files, moves on with rows, and never decreases
    assert len(kept) == 1 and bar.rises() and bar.seen[-1] == (2, 2)
    assert [count for count, _ in bar.seen] == [0, 0.25, 0.5, 0.5, 0.75, 1, 1, 1, 1.25, 1.5, 1.75, 2]


def test_a_cancelled_wait_for_an_item_does_not_count(bar: Bar) -> None:
    async def give_up(items: AsyncIterator[int]) -> None:
        waiting = asyncio.ensure_future(anext(items))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        bar.look()

    async def work() -> list[int]:
        inbox = Inbox()
        items = aiter(track(inbox, total=10))
        # Given a task that waits for an item and is cancelled, again and again
        for _ in range(3):
            await give_up(items)
        inbox.items.put_nowait(7)
        found = [await anext(items)]
        for _ in range(3):
            await give_up(items)
        # When items arrive at last
        inbox.items.put_nowait(8)
        inbox.items.put_nowait(None)
        async for item in items:
            found.append(item)
            bar.look()
        # Then the loop gets them, and only they count
        assert [item async for item in items] == []
        return found

    assert asyncio.run(work()) == [7, 8]
    bar.look()
    assert bar.seen == [(0, 10)] * 3 + [(1, 10)] * 4 + [(2, 2)]


def test_an_async_iterator_that_continues_after_an_exception(bar: Bar) -> None:
    class Flaky:
        def __init__(self) -> None:
            self.answers = iter([TimeoutError(), 1, 2])

        def __aiter__(self) -> Flaky:
            return self

        async def __anext__(self) -> Any:
            answer = next(self.answers, StopAsyncIteration())
            if isinstance(answer, Exception):
                raise answer
            return answer

    async def work() -> None:
        items = aiter(track(Flaky(), total=2))
        # Given an async iterator that has raised
        with pytest.raises(TimeoutError):
            await anext(items)
        # When it continues
        async for _ in items:
            for _ in track(range(2)):
                bar.look()

    asyncio.run(work())
    bar.look()
    # Then its loop continues, too: a loop inside of it divides its items
    assert bar.seen == [(0, 2), (0.5, 2), (1, 2), (1.5, 2), (2, 2)]


def test_a_failed_job_keeps_its_progress() -> None:
    backend = RecordingBackend()
    broker = make_broker(backend, asyncio=True)

    # Given an async actor that fails at the third of four items
    @dramatiq.actor(broker=broker)
    async def work() -> None:
        async for item in track(agenerator(4), total=4, step="crawling"):
            if item == 2:
                raise ValueError

    # When it has run
    message = work.send()
    run(broker)
    # Then it has failed with a progress of a half
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.failed
    assert (snapshot.progress, snapshot["step"]) == (0.5, "crawling")


# One loop after the other, and one inside of another


def test_legs_one_after_the_other(bar: Bar) -> None:
    # Given a loop that was finished, and a loop that was left early
    for _ in track(range(3)):
        pass
    for _ in track(range(50)):
        break
    # When a third loop begins
    for _ in track(range(2)):
        bar.look()
    # Then the progress is that of the third loop
    assert bar.seen == [(0, 2), (1, 2)]


def test_an_inner_leg_divides_the_item_of_the_outer_one(bar: Bar) -> None:
    # Given two files of four rows each
    for _ in track(["a", "b"]):
        for _ in track(range(4)):
            bar.look()
    bar.look()
    # When they have been read
    # Then the progress counts files, and moves on with each row
    assert bar.seen == [(n / 4, 2) for n in range(8)] + [(2, 2)]


@pytest.mark.parametrize("rows", [0, 1, 3, 7, 1000, 5000])
def test_parts_of_an_item_add_up_exactly(bar: Bar, rows: int) -> None:
    # Given files of any number of rows, and cells in each
    whole = []
    for _ in track(range(3)):
        whole.append(current_progress().progress)
        for _ in track(range(rows)):
            for _ in track(range(3 if rows < 1000 else 0)):
                bar.look()
            bar.look()
    # When they have been read
    # Then the progress is a whole number after each file, and never decreases
    assert whole == [0, 1, 2] and current_progress().progress == 3 and bar.rises()
    assert all(total == 3 for _, total in bar.seen)


def test_an_inner_leg_without_a_total_or_left_early(bar: Bar) -> None:
    # Given an item that is iterated over in loops that end in all kinds of ways
    for _ in track(range(2)):
        for _ in track(generator(5)):
            bar.look()
        for item in track(range(4)):
            if item == 2:
                break
        bar.look()
        assert raised_by(lambda: list(track(1 / n for n in (1, 0)))) is not None
        bar.look()
        for _ in track(range(4), progress=3, step="inner"):
            bar.look()
        for _ in track(range(100)):
            pass
        bar.look()
    bar.look()
    # When the loops have ended
    # Then the progress never decreases, never exceeds the item, and counts the item once
    assert bar.rises() and bar.seen[-1] == (2, 2)
    assert [count for count, _ in bar.seen[:12]] == [0, 0, 0, 0, 0, 0.5, 0.5, 1, 1, 1, 1, 1]
    assert current_status()["step"] == "inner"


def test_an_iterator_that_outlives_its_loop_is_no_outer_leg(bar: Bar) -> None:
    # Given a tracked iterable whose loop was left, and to which a reference is left
    rows = track(range(50))
    for _ in rows:
        break
    # When another loop begins
    for _ in track(range(2)):
        bar.look()
    # Then the new loop is not inside of the old one
    assert bar.seen == [(0, 2), (1, 2)]
    # And the first one can be iterated over again
    assert len(list(rows)) == 50


def test_legs_in_tasks_and_threads(bar: Bar) -> None:
    async def part(n: int) -> None:
        async for _ in track(agenerator(n), total=n):
            bar.look()

    def in_a_thread() -> None:
        for _ in track(range(8)):
            pass

    async def work() -> None:
        async for _ in track(agenerator(2), total=2):
            await asyncio.gather(part(3), part(5), asyncio.to_thread(in_a_thread))

    # Given items with parts in tasks and threads that run at the same time
    # When all parts are done
    asyncio.run(work())
    bar.look()
    # Then the progress is the number of items
    assert bar.rises() and bar.seen[-1] == (2, 2) and {total for _, total in bar.seen} == {2}


def test_legs_of_two_messages_are_independent(bar: Bar) -> None:
    # Given a message in whose loop another one is processed
    for _ in track(range(2)):
        with bound_status() as inner:
            assert len(list(track(range(3)))) == 3
        # When the other message has its own progress
        assert (inner["progress"], inner["total"]) == (3, 3)
        bar.look()
    # Then the progress of the first one is unchanged
    assert bar.seen == [(0, 2), (1, 2)]


# What is wrong


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: track(7), TypeError, "int"),  # type: ignore[arg-type]
        (lambda: track([], total="7"), TypeError, "'total'"),  # type: ignore[arg-type]
        (lambda: track([], total=-1), ValueError, "'total'"),
        (lambda: track([], progress=-1), ValueError, "'progress'"),
        (lambda: track([], step=object()), TypeError, "'step'"),
        (lambda: track([], attempts=1), ValueError, "'attempts'"),
        (lambda: track([], status="failed"), ValueError, "'status'"),
        (lambda: list(track(agenerator(1))), TypeError, "async for"),
        (lambda: aiter(track([1])), TypeError, "'for"),
    ],
)
def test_wrong_arguments_of_track_raise(bar: Bar, call: Callable[[], Any], error: type[Exception], text: str) -> None:
    # Given a wrong argument
    # When track() is called with it
    # Then the call raises an error that names the problem
    with pytest.raises(error, match=text):
        call()
    bar.look()
    assert bar.seen == [(0, 100)]
