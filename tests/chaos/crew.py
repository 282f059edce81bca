"""The workers: several ``dramatiq`` commands. Faults end or freeze them, and the crew starts them again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ..lifecycle.crew import ROOT, children_of, send_signal
from .plan import Fault

#: Milliseconds that a worker has to end after a SIGTERM.
SHUTDOWN_TIMEOUT: Final = 5_000


class Crew:
    """Workers that are started again whenever they end.

    Parameters:
      count: Number of workers, each with processes of its own.
      processes: Number of processes of each.
      threads: Number of threads of each process.
      environment: Variables that are added to the environment of the workers.
      log: The file of their output.
      tell: Callback for events of processes: ``tell("died", pids=[...])``.
    """

    def __init__(
        self,
        count: int,
        *,
        processes: int,
        threads: int,
        environment: dict[str, str],
        log: Path,
        tell: Callable[..., None],
    ) -> None:
        self._command = [
            *(sys.executable, "-m", "dramatiq", "tests.chaos.app", "--processes", str(processes)),
            *("--threads", str(threads), "--worker-shutdown-timeout", str(SHUTDOWN_TIMEOUT)),
        ]
        if setpriv := shutil.which("setpriv"):
            self._command = [setpriv, "--pdeathsig", "TERM", "--", *self._command]
        self._environment = {**os.environ, **environment, "dramatiq_worker_timeout": "50"}
        self._log = log
        self._tell = tell
        self._lock = threading.Lock()
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * count
        self._ending: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None
        # The kernel sends workers the parent-death signal when the thread that started them ends.
        self._launcher = ThreadPoolExecutor(1, "chaos-launcher")

    def start(self) -> None:
        """Start all workers, and keep them up until `stop`."""
        self._stopping.clear()
        self._keep_up()
        self._keeper = threading.Thread(target=self._keep, name="chaos-crew", daemon=True)
        self._keeper.start()

    def stop(self) -> None:
        """Let all workers end in good order; kill those that do not."""
        self._stopping.set()
        assert self._keeper is not None
        self._keeper.join()
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            if worker not in self._ending:
                worker.terminate()
        for worker in workers:
            self._wait(worker)
        self._workers = [None] * len(self._workers)

    def begin(self, fault: Fault) -> None:
        """Let a fault begin."""
        with self._lock:
            worker = self._workers[fault.member]
        if worker is None or worker.poll() is not None:
            return
        pids = [*children_of(worker.pid), worker.pid]
        if fault.kind == "kill":
            self._tell("killed", pids=pids)
            send_signal(worker, signal.SIGKILL)
        elif fault.kind == "freeze":
            self._tell("frozen", pids=pids)
            send_signal(worker, signal.SIGSTOP)
        elif worker not in self._ending:
            # A second SIGTERM would end Dramatiq at once, without finishing its work.
            self._ending.add(worker)
            self._tell("terminated", pids=pids)
            worker.terminate()

    def end(self, fault: Fault) -> None:
        """Let a fault end."""
        with self._lock:
            worker = self._workers[fault.member]
        if fault.kind == "freeze" and worker is not None and worker.poll() is None:
            self._tell("thawed", pids=[*children_of(worker.pid), worker.pid])
            send_signal(worker, signal.SIGCONT)

    def close(self) -> None:
        """End all workers at once."""
        self._stopping.set()
        for worker in self._workers:
            if worker is not None:
                send_signal(worker, signal.SIGKILL)
                worker.wait()
        self._launcher.shutdown()

    def _keep(self) -> None:
        while not self._stopping.wait(0.1):
            self._keep_up()

    def _keep_up(self) -> None:
        for number, worker in enumerate(self._workers):
            if worker is None or worker.poll() is not None:
                started = self._launcher.submit(self._launch).result()
                with self._lock:
                    self._workers[number] = started

    def _launch(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _wait(self, worker: subprocess.Popen[bytes]) -> None:
        pids = [*children_of(worker.pid), worker.pid]
        try:
            worker.wait(SHUTDOWN_TIMEOUT / 1000 + 15)
        except subprocess.TimeoutExpired:
            self._tell("killed", pids=pids, late=True)
            send_signal(worker, signal.SIGKILL)
            worker.wait()
