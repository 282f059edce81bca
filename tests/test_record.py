"""Tests of states, of records as texts, and of numbers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dramatiq_status import record as record_module
from dramatiq_status.record import (
    ATTEMPTS,
    DOCUMENT_MARK,
    GENERATION,
    LIVE_TTL,
    ORIGIN,
    PROGRESS,
    SCHEDULED_AT,
    SEQUENCE,
    STATE,
    STATES,
    VERSION,
    State,
    from_document,
    is_sound,
    number_of,
    number_text,
    to_document,
)
from dramatiq_status.update import apply

from .test_update import COMPLETED_RECORD, FAILED_RECORD, QUEUED_RECORD, WORKING_RECORD

# States


def test_a_state_equals_its_name() -> None:
    assert [str(state) for state in STATES] == ["queued", "working", "completed", "failed"]
    assert all(state == state.value == json.loads(json.dumps(state)) for state in State)
    assert [state.finished for state in STATES] == [False, False, True, True]


# Documents


def test_a_document_is_read_unchanged() -> None:
    for record in (QUEUED_RECORD, WORKING_RECORD, COMPLETED_RECORD, FAILED_RECORD):
        assert from_document(to_document(record)) == record


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: text.removeprefix("d"), id="another-mark"),
        pytest.param(lambda text: text.replace(DOCUMENT_MARK, "dramatiq-status 2"), id="another-format"),
        pytest.param(lambda text: text.partition("\n")[2], id="no-mark"),
        pytest.param(lambda text: DOCUMENT_MARK, id="nothing-else"),
        pytest.param(lambda text: text + "\n", id="a-line-too-many"),
        pytest.param(lambda text: text.rpartition("\n")[0], id="cut-off"),
        pytest.param(lambda text: text.replace("\ns\n", "\n:s\n"), id="no-state"),
        pytest.param(lambda text: text.replace("\ns\n1", "\ns\n4"), id="an-unknown-state"),
        pytest.param(lambda text: text.replace("\ns\n1", '\ns\n"working"'), id="a-state-by-its-name"),
        pytest.param(lambda text: text.replace("\nv\n2", "\nv\nx"), id="no-number"),
        pytest.param(lambda text: '{"status": "working"}', id="somebody-else's"),
    ],
)
def test_a_damaged_document_is_none(damage: object) -> None:
    text = to_document(WORKING_RECORD)
    assert callable(damage) and damage(text) != text
    assert from_document(damage(text)) is None


@pytest.mark.parametrize("name", [STATE, VERSION, ORIGIN, GENERATION, SEQUENCE])
def test_a_record_without_what_apply_needs_is_not_sound(name: str) -> None:
    assert is_sound(WORKING_RECORD)
    assert not is_sound({stored: text for stored, text in WORKING_RECORD.items() if stored != name})


@pytest.mark.parametrize("name", [VERSION, GENERATION, SEQUENCE, LIVE_TTL, SCHEDULED_AT, ATTEMPTS, PROGRESS])
@pytest.mark.parametrize("text", ["", "x", "null", '"1"', "[]", "NaN", "1e999", "-Infinity", "9" * 5000])
def test_a_record_with_a_malformed_number_is_not_sound(name: str, text: str) -> None:
    assert not is_sound({**WORKING_RECORD, name: text})


def test_a_progress_that_no_float_holds_is_not_sound() -> None:
    assert not is_sound({**WORKING_RECORD, PROGRESS: "9" * 400})


# Numbers


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (3, "3"), (3.0, "3"), (-0.0, "0"), (0.5, "0.5"), (-2.25, "-2.25"), (2.0**53, "9007199254740992")],
)
def test_whole_numbers_are_written_without_a_fraction(number: int | float, text: str) -> None:
    assert number_text(number) == text


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_number_is_read_unchanged(number: int | float) -> None:
    text = number_text(number)
    assert number_of(text) == number == json.loads(text)


# The public path of `apply`


def test_apply_is_found_in_record() -> None:
    # When `apply` and an unknown name are read from the module of records
    # Then it has `apply`, and the error names the unknown one
    assert record_module.apply is apply
    with pytest.raises(AttributeError, match="'unknown'"):
        record_module.unknown  # noqa: B018
