"""Several threads and processes, and interrupts."""

from __future__ import annotations

import ctypes
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from ...backend import StatusBackend
from ...errors import BackendError
from ...record import ATTEMPTS, PROGRESS, STATE, TOTAL, VERSION, WORKING
from ...update import Kind, Outcome, Update
from ..updates import counting, enqueue, finish, heartbeat, outside, start, write
from .store import StoreTests, read_many, together

#: Number of writes of each of two threads that write at the same time.
WRITES = 2_000

#: Maximum number of interrupted calls of a thread that calls a backend, and maximum number of all its calls.
INTERRUPTS, INTERRUPTED_CALLS = 300, 20_000


class Concurrency(StoreTests):
    """Tests with several threads, with interrupts, and after a fork."""

    def test_no_increment_is_lost(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))

        # When two threads increment its progress at the same time
        def count() -> None:
            for _ in range(WRITES):
                assert backend.update(message_id, outside(increment=1)) is Outcome.APPLIED

        together(count, count)
        # Then the sum is exact
        record = backend.read(message_id)
        assert record is not None and (record[PROGRESS], record[VERSION]) == (str(2 * WRITES), str(2 * WRITES + 1))

    def test_no_count_is_lost(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message whose total is unknown
        backend.update(message_id, start(1, t="null"))

        # When its run and another writer increment the same fields at the same time
        def count_in_the_run() -> None:
            for sequence in range(2, WRITES + 2):
                assert backend.update(message_id, counting(write(1, sequence), rows=1, t=2)) is Outcome.APPLIED

        def count_outside() -> None:
            for _ in range(WRITES):
                assert backend.update(message_id, counting(outside(), rows=1, t=2)) is Outcome.APPLIED

        together(count_in_the_run, count_outside)
        # Then the sums are exact
        record = backend.read(message_id)
        assert record is not None and (record[":rows"], record[TOTAL]) == (str(2 * WRITES), str(4 * WRITES))

    def test_no_field_is_lost(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))

        # When two threads write different fields at the same time, one by one and in batches
        def write_one_by_one() -> None:
            for n in range(WRITES):
                backend.update(message_id, Update(Kind.OUTSIDE, fields={f":one-{n}": str(n)}))

        def write_in_batches() -> None:
            for first in range(0, WRITES, 10):
                fields = [{f":two-{n}": str(n)} for n in range(first, first + 10)]
                backend.update_many([(message_id, Update(Kind.OUTSIDE, fields=one)) for one in fields])

        together(write_one_by_one, write_in_batches)
        # Then the record has all of them
        record = backend.read(message_id)
        expected = {f":{who}-{n}": str(n) for who in ("one", "two") for n in range(WRITES)}
        assert record is not None and {name: text for name, text in record.items() if name[0] == ":"} == expected

    def test_a_contended_message_does_not_disturb_others(
        self, backend: StatusBackend, make_backend: Callable[..., StatusBackend], message_id: str
    ) -> None:
        # Given a message that another writer changes all the time
        other = make_backend()
        backend.update(message_id, start(1))
        over = threading.Event()

        def write_on() -> None:
            while not over.is_set():
                other.update(message_id, outside(step="1"))

        def count() -> None:
            try:
                count_in_batches(backend, message_id, outside(increment=1), batches=50)
            finally:
                over.set()

        # When batches have updates of this message and of others
        together(write_on, count)
        # Then each update counts once, even if it was sent again after the outcome UNAVAILABLE
        record = backend.read(message_id)
        assert record is not None and record[PROGRESS] == "50"

    def test_an_update_that_is_too_large_does_not_disturb_others(self, backend: StatusBackend, message_id: str) -> None:
        # Given an update that is too large for the store
        too_large = self.too_large()
        backend.update(message_id, start(1))
        # When batches have this update and updates of other messages
        count_in_batches(backend, message_id, too_large, batches=5)
        # Then each of the others counts once, and the record of the message stays
        record = backend.read(message_id)
        assert record is not None and record[STATE] == str(WORKING)
        # And sending this update alone raises no BackendError
        outcomes = backend.update_many([(message_id, too_large)])
        assert outcomes in ([Outcome.REFUSED], [Outcome.APPLIED])

    def test_one_of_many_runs_owns_the_status(self, backend: StatusBackend, message_id: str) -> None:
        # Given a message that is delivered to many workers at once
        backend.update(message_id, enqueue())
        runs = range(1, 9)

        # When all of them start it at the same time
        def work(run: int) -> Callable[[], None]:
            def start_it() -> None:
                assert backend.update(message_id, start(run)) is Outcome.APPLIED

            return start_it

        together(*map(work, runs))
        # Then each run counts, and one of them can finish the message
        record = backend.read(message_id)
        outcomes = [backend.update(message_id, finish(run)) for run in runs]
        assert record is not None and record[ATTEMPTS] == "8"
        assert (outcomes.count(Outcome.APPLIED), outcomes.count(Outcome.REFUSED)) == (1, 7)

    def test_an_interrupted_call_spoils_no_other(self, backend: StatusBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        # An interrupt may strike in a driver's __del__, which cannot raise it
        monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
        # Given records that contain the ids of their messages
        ids = [uuid4().hex for _ in range(20)]
        backend.update_many([(message_id, start(1, mark=f'"{message_id}"')) for message_id in ids])
        wrong: list[object] = []
        calls = 0

        def call() -> None:
            nonlocal calls
            for message_id in random.sample(ids, 5):
                calls += 1
                found = backend.read(message_id)
                if found is None or found[":mark"] != f'"{message_id}"':
                    wrong.append((message_id, found))
                calls += 1
                outcome = backend.update(message_id, outside(mark=f'"{message_id}"'))
                if outcome is not Outcome.APPLIED:
                    wrong.append((message_id, outcome))
                if backend.begin_update(message_id, start(1))() is not Outcome.DUPLICATE:
                    wrong.append((message_id, "begin_update"))
            found_many = read_many(backend, ids)
            if [record and record[":mark"] for record in found_many] != [f'"{message_id}"' for message_id in ids]:
                wrong.append(found_many)

        # When a thread that reads and writes them is interrupted many times
        interrupts = interrupt_while(call, lambda: calls < INTERRUPTED_CALLS and not wrong)
        # Then no call gets the reply of another one
        assert interrupts > 0 and not wrong
        call()
        assert not wrong

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_fork_shares_no_connection(self, backend: StatusBackend) -> None:
        # Given records that contain the ids of their messages, and a backend with open connections
        ids = [uuid4().hex for _ in range(10)]
        backend.update_many([(message_id, start(1, mark=f'"{message_id}"')) for message_id in ids])

        def read_all() -> bool:
            for _ in range(30):
                for message_id in ids:
                    record = backend.read(message_id)
                    if record is None or record[":mark"] != f'"{message_id}"':
                        return False
                    if backend.update(message_id, heartbeat(1)) is not Outcome.APPLIED:
                        return False
            return True

        assert read_all()
        # When the process forks, and parent and child use the backend
        child = os.fork()
        if child == 0:
            code = 2
            try:
                code = 0 if read_all() else 1
            finally:
                os._exit(code)
        try:
            right_in_parent = read_all()
        finally:
            _, status = os.waitpid(child, 0)
        # Then both get their own replies, and the end of the child closes no connection of the parent
        assert (right_in_parent, os.waitstatus_to_exitcode(status), read_all()) == (True, 0, True)

    def test_a_closed_backend_opens_again(self, backend: StatusBackend, message_id: str) -> None:
        # Given a backend that was closed after its first call
        backend.update(message_id, enqueue())
        backend.close()
        # When it is used again
        # Then it opens new connections
        assert backend.update(message_id, start(1)) is Outcome.APPLIED


def count_in_batches(backend: StatusBackend, message_id: str, update: Update, *, batches: int) -> None:
    """Send an update in batches with updates of other messages.  Send the updates with the outcome UNAVAILABLE again,
    as the writer does.  Check the sums of the other messages.
    """
    ids = [uuid4().hex for _ in range(5)]
    backend.update_many([(other, start(1)) for other in ids])
    for _ in range(batches):
        left = [(message_id, update), *[(other, outside(increment=1)) for other in ids]]
        while left:
            outcomes = backend.update_many(left)
            left = [one for one, outcome in zip(left, outcomes) if outcome is Outcome.UNAVAILABLE]
    assert [record and record[PROGRESS] for record in read_many(backend, ids)] == [str(batches)] * 5


class Interrupt(BaseException):
    """Asynchronous exception, like a time limit."""


def interrupt_while(call: Callable[[], None], goes_on: Callable[[], bool]) -> int:
    """Call a function many times on a thread, and interrupt the calls as Dramatiq does.

    Parameters:
      call(Callable): Function to call.
      goes_on(Callable): Returns whether to call the function again.

    Returns:
      int: Number of calls that ended with an interrupt or a :class:`.BackendError`.
    """
    caught = 0
    failures: list[BaseException] = []
    over = threading.Event()

    def work() -> None:
        nonlocal caught
        while goes_on() and caught < INTERRUPTS:
            try:
                call()
            except (Interrupt, BackendError):
                caught += 1

    def shielded() -> Iterator[None]:
        # An interrupt may also strike in the handler of the previous one.
        while not over.is_set():
            try:
                work()
                over.set()
            except Interrupt:
                yield
            except BaseException as e:
                failures.append(e)
                over.set()

    def run() -> None:
        while not over.is_set():
            try:
                for _ in shielded():
                    pass
            except Interrupt:
                pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    pause = random.Random(7)
    while not over.wait(pause.uniform(0.0002, 0.003)):
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt))
    thread.join(30)
    if failures:
        raise failures[0]
    return caught
