"""Tests of ``dramatiq-status demo``, the first command of the README."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries, ShutdownNotifications

from dramatiq_status import StatusMiddleware
from dramatiq_status.backends import StubBackend
from dramatiq_status.cli.demo import NEXT
from dramatiq_status.cli.demo_jobs import declare
from dramatiq_status.cli.main import main

from ..docs.pages import script
from .terminals import COMMAND, ROOT, Session, environment, on_pipe


def test_the_demo_on_a_terminal(tmp_path: Path) -> None:
    session = Session([*COMMAND, "demo"], columns=160, rows=30, TMPDIR=str(tmp_path))
    try:
        # Given the demo, with five bars side by side
        session.until(lambda: "5 jobs" in session.text)
        found = re.search(r"export DRAMATIQ_STATUS_URL=(sqlite:\S+)\n\s+dramatiq-status watch (\S+)", session.text)
        assert found is not None, session.text
        # When another process reads one of its jobs, with the URL and the id that the demo prints
        done = on_pipe("get", "--json", found[2], DRAMATIQ_STATUS_URL=found[1])
        assert json.loads(done.output)["label"] == "Orders of May" and done.status == 4
        # Then it finds a retry with a countdown, a failure, and bars of different loops
        session.until(lambda: "Retrying" in session.text and "again in" in session.text)
        session.until(lambda: "unpack" in session.text)
        session.until(lambda: "CardDeclined: insufficient funds" in session.text)
        # And a bar that moves after the end of its job, by increments of other messages
        session.until(
            lambda: re.search(r"Completed Thumbnails demo-5 .+%  its messages still run · \d+ of 60", session.text)
        )
        assert session.end() == 0
        assert " 5 jobs      1 failed, 4 completed " in session.text and "What next" in session.text
        assert "60 of 60" in session.text and not session.screen.cursor.hidden
    finally:
        session.close()
    assert left_in(tmp_path) == []


def test_the_demo_on_a_pipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--keep"], env=environment(TMPDIR=str(tmp_path)), capture_output=True, text=True, timeout=60
    )
    # It prints plain lines, with the end of each job, and nothing of the logs
    assert done.returncode == 0 and "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    ends = re.findall(r"  (Completed|Failed)  +(demo-\d)  ", done.stdout)
    assert {message_id: state for state, message_id in ends} == {
        f"demo-{number}": "Failed" if number == 4 else "Completed" for number in range(1, 6)
    }
    assert "Retrying   demo-3" in done.stdout and "5 jobs: 1 failed, 4 completed" in done.stderr
    # And the count of the job whose messages still run after its end
    thumbnails = [line for line in done.stdout.splitlines() if "demo-5" in line]
    assert "its messages still run" in thumbnails[-2] and "60 of 60" in thumbnails[-1]
    # And the demo keeps its file
    (path,) = tmp_path.glob("*/demo.db")
    assert main(["get", "demo-4", "--url", f"sqlite:///{path}"]) == 1


@pytest.mark.parametrize("is_web", [False, True])
def test_a_narrow_terminal_has_whole_words(is_web: bool) -> None:
    command = (
        "from dramatiq_status.cli.demo import print_next_commands as show; "
        f"show('sqlite:///demo.db', is_kept=False, is_web={is_web})"
    )
    session = Session([sys.executable, "-c", command], columns=40)
    try:
        session.end()
        # The page is not recommended to a reader who has just seen it
        expected = [text for command, text in NEXT[is_web:] for text in (f"dramatiq-status {command}", text)]
        assert [line.strip() for line in session.lines[: 2 + len(expected)]] == ["", "What next", *expected]
    finally:
        session.close()


def test_ctrl_c_ends_the_demo(tmp_path: Path) -> None:
    session = Session([*COMMAND, "demo"], TMPDIR=str(tmp_path))
    try:
        session.until(lambda: "5 jobs" in session.text)
        session.send("\x03")
        assert session.end() == 130
        assert session.echoes and "Traceback" not in session.text
    finally:
        session.close()
    assert left_in(tmp_path) == []


def test_a_second_ctrl_c_does_not_interrupt_the_end_of_the_demo(tmp_path: Path) -> None:
    session = Session([*COMMAND, "demo"], TMPDIR=str(tmp_path))
    try:
        session.until(lambda: "5 jobs" in session.text)
        session.send("\x03")
        session.until(lambda: "; the jobs end with the demo" in session.text)
        session.send("\x03")
        # It may interrupt the end of Python, which comes after that.
        assert session.end() in (130, -signal.SIGINT)
        assert session.echoes and "Traceback" not in session.text
    finally:
        session.close()
    assert left_in(tmp_path) == []


def test_sigterm_ends_the_demo_and_its_page(tmp_path: Path) -> None:
    # Given the demo with its page
    variables = environment(TMPDIR=str(tmp_path), BROWSER="true")
    command = [*COMMAND, "demo", "--web"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", demo.stderr.readline())
        assert found is not None
        # When a service manager ends it, then its process of the page and its directory are gone as well
        demo.terminate()
        assert demo.wait(30) == 130
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(found[1])))
    assert left_in(tmp_path) == []


def left_in(folder: Path) -> list[str]:
    # An older Dramatiq makes a directory as it is imported.
    return [path.name for path in folder.iterdir() if path.name != "dramatiq-prometheus"]


def test_the_picture_of_the_readme_is_up_to_date() -> None:
    # Given the picture, which scripts/demo-picture draws from real frames if UPDATE_PAGES is set
    drawing = script("demo-picture")
    if os.environ.get("UPDATE_PAGES"):
        drawing.main()
    picture = (ROOT / "docs" / "demo.svg").read_text(encoding="utf-8")
    texts = [html.unescape(text) for text in re.findall(r">([^<>]+)</text>", picture)]
    shown = " ".join(texts)
    # Then it is small, is light or dark, does not move for readers who prefer that, and has the texts of the demo
    assert len(picture.encode()) <= 60 * 1024
    style = drawing.STYLE.partition("%g")[2]
    assert style in picture and "prefers-reduced-motion" in style and "prefers-color-scheme" in style
    broker = StubBroker(middleware=[Retries(), ShutdownNotifications()])
    broker.add_middleware(StatusMiddleware(backend=StubBackend()))
    labels = [message.options["status"]["label"] for message in declare(broker)]
    assert [label for label in labels if label not in shown] == []
    assert [text for pair in NEXT for text in pair if text not in shown] == []
    assert [state for state in ("Working", "Retrying", "Failed", "Completed", "What next") if state not in shown] == []
    assert "again in" in shown and "CardDeclined" in shown and "5 jobs" in shown
