"""Hostile values in all fields are harmless in all commands, on a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import unicodedata
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dramatiq_status.backends import SQLiteBackend
from dramatiq_status.cli.main import main
from dramatiq_status.record import FAILED
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


def fill(backend: SQLiteBackend, number: int, name: str, step: str, message: str) -> None:
    backend.update(id_of(number), enqueue(a=json.dumps(name), Q=json.dumps(name), label=json.dumps(name)))
    backend.update(id_of(number), start(1))
    backend.update(id_of(number), write(1, 2, p="3", t="9", step=json.dumps(step), note=json.dumps({name: [step]})))
    boom = named({"x": json.dumps({"type": name, "message": message})})
    update = finish(1, state=FAILED)
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
            ["delete", "--yes", id_of(1)],
        ):
            output, errors = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                status = main(
                    [*command, *(["--yes"] if command[0] == "delete" else []), "--url", f"sqlite:///{backend.path}"]
                )
            # Then there is nothing but visible characters and ends of lines
            assert status == (0 if command[0] in ("list", "delete") else 1)
            for character in output.getvalue() + errors.getvalue():
                assert character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp")
            # And one job is one line
            assert command[0] == "get" or len(output.getvalue().splitlines()) == 1
        backend.close()


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
