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
    """What a bar showed after each step: progress and total."""

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
    """Both an iterable and an async one, as some files are."""

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
    # When it is iterated over
    found = []
    for item in track(make()):
        bar.look()
        found.append(item)
    bar.look()
    # Then all of it comes, and each item counts when it has been dealt with
    assert found == expected
    assert bar.seen[:3] == [(0, total), (1, total), (2, total)]
    # And in the end the total is what there was
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
    # When it is iterated over
    assert asyncio.run(work()) == [0, 1, 2]
    # Then it counts like any other
    bar.look()
    assert bar.seen == [(0, 4), (1, 4), (2, 4), (3, 3)]


def test_an_empty_iterable(bar: Bar) -> None:
    # Given nothing
    # When it is iterated over
    assert list(track([])) == []
    # Then it is done
    assert (current_progress().fraction, current_progress().total) == (1.0, 0)


@pytest.mark.parametrize("total", [2, 5])
def test_a_wrong_length_hint_is_corrected_at_the_end(bar: Bar, total: int) -> None:
    # Given a total that turns out to be wrong
    # When all has been dealt with
    assert len(list(track(generator(3), total=total))) == 3
    # Then what there was is what is shown
    bar.look()
    assert bar.seen == [(3, 3)]


@pytest.mark.parametrize("length", [2**53 + 1, 2**64])
def test_a_length_that_is_too_large_is_unknown(bar: Bar, length: int) -> None:
    # Given an iterable with a length of more than 2**53
    # When it is tracked
    for item in track(range(length)):
        if item == 2:
            break
    # Then it counts like what has no length
    bar.look()
    assert bar.seen == [(2, None)]


def rest_of(items: Iterable[Any]) -> tuple[float, float | None, float | None]:
    """Iterate over items, and tell what the bar shows at the last one."""
    for _ in items:
        progress = current_progress()
        seen = progress.progress, progress.total, progress.fraction
    return seen


def test_an_unknown_total(bar: Bar) -> None:
    # Given iterations over what has no length, first, behind one that has, and behind one that was left
    # When they go on
    # Then there is no total until the end
    assert rest_of(track(generator(3))) == (2, None, None)
    assert rest_of(track([1, 2])) == (1, 2, 0.5)
    assert rest_of(track(generator(3))) == (2, None, None)
    next(iter(track([1, 2])))
    assert rest_of(track(generator(3))) == (2, None, None)
    assert (current_progress().progress, current_progress().total, current_progress().fraction) == (3, 3, 1.0)


def test_a_total_that_the_actor_has_set_stays_during_the_loop(bar: Bar) -> None:
    # Given a total that the actor has set
    # When it iterates over what has no length
    # Then it stays, until the end
    current_progress().total = 8
    assert rest_of(track(generator(3))) == (2, 8, 0.25)
    assert current_progress().total == 3
    current_status().update(total=16, progress=0)
    assert rest_of(track(generator(3))) == (2, 16, 0.125)
    # And one that it says to be unknown is that
    current_progress().total = None
    assert rest_of(track(generator(3))) == (2, None, None)


def test_a_progress_without_a_total(bar: Bar) -> None:
    # Given a total that is said to be unknown
    progress = current_progress()
    progress.total = None
    # When something is counted
    progress.increment(250)
    # Then there is no fraction of it
    assert progress.to_dict() == {"progress": 250, "total": None, "fraction": None, "rate": None}
    # And the end is where it has come to
    progress.finish()
    assert (progress.progress, progress.total, progress.fraction) == (250, 250, 1.0)


