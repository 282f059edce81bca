"""The commands ``watch`` and ``list --watch``, which show jobs until all are over, or until Ctrl-C."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence

from .. import _time as time
from ..registry import StatusRegistry
from .commands import page_of, print_error, store_of
from .exits import COMPLETED, INTERRUPTED, UNREACHABLE, worst
from .job_reader import JobReader, JobsView
from .jobs import full_ids, present, status_of, store_errors, unknown_job
from .outputs import LineOutput, WatchOutput, output_for
from .store import Store


def watch(arguments: Namespace) -> int:
    """Show jobs until all are completed or failed."""
    store = store_of(arguments)
    ids = full_ids(store, arguments.ids)
    output = output_for(arguments, store.name, is_batch=arguments.batch)
    view, status = watch_jobs(store, ids, output, timeout=arguments.timeout)
    for message_id in view.vanished:
        if message_id not in view.known:
            print_error(unknown_job(store, message_id))
    return status


def watch_list(arguments: Namespace) -> int:
    """Show a page of jobs until Ctrl-C.  Each row shows the changes of its job.  If all jobs of the page have rows, a
    row keeps its job until the key for new jobs is pressed.  Only the first page gets new jobs, and only an empty first
    page waits for jobs.
    """
    store = store_of(arguments)

    def read_list() -> list[str]:
        return [snapshot.message_id for snapshot in page_of(store, arguments).jobs]

    with store_errors(store):
        ids = read_list()
    if not ids and arguments.after is not None:
        print_error("no jobs to watch.")
        return COMPLETED
    output = output_for(arguments, store.name, is_batch=False, heads=True)
    if not ids and isinstance(output, LineOutput):
        print_error("no jobs yet.")

    newer = read_list if arguments.after is None else None
    return watch_jobs(store, ids, output, read_list=newer, is_over=lambda view: False)[1]


def watch_jobs(
    store: Store,
    ids: Sequence[str],
    output: WatchOutput,
    *,
    timeout: float | None = None,
    read_list: Callable[[], Sequence[str]] | None = None,
    is_over: Callable[[JobsView], bool] = lambda view: view.is_over,
    afterwards: str = "the jobs go on",
) -> tuple[JobsView, int]:
    """Show jobs until they are over.

    Parameters:
      store(Store)
      ids(Sequence[str]): Full message ids.
      output(WatchOutput)
      timeout(float): Longest time in seconds; None for no limit.
      read_list(Callable): Reads the ids of the list whose jobs are watched.
      is_over(Callable): Returns whether a view is the last one.
      afterwards(str): What happens to the jobs after Ctrl-C.

    Returns:
      tuple[JobsView, int]: The last view, and the exit status.
    """
    with store_errors(store):
        reader = JobReader(lambda found: StatusRegistry.batch(found, backend=store.backend), ids, read_list)
    deadline = None if timeout is None else time.monotonic() + timeout
    note, status = "", None
    try:
        with output:
            try:
                while True:
                    view = reader.view
                    if is_over(view):
                        break
                    left = output.pause if deadline is None else min(output.pause, deadline - time.monotonic())
                    if left <= 0:
                        note = f"not all jobs are over after {timeout:g} s; they go on"
                        break
                    output.show(view)
                    if output.adds_new(view):
                        reader.renew()
                    # A change within the time of a frame waits for the next frame.
                    pause = time.monotonic() + min(left, 0.1)
                    reader.wait(left)
                    time.sleep(max(0.0, pause - time.monotonic()))
            except KeyboardInterrupt:
                note = f"stopped watching at {present().astimezone():%H:%M:%S}"
                note += f"; {afterwards}" if reader.view.found.children else ""
                status = INTERRUPTED
            view = reader.view
            output.end(view, note)
    finally:
        reader.close()
    if status is None:
        status = UNREACHABLE if view.problem else worst(status_of(snapshot) for _, snapshot in view.jobs)
    return view, status
