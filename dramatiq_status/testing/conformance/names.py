"""Names and values of fields, message ids and namespaces."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ...backend import StatusBackend
from ...checks import MAX_MESSAGE_ID_SIZE
from ...record import ORIGIN
from ...update import Kind, Outcome, Update
from ..updates import enqueue, finish, outside, start, write
from .store import StoreTests, read_many

#: JSON texts that the store must not change.
TEXTS = {
    "null": "null",
    "empty string": '""',
    "escapes": r'"\u0000 \n \r\n \\ \" \ud83d\ude00 \ud800"',
    "not ASCII": '"žluťoučký кůň 😀 \u2028"',
    "big integer": "123456789012345678901234567890",
    "float": "0.1",
    "small float": "-1e-300",
    "negative zero": "-0.0",
    "nested": '{"a":[1,{"b":[]}],"":{}}',
    "spaces": '{ "a" : 1 }',
    "looks like a protocol": '"$-1 END *2 VA 5 NOSCRIPT"',
}

#: Names of users' fields with characters that may have a meaning in a store.
NAMES = ("a b", "ключ", "😀", "a:b", ":", "s", "v", "p", "$", "END", "x" * 255, "0", "-1", "{a}", "*")

#: Message ids with characters that may have a meaning in a store.
MESSAGE_IDS = {
    "space": "a b",
    "spaces around": " a ",
    "Unicode": "žluťoučký kůň 😀",
    "longest": "x" * MAX_MESSAGE_ID_SIZE,
    "longest, Unicode": "😀" * (MAX_MESSAGE_ID_SIZE // 4),
    "longest, spaces": " " * MAX_MESSAGE_ID_SIZE,
    "hash tag": "{a}b",
    "separators": "a:b/../c%20*?[a]",
    "quotes": "'a\"\\",
    "digits": "0",
}

#: Message ids that a store may confuse.
ALIKE = ("a b", "a_b", "a%20b", "a+b", "A b", "a  b", "a b ", "ab", "\u00e9", "e\u0301", "%C3%A9", "a:b", "a::b")


class Names(StoreTests):
    """Tests of names and values of fields, message ids and namespaces."""

    @pytest.mark.parametrize("name", TEXTS)
    def test_values_are_read_unchanged(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a field with a JSON text
        text = TEXTS[name]
        backend.update(message_id, enqueue(field=text))
        # When it is read
        record = backend.read(message_id)
        # Then it is the same text
        assert record is not None and record[":field"] == text

    def test_names_are_read_unchanged(self, backend: StatusBackend, message_id: str) -> None:
        # Given fields with odd names
        fields = {":" + name: str(n) for n, name in enumerate(NAMES)}
        backend.update_many([(message_id, start(1)), (message_id, Update(Kind.OUTSIDE, fields=fields))])
        # When they are read
        record = backend.read(message_id)
        # Then the record has all of them
        assert record is not None and {name: record.get(name) for name in fields} == fields

    @pytest.mark.parametrize("make", [enqueue, lambda **f: start(1, **f), outside], ids=["enqueue", "start", "outside"])
    def test_a_large_field(self, backend: StatusBackend, message_id: str, make: Callable[..., Update]) -> None:
        # Given a field of the default maximum size
        text = '"' + "x" * 65_534 + '"'
        backend.update(message_id, enqueue())
        # When it is written
        backend.update(message_id, make(field=text))
        # Then a reader gets the same text
        record = backend.read(message_id)
        assert record is not None and record[":field"] == text

    @pytest.mark.parametrize(
        "given, make",
        [
            ([], enqueue),
            ([start(1)], enqueue),
            ([start(1)], lambda **f: enqueue(generation=2, **f)),
            ([enqueue()], lambda **f: start(1, **f)),
            ([], lambda **f: start(1, **f)),
            ([start(1)], lambda **f: write(1, 2, **f)),
            ([start(1)], lambda **f: finish(1, **f)),
            ([start(1)], outside),
        ],
        ids=["enqueue", "late enqueue", "requeue", "start", "whole start", "write", "finish", "outside"],
    )
    def test_thousands_of_fields(
        self, backend: StatusBackend, message_id: str, given: list[Update], make: Callable[..., Update]
    ) -> None:
        # Given more fields than a script of Redis writes by one command
        fields = {f"field-{n}": str(n) for n in range(3_000)}
        backend.update_many([(message_id, update) for update in given])
        # When they are written in one update
        backend.update(message_id, make(**fields))
        # Then the record has all of them
        record = backend.read(message_id)
        assert record is not None and {name[1:]: text for name, text in record.items() if name[0] == ":"} == fields

    @pytest.mark.parametrize("name", MESSAGE_IDS)
    def test_odd_message_ids(self, backend: StatusBackend, name: str) -> None:
        # Given a message with an odd id
        message_id = MESSAGE_IDS[name]
        backend.delete(message_id)
        # When it is written, read and deleted
        outcomes = [backend.update(message_id, update) for update in (enqueue(), start(1, step="1"))]
        record, deleted = backend.read(message_id), backend.delete(message_id)
        # Then the results are those of any other id
        assert outcomes == [Outcome.APPLIED] * 2 and record is not None and record[":step"] == "1" and deleted

    def test_message_ids_that_look_alike(self, backend: StatusBackend) -> None:
        # Given messages whose ids a store may confuse
        backend.update_many([(message_id, enqueue(origin=n + 1)) for n, message_id in enumerate(ALIKE)])
        # When they are read
        found = read_many(backend, ALIKE)
        # Then each id has its own record
        assert [record and record[ORIGIN] for record in found] == [str(n + 1) for n in range(len(ALIKE))]

    def test_namespaces_are_apart(self, make_backend: Callable[..., StatusBackend], message_id: str) -> None:
        # Given backends of two namespaces in one store
        one, two = make_backend(namespace="one"), make_backend(namespace="two")
        # When a message is written in one
        one.update(message_id, enqueue())
        # Then the backend of the other one does not find it
        assert (two.read(message_id), two.delete(message_id)) == (None, False)
        assert one.read(message_id) is not None

    def test_ids_do_not_reach_into_other_namespaces(self, make_backend: Callable[..., StatusBackend]) -> None:
        # Given namespaces and ids whose keys would be the same without escapes
        pairs = [
            ("a", "b:x"),
            ("a:b", "x"),
            ("a", "b%3Ax"),
            ("a%3Ab", "x"),
            ("a:", "b:x"),
            ("a::b", "x"),
            ("a", ":b:x"),
        ]
        backends = [make_backend(namespace=namespace) for namespace, _ in pairs]
        for n, (backend, (_, message_id)) in enumerate(zip(backends, pairs)):
            backend.update(message_id, enqueue(origin=n + 1))
        # When they are read
        found = [backend.read(message_id) for backend, (_, message_id) in zip(backends, pairs)]
        # Then each pair has its own record
        assert [record and record[ORIGIN] for record in found] == [str(n + 1) for n in range(len(pairs))]

    def test_backends_of_one_namespace_share(self, make_backend: Callable[..., StatusBackend], message_id: str) -> None:
        # Given two backends of the same namespace
        one, two = make_backend(namespace="one"), make_backend(namespace="one")
        # When both write
        one.update(message_id, start(1))
        outcome = two.update(message_id, write(1, 2, step="1"))
        # Then both read the same record
        assert outcome is Outcome.APPLIED and one.read(message_id) == two.read(message_id)
