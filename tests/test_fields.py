"""Tests of names and values of fields, and of the errors for wrong ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dramatiq_status.fields import (
    MAX_COUNT,
    MAX_DEPTH,
    MAX_NAME_SIZE,
    RESERVED,
    check_count,
    encode_count,
    encode_fields,
    encode_total,
    encode_value,
    state_number,
    user_name,
)
from dramatiq_status.names import NAMES
from dramatiq_status.record import State
from dramatiq_status.snapshot import Snapshot

LARGE = 65_536
FIELDS = Path(__file__).parents[1] / "docs" / "reference" / "fields.rst"


class Colour(str, Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


# Fields together


def test_fields_are_encoded() -> None:
    # Given fields that a user writes
    fields = {"step": "reading", "user_id": 42, "status": "failed", "progress": 5, "total": 10.0}
    # When they are encoded
    encoded = encode_fields(fields, max_size=LARGE)
    # Then users' fields are kept apart from the library's, and the state is a number
    assert encoded == ({":step": '"reading"', ":user_id": "42", "p": "5", "t": "10"}, 3)


def test_no_fields_have_an_empty_encoding() -> None:
    # Given no fields
    # When they are encoded
    # Then the result is empty
    assert encode_fields({}, max_size=LARGE) == ({}, None)


# Names


def test_every_name_of_a_snapshot_is_reserved() -> None:
    # Given the attributes of a snapshot
    said = set(NAMES.values()) | {"message_id", "retrying", "scheduled", "stalled", "finished", "percent"}
    said |= {"duration", "time_remaining", "runs"}
    # When the reserved names are compared to it
    # Then they are the same, except for names that users may write, and for includes
    assert said - RESERVED == {"status", "progress", "total", "args", "kwargs", "traceback"}
    assert said >= RESERVED
    # And each derived value can be read
    assert all(hasattr(Snapshot, name) for name in RESERVED)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_reserved_names_raise(name: str) -> None:
    # Given a name that only the library writes
    # When a user writes it
    # Then the error names it, and all other reserved names
    with pytest.raises(ValueError, match=f"'{name}'") as caught:
        encode_fields({name: 1}, max_size=LARGE)
    said = str(caught.value)
    assert all(other in said for other in RESERVED)
    # And the documentation names it, too
    assert f"``{name}``" in FIELDS.read_text().partition("All these names are reserved")[0]


@pytest.mark.parametrize("name", [1, None, b"step", ("a",), 1.5])
def test_names_that_are_no_strings_raise(name: Any) -> None:
    # Given a name of another type
    # When it is written
    # Then the error names the type
    with pytest.raises(TypeError, match=type(name).__name__):
        encode_fields({name: 1}, max_size=LARGE)


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00", "\x7f", "\ud800", "a\u2028", "a\tb", "\u200b"], ids=ascii)
def test_malformed_names_raise(name: str) -> None:
    # Given a name that is empty or contains an unprintable character
    # When it is written
    # Then an error is raised
    with pytest.raises(ValueError, match="Field names must"):
        user_name(name)


@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_a_name_that_is_too_long_raises(letter: str) -> None:
    # Given the longest name of a letter
    count = MAX_NAME_SIZE // len(letter.encode())
    # When it is written, and when it is one letter longer
    # Then the second write raises an error
    assert user_name(letter * count) == ":" + letter * count
    with pytest.raises(ValueError, match=f"{MAX_NAME_SIZE} bytes"):
        user_name(letter * (count + 1))


@pytest.mark.parametrize("name", ["step", "Step", "a b", "a.b", ":", "ключ", "😀", "s", "p", "__class__", "queued"])
def test_other_names_are_stored_apart(name: str) -> None:
    # Given a name that is not reserved
    # When it is written
    # Then its stored name differs from all names of the library
    assert user_name(name) == ":" + name


# Values


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 10**30, 0.1, 1e300, "", "žluť 😀", "\x00\n\u2028", "\ud800", [], {}, [1, [2, {"a": None}]]],
    ids=ascii,
)
def test_values_come_back(value: Any) -> None:
    # Given a JSON value
    # When it is encoded
    text = encode_value("x", value, LARGE)
    # Then the text is one line of ASCII, and decodes to the same value of the same type
    assert json.loads(text) == value and type(json.loads(text)) is type(value)
    assert text.isascii() and "\n" not in text


@pytest.mark.parametrize(
    "value, expected",
    [((1, (2,)), [1, [2]]), (Colour.RED, "red"), (Level.HIGH, 3), ({"a": (1,)}, {"a": [1]}), ([Decimal("1.5")], [1.5])],
    ids=["tuple", "str enum", "int enum", "inner tuple", "decimal"],
)
def test_values_with_a_form_in_json_are_converted(value: Any, expected: Any) -> None:
    # Given a value that has a form in JSON
    # When it is encoded
    # Then the decoded value has this form
    assert json.loads(encode_value("x", value, LARGE)) == expected


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, b"x", datetime.now(), uuid4(), 1j, print],
    ids=lambda v: type(v).__name__,
)
def test_values_that_are_not_json_raise(value: Any) -> None:
    # Given a value that has no form in JSON
    # When it is written
    # Then the error names the field, its type, and what to write instead
    with pytest.raises(TypeError, match=rf"'x' of type {type(value).__name__} .*Write a string") as caught:
        encode_value("x", value, LARGE)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: ({"a": [v]},)])
def test_nested_values_that_are_not_json_raise(wrap: Callable[[Any], Any]) -> None:
    # Given a value without a form in JSON inside another value
    value = wrap(object())
    # When it is written
    # Then the error names both types
    with pytest.raises(TypeError, match=rf"'x' of type {type(value).__name__} .*type object"):
        encode_value("x", value, LARGE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], {"a": {"b": math.inf}}], ids=str)
def test_nan_and_infinity_raise(value: Any) -> None:
    # Given NaN or infinity
    # When it is written
    # Then the error names the reason
    with pytest.raises(ValueError, match=r"'x' .*NaN or infinity"):
        encode_value("x", value, LARGE)


@pytest.mark.parametrize("key", [1, None, True, 1.5], ids=repr)
@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: [v], lambda v: {"a": v}, lambda v: [({"a": [v]},)]], ids=["", "[]", "{}", "[{[]}]"]
)
def test_keys_that_are_no_strings_raise(key: Any, wrap: Callable[[Any], Any]) -> None:
    # Given a dict with a key that would come back as a string
    value = wrap({key: 1})
    # When it is written
    # Then the error names the field, the key and its type
    with pytest.raises(TypeError, match=rf"'x' .*{key!r} of type {type(key).__name__}"):
        encode_value("x", value, LARGE)


def test_keys_without_a_form_in_json_raise() -> None:
    # Given a dict with a tuple for a key
    # When it is written
    # Then the error names the field
    with pytest.raises(TypeError, match="'x' of type dict"):
        encode_value("x", {(1, 2): 3}, LARGE)


def test_a_list_that_contains_itself_raises() -> None:
    # Given a list that contains itself
    value: list[Any] = []
    value.append(value)
    # When it is written
    # Then the error names the field
    with pytest.raises(ValueError, match="'x' of type list"):
        encode_value("x", value, LARGE)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 950, 5_000, 100_000])
def test_nesting_that_is_too_deep_raises(depth: int) -> None:
    # Given lists in lists, nested deeper than readers' decoders are sure to read
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    # When it is written
    # Then the error names the reason
    with pytest.raises(ValueError, match="nested too deeply"):
        encode_value("x", value, 10**9)


def test_the_deepest_nesting_is_stored() -> None:
    # Given a list with the maximum depth
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    # When it is written
    # Then it is stored
    assert encode_value("x", value, LARGE) == "[" * MAX_DEPTH + "]" * MAX_DEPTH


def test_a_value_over_the_maximum_size_raises() -> None:
    # Given a value whose JSON text has the maximum size
    value = "x" * (LARGE - 2)
    # When it is written, and when it is one byte larger
    # Then the second write raises an error with both sizes
    assert len(encode_value("x", value, LARGE)) == LARGE
    with pytest.raises(ValueError, match=rf"'x' of type str takes {LARGE + 1} bytes.*{LARGE} .*max_field_size"):
        encode_value("x", value + "x", LARGE)


def test_the_size_is_that_of_the_encoded_value() -> None:
    # Given a short text of letters that take twelve bytes each
    # When it is written with a lower limit
    # Then an error is raised
    with pytest.raises(ValueError, match="122 bytes"):
        encode_value("x", "😀" * 10, 100)


# Counts


@pytest.mark.parametrize("value", [0, 1, -1, 0.5, -2.5, MAX_COUNT, -MAX_COUNT, 1e-300])
def test_numbers_are_encoded_unchanged(value: float) -> None:
    # Given a finite number
    # When it is checked and encoded
    # Then it is unchanged
    assert check_count("progress", value) == value == json.loads(encode_count("progress", value))


@pytest.mark.parametrize("value", ["5", True, False, [1], 1j], ids=repr)
@pytest.mark.parametrize("name", ["progress", "total"])
def test_counts_of_other_types_raise(name: str, value: Any) -> None:
    # Given a value of another type
    # When it is written as a count
    # Then the error names the field and the type
    with pytest.raises(TypeError, match=f"'{name}' must be a number, not {type(value).__name__}"):
        encode_fields({name: value}, max_size=LARGE)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, MAX_COUNT + 1, -MAX_COUNT - 2, 1e300, 10**400], ids=str
)
@pytest.mark.parametrize("name", ["progress", "total"])
def test_counts_to_which_a_store_cannot_add_raise(name: str, value: Any) -> None:
    # Given a number to which a store cannot add
    # When it is written as a count
    # Then the error names the field
    with pytest.raises(ValueError, match=f"'{name}'"):
        encode_fields({name: value}, max_size=LARGE)


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5])
def test_totals_are_encoded_unchanged(value: float) -> None:
    # Given a total that is not negative
    # When it is encoded
    # Then it is unchanged
    assert json.loads(encode_total(value)) == value


@pytest.mark.parametrize("value", [-1, -0.5])
def test_a_negative_total_raises(value: float) -> None:
    # Given a total below zero
    # When it is written
    # Then the error names the reason
    with pytest.raises(ValueError, match="'total' must not be negative"):
        encode_fields({"total": value}, max_size=LARGE)


def test_an_unknown_total_is_stored_as_null() -> None:
    # Given no total
    # When it is encoded
    # Then the unknown total is stored as null; a progress cannot be None
    assert encode_fields({"total": None}, max_size=LARGE) == ({"t": "null"}, None)
    with pytest.raises(TypeError, match="'progress' must be a number, not NoneType"):
        encode_fields({"progress": None}, max_size=LARGE)


# States


@pytest.mark.parametrize("number, state", list(enumerate(State)))
def test_a_state_and_its_name_are_encoded_alike(number: int, state: State) -> None:
    # Given a state, or its name
    # When it is written
    # Then both have the same stored value
    assert state_number(state) == state_number(state.value) == number


@pytest.mark.parametrize("value", ["", "done", "Queued", "QUEUED", 0, None, True, ["queued"]], ids=repr)
def test_a_wrong_state_raises(value: Any) -> None:
    # Given a value that is neither a state nor the name of one
    # When it is written as the status
    # Then the error lists the four states
    with pytest.raises(ValueError, match="'status' must be one of 'queued', 'working', 'completed', 'failed'"):
        encode_fields({"status": value}, max_size=LARGE)
