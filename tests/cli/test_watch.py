"""Tests of ``watch``, on pipes and on real pseudo-terminals, with real stores."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, SQLiteBackend
from dramatiq_status.cli import outputs
from dramatiq_status.cli.job_reader import JobReader, JobsView
from dramatiq_status.cli.jobs import present
from dramatiq_status.record import ATTEMPTS, COMPLETED, FAILED, QUEUED, SCHEDULED_AT
from dramatiq_status.testing.updates import enqueue, finish, named, start, write

from ..servers import RedisServer
from .terminals import COMMAND, Session, environment, on_pipe

Watch = Callable[..., Session]


def id_of(number: int) -> str:
    return f"{number:08x}-1111-4d0e-9c5b-6f1d2a7e4b90"


def send(backend: StatusBackend, number: int, name: str = "") -> str:
    backend.update(id_of(number), enqueue(a=f'"{name or f"job_{number}"}"', Q='"default"'))
    return id_of(number)


def run_to(backend: StatusBackend, number: int, percent: int, sequence: int = 2) -> None:
    if sequence == 2:
        backend.update(id_of(number), start(1))
    backend.update(id_of(number), write(1, sequence, p=str(percent), t="100"))


def end(backend: StatusBackend, number: int, *, failed: bool = False) -> None:
    update = finish(1, state=FAILED if failed else COMPLETED)
    if failed:
        boom = named({"x": '{"type":"CardDeclined","message":"insufficient funds"}'})
        update = update._replace(fields={**update.fields, **boom})
    backend.update(id_of(number), update)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteBackend]:
    backend = SQLiteBackend(tmp_path / "status.db", timeout=20_000)
    yield backend
    backend.close()


@pytest.fixture
def watch(store: SQLiteBackend) -> Iterator[Watch]:
    """Yield a function that starts ``watch`` on a terminal."""
    sessions: list[Session] = []

    def begin(*arguments: str, columns: int = 80, rows: int = 24, url: str = "", **variables: str) -> Session:
        command = [*COMMAND, "watch", *arguments, "--url", url or f"sqlite:///{store.path}"]
        sessions.append(Session(command, columns=columns, rows=rows, **variables))
        return sessions[-1]

    yield begin
    for session in sessions:
        session.close()


# A terminal


def test_bars_move_in_place(store: SQLiteBackend, watch: Watch) -> None:
    # Given two jobs, one of which runs
    ids = [send(store, 1, "import_orders"), send(store, 2, "charge_card")]
    run_to(store, 1, 10)
    session = watch(*ids)
    session.until(lambda: " 10%" in session.text)
    row = next(at for at, line in enumerate(session.lines) if "import_orders" in line)
    assert "Queued" in session.text and "2 jobs" in session.text
    # While it is shown, there is no cursor, and keys are not echoed
    assert session.screen.cursor.hidden and not session.echoes
    # When it moves, and both end
    run_to(store, 1, 70, 3)
    session.until(lambda: " 70%" in session.lines[row])
    store.update(id_of(2), start(1))
    end(store, 1)
    end(store, 2, failed=True)
    # Then the last picture stays, and the terminal is as before
    assert session.end() == 1
    assert "Completed import_orders" in session.lines[row]
    assert "CardDeclined: insufficient funds" in session.lines[row + 1]
    assert any(line.startswith(" 2 jobs      1 failed, 1 completed") for line in session.lines)
    assert session.echoes and not session.screen.cursor.hidden
    assert session.screen.cursor.x == 0


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 12), (20, 10), (120, 40), (400, 5)])
def test_a_picture_never_fills_the_screen(store: SQLiteBackend, watch: Watch, columns: int, rows: int) -> None:
    # Given 200 jobs, of which one has failed
    ids = [send(store, number) for number in range(200)]
    for number in range(100, 130):
        run_to(store, number, number - 90)
    store.update(id_of(150), start(1))
    end(store, 150, failed=True)
    session = watch(*ids, columns=columns, rows=rows)
    # When they are watched for some pictures
    session.until(lambda: "more" in session.text and "200 jobs" in session.text)
    for _ in range(5):
        session.read(0.3)
    # Then the picture fits: its first row is the screen's first line, and the last line is free
    assert not session.screen.history.top
    assert session.lines[-1] == "" and session.lines[0] != ""
    # And the failed job has a row, and running jobs come before waiting ones
    assert session.text.count(" ✘ ") == 1
    if rows == 24:
        assert session.text.count(" ◒ ") == 20
        assert re.search(r"\n 179 more    10 working, 169 queued\n 200 jobs    1 failed ", session.text), session.text
    session.send("\x03")
    assert session.end() == 130
    assert "stopped watching" in "".join(session.lines)


def test_ctrl_c_at_any_point_of_a_wait_is_no_other_error(store: SQLiteBackend) -> None:
    reader = JobReader(lambda ids: StatusRegistry.batch(ids, backend=store), [send(store, 0)])

    def interrupted_at(event: int) -> bool:
        # Python calls this at the beginning and at the end of each call.
        def count(*_: object) -> None:
            nonlocal event
            event -= 1
            if event == 0:
                raise KeyboardInterrupt

        try:
            sys.setprofile(count)
            reader.wait(0.001)
            event = 0
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    # When an interrupt strikes at each point of a wait, then no other exception replaces it
    last = next(event for event in itertools.count(1) if not interrupted_at(event))
    assert last > 3
    reader.close()


def test_a_signal_that_lasts_longer_than_a_wait_ends_it(store: SQLiteBackend) -> None:
    reader = JobReader(lambda ids: StatusRegistry.batch(ids, backend=store), [send(store, 0)])
    ends = []

    def last(*_: object) -> None:
        time.sleep(0.1)
        ends.append("handler")

    before = signal.signal(signal.SIGALRM, last)
    try:
        # When a signal interrupts a wait, and its handler lasts longer, as a stop by Ctrl-Z does
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        reader.wait(0.05)
        # Then the wait ends after it
        assert ends == ["handler"]
    finally:
        signal.signal(signal.SIGALRM, before)
        reader.close()


def test_other_jobs_take_the_rows_of_completed_ones(store: SQLiteBackend, watch: Watch) -> None:
    ids = [send(store, number) for number in range(12)]
    for number in range(5):
        run_to(store, number, 10 + number)
    # Given a terminal with rows for five jobs
    session = watch(*ids, rows=8)
    session.until(lambda: "12 jobs" in session.text)
    before = [line.split()[2] for line in session.lines[:5]]
    assert before == [f"job_{number}" for number in range(5)]
    # When one is completed and another fails
    end(store, 2)
    run_to(store, 7, 50)
    store.update(id_of(9), start(1))
    end(store, 9, failed=True)
    session.until(lambda: "job_9" in session.text)
    # Then the others stay where they are
    assert [line.split()[2] for line in session.lines[:5]] == ["job_0", "job_1", "job_9", "job_3", "job_4"]


def test_the_picture_follows_the_size_of_the_terminal(store: SQLiteBackend, watch: Watch) -> None:
    ids = [send(store, number) for number in range(3)]
    session = watch(*ids)
    session.until(lambda: "3 jobs" in session.text)
    for columns, rows in ((40, 12), (120, 30), (30, 6)):
        session.resize(columns, rows)
        session.until(lambda: "waiting" in session.text or "3 jobs" in session.text)
        for _ in range(4):
            session.read(0.2)
        # The screen has one complete picture
        assert session.text.count("3 jobs") == 1 and session.text.count("job_1") == 1, session.text
        assert session.lines[-1] == ""


def test_a_stopped_watch_restores_the_terminal(store: SQLiteBackend, watch: Watch) -> None:
    # Given a shell that watches a job
    ids = [send(store, 1), send(store, 2)]
    command = " ".join([*COMMAND, "watch", *ids, "--url", f"sqlite:///{store.path}"])
    session = Session(["bash", "--norc", "--noprofile", "-i"], PS1="shell> ")
    try:
        session.until(lambda: "shell>" in session.text)
        session.send(command + "\n")
        session.until(lambda: "2 jobs" in session.text and not session.echoes)
        # When it is stopped
        session.send("\x1a")
        session.until(lambda: "Stopped" in session.text)
        # Then the shell has its cursor and its echo
        session.until(lambda: not session.screen.cursor.hidden)
        session.send("echo it is$((40 + 2))\n")
        session.until(lambda: "it is42" in session.text)
        # When it continues, and the jobs end
        session.send("fg\n")
        session.until(lambda: session.text.count("2 jobs") == 2 and session.screen.cursor.hidden)
        for number in (1, 2):
            store.update(id_of(number), start(1))
            end(store, number)
        session.until(lambda: "2 completed" in session.text)
        session.send("echo ended with $?.\n")
        session.until(lambda: "ended with 0." in session.text)
        assert not session.screen.cursor.hidden
    finally:
        session.close()


#: A program that is stopped while it draws its rows for the second time.
STOPPED = """
import os, signal, sys, time
from dramatiq_status.cli.screen import Screen
from dramatiq_status.cli.terminal import terminal_of

