"""The reader that `quickstart.py` starts.  It shows the jobs of that process until they are finished.

python examples/quickstart_reader.py FILE MESSAGE_ID ...
"""

from __future__ import annotations

import os
import shutil
import sys

from dramatiq_status import Snapshot, StatusRegistry
from dramatiq_status.backends import SQLiteBackend

BAR_WIDTH = 14

#: Whether the output is a terminal on which lines can be overwritten.
MOVING = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def describe(snapshot: Snapshot) -> str:
    """Describe a status in one line: ``import_rows   working    [####----------]   30.0 %  reading, 2.0 s left``."""
    filled = int(BAR_WIDTH * (snapshot.progress or 0))
    percent = "      -" if snapshot.percent is None else f"{snapshot.percent:5.1f} %"
    notes = []
    if snapshot.attempts > 1:
        notes.append(f"run {snapshot.attempts}")
    if snapshot.working and "step" in snapshot:
        notes.append(snapshot["step"])
    if snapshot.working and snapshot.time_remaining is not None:
        notes.append(f"{snapshot.time_remaining.total_seconds():.1f} s left")
    if snapshot.exception is not None and not snapshot.working:
        failure = "retrying" if snapshot.retrying else snapshot.exception["type"]
        notes.append(f"{failure}: {snapshot.exception['message']}")
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    return f"{snapshot.actor_name:<12}  {snapshot.state:<9}  [{bar}]  {percent}  {', '.join(notes)}".rstrip()


def fit(line: str) -> str:
    """Cut a line that is wider than the terminal, because a broken line cannot be overwritten."""
    # Python 3.10 returns 0 columns for a terminal that does not report its size.
    width = (shutil.get_terminal_size().columns or 80) - 1
    return line if len(line) <= width else line[: max(0, width - 3)] + "..."


def follow(backend: SQLiteBackend, message_ids: list[str]) -> None:
    """Show jobs: on a terminal as moving bars, otherwise as a line for each new state, run, step and tenth of a bar."""
    shown: dict[str, object] = {}
    for batch in StatusRegistry.batch(message_ids, backend=backend).watch(timeout=60_000):
        snapshots = [snapshot for snapshot in batch.children.values() if snapshot is not None]
        if MOVING:
            lines = [fit(describe(snapshot)) for snapshot in snapshots]
            up = f"\x1b[{len(shown)}A" if shown else ""
            print(up + "".join(f"\x1b[2K{line}\n" for line in lines), end="", flush=True)
            shown = {snapshot.message_id: None for snapshot in snapshots}
            continue
        for snapshot in snapshots:
            news = (snapshot.state, snapshot.attempts, snapshot.get("step"), int((snapshot.percent or 0) // 10))
            if shown.get(snapshot.message_id) != news:
                print(describe(snapshot), flush=True)
                shown[snapshot.message_id] = news


def main(path: str, *message_ids: str) -> None:
    backend = SQLiteBackend(path)
    print(f"Process {os.getppid()} runs three jobs; this is process {os.getpid()}, which reads their statuses.\n")
    # Any process may write to a status, too.
    StatusRegistry.get(message_ids[0], backend=backend)["reader"] = os.getpid()
    follow(backend, list(message_ids))
    print("\nThe status of the first job as JSON:")
    print(StatusRegistry.get(message_ids[0], backend=backend).to_json())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