def test_an_unknown_total_in_every_store(every_backend: StatusBackend) -> None:
    broker = make_broker(every_backend)
    seen: list[Snapshot] = []

    def look() -> None:
        snapshot = current_status().read()
        assert snapshot is not None
        seen.append(snapshot)

    # Given a job that tracks what has no length, behind a list, and one that says so of its own bar
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
    # Then neither shows a percentage, nor what remains
    # Dramatiq 1.17 runs them by the names of their actors.
    seen.sort(key=lambda snapshot: snapshot["progress"])
    assert [snapshot["progress"] for snapshot in seen] == [200, 250]
    for snapshot in seen:
        assert (snapshot.progress, snapshot.percent, snapshot.total, snapshot.time_remaining) == (None,) * 4
        assert str(snapshot) == "working" and snapshot.to_dict()["total"] is None and snapshot["total"] is None
        assert json.loads(snapshot.to_json())["total"] is None
    # And a roll-up does not take it for all
    batch = Rollup([(snapshot.message_id,) for snapshot in seen]).take(seen)
    assert (batch.progress, str(batch)) == (0.0, "working (0%: 2 working)")
    # And in the end what is known is shown
    first, second = StatusRegistry.read_many(messages, backend=every_backend)
    assert first is not None and (str(first), first["total"]) == ("completed (100%)", 250)
    assert second is not None and (str(second), second["total"]) == ("completed", None)
    # And others may say so, too
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
    # Given a list that is filled behind the call
    rows: list[int] = []
    tracked = track(rows)
    assert len(tracked) == 0 and tracked
    rows += [1, 2]
    # When the loop begins
    # Then its length is what there is then
    assert len(tracked) == 2 and rest_of(tracked) == (1, 2, 0.5)
    rows += [3, 4]
    assert rest_of(tracked) == (3, 4, 0.75)


class Unsure(list[int]):
    def __len__(self) -> int:
        raise NotImplementedError("nobody has counted them")


def test_an_error_of_the_length_is_ignored(bar: Bar) -> None:
    # Given something that raises where it is asked for its length
    # When it is iterated over
    # Then it has none
    assert rest_of(track(Unsure([7, 8, 9]))) == (2, None, None)


def test_track_has_the_length_of_its_iterable(bar: Bar) -> None:
    # Given things with a length and without
    # When they are tracked
    # Then they have the same
    assert (len(track([1, 2, 3])), len(track(range(5), total=9)), len(track(track("abc")))) == (3, 5, 3)
    assert list(track(generator(3))) == [0, 1, 2]
    with pytest.raises(TypeError, match="generator"):
        len(track(generator(3)))
    with pytest.raises(TypeError, match="async_generator"):
        len(track(agenerator(3), total=3))


def test_fields_are_written_with_the_total() -> None:
    backend = RecordingBackend()
    broker = make_broker(backend)

    # Given an actor that tracks with fields
    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_status().flush()
        for _ in track(range(2), step="reading", file="a.csv"):
            current_status().flush()

    # When it runs
    message = work.send()
    run(broker)
    # Then they were set in one update, with the total and the progress
    update = next(update for update in backend.writes(message.message_id) if ":step" in update.fields)
    found = {name: update.fields.get(name) for name in (":step", ":file", TOTAL, PROGRESS)}
    assert found == {":step": '"reading"', ":file": '"a.csv"', TOTAL: "2", PROGRESS: "0"}


def test_track_continues_from_a_given_progress(bar: Bar) -> None:
    # Given ten rows, four of which were dealt with in an earlier run
    # When the others are
    for _ in track(range(4, 10), total=10, progress=4):
        bar.look()
    bar.look()
    # Then the bar goes on from there
    assert bar.seen == [(4, 10), (5, 10), (6, 10), (7, 10), (8, 10), (9, 10), (10, 10)]


def test_track_outside_of_a_worker() -> None:
    # Given no worker
    # When something is tracked
    # Then it is iterated over all the same
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
    # Then two have been dealt with
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
    # Then two have been dealt with
    bar.look()
    assert bar.seen == [(2, 10)]


