"""Hostile values in all fields are harmless in all commands, on a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import struct
import tempfile
import termios
import threading
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pyte
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dramatiq_status.backends import SQLiteBackend
from dramatiq_status.cli.main import main
from dramatiq_status.record import COMPLETED, FAILED, WORKING
from dramatiq_status.testing.updates import enqueue, finish, named, start, write

from .terminals import Session, on_pipe
from .test_watch import COMMAND, Watch, id_of, send, store, watch

__all__ = ["Watch", "store", "watch"]

#: Text that moves a cursor, sets a title, asks the terminal, reorders or hides text, or is markup of rich.
HOSTILE = "\x1b[2J\x1b]0;title\x07\x1b[6n\x9b31m\u202e\u2066\u200b\x00\x08\r\n[bold red]x[/] \ufeff\U000e0041"

texts = st.one_of(
    st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60),
    st.text(alphabet=HOSTILE, max_size=60),
)


def fill(backend: SQLiteBackend, number: int, name: str, step: str, message: str, state: int = FAILED) -> None:
    backend.update(id_of(number), enqueue(a=json.dumps(name), Q=json.dumps(name), label=json.dumps(name)))
    backend.update(id_of(number), start(1))
    backend.update(id_of(number), write(1, 2, p="3", t="9", step=json.dumps(step), note=json.dumps({name: [step]})))
    if state == WORKING:
        return
    boom = named({"x": json.dumps({"type": name, "message": message})})
    update = finish(1, state=state)
    backend.update(id_of(number), update._replace(fields={**update.fields, **boom}))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=texts, step=texts, message=texts)
def test_no_control_character_reaches_a_pipe(name: str, step: str, message: str) -> None:
    # Given a job with any text in all of its fields
    with tempfile.TemporaryDirectory() as directory:
        backend = SQLiteBackend(Path(directory) / "status.db", timeout=20_000)
        fill(backend, 1, name, step, message)
        # When each command prints it
        for command in (
            ["get", id_of(1)],
            ["list"],
            ["wait", id_of(1)],
            ["watch", id_of(1)],
            ["cancel", "--reason", message[:100] or "x", id_of(1)],
            ["delete", "--yes", id_of(1)],
        ):
            output, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                status = main([*command, "--url", f"sqlite:///{backend.path}"])
            # Then there is nothing but visible characters and ends of lines
            assert status == (0 if command[0] in ("list", "delete") else 1)
            for character in output.getvalue() + errors.getvalue():
                assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp")
            # And one job is one line
            assert command[0] == "get" or len(output.getvalue().splitlines()) == 1
        backend.close()


def on_screen(*arguments: str) -> list[str]:
    """Run a command in this process on a pseudo-terminal of 160 columns, and return the lines of its screen."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    screen = pyte.Screen(160, 40)
    stream = pyte.ByteStream(screen)

    def read() -> None:
        # Linux reports the end of a pseudo-terminal as an error.
        with contextlib.suppress(OSError):
            while piece := os.read(master, 65536):
                stream.feed(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with open(slave, "w", encoding="utf-8") as output, contextlib.redirect_stdout(output):
        main(arguments)
    reader.join()
    os.close(master)
    return [line.rstrip() for line in screen.display]


#: A job: the text in its fields, and the state in which it is; None for one that waits.
jobs = st.lists(st.tuples(texts, st.sampled_from([None, WORKING, COMPLETED, FAILED])), min_size=1, max_size=5)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(jobs=jobs)
def test_a_pipe_and_a_terminal_show_the_same_jobs(jobs: list[tuple[str, int | None]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        backend = SQLiteBackend(Path(directory) / "status.db", timeout=20_000)
        for number, (text, state) in enumerate(jobs):
            if state is None:
                backend.update(id_of(number), enqueue(a=json.dumps(text)))
                continue
            fill(backend, number, text, text, text, state)
        everything = [id_of(number) for number in range(len(jobs))]
        over = [i for i, (_, state) in zip(everything, jobs) if state in (COMPLETED, FAILED)]
        commands = [["list"], *([["watch", *over], ["wait", *over]] if over else []), *(["get", i] for i in everything)]
        for command in commands:
            arguments = [*command, "--url", f"sqlite:///{backend.path}"]
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.StringIO()):
                main(arguments)
            more = ["--progress", "live"] if command[0] == "watch" else []
            with contextlib.redirect_stderr(io.StringIO()):
                screen = on_screen(*arguments, *more)
            # Then both name the same jobs with their states, in the same order
            records = _records(screen, everything)
            assert records == _records(output.getvalue().splitlines(), everything)
            assert sorted(i for i, _ in records) == (everything if command == ["list"] else sorted(command[1:]))
        backend.close()


def _records(lines: Sequence[str], ids: Sequence[str]) -> list[tuple[str, str]]:
    """Find the lines with a job's id, full or short, and return the id and the state of each."""
    found = []
    for line in lines:
        for message_id in ids:
            state = re.search(r"\b(Queued|Working|Completed|Failed)\b", line)
            if message_id[:8] in line and state is not None:
                found.append((message_id, state[0]))
    return found


def test_json_is_untouched(store: SQLiteBackend) -> None:
    fill(store, 1, HOSTILE, HOSTILE, HOSTILE)
    done = on_pipe("get", "--json", id_of(1), "--url", f"sqlite:///{store.path}")
    assert json.loads(done.output)["step"] == HOSTILE


def test_a_terminal_is_not_moved(store: SQLiteBackend, watch: Watch) -> None:
    # Given a running job with hostile texts of great length between two others
    for number in (1, 3):
        send(store, number)
    store.update(id_of(2), enqueue(a=json.dumps(HOSTILE * 500), label=json.dumps(HOSTILE * 500)))
    store.update(id_of(2), start(1))
    store.update(id_of(2), write(1, 2, p="3", t="9", step=json.dumps(HOSTILE * 500)))
    ids = [id_of(number) for number in (1, 2, 3)]
    # When it is watched, then each job has its row
    session = watch(*ids)
    session.until(lambda: "3 jobs" in session.text)
    rows = [at for at, line in enumerate(session.lines) if "0000000" in line]
    assert rows == [0, 1, 2] and "[2J" in session.lines[1] and session.lines[3] == ""
    # And `get` shows it in as many cells as there are
    got = Session([*COMMAND, "get", ids[1], "--url", f"sqlite:///{store.path}"], rows=60)
    try:
        assert got.end() == 4
        assert "whole by --json" in got.text and "\u202e" not in got.text
        assert not got.screen.history.top
    finally:
        got.close()
