"""Time limits, aborts and shutdowns are raised asynchronously in worker threads, and so in the middle of our hooks."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
from dramatiq.middleware import TimeLimitExceeded

import dramatiq_status
from dramatiq_status import StatusMiddleware

from ..recording import eventually
from .recorder import RecordingStubBackend
from .scenarios import DONE, RETRIED, End, failed, skipped
from .stage import Stage
from .test_scenarios import end_of

PACKAGE = str(Path(dramatiq_status.__file__).parent)


class Aim:
    """An interrupt that strikes a thread before the n-th line that our package executes in a hook."""

    def __init__(self, hook: str, line: int) -> None:
        self.hook = hook
        self.hit: str | None = None
        self._left = line

    @contextmanager
    def taken(self) -> Iterator[None]:
        previous = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(previous)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        # What carries hooks through has to stand somewhere: an interrupt ahead of it is one ahead of the hook.
        ours = code.co_filename.startswith(PACKAGE) and code.co_name != "wrapper"
        return self._count if ours else None

    def _count(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "line":
            self._left -= 1
            if self._left == 0:
                self.hit = f"{frame.f_code.co_qualname if sys.version_info >= (3, 11) else ''}:{frame.f_lineno}"
                raise TimeLimitExceeded
        return self._count


class Struck(StatusMiddleware):
    """Ours; the next call of a hook on a worker's thread is struck where it is aimed at."""

    aim: Aim | None = None

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        for hook in HOOKS:
            setattr(self, hook, self._struck(hook, getattr(self, hook)))

    def _struck(self, hook: str, inner: Callable[..., None]) -> Callable[..., None]:
        def struck(*args: Any, **named: Any) -> None:
            aim = self.aim
            if aim is None or aim.hook != hook or not self._notes.worker:
                return inner(*args, **named)
            self.aim = None
            with aim.taken():
                return inner(*args, **named)

        return struck


class Case(NamedTuple):
    """What a message does whose hook is struck, and what it has to come to."""

    hook: str
    end: End
    script: tuple[str, ...] = ("return",)
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to


#: Behind the actor an interrupt comes too late: what a message comes to is what it would have come to.
CASES = (
    Case("after_process_message", DONE),
    Case("after_process_message", RETRIED, ("raise", "return")),
    Case("after_skip_message", skipped("qwc"), ("skip",)),
    Case("before_enqueue", RETRIED, ("raise", "return")),
    Case("after_enqueue", RETRIED, ("raise", "return")),
    Case("before_ack", DONE),
    Case("before_ack", RETRIED, ("raise", "return")),
    Case("after_ack", DONE),
    Case("before_nack", failed(), ("raise",), {"max_retries": 0}),
    Case("after_nack", failed(), ("raise",), {"max_retries": 0}),
)
HOOKS = ("before_process_message", *dict.fromkeys(case.hook for case in CASES))


@pytest.fixture(params=["first", "last"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    stage = Stage("stub://", RecordingStubBackend(timeout=20_000), position=request.param, ours=Struck)
    yield stage
    stage.close()


def strikes(stage: Stage, hook: str, *script: str, **options: Any) -> Iterator[tuple[Aim, str]]:
    """Strike one line of a hook after the other, each in a message of its own; ends behind its last line."""
    assert isinstance(stage.middleware, Struck)
    with stage.working(threads=1) as worker:
        # Whatever is done but once a process is done with this one.
        stage.audit.wait(stage.send())
        for line in itertools.count(1):
            aim = stage.middleware.aim = Aim(hook, line)
            message_id = stage.send(*script, **options)
            stage.audit.wait(message_id)
            assert stage.middleware.aim is None
            if aim.hit is None:
                return
            yield aim, message_id
            # The thread lives, and heartbeats are sent for nobody.
            assert all(thread.is_alive() for thread in worker.workers), aim.hit
            eventually(lambda: not stage.middleware._writer.running)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.hook} {case.end.states}")
def test_an_interrupt_behind_the_actor(stage: Stage, case: Case) -> None:
    # Given a message whose actor has returned or raised
    # When an interrupt strikes in our hook, before whichever line
    struck = 0
    for aim, message_id in strikes(stage, case.hook, *case.script, **case.options):
        # Then it comes to what it would have come to
        assert (aim.hit, end_of(stage, message_id)) == (aim.hit, case.end)
        struck += 1
    assert struck > 2


@pytest.mark.parametrize("retries", [True, False], ids=["retried", "not-retried"])
def test_an_interrupt_ahead_of_the_actor(stage: Stage, retries: bool) -> None:
    # Given a message that is about to run
    options = {} if retries else {"max_retries": 0}
    struck = 0
    # When an interrupt strikes in our hook, before whichever line
    for aim, message_id in strikes(stage, "before_process_message", **options):
        # Then its actor does not run; that is a failure like any other, whether it showed `working` or not
        end = end_of(stage, message_id)
        if retries:
            assert (aim.hit, end.states) in [(aim.hit, "qwqwc"), (aim.hit, "qwc")]
        else:
            assert (aim.hit, end.states) in [(aim.hit, "qwf"), (aim.hit, "qf")]
            assert end.exception == "TimeLimitExceeded"
        struck += 1
    assert struck > 2