def test_an_iterable_that_raises(bar: Bar) -> None:
    def rows() -> Iterator[int]:
        yield from range(2)
        raise OSError

    # Given rows that cannot be read to their end
    # When they are tracked
    assert isinstance(raised_by(lambda: list(track(rows(), total=10))), OSError)
    # Then the bar stays where they ended
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
    # Then two items have been dealt with in each
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
    # Then it is one of its own
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

    # Given loops whose iterables broke off, and whose exceptions somebody keeps, with all that was going on
    for good in (5, 3):
        kept.append(raised_by(lambda good=good: attempt(good)))  # type: ignore[misc]
    # When it is tried once more
    kept.append(raised_by(lambda: attempt(10)))
    # Then that is a loop of its own, and not inside of those
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

    # Given async iterables that break off, and somebody who keeps their exceptions
    # When it is tried again until it works
    asyncio.run(work())
    # Then the last loop was one of its own
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
    # When it was read again
    # Then the bar counted files, went on meanwhile, and never back
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
        # Given somebody who waits for an item and gives up, over and over
        for _ in range(3):
            await give_up(items)
        inbox.items.put_nowait(7)
        found = [await anext(items)]
        for _ in range(3):
            await give_up(items)
        # When items come after all
        inbox.items.put_nowait(8)
        inbox.items.put_nowait(None)
        async for item in items:
            found.append(item)
            bar.look()
        # Then they come, and only they count
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
        # When it goes on
        async for _ in items:
            for _ in track(range(2)):
                bar.look()

    asyncio.run(work())
    bar.look()
    # Then its loop does, too: what is tracked inside of it divides its items
    assert bar.seen == [(0, 2), (0.5, 2), (1, 2), (1.5, 2), (2, 2)]


def test_a_failed_job_keeps_its_progress() -> None:
    backend = RecordingBackend()
    broker = make_broker(backend, asyncio=True)

    # Given an async actor that fails at the third of four
    @dramatiq.actor(broker=broker)
    async def work() -> None:
        async for item in track(agenerator(4), total=4, step="crawling"):
            if item == 2:
                raise ValueError

    # When it has run
    message = work.send()
    run(broker)
    # Then it is half done, and failed
    snapshot = StatusRegistry.read(message, broker=broker)
    assert snapshot is not None and snapshot.failed
    assert (snapshot.progress, snapshot["step"]) == (0.5, "crawling")


# One loop after the other, and one inside of another


def test_legs_one_after_the_other(bar: Bar) -> None:
    # Given one loop that was done, and one that was left early
    for _ in track(range(3)):
        pass
    for _ in track(range(50)):
        break
    # When a third is begun
    for _ in track(range(2)):
        bar.look()
    # Then the bar is its own
    assert bar.seen == [(0, 2), (1, 2)]


def test_an_inner_leg_divides_the_item_of_the_outer_one(bar: Bar) -> None:
    # Given two files of four rows each
    for _ in track(["a", "b"]):
        for _ in track(range(4)):
            bar.look()
    bar.look()
    # When they were read
    # Then the bar counted files, and moved on with each row
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
    # When they were read
    # Then the bar was at a whole number whenever a file was done, and never went back
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
    # When it is done
    # Then the bar never went back, never went beyond the item, and counts it once
    assert bar.rises() and bar.seen[-1] == (2, 2)
    assert [count for count, _ in bar.seen[:12]] == [0, 0, 0, 0, 0, 0.5, 0.5, 1, 1, 1, 1, 1]
    assert current_status()["step"] == "inner"


def test_an_iterator_that_outlives_its_loop_is_no_outer_leg(bar: Bar) -> None:
    # Given a tracked iterable that somebody still holds, whose loop was left
    rows = track(range(50))
    for _ in rows:
        break
    # When another loop begins
    for _ in track(range(2)):
        bar.look()
    # Then it is one of its own
    assert bar.seen == [(0, 2), (1, 2)]
    # And the first can be begun again
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

    # Given items whose parts are dealt with side by side
    # When they are
    asyncio.run(work())
    bar.look()
    # Then the bar stays true to the items
    assert bar.rises() and bar.seen[-1] == (2, 2) and {total for _, total in bar.seen} == {2}


def test_legs_of_two_messages_are_independent(bar: Bar) -> None:
    # Given a message in whose loop another one is processed
    for _ in track(range(2)):
        with bound_status() as inner:
            assert len(list(track(range(3)))) == 3
        # When that has its own bar
        assert (inner["progress"], inner["total"]) == (3, 3)
        bar.look()
    # Then this one's is untouched
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
    # Given something wrong
    # When it is tracked
    # Then it is said what, where it is written
    with pytest.raises(error, match=text):
        call()
    bar.look()
    assert bar.seen == [(0, 100)]
