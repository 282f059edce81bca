"""Lists and counts of statuses."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from uuid import uuid4

import pytest

from ... import _time as time
from ...backend import Query, StatusBackend
from ...cursor import Cursor
from ...errors import NotSupported
from ...record import ACTOR_NAME, COMPLETED, FAILED, QUEUE_NAME, QUEUED, WORKING
from ...registry import StatusRegistry
from ...update import EnqueueId, Kind, Update
from ..updates import counting, enqueue, finish, heartbeat, life_to, outside, start, with_actor, write
from .store import StoreTests, listed, write_later

#: Cases by names: updates that make a record, and one that moves the message to the top of lists.
MOVING: dict[str, tuple[list[Update], Update]] = {
    "requeue": ([enqueue(), start(1)], enqueue(generation=2)),
    "requeue of a waiting message": ([enqueue()], enqueue(generation=2)),
    "enqueue with another origin": ([start(1), finish(1)], enqueue(origin=8)),
    "start": ([enqueue()], start(1)),
    "start of a redelivery": ([start(1)], start(2)),
    "end": ([start(1)], finish(1)),
    "end, except for a count": ([start(1, rows='"5"')], counting(finish(1), rows=1)),
    "end without a run": ([enqueue()], finish(0, state=FAILED)),
    "outside, an end": ([start(1)], outside(state=FAILED)),
    "outside, a state after the end": ([start(1), finish(1)], outside(state=WORKING)),
}

#: Cases by names: updates that make a record, and one that keeps the position of the message in lists.
NOT_MOVING: dict[str, tuple[list[Update], Update]] = {
    "write": ([start(1)], write(1, 2, step="1")),
    "whole write": ([start(1)], write(1, 2, create=True, step="1")),
    "count": ([start(1)], counting(write(1, 2), rows=1)),
    "outside": ([start(1)], outside(step="1")),
    "outside, a count": ([start(1)], counting(outside(), rows=1)),
    "outside, after the end": ([start(1), finish(1)], outside(step="1")),
    "heartbeat": ([start(1)], heartbeat(1)),
    "late enqueue": ([start(1)], enqueue(step="1")),
    "duplicate": ([start(1)], start(1)),
    "refused": ([start(1), finish(1)], start(2)),
}

#: Names of actors and queues with characters that may have a meaning in an index.
LISTED_NAMES = (
    "import_rows",
    "import_rows2",
    "import",
    "a:b",
    "a b",
    "a,b",
    "{a}",
    "a%",
    "a_",
    "*",
    'a"b',
    "ключ",
    "A",
)


class Lists(StoreTests):
    """Tests of lists and counts, for backends that list."""

    def test_a_backend_that_does_not_list_gives_the_reason(self, backend: StatusBackend) -> None:
        if type(backend).find is not StatusBackend.find:
            pytest.skip("This backend lists.")
        # Given a backend without an index
        for call in (lambda: backend.find(Query(), limit=50, after=None), lambda: backend.count(Query())):
            # When a caller lists or counts
            with pytest.raises(NotSupported) as caught:
                call()
            # Then the error names the backend and the reason
            assert type(backend).__name__ in str(caught.value) and backend.why_no_list in str(caught.value)

    def test_the_last_transition_is_listed_first(self, listing: StatusBackend) -> None:
        # Given three messages, enqueued one after another
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(3)]
        for message_id in ids:
            write_later(listing, message_id, enqueue(a=f'"{actor}"'))
        # When the first starts
        write_later(listing, ids[0], start(1))
        # Then it is listed before the two others, of which the newer one is listed first
        assert listed(listing, Query(actor_name=actor)) == [ids[0], ids[2], ids[1]]

    def test_a_list_has_the_records_of_a_read(self, listing: StatusBackend, message_id: str) -> None:
        # Given a message that runs
        actor = uuid4().hex
        life = (enqueue(a=f'"{actor}"', Q='"default"', step="1"), start(1), write(1, 2, p="5"))
        listing.update_many([(message_id, update) for update in life])
        # When it is listed
        found = listing.find(Query(actor_name=actor), limit=50, after=None)
        # Then the list has the record that a read returns
        assert [one[:2] for one in found] == [(message_id, listing.read(message_id))]

    @pytest.mark.parametrize("name", MOVING)
    def test_updates_that_move_a_message_to_the_top(self, listing: StatusBackend, message_id: str, name: str) -> None:
        # Given a message, and one that is newer
        given, update = MOVING[name]
        actor, newer = uuid4().hex, uuid4().hex
        listing.update_many([(message_id, with_actor(one, actor)) for one in given])
        write_later(listing, newer, enqueue(a=f'"{actor}"'))
        # When an update sets the state of the older one, even to the same state
        write_later(listing, message_id, with_actor(update, actor))
        # Then the older one is listed first
        assert listed(listing, Query(actor_name=actor)) == [message_id, newer]

    @pytest.mark.parametrize("name", NOT_MOVING)
    def test_updates_that_keep_the_order(self, listing: StatusBackend, message_id: str, name: str) -> None:
        # Given a message, and one that is newer
        given, update = NOT_MOVING[name]
        actor, newer = uuid4().hex, uuid4().hex
        listing.update_many([(message_id, with_actor(one, actor)) for one in given])
        write_later(listing, newer, enqueue(a=f'"{actor}"'))
        # When the older one gets an update that does not set its state
        write_later(listing, message_id, with_actor(update, actor))
        # Then the newer one is listed first
        assert listed(listing, Query(actor_name=actor)) == [newer, message_id]

    def test_a_restored_record_is_listed(self, listing: StatusBackend, message_id: str) -> None:
        # Given a running message whose record was lost
        actor, newer = uuid4().hex, uuid4().hex
        listing.update(message_id, start(1, a=f'"{actor}"'))
        listing.delete(message_id)
        write_later(listing, newer, enqueue(a=f'"{actor}"'))
        # When its run restores it
        write_later(listing, message_id, write(1, 2, create=True, a=f'"{actor}"'))
        # Then it is listed first
        assert listed(listing, Query(actor_name=actor)) == [message_id, newer]

    def test_filters_and_their_combinations(self, listing: StatusBackend) -> None:
        # Given a message of each state, actor and queue, and one without an actor and a queue
        prefix = uuid4().hex
        actors, queues = [f"{prefix}-{n}" for n in "ab"], [f"{prefix}-{n}" for n in "qr"]
        messages = [(state, actor, queue) for actor in actors for queue in queues for state in range(4)]
        ids = [uuid4().hex for _ in messages]
        nameless = uuid4().hex
        listing.update(nameless, enqueue())
        for message_id, (state, actor, queue) in zip(ids, messages):
            listing.update_many([(message_id, update) for update in life_to(state, a=f'"{actor}"', Q=f'"{queue}"')])
        for query in itertools.starmap(
            Query, itertools.product([None, *range(4)], [None, *actors], [None, *queues, uuid4().hex])
        ):
            # When they are listed
            found = listed(listing, query)
            # Then the list has the messages of the query
            expected = {
                message_id
                for message_id, message in zip(ids, messages)
                if all(wanted is None or wanted == had for wanted, had in zip(query, message))
            }
            assert {message_id for message_id in found if message_id in ids} == expected, query
            assert (nameless in found) is (query in (Query(), Query(state=QUEUED))), query
            # And the count is the length of the list
            assert listing.count(query) == len(found), query

    def test_filters_with_odd_names(self, listing: StatusBackend) -> None:
        # Given actors and queues with odd names
        ids = {(actor, queue): uuid4().hex for actor, queue in zip(LISTED_NAMES, reversed(LISTED_NAMES))}
        suffix = uuid4().hex
        for (actor, queue), message_id in ids.items():
            fields = {ACTOR_NAME: json.dumps(actor + suffix), QUEUE_NAME: json.dumps(queue + suffix)}
            listing.update(message_id, Update(Kind.ENQUEUE, EnqueueId(7, 1), fields=fields))
        for (actor, queue), message_id in ids.items():
            # When a caller filters by the names of one message
            by_actor = listed(listing, Query(actor_name=actor + suffix))
            by_both = listed(listing, Query(actor_name=actor + suffix, queue_name=queue + suffix))
            # Then the list has this message only
            assert by_actor == by_both == [message_id], (actor, queue)

    @pytest.mark.parametrize("state", [WORKING, COMPLETED], ids=["working", "completed"])
    def test_a_late_enqueue_adds_the_actor(self, listing: StatusBackend, message_id: str, state: int) -> None:
        # Given a message whose run has stored no actor, and a newer message
        actor, queue, newer = uuid4().hex, uuid4().hex, uuid4().hex
        listing.update_many([(message_id, update) for update in (start(1), finish(1))[:state]])
        write_later(listing, newer, start(1, a=f'"{actor}"', Q=f'"{queue}"'))
        # When its enqueue arrives late, with actor and queue
        late = enqueue(a=f'"{actor}"', Q=f'"{queue}"')
        write_later(listing, message_id, late)
        # Then lists of this actor and of this queue have it, below the newer one
        for query in (Query(actor_name=actor), Query(queue_name=queue), Query(None, actor, queue)):
            assert listed(listing, query) == [newer, message_id]
        assert message_id in listed(listing, Query(state=state))
        # And they have it once after the same enqueue has arrived again
        listing.update(message_id, late)
        assert listing.count(Query(actor_name=actor)) == listing.count(Query(queue_name=queue)) == 2

    def test_a_write_with_all_values_changes_the_actor(self, listing: StatusBackend, message_id: str) -> None:
        # Given a running message of an actor, and a newer message of another actor
        one, other, newer = uuid4().hex, uuid4().hex, uuid4().hex
        listing.update(message_id, start(1, a=f'"{one}"'))
        write_later(listing, newer, start(1, a=f'"{other}"'))
        # When its run sends all values, with the other actor
        write_later(listing, message_id, write(1, 2, create=True, a=f'"{other}"'))
        # Then only the list of the other actor has it, below the newer one
        assert (listed(listing, Query(actor_name=other)), listed(listing, Query(actor_name=one))) == (
            [newer, message_id],
            [],
        )
        assert (listing.count(Query(actor_name=other)), listing.count(Query(actor_name=one))) == (2, 0)

    @pytest.mark.parametrize("kind", ["run", "outside"])
    def test_a_write_without_a_state_changes_actor_and_queue(
        self, listing: StatusBackend, message_id: str, kind: str
    ) -> None:
        # Given a running message of an actor and a queue, and a newer message of another actor and queue
        actor, queue, newer = uuid4().hex, uuid4().hex, uuid4().hex
        a, q = f'"{actor}"', f'"{queue}"'
        listing.update(message_id, start(1, a=f'"not {actor}"', Q=f'"not {queue}"'))
        write_later(listing, newer, start(1, a=a, Q=q))
        # When a write has the names of the newer message's actor and queue, and no state
        write_later(listing, message_id, write(1, 2, a=a, Q=q) if kind == "run" else outside(a=a, Q=q))
        # Then lists by these names have it, below the newer one, and no list by the former names has it
        for query in (Query(actor_name=actor), Query(queue_name=queue)):
            assert (listed(listing, query), listing.count(query)) == ([newer, message_id], 2)
        for query in (Query(actor_name=f"not {actor}"), Query(queue_name=f"not {queue}")):
            assert (listing.count(query), listed(listing, query)) == (0, [])
        assert message_id in listed(listing, Query())

    def test_a_requeued_message_changes_lists(self, listing: StatusBackend, message_id: str) -> None:
        # Given a running message
        actor = uuid4().hex
        listing.update(message_id, start(1, a=f'"{actor}"'))
        # When it is requeued
        listing.update(message_id, enqueue(generation=2))
        # Then only the list of queued messages has it
        queries = [Query(state=state, actor_name=actor) for state in range(4)]
        assert [listed(listing, query) for query in queries] == [[message_id], [], [], []]
        assert [listing.count(query) for query in queries] == [1, 0, 0, 0]

    def test_a_deleted_message_is_not_listed(self, listing: StatusBackend) -> None:
        # Given messages in all states
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(4)]
        for state, message_id in enumerate(ids):
            listing.update_many([(message_id, update) for update in life_to(state, a=f'"{actor}"')])
        for gone, message_id in enumerate(ids, 1):
            # When one of them is deleted
            listing.delete(message_id)
            # Then lists and counts have the others
            assert set(listed(listing, Query(actor_name=actor))) == set(ids[gone:])
            assert listing.count(Query(actor_name=actor)) == 4 - gone

    @pytest.mark.parametrize("state", [QUEUED, WORKING, COMPLETED], ids=["queued", "working", "completed"])
    def test_an_expired_message_is_not_listed(self, listing: StatusBackend, message_id: str, state: int) -> None:
        # Given a message with a time to live of much less than a second, and another one
        actor, other = uuid4().hex, uuid4().hex
        for each, ttl in ((message_id, 20), (other, 3_600_000)):
            *life, end = life_to(state, a=f'"{actor}"', L=str(ttl))
            listing.update_many([(each, update) for update in (*life, end._replace(ttl=ttl))])
        # When the first one has expired
        await_end(listing, message_id)
        # Then lists and counts have the other one
        for query in (Query(actor_name=actor), Query(state=state, actor_name=actor)):
            assert (listing.count(query), listed(listing, query)) == (1, [other])
            (last,) = listing.find(query, limit=1, after=None)
            assert listing.find(query, limit=1, after=Cursor(last.position, last.message_id)) == []

    def test_expired_messages_do_not_shorten_a_page(self, listing: StatusBackend) -> None:
        # Given messages of several states, and many newer ones that expire
        actor, ids, gone = uuid4().hex, [uuid4().hex for _ in range(3)], [uuid4().hex for _ in range(300)]
        for state, message_id in enumerate(ids):
            for update in life_to(state, a=f'"{actor}"'):
                write_later(listing, message_id, update)
        for n in range(0, len(gone), 2):
            both = [(gone[n], enqueue(a=f'"{actor}"', L="20")), (gone[n + 1], start(1, a=f'"{actor}"', L="20"))]
            listing.update_many(both)
        for message_id in gone:
            await_end(listing, message_id)
        # When pages are listed
        query = Query(actor_name=actor)
        first, whole = (listing.find(query, limit=limit, after=None) for limit in (1, 50))
        rest = listing.find(query, limit=2, after=Cursor(first[0].position, first[0].message_id))
        # Then they have all messages that have not expired
        assert [found.message_id for found in whole] == ids[::-1]
        assert [first, rest] == [whole[:1], whole[1:]]

    def test_a_damaged_record_is_not_listed(self, listing: StatusBackend) -> None:
        actor = uuid4().hex
        for name, plant in self.damages().items():
            # Given a message that is listed
            message_id = uuid4().hex
            listing.update(message_id, enqueue(a=f'"{actor}"'))
            # When its record is replaced by a value that is no record
            listing.delete(message_id)
            plant(listing, message_id)
            # Then it is not listed
            found = listing.find(Query(), limit=1000, after=None)
            assert message_id not in [one.message_id for one in found if one.record is not None], name
            assert message_id not in [snapshot.message_id for snapshot in StatusRegistry.list(backend=listing)], name
            assert listed(listing, Query(actor_name=actor)) == [], name

    def test_namespaces_are_listed_apart(self, make_backend: Callable[..., StatusBackend]) -> None:
        one, two = (make_backend(namespace=name) for name in ("listed", "listed:b"))
        if type(one).find is StatusBackend.find:
            pytest.skip("This backend does not list.")
        # Given a message in each of two namespaces
        before = [backend.count(Query()) for backend in (one, two)]
        ids = [uuid4().hex for _ in range(2)]
        one.update(ids[0], enqueue(a='"actor"'))
        two.update(ids[1], enqueue(a='"actor"'))
        # When both namespaces are listed
        found = [[message_id for message_id in listed(backend, Query()) if message_id in ids] for backend in (one, two)]
        # Then each list has the message of its namespace
        assert found == [[ids[0]], [ids[1]]]
        assert [backend.count(Query()) for backend in (one, two)] == [n + 1 for n in before]


def await_end(backend: StatusBackend, message_id: str) -> None:
    """Wait until a record with a short time to live has expired."""
    deadline = time.monotonic() + 10
    while backend.read(message_id) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
