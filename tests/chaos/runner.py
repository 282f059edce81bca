"""Carries out a plan, and lets its outcome be checked."""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import dramatiq

from dramatiq_status import BackendError, StatusMissing, StatusRegistry

from ..servers import RedisServer
from .app import TIME_LIMIT, declare, make_broker, unwatch_logs, watch_logs
from .checker import Checker, Finding
from .crew import Crew
from .facts import FactFile, read_facts
from .history import World
from .plan import LOSSY_STORES, PIGGYBACK, Fault, Job, Plan, make_plan
from .servers import RabbitmqTarget, RedisTarget, Target, start_broker, start_store
from .watcher import Watcher

#: Texts that must not be in the workers' output.
_STRANGE: Final = re.compile(r"Exception ignored in|Fatal Python error|of <.*StatusMiddleware")

#: Number of messages that are read at once in the end.
_CHUNK: Final = 500

#: Seconds without a fact after which the runner restarts the workers. This is longer than any delay, and longer than
#: the time after which the Redis broker takes a silent worker for dead.
IDLE: Final = 4.0

#: Seconds between two writes from outside.
_WRITE_INTERVAL: Final = 0.05


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Parameters:
      seconds: Seconds in which jobs are sent and faults begin.
      seed: The seed of the plan.
      jobs: Number of jobs, without their children.
      store: Kind of store.
      broker: Kind of broker.
      workers: Number of workers of the ``dramatiq`` command.
      processes: Number of processes of each.
      threads: Number of threads of each process.
      fault_every: Mean seconds between two faults.
      settle: Seconds in which the broker must be done with everything, after the last fault.
      quiet: Targets without faults: ``worker``, ``store``, ``broker``.
      ignored: Names of findings that do not count.
      keep: Directory for a copy of the facts and of the workers' output.
    """

    seconds: float = 60.0
    seed: int = 0
    jobs: int = 1000
    store: str = "redis"
    broker: str = "redis"
    workers: int = 2
    processes: int = 2
    threads: int = 4
    fault_every: float = 3.0
    settle: float = 90.0
    quiet: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    keep: str = ""


@dataclass
class Report:
    """Figures and findings of a run."""

    findings: list[Finding]
    #: Figures by name.
    figures: dict[str, Any] = field(default_factory=dict)


def run(settings: Settings, say: Callable[[str], None] = print) -> Report:
    """Carry out the plan of a seed, check it, and return what was found."""
    if settings.store == PIGGYBACK and settings.broker != "redis":
        raise ValueError("Statuses piggyback on a Redis broker only.")
    plan = make_plan(
        settings.seed,
        seconds=settings.seconds,
        jobs=settings.jobs,
        workers=settings.workers,
        store=settings.store,
        broker=settings.broker,
        fault_every=settings.fault_every,
        quiet=set(settings.quiet),
    )
    with tempfile.TemporaryDirectory(prefix="dramatiq-status-chaos-") as directory, ExitStack() as stack:
        died = stack.enter_context(_dead_threads())
        stage = Stage(settings, plan, Path(directory), stack, say)
        try:
            stage.play()
        finally:
            stage.crew.close()
        report = stage.check()
        if settings.keep:
            shutil.copytree(directory, settings.keep, dirs_exist_ok=True)
        report.findings.extend(died)
        return report


@contextmanager
def _dead_threads() -> Iterator[list[Finding]]:
    """Record threads of the harness that end by an exception. The run lacks the checks of these threads."""
    found: list[Finding] = []

    def note(died: threading.ExceptHookArgs) -> None:
        trace = "".join(traceback.format_exception(died.exc_value)) if died.exc_value else ""
        found.append(Finding("a thread of the harness died", None, "none", trace))

    before, threading.excepthook = threading.excepthook, note
    try:
        yield found
    finally:
        threading.excepthook = before


class Stage:
    """The servers, workers and readers of one run."""

    def __init__(
        self, settings: Settings, plan: Plan, directory: Path, stack: ExitStack, say: Callable[[str], None]
    ) -> None:
        self._settings, self._plan, self._directory, self._say = settings, plan, directory, say
        self._oracle = stack.enter_context(RedisServer())
        self._queue: RedisTarget | RabbitmqTarget = start_broker(settings.broker)
        stack.callback(self._queue.close)
        if settings.store == PIGGYBACK:
            self._store: Target = self._queue
        else:
            self._store = start_store(settings.store, directory)
            stack.callback(self._store.close)
        self._facts = FactFile(directory)
        self._log = directory / "workers.log"
        self.crew = Crew(
            settings.workers,
            processes=settings.processes,
            threads=settings.threads,
            environment={
                "CHAOS_DIRECTORY": str(directory),
                "CHAOS_BROKER": self._queue.url,
                "CHAOS_STORE": self._store.url,
                "CHAOS_ORACLE": self._oracle.url,
            },
            log=self._log,
            tell=self._facts.write,
        )
        self._broker = make_broker(self._queue.url, self._store.url, self._oracle.url, self._facts)
        stack.callback(self._broker.close)
        self._actors = declare(self._broker)
        watch_logs(self._facts)
        stack.callback(unwatch_logs)
        self._jobs: dict[str, tuple[Job, dramatiq.Message[Any]]] = {}
        self._zero = time.time()
        self._done: list[tuple[float, str]] = []
        self._watcher = Watcher(self._broker, self._result_of)
        self._finals: dict[str, dict[str, Any] | None] = {}
        self._writing = threading.Event()
        self._size = 0

    def play(self) -> None:
        """Carry out the plan, wait until the broker has no message left, and read what is stored."""
        self.crew.start()
        self._wait_for_boot()
        self._zero = time.time()
        threads = [threading.Thread(target=self._carry_out, args=fault) for fault in enumerate(self._plan.faults)]
        writer = threading.Thread(target=self._write_from_outside)
        for thread in (*threads, writer):
            thread.start()
        for job in self._plan.jobs:
            _sleep_until(self._zero + job.at)
            self._send(job)
        for thread in threads:
            thread.join()
        self._writing.set()
        writer.join()
        self._settle()
        self._watcher.stop()
        self._read_all()

    def check(self) -> Report:
        """Compare what readers saw and what is stored with the recorded events."""
        facts = read_facts(self._directory)
        world = World(facts, lossy=self._settings.store in LOSSY_STORES, failover=self._settings.store == "sentinel")
        ignored = self._settings.ignored
        checker = Checker(world, self._finals, self._watcher.sights, self._done, self._zero, ignored)
        findings = checker.check()
        strange = [line for line in self._log.read_text(errors="replace").splitlines() if _STRANGE.search(line)]
        findings += [Finding("strange output of a worker", None, "none", line) for line in strange]
        runs = sum(len(history.runs) for history in world.histories.values())
        figures = {
            "jobs": len(self._plan.jobs),
            "messages": len(self._finals),
            "runs": runs,
            "final states": sum(1 for final in self._finals.values() if final and final["status"] != "queued"),
            "faults": len(self._plan.faults),
            "looks": self._watcher.looks,
            "failed looks": self._watcher.failures,
            "messages that were not readable": self._watcher.unread,
            "watches that timed out": self._watcher.timeouts,
            "sights": sum(map(len, self._watcher.sights.values())),
            "writes from outside": sum(len(history.writes) for history in world.histories.values()),
            "counts on parents": sum(map(len, world.counts.values())),
            "excused": dict(checker.excused),
        }
        return Report(findings, figures)

    # Sending

    def _send(self, job: Job) -> None:
        members, send = self._prepare(job)
        for message in members:
            self._jobs[message.message_id] = job, message
            self._facts.write("planned", id=message.message_id, job=job.to_json())
        try:
            send()
        except Exception as e:
            # The broker does not answer, and may have got the message or not.
            self._facts.write("refused", id=members[0].message_id, error=repr(e))
        for message in members:
            self._watcher.add(message.message_id)

    def _prepare(self, job: Job) -> tuple[list[dramatiq.Message[Any]], Callable[[], object]]:
        if job.shape == "group":
            members = [self._message(job) for _ in range(3)]
            callback = self._message(job)
            group = dramatiq.group(members, broker=self._broker)
            group.add_completion_callback(callback)
            return [*members, callback], group.run
        if job.shape == "pipeline":
            stages = [self._message(job, pipe_ignore=True) for _ in range(3)]
            pipeline = dramatiq.pipeline(stages, broker=self._broker)
            return list(pipeline.messages), pipeline.run
        message = self._message(job)
        return [message], lambda: self._broker.enqueue(message, delay=job.delay)

    def _message(self, job: Job, **options: Any) -> dramatiq.Message[Any]:
        options |= {"status": {"user": job.number}, "status_throttle": job.throttle}
        if job.result:
            options["store_results"] = True
        if job.notify:
            options["notify_shutdown"] = True
        if job.end == "limit":
            options["time_limit"] = TIME_LIMIT
        actor = self._actors.get(job.actor, self._actors["play"])
        message = actor.message_with_options(args=(job.to_json(),), **options)
        return message if job.actor in self._actors else message.copy(actor_name=job.actor)

    def _result_of(self, message_id: str) -> Callable[[], Any] | None:
        job, message = self._jobs.get(message_id, (None, None))
        if job is None or message is None or not job.result or job.end in ("skip", "say failed"):
            return None
        return lambda: message.get_result(backend=self._broker.get_results_backend())

    def _write_from_outside(self) -> None:
        random, number = Random(self._settings.seed), 0
        while not self._writing.wait(_WRITE_INTERVAL):
            if self._jobs:
                number += 1
                self._write(random.choice(list(self._jobs)[-100:]), f"outside{number}", number)

    def _write(self, message_id: str, name: str, value: int) -> None:
        began = time.time()
        try:
            StatusRegistry.get(message_id, broker=self._broker)[name] = value
        except StatusMissing:
            self._facts.write("missing", id=message_id, name=name)
        except BackendError:
            self._facts.write("unwritten", id=message_id, name=name)
        else:
            self._facts.write("wrote", id=message_id, name=name, value=value, began=began)

    # Faults

    def _carry_out(self, number: int, fault: Fault) -> None:
        target = {"worker": self.crew, "store": self._store, "broker": self._queue}[fault.target]
        _sleep_until(self._zero + fault.at)
        with self._noted(number, fault):
            target.begin(fault)
            time.sleep(fault.seconds)
            target.end(fault)

    @contextmanager
    def _noted(self, number: int, fault: Fault) -> Iterator[None]:
        known = {"number": number, "kind": fault.kind, "target": fault.target}
        self._facts.write("fault begins", **known)
        self._done.append((time.time(), f"FAULT {fault} begins"))
        try:
            yield
        except Exception as e:
            # The plan goes on, and the servers are repaired at the end.
            self._say(f"{fault} failed: {e!r}")
        finally:
            self._facts.write("fault ended", **known)
            self._done.append((time.time(), f"FAULT {fault} ends"))
            self._say(f"{fault}; ended at {time.time() - self._zero:.2f}s")

    # The end

    def _wait_for_boot(self) -> None:
        expected = self._settings.workers * self._settings.processes
        deadline = time.monotonic() + 60
        while sum(fact["what"] == "booted" for fact in read_facts(self._directory)) < expected:
            if time.monotonic() > deadline:
                raise RuntimeError(f"The workers did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.05)

    def _settle(self) -> None:
        """Wait until the broker has no message left, and stop the workers."""
        deadline = time.monotonic() + self._settings.settle
        while True:
            # RabbitMQ does not count the messages that running workers hold. If a reply of a Redis broker was lost, the
            # broker assumes that a running worker holds the messages of this reply.
            self._wait_until_idle(deadline)
            self.crew.stop()
            left = self._queue.unfinished()
            if not left:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"The broker is not done with {left} messages after {self._settings.settle} s.")
            self.crew.start()

    def _wait_until_idle(self, deadline: float) -> None:
        """Wait until the broker has no message left, or no event is recorded any more."""
        seconds = IDLE
        while seconds and time.monotonic() < deadline:
            time.sleep(0.2)
            seconds = IDLE if self._facts_grow() else max(0.0, seconds - 0.2)
            if not self._queue.unfinished():
                seconds = min(seconds, 1.0)

    def _facts_grow(self) -> bool:
        """Return whether an event was recorded since the last call."""
        before, self._size = self._size, sum(path.stat().st_size for path in self._directory.glob("*.facts"))
        return self._size > before

    def _read_all(self) -> None:
        ids = [fact["id"] for fact in read_facts(self._directory) if fact["what"] == "planned"]
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            for message_id, snapshot in zip(chunk, self._read(chunk)):
                self._finals[message_id] = None if snapshot is None else snapshot.to_dict()

    def _read(self, ids: list[str]) -> list[Any]:
        for _ in range(20):
            try:
                return list(StatusRegistry.read_many(ids, broker=self._broker))
            except BackendError:
                time.sleep(0.5)
        return list(StatusRegistry.read_many(ids, broker=self._broker))


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))
