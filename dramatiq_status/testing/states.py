"""The states of a message, for tests that send messages to a worker."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import dramatiq

from ..backend import StatusBackend
from ..checks import DEFAULT_WAIT_TIMEOUT
from ..errors import StatusMissing
from ..record import State
from ..registry import StatusRegistry
from ..runs import RunOutcome
from ..snapshot import Snapshot


def wait_for_final_state(
    message: str | dramatiq.Message[Any],
    state: State | str | None = None,
    *,
    timeout: int | timedelta = DEFAULT_WAIT_TIMEOUT,
    backend: StatusBackend | None = None,
    broker: dramatiq.Broker | None = None,
) -> Snapshot:
    """Wait until a message is completed or failed, and assert which of the two it is.

    >>> snapshot = wait_for_final_state(import_rows.send("orders.csv"), "completed")
    >>> snapshot["step"]
    'indexing'

    A message that waits for a retry is ``queued``, which is no final state.

    Parameters:
      message(str | Message): The message or its id.
      state(State): The expected state, ``"completed"`` or ``"failed"``. By default, either state is accepted.
      timeout(int): Milliseconds to wait; by default 10 seconds.
      backend(StatusBackend): Store of the status; by default that of the broker.
      broker(Broker): By default the default broker.

    Returns:
      Snapshot: The status with its final state.

    Raises:
      AssertionError: When the message ends in the other state.  The error has the runs and the last exception.
      StatusTimeout: When the message is not finished in time.
      StatusMissing: When the message is unknown for a second.
      ValueError: When the expected state is no final state.
    """
    expected = None if state is None else State(state)
    if expected in (State.QUEUED, State.WORKING):
        raise ValueError(f"state must be 'completed' or 'failed', not {str(expected)!r}: it is no final state.")
    snapshot = StatusRegistry.wait(message, timeout=timeout, backend=backend, broker=broker)
    if expected is not None and snapshot.state is not expected:
        raise AssertionError(_described(snapshot, f"is {snapshot.state} and not {expected}"))
    return snapshot


def assert_status_sequence(
    message: str | dramatiq.Message[Any],
    states: Iterable[State | str],
    *,
    backend: StatusBackend | None = None,
    broker: dramatiq.Broker | None = None,
) -> None:
    """Assert which states a message has had until now, from its first to its present one.

    >>> message = import_late.send("orders.csv")
    >>> snapshot = wait_for_final_state(message)
    >>> assert_status_sequence(message, ["queued", "working", "queued", "working", "completed"])

    The first run of this message was retried.  Each run is one ``working``, also a run so short that no reader has
    seen it.  If a worker died, ``working`` follows ``working``.  Wait for the final state first, because a worker may
    change the state at any time.

    Parameters:
      message(str | Message): The message or its id.
      states(Iterable[State]): The expected states.
      backend(StatusBackend): Store of the status; by default that of the broker.
      broker(Broker): By default the default broker.

    Raises:
      AssertionError: When the message has had other states, or the store has left out some of many runs.  The error has
        the runs and the last exception.
      StatusMissing: When the message is unknown.
    """
    expected = [State(state) for state in states]
    snapshot = StatusRegistry.read(message, backend=backend, broker=broker)
    if snapshot is None:
        raise StatusMissing(message if isinstance(message, str) else message.message_id)
    found = _states_of(snapshot)
    if found != expected:
        had = f"has had the states {_listed(found)} and not {_listed(expected)}"
        raise AssertionError(_described(snapshot, had))


def _states_of(snapshot: Snapshot) -> list[State]:
    states = [] if snapshot.enqueued_at is None else [State.QUEUED]
    for run in snapshot.runs:
        states.append(State.WORKING)
        if run.outcome in (RunOutcome.RETRIED, RunOutcome.REQUEUED):
            states.append(State.QUEUED)
    # A message may end without a further run.
    return states if states[-1:] == [snapshot.state] else [*states, snapshot.state]


def _listed(states: list[State]) -> str:
    return ", ".join(map(str, states)) or "none"


def _described(snapshot: Snapshot, trouble: str) -> str:
    text = (
        f"Message {snapshot.message_id!r} of actor {snapshot.actor_name!r} {trouble}: {'; '.join(snapshot.timeline)}."
    )
    # Only the setting includes={"traceback"} stores it.
    traceback = snapshot.get("traceback")
    return text if traceback is None else f"{text}\n{traceback}"
