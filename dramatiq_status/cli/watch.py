"""The command ``watch``: shows jobs until all are over."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence

from .. import _time as time
from ..registry import StatusRegistry
from .commands import complain, page_of, store_of
from .exits import COMPLETED, INTERRUPTED, UNREACHABLE, worst
from .faces import Face, face_of
from .feed import Feed, View
from .jobs import full_ids, reaching, status_of, unknown_job
from .store import Store


def watch(arguments: Namespace) -> int:
    """Show jobs until all are completed or failed."""
    store = store_of(arguments)
    ids = full_ids(store, arguments.ids)
    face = face_of(arguments, store.name, is_batch=arguments.batch)
    view, status = watch_jobs(store, ids, face, timeout=arguments.timeout)
    for message_id in view.vanished:
        if message_id not in view.known:
            complain(unknown_job(store, message_id))
    return status


def watch_list(arguments: Namespace) -> int:
    """Show a page of jobs until Ctrl-C.  The jobs in the rows stay the same, and each row shows the changes of its
    job.
    """
    store = store_of(arguments)
    ids = [snapshot.message_id for snapshot in page_of(store, arguments)]
    if not ids:
        complain("no jobs to watch.")
        return COMPLETED
    face = face_of(arguments, store.name, is_batch=False, heads=True)
    return watch_jobs(store, ids, face, is_over=lambda view: False)[1]


def watch_jobs(
    store: Store,
    ids: Sequence[str],
    face: Face,
    *,
    timeout: float | None = None,
    is_over: Callable[[View], bool] = lambda view: view.is_over,
) -> tuple[View, int]:
    """Show jobs until they are over.

    Parameters:
      store(Store)
      ids(Sequence[str]): Full message ids.
      face(Face)
      timeout(float): Longest time in seconds; None for no limit.
      is_over(Callable): Whether a view is the last one.

    Returns:
      tuple[View, int]: The last view, and the exit status.
    """
    with reaching(store):
        feed = Feed(StatusRegistry.batch(ids, backend=store.backend))
    deadline = None if timeout is None else time.monotonic() + timeout
    note, status = "", None
    try:
        with face:
            try:
                while True:
                    view = feed.view
                    if is_over(view):
                        break
                    left = face.pause if deadline is None else min(face.pause, deadline - time.monotonic())
                    if left <= 0:
                        note = f"not all jobs are over after {timeout:g} s; they go on"
                        break
                    face.show(view)
                    # A change within the time of a frame waits for the next frame.
                    pause = time.monotonic() + min(left, 0.1)
                    feed.wait(left)
                    time.sleep(max(0.0, pause - time.monotonic()))
            except KeyboardInterrupt:
                note, status = "stopped watching; the jobs go on", INTERRUPTED
            view = feed.view
            face.end(view, note)
    finally:
        feed.close()
    if status is None:
        status = UNREACHABLE if view.problem else worst(status_of(snapshot) for _, snapshot in view.jobs)
    return view, status