class StoppedScreen(Screen):
    times = 0

    @property
    def _drawn(self):
        return self.rows

    @_drawn.setter
    def _drawn(self, rows):
        self.times += bool(rows)
        if self.times == 2:
            os.kill(os.getpid(), signal.SIGTSTP)
        self.rows = rows

with StoppedScreen(1) as screen:
    while True:
        screen.draw([[("first row", "")], [("second row", "")]], terminal_of(sys.stdout))
        time.sleep(0.05)
"""


def test_a_screen_that_is_stopped_while_it_draws_is_drawn_again(tmp_path: Path) -> None:
    program = tmp_path / "stopped.py"
    program.write_text(STOPPED)
    session = Session(["bash", "--norc", "--noprofile", "-i"], PS1="shell> ")
    try:
        # Given a program that is stopped in the middle of a picture
        session.until(lambda: "shell>" in session.text)
        session.send(f"{sys.executable} {program}\n")
        session.until(lambda: "Stopped" in session.text)
        # When it continues
        session.send("fg\n")
        # Then it draws all rows again
        session.until(lambda: session.text.count("first row") == session.text.count("second row") == 2)
    finally:
        session.close()


def test_a_signal_leaves_the_terminal_right(store: SQLiteBackend, watch: Watch) -> None:
    session = watch(send(store, 1))
    session.until(lambda: "job_1" in session.text and not session.echoes)
    session.process.terminate()
    assert session.end() == 128 + 15
    assert session.echoes and not session.screen.cursor.hidden


def test_few_bytes_are_written(store: SQLiteBackend, watch: Watch) -> None:
    # A picture that does not change writes almost no bytes
    ids = [send(store, number) for number in range(20)]
    for number in range(20):
        run_to(store, number, 50)
        end(store, number)
    waiting = send(store, 99)
    session = watch(*ids, waiting)
    session.until(lambda: "21 jobs" in session.text)
    session.read(0.3)
    before = len(session.written)
    for _ in range(5):
        session.read(0.3)
    assert len(session.written) - before < 1000


def test_a_list_changes_in_place(store: SQLiteBackend) -> None:
    for number in (1, 2, 3):
        send(store, number)
    session = Session([*COMMAND, "list", "--watch", "--url", f"sqlite:///{store.path}"])
    try:
        # Given a list, the newest job first
        session.until(lambda: "3 jobs" in session.text)
        assert session.lines[0].split() == ["State", "Job", "Progress", "Time"]
        assert [line.split()[2] for line in session.lines[1:4]] == ["job_3", "job_2", "job_1"]
        # When another job has changed last
        run_to(store, 1, 40)
        session.until(lambda: " 40%" in session.text)
        # Then the rows stay where they are
        assert [line.split()[2] for line in session.lines[1:4]] == ["job_3", "job_2", "job_1"]
        # When there are new jobs, the last line counts them, and no row moves; another key has no effect
        session.send("n")
        for number in (4, 5):
            send(store, number)
        session.until(lambda: "2 new: press n" in session.text)
        session.send("x\r")
        run_to(store, 1, 60, 3)
        session.until(lambda: " 60%" in session.text)
        assert [line.split()[2] for line in session.lines[1:4]] == ["job_3", "job_2", "job_1"]
        assert session.lines[5].startswith(" 3 jobs") and session.lines[5].endswith(" 2 new: press n")
        # When the key is pressed, they have rows, and the job that has begun comes before waiting ones
        session.send("n")
        session.until(lambda: "5 jobs" in session.text)
        assert [line.split()[2] for line in session.lines[1:6]] == ["job_5", "job_4", "job_1", "job_3", "job_2"]
        session.until(lambda: "new" not in session.text)
        session.send("\x03")
        assert session.end() == 130
        assert session.echoes
    finally:
        session.close()


def test_an_empty_list_waits_for_its_first_jobs(store: SQLiteBackend) -> None:
    session = Session([*COMMAND, "list", "--watch", "--url", f"sqlite:///{store.path}"], rows=12)
    try:
        # Given an empty store, the list waits
        session.until(lambda: "no jobs yet" in session.text)
        # When jobs come, they have rows at once, because no row could move
        for number in range(12):
            send(store, number)
            run_to(store, number, 50)
            end(store, number, failed=True)
        session.until(lambda: re.search(r" +12 jobs|job_\d+", session.text))
        session.send("n")
        session.until(lambda: " 12 jobs " in session.text and "more" in session.text)
        # When it is stopped, its rows stay, without reasons. The last line has no time, because the time of the list is
        # not that of the jobs
        session.send("\x03")
        assert session.end() == 130
        assert session.lines[0].split() == ["State", "Job", "Progress", "Time"]
        assert [line.split()[1] for line in session.lines[1:8]] == ["Failed"] * 7
        assert session.lines[8].startswith(" 5 more ") and session.lines[9] == " 12 jobs     12 failed"
        assert re.fullmatch(r" stopped watching at \d\d:\d\d:\d\d; the jobs go on", session.lines[10])
        assert session.lines[11:] == [""]
    finally:
        session.close()


def test_a_list_finds_stalled_jobs_behind_many_others(store: SQLiteBackend) -> None:
    # Given a job that runs, and a thousand others that have begun later
    send(store, 1)
    run_to(store, 1, 50)
    others = [(id_of(number), update) for number in range(2, 1_100) for update in (enqueue(), start(1))]
    store.update_many(others)
    session = Session([*COMMAND, "list", "--watch", "--state", "stalled", "--url", f"sqlite:///{store.path}"])
    try:
        session.until(lambda: "no jobs yet" in session.text)
        # When its worker is gone
        store.update(id_of(1), write(1, 3, B="1"))
        # Then the list of stalled jobs has it
        session.until(lambda: re.search(r" Stalled +job_1 ", session.text))
    finally:
        session.close()


def test_the_last_line_of_a_narrow_picture_counts_all_jobs(store: SQLiteBackend, watch: Watch) -> None:
    ids = [send(store, number) for number in (1, 2, 3)]
    run_to(store, 2, 40)
    for number in (1, 3):
        store.update(id_of(number), start(1))
        end(store, number, failed=number == 1)
    session = watch(*ids, columns=32)
    session.until(lambda: " 3 jobs: 1 failed, 2 more" in session.text)
    session.send("\x03")
    session.end()
    assert " 3 jobs: 1 failed, 2 more" in session.lines


def test_the_total_of_a_batch_has_a_bar(store: SQLiteBackend, watch: Watch) -> None:
    ids = [send(store, number) for number in (1, 2, 3, 4)]
    run_to(store, 1, 40)
    run_to(store, 2, 60)
    store.update(id_of(3), start(1))
    end(store, 3)
    session = watch(*ids, "--batch")
    session.until(lambda: re.search(r"\n 4 jobs +━+╾?─+  50% 1 ended", session.text))
    # The total counts a failed job as failed, and as ended
    store.update(id_of(4), start(1))
    end(store, 4, failed=True)
    session.until(lambda: re.search(r"\n 4 jobs +1 failed +━+╾?─+  \d+% 2 ended", session.text))


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_the_last_picture_on_a_narrow_terminal(store: SQLiteBackend, watch: Watch, columns: int) -> None:
    # Given a job that waits for its retry, and one that runs
    ids = [send(store, 1), send(store, 2)]
    for number in (1, 2):
        run_to(store, number, 40)
    due = present() + timedelta(minutes=90)
    boom = {
        "x": '{"type":"ConnectionError","message":"the shop of the supplier does not answer, and has no more stock"}'
    }
    retry = write(1, 3, state=QUEUED, **named({**boom, ATTEMPTS: "1", SCHEDULED_AT: str(int(due.timestamp() * 1000))}))
    store.update(id_of(1), retry)
    session = watch(*ids, columns=columns, rows=30)
    session.until(lambda: "job_2" in session.text and (columns == 20 or "again in 1 h" in session.text), 10)
    session.send("\x03")
    assert session.end() == 130
    # Then its countdown has become a time of day, and lines break between words
    assert "again in" not in session.text
    assert columns == 20 or f"again at {due.astimezone():%H:%M}" in session.lines[0]
    lines = [line.strip() for line in session.lines]
    reason = " ".join(lines[lines.index("") + 1 :])
    assert reason.startswith("ConnectionError: the shop of the supplier does not answer, and has no more stock job_1")
    assert id_of(1) in reason.replace(" ", "") and "; the jobs go on" in reason


def test_typed_lines_stay_for_the_shell(store: SQLiteBackend, watch: Watch) -> None:
    # Given jobs that are watched
    session = watch(send(store, 1))
    session.until(lambda: "job_1" in session.text and not session.echoes)
    # When a line is typed, and a view later the last job ends
    session.send("hello\r")
    run_to(store, 1, 40)
    session.until(lambda: "40%" in session.text)
    end(store, 1)
    assert session.end() == 0
    # Then the next reader of the terminal gets the line
    assert select.select([session.slave], [], [], 1)[0] and os.read(session.slave, 100) == b"hello\n"


# Pipes


def test_a_list_on_a_pipe_has_new_jobs(store: SQLiteBackend) -> None:
    process = subprocess.Popen(
        [*COMMAND, "list", "--watch", "--json", "--url", f"sqlite:///{store.path}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stderr.readline() == "dramatiq-status: no jobs yet.\n"
        send(store, 1)
        assert json.loads(process.stdout.readline())["message_id"] == id_of(1)
        send(store, 2)
        assert json.loads(process.stdout.readline())["message_id"] == id_of(2)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_a_pipe_gets_a_line_for_each_change(store: SQLiteBackend) -> None:
    ids = [send(store, 1), send(store, 2)]
    process = subprocess.Popen(
        [*COMMAND, "watch", *ids, "--url", f"sqlite:///{store.path}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in ids]
    run_to(store, 1, 5)
    seen.append(process.stdout.readline())
    run_to(store, 1, 42, 3)
    seen.append(process.stdout.readline())
    end(store, 1)
    seen.append(process.stdout.readline())
    store.update(id_of(2), start(1))
    end(store, 2, failed=True)
    output, errors = process.communicate(timeout=30)
    lines = [*seen, *output.splitlines()]
    # Then each change of a state and each tenth has a line, with the full id
    states = [re.split(r"\s\s+", line.strip())[1] for line in lines]
    assert states[:5] == ["Queued", "Queued", "Working", "Working", "Completed"] and states[-1] == "Failed"
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines)
    assert "  5%" in lines[2] and "  42%" in lines[3] and "CardDeclined: insufficient funds" in lines[-1]
    assert errors.startswith("2 jobs: 1 failed, 1 completed, in ") and process.returncode == 1


def test_json_has_an_object_for_each_change(store: SQLiteBackend) -> None:
    ids = [send(store, 1), send(store, 2)]
    for number in (1, 2):
        run_to(store, number, 30)
        end(store, number)
    done = on_pipe("watch", "--json", *ids, "--url", f"sqlite:///{store.path}")
    events = [json.loads(line) for line in done.output.splitlines()]
    assert [event["message_id"] for event in events] == ids and done.status == 0
    assert {"percent", "stalled", "retrying"} <= events[0].keys()


@pytest.mark.parametrize("face", ["auto", "plain", "json", "quiet"])
def test_the_exit_status_of_watch(store: SQLiteBackend, face: str) -> None:
    for number in (1, 2, 3):
        send(store, number)
        store.update(id_of(number), start(1))
    end(store, 1)
    end(store, 2, failed=True)
    url = f"sqlite:///{store.path}"
    for numbers, status in (([1], 0), ([1, 2], 1), ([1, 77], 3), ([3], 4), ([2, 3], 1), ([77, 3], 3)):
        ids = [id_of(number) for number in numbers]
        done = on_pipe("watch", *ids, "--url", url, "--timeout", "1.5", "--progress", face)
        assert done.status == status, (numbers, done)
        assert face != "quiet" or not done.output


def test_a_deleted_job_is_shown_as_deleted(store: SQLiteBackend, watch: Watch) -> None:
    session = watch(send(store, 1, "import_orders"))
    session.until(lambda: "import_orders" in session.text)
    store.delete(id_of(1))
    assert session.end() == 3
    assert "import_orders" in session.text and "deleted or expired" in session.text


def test_live_needs_a_terminal(store: SQLiteBackend) -> None:
    done = on_pipe("watch", send(store, 1), "--url", f"sqlite:///{store.path}", "--progress", "live")
    assert done.status == 2 and "needs a terminal" in done.errors


def test_no_animation_without_a_live_terminal(store: SQLiteBackend, watch: Watch) -> None:
    run_to(store, int(send(store, 1)[:8], 16), 20)
    end(store, 1)
    for variables in ({"TERM": "dumb"}, {"CI": "1"}):
        session = watch(id_of(1), "--progress", "plain" if "CI" in variables else "auto", **variables)
        assert session.end() == 0
        assert b"\x1b" not in session.written and b"Completed" in session.written


# Outages


@pytest.mark.parametrize("is_list", [False, True], ids=["watch", "list --watch"])
def test_an_outage_is_one_line_until_the_store_is_back(is_list: bool) -> None:
    # Given a job that is watched in a Redis of its own
    with (
        RedisServer() as server,
        closing(RedisBackend(url=server.url, timeout=20_000)) as backend,
        ExitStack() as stack,
    ):
        message_id = send(backend, 1)
        run_to(backend, 1, 42)
        command = ["list", "--watch"] if is_list else ["watch", message_id]
        session = Session([*COMMAND, *command, "--url", f"{server.url}?timeout=500"])
        stack.callback(session.close)
        session.until(lambda: "42%" in session.text)
        # When the server is frozen, one line shows that
        server.pause()
        session.until(lambda: "Offline" in session.text)
        assert session.text.count("does not answer") == 1 and "42%" in session.text
        if is_list:
            # A read of the list fails as well.
            session.until(lambda: re.search("again in [2-9] s", session.text))
        # When it is back, the line is removed, and changes are shown
        server.resume()
        session.until(lambda: "Offline" not in session.text)
        end(backend, 1)
        session.until(lambda: "Completed" in session.text)
        if is_list:
            session.send("\x03")
        assert session.end() == (130 if is_list else 0)


_WORKER = """
import time
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq_status import StatusMiddleware, current_status
from dramatiq_status.backends import SQLiteBackend

