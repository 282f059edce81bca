"""Calls with many messages, deletions, and values that are no records."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ...backend import StatusBackend
from ...decoding import take_snapshot
from ...record import PROGRESS, STATE
from ...update import EnqueueId, Kind, Outcome, Update
from ..updates import enqueue, finish, fold, heartbeat, outside, start, timeless, write
from .store import StoreTests, read_many


class Batches(StoreTests):
    """Tests of calls with many messages, of deletions, and of values that are no records."""

    def test_read_many_keeps_the_order(self, backend: StatusBackend) -> None:
        # Given some records
        ids = [uuid4().hex for _ in range(5)]
        backend.update_many([(ids[0], enqueue(mark="0")), (ids[3], enqueue(mark="3"))])
        # When they are read with unknown ids, and one of them twice
        found = read_many(backend, [*ids, ids[0]])
        # Then each record has the position of its id, and an unknown id has None
        assert [record and record[":mark"] for record in found] == ["0", None, None, "3", None, "0"]

    def test_thousands_of_records_are_read(self, backend: StatusBackend) -> None:
        # Given more records than one request has
        ids = [uuid4().hex for _ in range(2_500)]
        backend.update_many([(message_id, enqueue(mark=str(n))) for n, message_id in enumerate(ids)])
        # When all are read
        found = read_many(backend, ids)
        # Then each record has the position of its id
        assert [record and record[":mark"] for record in found] == [str(n) for n in range(2_500)]

    def test_calls_without_messages(self, backend: StatusBackend) -> None:
        # Given no messages
        # When they are written and read
        # Then there are no outcomes and no records
        assert (backend.update_many([]), read_many(backend, [])) == ([], [])

    def test_a_batch_keeps_the_order_of_each_message(self, backend: StatusBackend) -> None:
        # Given updates of three messages, mixed
        one, two, three = uuid4().hex, uuid4().hex, uuid4().hex
        batch = [
            (one, enqueue()),
            (two, outside(step="1")),
            (one, start(1)),
            (three, start(3, step="1")),
            (one, write(1, 2, increment=1)),
            (three, finish(3)),
            (one, write(1, 2, increment=1)),
            (two, enqueue()),
            (one, finish(1, 3)),
        ]
        # When they are written in one call
        outcomes = backend.update_many(batch)
        # Then each update has its outcome
        a, m, d = Outcome.APPLIED, Outcome.MISSING, Outcome.DUPLICATE
        assert outcomes == [a, m, a, a, a, a, d, a, a]
        # And each message has the record that its own updates make
        expected = [fold([update for message_id, update in batch if message_id == each]) for each in (one, two, three)]
        assert list(map(timeless, read_many(backend, [one, two, three]))) == list(map(timeless, expected))

    def test_a_record_stays_removed_that_one_of_several_updates_removes(
        self, backend: StatusBackend, message_id: str
    ) -> None:
        # Given a message whose enqueue has failed
        backend.update(message_id, enqueue())
        withdrawal = Update(Kind.WITHDRAWAL, EnqueueId(7, 1))
        # When its record is removed in the same call as another update
        outcomes = backend.update_many([(message_id, withdrawal), (message_id, heartbeat(1))])
        # Then the record is gone
        assert outcomes == [Outcome.APPLIED, Outcome.MISSING] and backend.read(message_id) is None
        # And the message may be enqueued again
        assert backend.update(message_id, enqueue()) is Outcome.APPLIED and backend.read(message_id) is not None

    def test_a_batch_of_hundreds(self, backend: StatusBackend) -> None:
        # Given several hundred updates of few messages
        ids = [uuid4().hex for _ in range(7)]
        backend.update_many([(message_id, start(1)) for message_id in ids])
        batch = [(ids[n % 7], write(1, 2 + n, increment=1)) for n in range(700)]
        # When they are written in one call
        outcomes = backend.update_many(batch)
        # Then all are stored
        assert set(outcomes) == {Outcome.APPLIED} and len(outcomes) == 700
        assert [record and record[PROGRESS] for record in read_many(backend, ids)] == ["100"] * 7

    # Deleting

    def test_a_delete_removes_one_record(self, backend: StatusBackend, message_id: str) -> None:
        # Given two records
        other = uuid4().hex
        backend.update_many([(message_id, start(1)), (other, start(1))])
        # When one of them is deleted twice
        deleted = backend.delete(message_id), backend.delete(message_id)
        # Then the first call has found it
        assert deleted == (True, False)
        # And the other record stays
        assert [record is None for record in read_many(backend, [message_id, other])] == [True, False]

    def test_a_run_restores_a_deleted_record(self, backend: StatusBackend, message_id: str) -> None:
        # Given a running message whose record was deleted
        backend.update(message_id, start(1))
        backend.delete(message_id)
        # When its run sends a heartbeat, a field, and then all its values
        outcomes = [
            backend.update(message_id, heartbeat(1)),
            backend.update(message_id, write(1, 2, step="1")),
            backend.update(message_id, write(1, 2, create=True, step="1", p="5")),
        ]
        # Then all its values are stored
        record = backend.read(message_id)
        assert outcomes == [Outcome.MISSING, Outcome.MISSING, Outcome.APPLIED]
        assert record is not None and (record[STATE], record[PROGRESS], record[":step"]) == ("1", "5", "1")

    # Damage

    def test_a_damaged_record_reads_none(self, backend: StatusBackend) -> None:
        for name, plant in self.damages().items():
            # Given a value that is no record, under the key of a record
            message_id = uuid4().hex
            plant(backend, message_id)
            # When the record is read
            record = backend.read(message_id)
            # Then there is none
            assert take_snapshot(message_id, record, 0) is None and record is None, name

    def test_a_damaged_record_hides_no_other(self, backend: StatusBackend) -> None:
        for name, plant in self.damages().items():
            # Given three records, of which the second is damaged
            ids = [uuid4().hex for _ in range(3)]
            backend.update_many([(message_id, start(1)) for message_id in ids])
            backend.delete(ids[1])
            plant(backend, ids[1])
            # When all are read
            found = read_many(backend, ids)
            # Then only the damaged record is missing
            assert [record is None for record in found] == [False, True, False], name

    @pytest.mark.parametrize(
        "update", [outside(step="1"), write(1, 2), heartbeat(1)], ids=["outside", "run", "heartbeat"]
    )
    def test_a_damaged_record_counts_as_missing(self, backend: StatusBackend, update: Update) -> None:
        for name, plant in self.damages().items():
            # Given a value that is no record, under the key of a record
            message_id = uuid4().hex
            plant(backend, message_id)
            # When an update changes only a part of the record
            # Then its outcome is that of a missing record
            assert backend.update(message_id, update) is Outcome.MISSING, name

    @pytest.mark.parametrize("update", [enqueue(step="1"), start(1, step="1")], ids=["enqueue", "start"])
    def test_a_damaged_record_is_replaced(self, backend: StatusBackend, update: Update) -> None:
        for name, plant in self.damages().items():
            # Given a value that is no record, under the key of a record
            message_id = uuid4().hex
            plant(backend, message_id)
            # When an update creates the record
            outcome = backend.update(message_id, update)
            # Then the record has only the values of this update
            assert outcome is Outcome.APPLIED, name
            assert timeless(backend.read(message_id)) == timeless(fold([update])), name
