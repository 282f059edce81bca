"""The recorded events of a run, ordered by message and delivery, and the times of trouble."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .facts import Fact

#: Seconds before and after a fault in which it may have consequences: connections time out, the circuit breaker waits.
BEFORE: Final = 0.5
AFTER: Final = 5.0

#: Seconds in which a worker that is terminated ends.
GRACE: Final = 10.0

#: Seconds in which the Sentinels agree that a master is gone, and in which an old master that comes back takes writes.
FAILOVER: Final = 15.0


@dataclass(frozen=True)
class Window:
    """A time in which something was wrong, in epoch seconds."""

    begin: float
    end: float

    def overlaps(self, begin: float, end: float) -> bool:
        """Return whether the window overlaps another one."""
        return self.begin <= end and begin <= self.end


@dataclass
class Run:
    """A delivery of a message to an actor."""

    token: str
    pid: int
    began: float
    retries: int
    #: Times after the actor had set its first field, its last field, and the final state.
    entered: float | None = None
    did: float | None = None
    said: float | None = None
    #: Time directly before it incremented its parent's progress.
    counting: float | None = None
    #: Time and kind of Dramatiq's decision; None for a run without a decision.
    decided: float | None = None
    decision: str | None = None
    exception: str | None = None
    skipped: bool = False
    #: Whether the broker did not confirm a retry, and may have it or not.
    unsure: bool = False
    acked: float | None = None

    @property
    def state(self) -> str | None:
        """The final state of the message after this run; None if the run does not end the message."""
        if self.decision == "completed" and self.said is not None:
            return "failed"
        return self.decision if self.decision in ("completed", "failed") else None


@dataclass
class Write:
    """A field that was written from outside."""

    name: str
    value: Any
    began: float
    done: float


@dataclass
class History:
    """The recorded events of a message."""

    message_id: str
    job: dict[str, Any] | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    #: Times directly before the broker got the message, and after it had got it.
    enqueuing: list[float] = field(default_factory=list)
    enqueued: list[float] = field(default_factory=list)
    #: Times at which an enqueue had ended in an error, which takes `queued` back.
    refused: list[float] = field(default_factory=list)
    #: Origins of its enqueues; each origin resets the status.
    origins: set[str] = field(default_factory=set)
    writes: list[Write] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    def refused_by(self, moment: float) -> bool:
        """Return whether an enqueue had ended in an error by a moment."""
        return any(refused <= moment for refused in self.refused)

    @property
    def final_runs(self) -> list[Run]:
        """The runs after which Dramatiq did not retry the message."""
        return [run for run in self.runs.values() if run.state is not None]


class World:
    """The histories of all messages, and the times of trouble.

    Parameters:
      facts: All facts, the earliest first.
      lossy: Whether the store loses data when a server of it is killed.
      failover: Whether a replica without the last writes may take over.
    """

    def __init__(self, facts: Iterable[Fact], *, lossy: bool, failover: bool) -> None:
        self.histories: dict[str, History] = {}
        #: Runs of children that increment a parent's progress, by the id of the parent.
        self.counts: defaultdict[str, list[Run]] = defaultdict(list)
        #: Times of trouble with the store: for all processes, and by process.
        self.store_trouble: list[Window] = []
        self.trouble: defaultdict[int, list[Window]] = defaultdict(list)
        self.frozen: defaultdict[int, list[Window]] = defaultdict(list)
        self.losses: list[Window] = []
        self.deaths: dict[int, float] = {}
        #: Processes that had time to end, and processes that logged unsent updates.
        self.terminated: set[int] = set()
        self.complained: set[int] = set()
        #: Processes that ended while they were frozen.
        self.stopped: set[int] = set()
        self.logs: list[Fact] = []
        #: Events of processes, by process.
        self.processes: defaultdict[int, list[Fact]] = defaultdict(list)
        self.held: list[Fact] = []
        #: Time of the end of the run.
        self.ended = 0.0
        self._lossy, self._failover = lossy, failover
        self._began: dict[Any, float] = {}
        for fact in facts:
            self.ended = fact["t"]
            getattr(self, "_on_" + fact["what"].replace(" ", "_"), self._on_other)(fact)
        for key, began in self._began.items():
            if key[0] in ("outage", "freeze"):
                self.trouble[key[1]].append(Window(began - BEFORE, self.ended))
            if key[0] == "freeze":
                self.stopped.add(key[1])

    def history(self, message_id: str) -> History:
        """Return the recorded events of a message."""
        return self.histories.setdefault(message_id, History(message_id))

    def lost_after(self, moment: float) -> bool:
        """Return whether the store may have lost updates that it had got by a time."""
        return any(window.end >= moment for window in self.losses)

    def lost_between(self, begin: float, end: float) -> bool:
        """Return whether the store may have lost updates within a time."""
        return any(window.overlaps(begin, end) for window in self.losses)

    def troubled(self, pid: int, begin: float, end: float) -> bool:
        """Return whether the store may have been out of a process's reach for a part of a time."""
        return any(window.overlaps(begin, end) for window in (*self.store_trouble, *self.trouble[pid]))

    def unsent(self, pid: int, moment: float) -> bool:
        """Return whether a process may have died before it could send what it wrote at a moment.

        This needs an outage for the whole time from the write to the death, because the process sends the write as soon
        as the store is back.
        """
        death = self.deaths.get(pid)
        if death is None:
            return False
        windows = _merge((*self.store_trouble, *self.trouble[pid]))
        return any(window.begin <= moment + 1 and window.end >= death for window in windows)

    def silent(self, pid: int) -> bool:
        """Return whether a process had time to log its unsent updates, and did not do so."""
        return pid in self.terminated - self.stopped - self.complained

    # Facts

    def _on_other(self, fact: Fact) -> None:
        if "id" in fact:
            self.history(fact["id"]).facts.append(fact)

    def _on_planned(self, fact: Fact) -> None:
        self.history(fact["id"]).job = fact["job"]
        self._on_other(fact)

    def _on_enqueuing(self, fact: Fact) -> None:
        self.history(fact["id"]).enqueuing.append(fact["t"])
        self.history(fact["id"]).origins.add(fact["origin"])
        self._on_other(fact)

    def _on_enqueued(self, fact: Fact) -> None:
        self.history(fact["id"]).enqueued.append(fact["t"])
        self._on_other(fact)

    def _on_refused(self, fact: Fact) -> None:
        self.history(fact["id"]).refused.append(fact["t"])
        self._on_other(fact)

    def _on_began(self, fact: Fact) -> None:
        run = Run(fact["run"], fact["pid"], fact["t"], fact["retries"])
        self.history(fact["id"]).runs[run.token] = run
        self._on_other(fact)

    def _run(self, fact: Fact) -> Run:
        self._on_other(fact)
        # An interrupt may have struck the witness before it had recorded the start of the run.
        begun = Run(fact["run"], fact["pid"], fact["t"], 0)
        return self.history(fact["id"]).runs.setdefault(fact["run"], begun)

    def _on_entered(self, fact: Fact) -> None:
        self._run(fact).entered = fact["t"]

    def _on_did(self, fact: Fact) -> None:
        self._run(fact).did = fact["t"]

    def _on_said(self, fact: Fact) -> None:
        self._run(fact).said = fact["t"]

    def _on_acked(self, fact: Fact) -> None:
        self._run(fact).acked = fact["t"]

    def _on_decided(self, fact: Fact) -> None:
        run = self._run(fact)
        if run.decided is not None:
            # After a connection error, Dramatiq acknowledges the message again.
            return
        run.decided, run.decision = fact["t"], fact["decision"]
        run.exception, run.skipped, run.unsure = fact["exception"], fact["skipped"], fact.get("unsure", False)

    def _on_counting(self, fact: Fact) -> None:
        self._on_other(fact)
        run = self.history(fact["child"]).runs[fact["run"]]
        run.counting = fact["t"]
        self.counts[fact["id"]].append(run)

    def _on_wrote(self, fact: Fact) -> None:
        self.history(fact["id"]).writes.append(Write(fact["name"], fact["value"], fact["began"], fact["t"]))
        self._on_other(fact)

    def _on_log(self, fact: Fact) -> None:
        self.logs.append(fact)
        self.processes[fact["pid"]].append(fact)
        if "has not taken" in fact["text"]:
            self.complained.add(fact["pid"])
        elif "does not answer" in fact["text"]:
            self._began.setdefault(("outage", fact["pid"]), fact["t"])
        elif "answers again" in fact["text"]:
            began = self._began.pop(("outage", fact["pid"]), fact["t"])
            self.trouble[fact["pid"]].append(Window(began - BEFORE, fact["t"] + BEFORE))

    def _on_held(self, fact: Fact) -> None:
        self.held.append(fact)
        self._on_other(fact)

    def _on_killed(self, fact: Fact) -> None:
        self._end(fact, fact["t"])
        self.terminated -= set(fact["pids"])

    def _on_terminated(self, fact: Fact) -> None:
        # A worker ends its running messages before it ends itself.
        self._end(fact, fact["t"] + GRACE)
        self.terminated |= set(fact["pids"])

    def _end(self, fact: Fact, death: float) -> None:
        for pid in fact["pids"]:
            self.processes[pid].append(fact)
            self.deaths[pid] = min(death, self.deaths.get(pid, death))

    def _on_frozen(self, fact: Fact) -> None:
        for pid in fact["pids"]:
            self.processes[pid].append(fact)
            self._began.setdefault(("freeze", pid), fact["t"])

    def _on_thawed(self, fact: Fact) -> None:
        for pid in fact["pids"]:
            self.processes[pid].append(fact)
            began = self._began.pop(("freeze", pid), fact["t"])
            self.trouble[pid].append(Window(began - BEFORE, fact["t"] + AFTER))
            self.frozen[pid].append(Window(began, fact["t"]))

    def _on_fault_begins(self, fact: Fact) -> None:
        self._began["fault", fact["number"]] = fact["t"]

    def _on_fault_ended(self, fact: Fact) -> None:
        if fact["target"] != "store":
            return
        began = self._began[("fault", fact["number"])]
        if fact["kind"] != "move":
            self.store_trouble.append(Window(began - BEFORE, fact["t"] + AFTER))
        if self._lossy and fact["kind"] in ("kill", "restart"):
            self.losses.append(Window(began - BEFORE, fact["t"] + BEFORE))
        if self._failover:
            self.losses.append(Window(began - 2.0, fact["t"] + FAILOVER))


def _merge(windows: Iterable[Window]) -> list[Window]:
    """Make one window of those that overlap."""
    merged: list[Window] = []
    for window in sorted(windows, key=lambda window: window.begin):
        if merged and window.begin <= merged[-1].end:
            merged[-1] = Window(merged[-1].begin, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged


def timeline(world: World, history: History, extra: Sequence[tuple[float, str]], zero: float) -> list[str]:
    """Return what happened to a message and to the processes that ran it, a line an event, in seconds since `zero`."""
    events = list(extra)
    pids = {run.pid for run in history.runs.values()}
    of_processes = [(pid, fact) for pid in pids for fact in world.processes[pid]]
    for pid, fact in [*((fact["pid"], fact) for fact in history.facts), *of_processes]:
        values = {name: value for name, value in fact.items() if name not in _UNSHOWN and value is not None}
        text = " ".join(f"{name}={value}" for name, value in values.items())
        events.append((fact["t"], f"pid {pid} {fact['what']} {text}"))
    return [f"{moment - zero:8.3f} {text}" for moment, text in sorted(events)]


_UNSHOWN: Final = frozenset(("t", "pid", "pids", "what", "id", "job", "level"))