broker = RedisBroker(url={redis!r})
broker.add_middleware(StatusMiddleware(backend=SQLiteBackend({path!r}), heartbeat_interval=200))
dramatiq.set_broker(broker)

@dramatiq.actor
def import_orders():
    current_status().update(progress=42, total=100)
    time.sleep(600)
"""


def test_a_worker_is_killed_in_the_middle(
    store: SQLiteBackend, watch: Watch, redis_broker_url: str, tmp_path: Path
) -> None:
    # Given a job that a real worker runs, and that is watched
    (tmp_path / "shop.py").write_text(_WORKER.format(redis=redis_broker_url, path=str(store.path)))
    found = environment()
    found["PYTHONPATH"] += os.pathsep + str(tmp_path)
    code = "import shop; print(shop.import_orders.send().message_id)"
    sent = subprocess.run([sys.executable, "-c", code], env=found, capture_output=True, text=True, check=True)
    command = [sys.executable, "-m", "dramatiq", "shop", "--processes", "1", "--threads", "1"]
    worker = subprocess.Popen(command, env=found, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        session = watch(sent.stdout.strip())
        session.until(lambda: "42%" in session.text)
        # When the worker is killed
        os.killpg(worker.pid, signal.SIGKILL)
        # Then the job is shown as stalled where it stands, with the time since its last sign of life
        stalled = r" ◬ Stalled   import_orders \S+ \S+  42% +no sign of life for \d+ s\n"
        session.until(lambda: re.search(stalled, session.text))
        assert "Working" not in session.text
        session.send("\x03")
        assert session.end() == 130
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(20)


def test_an_unchanged_job_has_a_line_every_30_seconds(
    store: SQLiteBackend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a job that does not change, and a clock
    clock = [100.0]
    monkeypatch.setattr(outputs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    message_id = send(store, 1)
    run_to(store, 1, 42)
    lines = outputs.LineOutput("store")
    found = StatusRegistry.batch([message_id], backend=store).read()
    view = JobsView(found, present(), known={message_id: StatusRegistry.get(message_id, backend=store).read()})
    # Then it has a line at first, and one more after each 30 seconds
    seen = []
    for seconds in (0, 29.9, 30, 59, 60.1):
        clock[0] = 100.0 + seconds
        lines.show(view)
        seen.append(len(capsys.readouterr().out.splitlines()))
    assert seen == [1, 0, 1, 0, 1]
