"""Waiting for the tasks of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Seconds in which a call reads replies that arrived while the event loop was blocked, and after which a task is
#: cancelled again.
CATCH_UP: Final = 0.05


async def within(seconds: float, work: Coroutine[Any, Any, T], later: Callable[[float], float] = lambda end: end) -> T:
    """Wait for some work, for at most `seconds`.

    After an event loop was blocked, it may call its timers before it reads the replies that have arrived in the
    meantime.  The work then has :data:`CATCH_UP` more seconds.

    ``asyncio.wait_for`` before Python 3.12 loses a cancellation if the work ends at the same time (bpo-37658).  With
    it, code that cancels a task might wait forever for the task's end.

    Parameters:
      seconds(float)
      work(Coroutine)
      later(Callable): Takes the original deadline and returns the present one, by the loop's clock.

    Raises:
      TimeoutError: When the time is over.
    """
    clock = asyncio.get_running_loop().time
    task = asyncio.create_task(work)
    end = clock() + seconds
    caught_up = False
    try:
        while not task.done():
            left = later(end) - clock()
            if left <= 0:
                if caught_up or left > -CATCH_UP:
                    break
                caught_up, left = True, CATCH_UP
            await asyncio.wait((task,), timeout=left)
    finally:
        # The caller then closes the connection.  If the driver's call still ran, it would fail, and `asyncio.run` would
        # log that.
        await end_of(task)
    if task.cancelled():
        raise no_answer(seconds)
    return task.result()


async def end_of(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks, and wait until they have ended, even if the waiting task is cancelled in the meantime.

    The tasks are cancelled again and again, because ``asyncio.wait_for`` before Python 3.12 and the package
    ``async-timeout``, which the driver uses, may lose a cancellation.
    """
    clock = asyncio.get_running_loop().time
    cancel_at, interrupt = clock(), None
    while running := [task for task in tasks if not task.done()]:
        if clock() >= cancel_at:
            cancel_at = clock() + CATCH_UP
            for task in running:
                task.cancel()
        try:
            await asyncio.wait(running, timeout=cancel_at - clock())
        except asyncio.CancelledError as e:
            interrupt = e
    for task in tasks:
        if not task.cancelled():
            # Otherwise asyncio would log the exception of the task, because no other code takes it.
            task.exception()
    if interrupt is not None:
        raise interrupt


def no_answer(seconds: float) -> TimeoutError:
    """Return the error of a call that has taken too long."""
    return TimeoutError(f"no answer within {seconds * 1000:g} milliseconds.")
