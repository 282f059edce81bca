"""A run whose message was delivered again while it was frozen, and that continues beside the new run. Both run in
real processes.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest

from ..servers import RedisServer
from .crew import Crew, send_signal, stop


@pytest.fixture(params=["redis", "rabbitmq"])
def crew(request: pytest.FixtureRequest, redis_server: RedisServer, redis_url: str) -> Crew:
    if request.param == "redis":
        return Crew(redis_server.database(1), redis_url)
    # The server closes the connection of a client that is silent for some seconds, and delivers again.
    return Crew(request.getfixturevalue("rabbitmq_url") + "?heartbeat=2", redis_url)


def state_of(crew: Crew) -> dict[str, Any]:
    """Return the stored status and its version, without the heartbeat, which the new run goes on to send, and without
    values that depend on the time of the read.
    """
    snapshot = crew.read()
    return {**snapshot.to_dict(exclude=("heartbeat_at", "duration", "time_remaining")), "version": snapshot.version}


@pytest.mark.parametrize("deed", ["return", "fail"])
def test_a_first_run_cannot_write_over_the_second(crew: Crew, deed: str) -> None:
    # Given a message whose worker is frozen for so long that the broker delivers it again
    crew.send(deed)
    with crew.worker("first") as first:
        crew.heed("first", "began")
        stop(first)
        with crew.worker("second"):
            crew.heed("second", "began")
            before = state_of(crew)
            assert before.items() >= {"status": "working", "attempts": 2, "owner": "second", "progress": 1}.items()
            # When the first run continues, and writes fields and progress
            send_signal(first, signal.SIGCONT)
            crew.tell("first", "go on")
            crew.heed("first", "wrote")
            # Then none of its writes is stored
            assert state_of(crew) == before
            # And when it ends, with or without an exception, the status is still that of the second run
            crew.tell("first", "end")
            crew.heed("first", "settled")
            assert state_of(crew) == before
            # And when the second run ends, its final state is stored
            crew.tell("second", "go on")
            crew.tell("second", "end")
            snapshot = crew.wait()
            assert snapshot.completed and snapshot.exception is None
            assert (snapshot["owner"], snapshot["late"], snapshot["progress"]) == ("second", "second", 51)
            assert (snapshot.attempts, snapshot.total) == (2, 7)
            assert [run.outcome for run in snapshot.runs] == ["lost", "completed"]


def test_a_first_run_cannot_reopen_what_the_second_has_finished(crew: Crew) -> None:
    # Given a message that was delivered again while its first run was frozen, and whose second run is done
    crew.send("fail")
    with crew.worker("first") as first:
        crew.heed("first", "began")
        stop(first)
        with crew.worker("second"):
            crew.heed("second", "began")
            crew.tell("second", "go on")
            crew.tell("second", "end")
            final = crew.wait()
            assert final.completed and final["owner"] == "second"
            assert [run.outcome for run in final.runs] == ["lost", "completed"]
            # When the first run continues, writes, and fails
            send_signal(first, signal.SIGCONT)
            crew.tell("first", "go on")
            crew.heed("first", "wrote")
            crew.tell("first", "end")
            crew.heed("first", "settled")
            # Then the status is unchanged
            assert crew.read() == final
