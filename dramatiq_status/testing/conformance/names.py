"""Names, values, message ids and namespaces."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ...backend import StatusBackend
from ...checks import MAX_MESSAGE_ID_SIZE
from ...update import Kind, Outcome, Update
from ..updates import enqueue, finish, outside, start, write
from .store import StoreTests, read_many

#: JSON texts that have to come back as they are.
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

#: Names of users' fields that a store might trip over.
NAMES = ("a b", "ключ", "😀", "a:b", ":", "s", "v", "p", "$", "END", "x" * 255, "0", "-1", "{a}", "*")

#: Message ids that a store might trip over.
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

#: Message ids that are easily taken for one another.
ALIKE = ("a b", "a_b", "a%20b", "a+b", "A b", "a  b", "a b ", "ab", "\u00e9", "e\u0301", "%C3%A9", "a:b", "a::b")


class Names(StoreTests):
    """Tests of names, values, message ids and namespaces."""

    @pytest.mark.parametrize("name", TEXTS)
    def test_texts_come_back_as_they_are(self, backend: StatusBackend, message_id: str, name: str) -> None:
        # Given a field with a JSON text
        text = TEXTS[name]
        backend.update(message_id, enqueue(field=text))
        # When it is read
        record = backend.read(message_id)
        # Then not a byte of it has changed
        assert record is not None and record[":field"] == text

    def test_names_come_back_as_they_are(self, backend: StatusBackend, message_id: str) -> None:
        # Given fields with odd names
        fields = {":" + name: str(n) for n, name in enumerate(NAMES)}
        backend.update_many([(message_id, start(1)), (message_id, Update(Kind.OUTSIDE, fields=fields))])
        # When they are read
        record = backend.read(message_id)
        # Then they are all there
        assert record is not None and {name: record.get(name) for name in fields} == fields

    @pytest.mark.parametrize("make", [enqueue, lambda **f: start(1, **f), outside], ids=["enqueue", "start", "outside"])
    def test_a_large_field(self, backend: StatusBackend, message_id: str, make: Callable[..., Update]) -> None:
        # Given a field of the largest size that a backend takes by default
        text = '"' + "x" * 65_534 + '"'
        backend.update(message_id, enqueue())
        # When it is written
        backend.update(message_id, make(field=text))
        # Then it is read as it was
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
        # Given more fields than a call's stack holds in Lua
        fields = {f"field-{n}": str(n) for n in range(3_000)}
        backend.update_many([(message_id, update) for update in given])
        # When they are written in one update
        backend.update(message_id, make(**fields))
        # Then they are all there
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
        # Then that is as with any other
        assert outcomes == [Outcome.APPLIED] * 2 and record is not None and record[":step"] == "1" and deleted

    def test_message_ids_that_look_alike(self, backend: StatusBackend) -> None:
        # Given messages whose ids might be taken for one another
        backend.update_many([(message_id, enqueue(origin=n + 1)) for n, message_id in enumerate(ALIKE)])
        # When they are read
        found = read_many(backend, ALIKE)
        # Then each is itself
        assert [record and record["e"] for record in found] == [str(n + 1) for n in range(len(ALIKE))]

    def test_namespaces_are_apart(self, make_backend: Callable[..., StatusBackend], message_id: str) -> None:
        # Given two namespaces in one store
        one, two = make_backend(namespace="one"), make_backend(namespace="two")
        # When a message is written in one
        one.update(message_id, enqueue())
        # Then the other knows nothing of it
        assert (two.read(message_id), two.delete(message_id)) == (None, False)
        assert one.read(message_id) is not None

    def test_ids_do_not_reach_into_other_namespaces(self, make_backend: Callable[..., StatusBackend]) -> None:
        # Given namespaces and ids that look the same when one follows the other
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
        # Then each is itself
        assert [record and record["e"] for record in found] == [str(n + 1) for n in range(len(pairs))]

    def test_backends_of_one_namespace_share(self, make_backend: Callable[..., StatusBackend], message_id: str) -> None:
        # Given two backends with one namespace
        one, two = make_backend(namespace="one"), make_backend(namespace="one")
        # When both write
        one.update(message_id, start(1))
        outcome = two.update(message_id, write(1, 2, step="1"))
        # Then both see it all
        assert outcome is Outcome.APPLIED and one.read(message_id) == two.read(message_id)
