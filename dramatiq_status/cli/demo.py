"""The command ``demo``: five jobs on a worker in this process, and a store in a file."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import webbrowser
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from textwrap import wrap
from typing import Final

import dramatiq
from dramatiq.brokers.stub import StubBroker

from .. import _time as time
from ..backends import SQLiteBackend
from ..middleware import StatusMiddleware
from .demo_jobs import CHILDREN, declare
from .exits import COMPLETED, INTERRUPTED, CommandError
from .job_reader import JobsView
from .outputs import output_for
from .store import VARIABLE, Store
from .terminal import terminal_of
from .watch import watch_jobs

#: Number of threads of the worker: one for each job, and three more for the messages of the last job.
_THREADS: Final = 8

_INTRODUCTION: Final = "Five jobs, a worker and a store in a file; no server. In another terminal:"

#: Commands to try next, each with what it does.
NEXT: Final = (
    ("demo --web", "the same jobs on a web page"),
    ("demo --keep", "keep the file, for get, list, watch"),
    ("where", "which store your own project uses"),
)


def demo(arguments: Namespace) -> int:
    """Show five jobs that run, and what to do next."""
    if arguments.web and not (find_spec("starlette") and find_spec("uvicorn")):
        raise CommandError("demo --web needs the extra web: pip install 'dramatiq-status[web]'")
    # Dramatiq logs failed jobs with tracebacks, which would overwrite the picture.
    for name in ("dramatiq", "dramatiq_status"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    is_verbose = arguments.progress != "quiet"
    with ExitStack() as stack:
        # SIGTERM ends the demo as Ctrl-C does. Otherwise the process of the page and the directory would stay.
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, signal.default_int_handler))
        directory = Path(mkdtemp(prefix="dramatiq-status-"))
        if not arguments.keep:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        url = f"sqlite:///{directory / 'demo.db'}"
        backend = stack.enter_context(closing(SQLiteBackend(directory / "demo.db")))
        broker = StubBroker(middleware=[*(make() for make in dramatiq.middleware.default_middleware)])
        stack.callback(broker.close)
        broker.add_middleware(StatusMiddleware(backend=backend))
        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=_THREADS)
        stack.callback(worker.stop, timeout=1000)
        # The stack closes its last entry first: no further signal interrupts the end of the entries above.
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.SIG_IGN)
        ids = [broker.enqueue(message).message_id for message in declare(broker)]
        if arguments.web:
            stack.enter_context(_page(url))
        if is_verbose:
            for line in wrap(_INTRODUCTION, terminal_of(sys.stderr).width - 1):
                _print_note(line)
            _print_note(f"  export {VARIABLE}={url}\n   dramatiq-status watch {ids[0]}\n")
        worker.start()
        store = Store(backend, url, "demo")
        output = output_for(arguments, url, is_batch=False, clock=True)
        _, status = watch_jobs(store, ids, output, is_over=_is_over, afterwards="the jobs end with the demo")
        if status == INTERRUPTED:
            return INTERRUPTED
        if is_verbose:
            print_next_commands(url, is_kept=arguments.keep, is_web=arguments.web)
        if arguments.web:
            _print_note("The page stays until Ctrl-C.")
            try:
                _wait_for_interrupt()
            except KeyboardInterrupt:
                pass
        return COMPLETED


def _is_over(view: JobsView) -> bool:
    """Return whether all jobs are over, and all messages of the last job have incremented its progress."""
    *_, (_, last) = view.jobs
    return view.is_over and last is not None and last.get("progress", 0) >= CHILDREN


def print_next_commands(url: str, *, is_kept: bool, is_web: bool) -> None:
    """Print what to do next: each command with its text on the same line, or below if the line has no room."""
    terminal = terminal_of(sys.stderr)
    print(terminal.paint([("\n What next", "bold")]), file=sys.stderr)
    for command, text in NEXT:
        if is_web and command == "demo --web":
            continue
        if is_kept and command == "demo --keep":
            command, text = f"list --url {url}", ""
        head = f"   dramatiq-status {command:<15}"
        if len(head) + max(len(text) for _, text in NEXT) <= terminal.width:
            print(terminal.paint([(head, ""), (text, "dim")]).rstrip(), file=sys.stderr)
            continue
        print(head.rstrip(), file=sys.stderr)
        for line in wrap(text, terminal.width - 4):
            print(terminal.paint([(f"    {line}", "dim")]), file=sys.stderr)
    sys.stderr.flush()


def _print_note(text: str) -> None:
    terminal = terminal_of(sys.stderr)
    print(terminal.paint([(f" {text}", "dim")]), file=sys.stderr, flush=True)


def _wait_for_interrupt() -> None:
    while True:
        time.sleep(3600)


@contextmanager
def _page(url: str) -> Iterator[None]:
    """Serve the dashboard from a process of its own, and open it in a browser."""
    command = [sys.executable, "-m", "dramatiq_status", "serve", "--url", url, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next((word for word in server.stderr.readline().split() if word.startswith("http")), "")
            if not address:
                raise CommandError("demo --web: the page could not be served. See: dramatiq-status serve")
            _print_note(f"The page is at {address}")
            webbrowser.open(address)
            yield
        finally:
            server.terminate()
