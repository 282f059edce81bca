"""Clocks: in tests that freeze the time, and in processes whose clocks do not agree."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dramatiq
import pytest
from cachelib import SimpleCache
from freezegun import freeze_time

import dramatiq_status
from dramatiq_status import State, StatusMissing, StatusRegistry, StatusTimeout, aio
from dramatiq_status.backend import Query, StatusBackend
from dramatiq_status.backends import CacheBackend, MemcachedBackend, RedisBackend, SQLiteBackend, StubBackend

from .jobs import Job
from .recording import Broken, RecordingBackend, join, make_broker, working

#: A moment at which the time stands still.
FROZEN = "2031-05-06 07:08:09"


@pytest.fixture(params=["stub", "sqlite", "cache", "memcached", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StatusBackend]:
    """Yield each store, with its usual intervals."""
    made: StatusBackend
    if request.param == "stub":
        made = StubBackend()
    elif request.param == "sqlite":
        made = SQLiteBackend(tmp_path / "status.db", timeout=20_000)
    elif request.param == "cache":
        made = CacheBackend(SimpleCache())
    elif request.param == "memcached":
        made = MemcachedBackend(
            servers=request.getfixturevalue("memcached_url").removeprefix("memcached://"), timeout=20_000
        )
    else:
        made = RedisBackend(url=request.getfixturevalue("redis_url"), timeout=20_000)
    with closing(made):
        yield made


# Frozen time


@pytest.mark.timeout(30)
def test_a_watch_goes_on_while_the_time_is_frozen(backend: StatusBackend) -> None:
    # Given a test that freezes the time, and watches a running message
    with freeze_time(FROZEN):
        job = Job(backend).enqueue().start()
        watched = StatusRegistry.watch(job.message_id, backend=backend)
        first = next(watched)
        # When the message finishes
        job.finish()
        states = [first.state, *(snapshot.state for snapshot in watched)]
    # Then the watch finds that
    assert states == [State.WORKING, State.COMPLETED]


@pytest.mark.timeout(30)
def test_a_batch_goes_on_while_the_time_is_frozen(backend: StatusBackend) -> None:
    # Given a test that freezes the time and watches two messages
    with freeze_time(FROZEN):
        jobs = [Job(backend).enqueue().start(), Job(backend).enqueue().start().finish()]
        watched = StatusRegistry.batch([job.message_id for job in jobs], backend=backend).watch()
        finished = [next(watched).finished]
        # When the other one finishes, too
        jobs[0].finish()
        finished += [snapshot.finished for snapshot in watched]
    # Then the watch finds that
    assert finished == [False, True]


@pytest.mark.timeout(30)
def test_time_outs_pass_while_the_time_is_frozen(backend: StatusBackend) -> None:
    # Given a test that freezes the time
    with freeze_time(FROZEN):
        job = Job(backend).enqueue().start()
        # When it waits for a running message, and for an unknown one
        # Then each wait ends when its time is over
        with pytest.raises(StatusTimeout):
            StatusRegistry.wait(job.message_id, backend=backend, timeout=80)
        with pytest.raises(StatusMissing):
            StatusRegistry.wait("unknown", backend=backend, timeout=None, missing_timeout=80)


@pytest.mark.timeout(30)
def test_a_watch_in_an_event_loop_goes_on_while_the_time_is_frozen(backend: StatusBackend) -> None:
    async def watch() -> list[State]:
        job = Job(backend).enqueue().start()
        watched = aio.StatusRegistry.watch(job.message_id, backend=backend)
        states = [(await anext(watched)).state]
        job.finish()
        states += [snapshot.state async for snapshot in watched]
        await aio.close(backend=backend)
        return states

    # Given a test that freezes the time, except for the clocks of event loops
    with freeze_time(FROZEN, real_asyncio=True):
        # When a message finishes while it is watched in a loop
        # Then the watch finds that
        assert asyncio.run(watch()) == [State.WORKING, State.COMPLETED]


@pytest.mark.timeout(60)
def test_an_outage_ends_after_the_time_was_frozen() -> None:
    # Given a store that broke while a test had frozen the time
    backend = RecordingBackend()
    broken = Broken(backend)
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        pass

    with freeze_time(FROZEN):
        work.send()
    assert broken.failures > 0
    # When the store works again, and the clock is no longer frozen
    broken.down = False
    with working(broker) as worker:
        join(broker, worker)
        message = work.send()
        join(broker, worker)
        # Then statuses are stored again
        snapshot = StatusRegistry.wait(message, broker=broker, timeout=20_000)
    assert snapshot.completed


def test_all_modules_take_their_clock_from_one() -> None:
    # Given the modules of the package
    package = Path(dramatiq_status.__file__).parent
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    # When they are searched for the module `time`, of which a test may freeze each clock
    found = {name for name, text in sources.items() if re.search(r"^(import time$|from time import)", text, re.M)}
    # Then only two import it: _time.py, which has the clocks, and backend.py, whose clock dates records
    assert found == {"_time.py", "backend.py"}


# Clocks that do not agree


@pytest.mark.parametrize("moment", ["2031-05-06", "2001-05-06"])
@pytest.mark.parametrize("backend", ["sqlite", "memcached", "redis"], indirect=True)
def test_readers_with_another_date_find_statuses(backend: StatusBackend, moment: str) -> None:
    # Given a status that has finished, and one that goes on
    jobs = [Job(backend).enqueue().start().finish(), Job(backend).enqueue().start()]
    # When a process reads them whose time is frozen, years away
    with freeze_time(moment):
        found = backend.snapshots([job.message_id for job in jobs])
    # Then it finds both, because the store has its own clock
    assert [snapshot and snapshot.state for snapshot in found] == [State.COMPLETED, State.WORKING]


@pytest.mark.parametrize("moment", ["2031-05-06", "2001-05-06"])
def test_writers_with_another_date_expire_no_status(moment: str, tmp_path: Path) -> None:
    # Given a status that has finished, in a file
    backend = SQLiteBackend(tmp_path / "status.db", timeout=20_000)
    job = Job(backend).enqueue().start().finish()
    # When a process whose time is frozen, years away, reads it and writes to the same file
    with freeze_time(moment), closing(SQLiteBackend(tmp_path / "status.db", timeout=20_000)) as other:
        snapshot = other.snapshot(job.message_id)
        listed = [one.message_id for one in other.find(Query(), limit=10, after=None)]
        count = other.count(Query())
        theirs = Job(other).enqueue().start().finish()
    # Then it finds the status, because it has not expired by the clock of the host
    assert snapshot is not None and snapshot.completed
    assert (listed, count) == ([job.message_id], 1)
    # And each process finds the statuses that the other one has written
    found = backend.snapshots([job.message_id, theirs.message_id])
    assert [snapshot and snapshot.completed for snapshot in found] == [True, True]
    assert backend.delete(theirs.message_id)
    backend.close()
