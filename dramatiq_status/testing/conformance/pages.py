"""Pages of lists, and cursors."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any
from uuid import uuid4

import pytest

from ...backend import Query, StatusBackend
from ...cursor import MAX_POSITION, Cursor
from ...registry import StatusRegistry
from ..updates import enqueue, life_to, outside, start
from .names import MESSAGE_IDS
from .store import StoreTests, pages_of, write_later


class Pages(StoreTests):
    """Tests of pages, for backends that list."""

    def test_pages_have_each_message_once(self, listing: StatusBackend) -> None:
        # Given more messages than a page has
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(25)]
        listing.update_many([(message_id, enqueue(a=f'"{actor}"')) for message_id in ids])
        # When one page after another is listed
        pages = list(pages_of(listing, Query(actor_name=actor), limit=7))
        # Then each message is on one page
        assert [len(page) for page in pages] == [7, 7, 7, 4]
        assert sorted(found.message_id for page in pages for found in page) == sorted(ids)
        # And positions are valid in cursors, and descend
        positions = [found.position for page in pages for found in page]
        assert positions == sorted(positions, reverse=True)
        assert all(type(position) is int and 0 <= position < MAX_POSITION for position in positions)

    def test_pages_begin_after_any_message(self, listing: StatusBackend) -> None:
        # Given some messages of one actor in several states
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(9)]
        for n, message_id in enumerate(ids):
            for update in life_to(n % 4, a=f'"{actor}"'):
                write_later(listing, message_id, update)
        whole = ids[::-1]
        for query in (Query(), Query(actor_name=actor)):
            everything = [found for page in pages_of(listing, query) for found in page]
            if query == Query(actor_name=actor):
                assert [found.message_id for found in everything] == whole
            for limit, start_at in itertools.product((1, 2, 8, 9, 10), range(len(everything[:9]) + 1)):
                # When a page is listed
                last = everything[start_at - 1] if start_at else None
                page = listing.find(query, limit=limit, after=last and Cursor(last.position, last.message_id))
                # Then it is a part of the whole list
                assert page == everything[start_at : start_at + limit], (limit, start_at)

    def test_pages_while_messages_move(self, listing: StatusBackend) -> None:
        # Given messages of two states
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(40)]
        for n, message_id in enumerate(ids):
            listing.update_many([(message_id, update) for update in life_to(n % 2, a=f'"{actor}"')])
        choice, moved, shown = random.Random(7), set(), []
        # When all pages are listed, and between them some messages start again and new ones are enqueued
        for page in pages_of(listing, Query(actor_name=actor), limit=3):
            shown += [found.message_id for found in page]
            for message_id in choice.sample(ids, 4):
                moved.add(message_id)
                number = 2 + len(shown)
                listing.update_many(
                    [(message_id, enqueue(generation=number)), (message_id, start(number, generation=number))]
                )
            listing.update(uuid4().hex, enqueue(a=f'"{actor}"'))
        # Then no message is listed twice, and all messages that have not moved are listed
        assert len(shown) == len(set(shown)) and set(shown) <= set(ids)
        assert set(ids) - set(shown) <= moved and moved & set(shown)

    @pytest.mark.parametrize("state", range(4), ids=["queued", "working", "completed", "failed"])
    def test_pages_of_a_state_while_messages_leave_it(self, listing: StatusBackend, state: int) -> None:
        # Given messages of a state
        actor, queue, ids = uuid4().hex, uuid4().hex, [uuid4().hex for _ in range(12)]
        for message_id in ids:
            listing.update_many([(message_id, one) for one in life_to(state, a=f'"{actor}"', Q=f'"{queue}"')])
        query, shown = Query(state, actor, queue), []
        # When all pages are listed, and the messages of each page leave the state before the next one
        for page in pages_of(listing, query, limit=5):
            shown += [found.message_id for found in page]
            listing.update_many([(found.message_id, outside(state=(state + 1) % 4)) for found in page])
        # Then each message is listed once
        assert sorted(shown) == sorted(ids)

    def test_a_page_after_a_message_that_has_moved_or_was_deleted(self, listing: StatusBackend) -> None:
        # Given some messages
        actor, ids = uuid4().hex, [uuid4().hex for _ in range(5)]
        for message_id in ids:
            write_later(listing, message_id, enqueue(a=f'"{actor}"'))
        query = Query(actor_name=actor)
        (*_, last) = listing.find(query, limit=2, after=None)
        cursor = Cursor(last.position, last.message_id)
        # When the last message of a page moves, and when it is deleted
        for change in (lambda: listing.update(last.message_id, start(1)), lambda: listing.delete(last.message_id)):
            change()
            # Then the next page has the two messages below it
            found = listing.find(query, limit=2, after=cursor)
            assert [one.message_id for one in found] == [ids[2], ids[1]]
        # And the next page stays the same if the message above is deleted as well
        listing.delete(ids[4])
        assert [one.message_id for one in listing.find(query, limit=9, after=cursor)] == ids[2::-1]

    def test_a_cursor_of_another_list(self, listing: StatusBackend) -> None:
        # Given messages of two actors, in turn
        actors, ids = [uuid4().hex, uuid4().hex], [uuid4().hex for _ in range(6)]
        for n, message_id in enumerate(ids):
            write_later(listing, message_id, enqueue(a=f'"{actors[n % 2]}"'))
        # When a list of one actor continues after a message of the other actor
        last = listing.find(Query(actor_name=actors[1]), limit=2, after=None)[-1]
        page = listing.find(Query(actor_name=actors[0]), limit=9, after=Cursor(last.position, last.message_id))
        # Then it has the older messages of its actor
        assert [found.message_id for found in page] == [ids[2], ids[0]]

    def test_the_ends_of_a_list(self, listing: StatusBackend, message_id: str) -> None:
        # Given a message
        actor = uuid4().hex
        listing.update(message_id, enqueue(a=f'"{actor}"'))
        # When pages are listed after the lowest cursor, and after the highest
        pages = [
            listing.find(Query(actor_name=actor), limit=5, after=Cursor(position, end))
            for position, end in ((0, "!"), (MAX_POSITION - 1, "\U0010ffff" * 50))
        ]
        # Then the first one is empty, and the second one is the whole list
        assert [[found.message_id for found in page] for page in pages] == [[], [message_id]]

    @pytest.mark.parametrize("name", MESSAGE_IDS)
    def test_cursors_of_odd_ids(self, listing: StatusBackend, name: str) -> None:
        # Given a message with an odd id, between two others
        message_id = MESSAGE_IDS[name]
        actor, older, newer = uuid4().hex, uuid4().hex, uuid4().hex
        for each in (older, message_id, newer):
            write_later(listing, each, enqueue(a=f'"{actor}"'))
        parameters: dict[str, Any] = {"actor_name": actor, "backend": listing}
        # When a user lists page by page, after snapshots and after their cursors
        for by_cursor in (False, True):
            page, shown = StatusRegistry.list(limit=1, **parameters), []
            while page:
                shown.append(page[0].message_id)
                assert re.fullmatch("[A-Za-z0-9_-]{4,300}", page[0].cursor or "")
                after = page[0].cursor if by_cursor else page[0]
                page = StatusRegistry.list(limit=1, after=after, **parameters)
            # Then each message is listed once
            assert shown == [newer, message_id, older]
        listing.delete(message_id)
