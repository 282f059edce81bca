"""Tests of lifecycle.py: decisions, names of queues, and descriptions of exceptions."""

from __future__ import annotations

import itertools
import threading

import pytest

from dramatiq_status.lifecycle import (
    Decision,
    Delivery,
    ThreadState,
    ThreadStates,
    is_delayed_copy,
    queue_of,
)
from dramatiq_status.message_fields import MAX_EXCEPTION_LENGTH, describe_exception
from dramatiq_status.record import COMPLETED, FAILED

SUCCESS: dict[str, object] = {"outcome_seen": True}
FAILURE: dict[str, object] = {"outcome_seen": True, "exception": ValueError("x")}


@pytest.mark.parametrize(
    ("hooks", "rejected", "expected"),
    [
        # It ran, and was acknowledged
        (SUCCESS, False, Decision.COMPLETED),
        # It raised, and no middleware retries; or the retry could not be enqueued
        (FAILURE, False, Decision.FAILED),
        # It raised, and its retry was enqueued
        ({**FAILURE, "requeued": True}, False, Decision.REQUEUED),
        # It raised, and was rejected: retries are used up, or it was expected
        (FAILURE, True, Decision.FAILED),
        # It succeeded, and a middleware rejected it all the same
        (SUCCESS, True, Decision.FAILED),
        # It was skipped, and acknowledged or rejected
        ({"skipped": True}, False, Decision.COMPLETED),
        ({"skipped": True}, True, Decision.FAILED),
        # It was put back and skipped by a middleware
        ({"skipped": True, "requeued": True}, False, Decision.REQUEUED),
        # It put itself back, and succeeded
        ({**SUCCESS, "requeued": True}, False, Decision.REQUEUED),
        # No hook has got an outcome: an eager broker raised, or the actor is unknown
        ({}, False, Decision.FAILED),
        ({}, True, Decision.FAILED),
        # after_process_message was called twice, without and then with an exception: an interrupt in a hook
        ({"outcome_seen": True, "exception": KeyboardInterrupt()}, False, Decision.FAILED),
    ],
)
def test_each_end_of_a_delivery_has_its_decision(hooks: dict[str, object], rejected: bool, expected: Decision) -> None:
    delivery = Delivery("id")
    for name, value in hooks.items():
        setattr(delivery, name, value)
    assert delivery.decide(rejected=rejected) is expected


@pytest.mark.parametrize(("outcome_seen", "raised", "skipped"), list(itertools.product([False, True], repeat=3)))
def test_properties_of_all_decisions(outcome_seen: bool, raised: bool, skipped: bool) -> None:
    def decide(*, rejected: bool, requeued: bool) -> Decision:
        delivery = Delivery("id")
        delivery.outcome_seen, delivery.exception = outcome_seen, ValueError() if raised else None
        delivery.skipped, delivery.requeued = skipped, requeued
        return delivery.decide(rejected=rejected)

    # A message that will run again has no final state, whatever the other hooks were
    assert decide(rejected=False, requeued=True) is decide(rejected=True, requeued=True) is Decision.REQUEUED
    # A rejected message has failed
    assert decide(rejected=True, requeued=False) is Decision.FAILED
    # An acknowledged message has an end
    assert decide(rejected=False, requeued=False).state is not None


def test_the_stored_state_of_each_decision() -> None:
    assert {decision: decision.state for decision in Decision} == {
        Decision.REQUEUED: None,
        Decision.COMPLETED: COMPLETED,
        Decision.FAILED: FAILED,
        Decision.CANCELLED: FAILED,
    }


def test_deliveries_are_compared_by_identity() -> None:
    # Two deliveries of one message are not the same
    assert Delivery("id") != Delivery("id")


@pytest.mark.parametrize(
    ("queue_name", "options", "expected"),
    [
        ("default", {}, False),
        ("default.DQ", {}, True),
        ("default", {"eta": 5}, True),
        ("default.DQ", {"eta": 5}, True),
        ("default.XQ", {}, False),
        ("DQ", {"delay": 5}, False),
    ],
)
def test_delayed_copies_are_recognized(queue_name: str, options: dict[str, int], expected: bool) -> None:
    assert is_delayed_copy(queue_name, options) is expected


@pytest.mark.parametrize(
    ("queue_name", "expected"), [("mail", "mail"), ("mail.DQ", "mail"), ("a.DQ.b", "a.DQ.b"), ("DQ", "DQ")]
)
def test_the_name_of_a_queue_is_never_that_of_its_delay_queue(queue_name: str, expected: str) -> None:
    assert queue_of(queue_name) == expected


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("exception", "expected"),
    [
        (ValueError("bad"), {"type": "ValueError", "message": "bad"}),
        (ValueError(), {"type": "ValueError", "message": ""}),
        (KeyError("name"), {"type": "KeyError", "message": "'name'"}),
        (KeyboardInterrupt(), {"type": "KeyboardInterrupt", "message": ""}),
        (Mute(), {"type": "Mute", "message": "<str() of the exception failed>"}),
        (ValueError("x" * MAX_EXCEPTION_LENGTH), {"type": "ValueError", "message": "x" * MAX_EXCEPTION_LENGTH}),
        (
            ValueError("x" * (MAX_EXCEPTION_LENGTH + 1)),
            {"type": "ValueError", "message": "x" * (MAX_EXCEPTION_LENGTH - 3) + "..."},
        ),
    ],
    ids=["text", "no-text", "quoted", "no-exception-class", "str-fails", "long", "too-long"],
)
def test_exceptions_are_described(exception: BaseException, expected: dict[str, str]) -> None:
    assert describe_exception(exception, 65_536) == expected


def test_each_thread_has_its_own_state() -> None:
    # Given the state of one thread
    states = ThreadStates()
    state = states.own
    state.worker = True
    state.hold("id")
    state.enqueued.add("id")
    seen: list[object] = []
    # When another thread reads its own
    thread = threading.Thread(target=lambda: seen.extend((states.own.worker, states.own.delayed, states.own.enqueued)))
    thread.start()
    thread.join()
    # Then it finds no value of the first one
    assert seen == [False, {}, set()]


def test_the_end_of_a_delivery_clears_the_state_of_its_thread() -> None:
    state = ThreadState()
    state.worker = True
    state.hold("a delayed one")
    state.enqueued.add("another")
    state.forget()
    assert (state.worker, state.delayed, state.enqueued) == (True, {"a delayed one": 1}, set())
