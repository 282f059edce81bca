"""Compares what readers saw, and the final records, with the recorded events, and returns contradictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from .history import AFTER, History, Run, World, timeline
from .watcher import Sight

#: Seconds that an acknowledgement may be held up by the store.
LONGEST_HOLD: Final = 3.0

#: Maximum number of times that an increment counts if it was sent during an outage.
REPEATS: Final = 4


@dataclass(frozen=True)
class Finding:
    """A contradiction."""

    what: str
    message_id: str | None
    expected: str
    found: str
    timeline: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.what}: message {self.message_id}", f"  expected {self.expected}", f"  found    {self.found}"]
        return "\n".join([*lines, *(f"    {line}" for line in self.timeline)])


class Checker:
    """Checker of all messages of a run.

    Parameters:
      world: The recorded events.
      finals: The stored statuses at the end, by message.
      sights: The sights of the readers, by message.
      faults: The faults and their times, for timelines.
      zero: Epoch seconds at which timelines begin.
      ignored: Findings that are counted, and not returned.
    """

    def __init__(
        self,
        world: World,
        finals: Mapping[str, dict[str, Any] | None],
        sights: Mapping[str, Sequence[Sight]],
        faults: Sequence[tuple[float, str]] = (),
        zero: float = 0.0,
        ignored: Collection[str] = (),
    ) -> None:
        self._world, self._finals, self._sights, self._faults, self._zero = world, finals, sights, faults, zero
        self._ignored = ignored
        self.findings: list[Finding] = []
        #: Number of findings that a fault explains, by kind.
        self.excused: defaultdict[str, int] = defaultdict(int)

    def check(self) -> list[Finding]:
        """Check everything."""
        for message_id, final in self._finals.items():
            history = self._world.history(message_id)
            self._check_final(history, final)
            for reader in ("poll", "watch", "result"):
                self._check_sights(history, [s for s in self._sights.get(message_id, ()) if s.reader == reader])
        self._check_logs()
        self._check_held()
        return self.findings

    def _complain(self, history: History, what: str, expected: object, found: object) -> None:
        if what in self._ignored:
            self.excused[what] += 1
            return
        seen = [(sight.at, _describe(sight)) for sight in self._sights.get(history.message_id, ())]
        lines = timeline(self._world, history, [*seen, *self._faults], self._zero)
        self.findings.append(Finding(what, history.message_id, str(expected), str(found), tuple(lines)))

    # The end

    def _check_final(self, history: History, final: dict[str, Any] | None) -> None:
        ends = history.final_runs
        if not ends:
            # The broker has lost the message, or has never got it: its state cannot be checked.
            if final is not None and final["status"] in ("completed", "failed"):
                self._complain(history, "finished without an end", "no final state", final)
            elif history.enqueued:
                self.excused["lost by the broker"] += 1
            return
        if final is None:
            self._check_unknown(history, ends)
            return
        complaints = [list(self._compare(history, run, final)) for run in ends]
        if all(complaints):
            if self._is_excused(history, ends, final):
                return
            what, expected, found = min(complaints, key=len)[0]
            self._complain(history, what, expected, f"{found} in {final}")
            return
        self._check_outside(history, final)

    def _check_unknown(self, history: History, ends: Sequence[Run]) -> None:
        if all(self._world.lost_after(run.decided or 0) for run in ends):
            self.excused["unknown: the store lost it"] += 1
        elif all(self._world.unsent(run.pid, run.decided or 0) for run in ends):
            self._excuse_unsent(history, ends, "unknown: its worker died in an outage")
        else:
            self._complain(history, "unknown", [run.state for run in ends], None)

    def _is_excused(self, history: History, ends: Sequence[Run], final: Mapping[str, Any]) -> bool:
        last = max(ends, key=lambda run: run.decided or 0)
        unsent = [run for run in ends if self._world.unsent(run.pid, run.decided or 0)]
        if unsent:
            self._excuse_unsent(history, unsent, "not final: its worker died in an outage")
            return True
        if len(history.origins) > 1 and any(self._troubled(run) for run in history.runs.values()):
            # No clock orders enqueues of different origins; one of them was stored late.
            self.excused["not exact: it was enqueued twice, in an outage"] += 1
            return True
        if len(history.runs) > 1 and any(run.unsure for run in ends):
            # The facts contain no further run, but the broker has delivered the message again.
            self.excused["not exact: a retry was not confirmed, and it ran again"] += 1
            return True
        if self._world.lost_between((last.decided or 0) - AFTER, self._world.ended):
            self.excused["not exact: the store lost something"] += 1
            return True
        return False

    def _troubled(self, run: Run) -> bool:
        return self._world.troubled(run.pid, run.began - AFTER, (run.decided or run.began) + AFTER)

    def _excuse_unsent(self, history: History, runs: Sequence[Run], what: str) -> None:
        self.excused[what] += 1
        silent = [run.pid for run in runs if self._world.silent(run.pid)]
        if silent:
            self._complain(history, "lost without a word", "a line in the log", f"none of {silent}")

    def _compare(self, history: History, run: Run, final: Mapping[str, Any]) -> Iterator[tuple[str, object, object]]:
        """Compare the end of a message with that of one of its runs."""
        if final["status"] != run.state:
            yield "wrong state", run.state, final["status"]
        if run.entered and final.get("run") != run.token:
            yield "fields of another run", run.token, final.get("run")
        if run.did and final.get("last") != run.token:
            yield "last field is missing", run.token, final.get("last")
        job = history.job or {}
        if run.entered and run.did and final.get("begun") != job.get("number"):
            yield "throttled field is missing", job.get("number"), final.get("begun")
        if job and final.get("user") != job["number"]:
            yield "field of the enqueue is missing", job["number"], final.get("user")
        least, most = self._progress_of(history, run)
        if not least <= (final.get("progress") or 0) <= most:
            yield (
                ("wrong bar" if (history.job or {}).get("children") else "wrong progress"),
                f"{least}..{most}",
                final.get("progress") or 0,
            )
        attempts = final.get("attempts", 0)
        if run.entered and not run.retries + 1 <= attempts <= len(history.runs):
            yield "wrong attempts", f"{run.retries + 1}..{len(history.runs)}", attempts
        wanted = {run.exception if run.state == "failed" else None}
        if run.said:
            # A run that sets the state `failed` itself keeps the exception of the run before it.
            wanted |= {earlier.exception for earlier in history.runs.values()}
        shown = (final.get("exception") or {}).get("type")
        if shown not in wanted:
            yield "wrong exception", wanted, shown
        if run.skipped != bool(final.get("skipped")):
            yield "wrong skip", run.skipped, final.get("skipped")

    def _progress_of(self, history: History, run: Run) -> tuple[int, int]:
        """Return the least and the greatest progress that the end may show."""
        job = history.job or {}
        if job.get("children"):
            return self._bar_of(history, run)
        steps = job.get("steps", 0) if run.entered else 0
        return (steps if run.did else 0), steps

    def _bar_of(self, history: History, run: Run) -> tuple[int, int]:
        counts = self._world.counts[history.message_id]
        begun_last = max(run.began for run in history.runs.values())
        lost = self._world.lost_between(run.began, self._world.ended)
        least = most = 0
        for count in counts:
            assert count.counting is not None
            troubled = self._world.troubled(count.pid, count.counting - AFTER, count.counting + AFTER)
            most += REPEATS if troubled else 1
            cleared = len(history.runs) > 1 and count.counting < begun_last + AFTER
            unsent = count.acked is None or self._world.unsent(count.pid, count.counting)
            least += not (cleared or unsent or lost)
        return least, most

    def _check_outside(self, history: History, final: Mapping[str, Any]) -> None:
        enqueued_again = len(history.origins) > 1 or bool(self._runs_behind_end(history, self._world.ended))
        for write in history.writes:
            if final.get(write.name) != write.value and not enqueued_again and not self._world.lost_after(write.began):
                self._complain(history, "field from outside is missing", {write.name: write.value}, final)

    # What readers saw

    def _check_sights(self, history: History, sights: Sequence[Sight]) -> None:
        known = [sight for sight in sights if sight.values is not None]
        for sight in sights:
            excused = self._world.lost_between(0, sight.at) or history.refused_by(sight.at)
            if sight.trouble is not None and not excused:
                self._complain(history, f"{sight.reader}: {sight.trouble}", "a status", sight.trouble)
        for sight in known:
            self._check_cause(history, sight)
        for before, after in pairwise(sights):
            if before.values is None or after.values is not None or after.trouble is not None:
                continue
            taken_back = before.values["status"] == "queued" and history.refused_by(after.at)
            if not taken_back and not self._world.lost_between(before.asked - AFTER, after.at):
                self._complain(history, f"{after.reader}: forgotten", _describe(before), _describe(after))
        for before, after in pairwise(known):
            if not self._world.lost_between(before.asked - AFTER, after.at):
                self._check_step(history, before, after)

    def _check_cause(self, history: History, sight: Sight) -> None:
        """Check that each value that a reader saw has an earlier cause."""
        assert sight.values is not None
        state = sight.values["status"]
        if state == "working":
            caused = any(run.began <= sight.at for run in history.runs.values())
        elif state == "queued":
            caused = any(moment <= sight.at for moment in history.enqueuing)
        else:
            caused = any(run.state == state and (run.decided or 0) <= sight.at for run in history.runs.values())
        if not caused:
            self._complain(history, f"{sight.reader}: {state} without a cause", "another state", _describe(sight))

    def _check_step(self, history: History, before: Sight, after: Sight) -> None:
        assert before.values is not None and after.values is not None
        old, new = before.values, after.values
        finished = old["status"] in ("completed", "failed")
        again = self._runs_again(history, after)
        if finished and new["status"] != old["status"] and not again:
            self._complain(history, f"{after.reader}: left its end", _describe(before), _describe(after))
        if len(history.origins) > 1:
            # The run that began last owns the status.
            return
        if new.get("attempts", 0) < old.get("attempts", 0) and not (finished and again):
            self._complain(history, f"{after.reader}: fewer attempts", _describe(before), _describe(after))
        same = new.get("attempts") == old.get("attempts") and new.get("run") == old.get("run")
        if same and (new.get("progress") or 0) < (old.get("progress") or 0) and not (finished and again):
            self._complain(history, f"{after.reader}: progress goes back", _describe(before), _describe(after))

    def _runs_again(self, history: History, after: Sight) -> bool:
        """Return whether a finished message was run again, as a duplicate is."""
        return (
            len(history.origins) > 1
            or bool(self._runs_behind_end(history, after.at))
            or any(self._first_end(history) < moment <= after.at for moment in history.enqueuing)
        )

    def _first_end(self, history: History) -> float:
        return min((run.decided or 0 for run in history.final_runs), default=0)

    def _runs_behind_end(self, history: History, moment: float) -> list[Run]:
        """Return the runs that had begun by a time, and that went on after the message had ended."""
        end = self._first_end(history)
        return [
            run
            for run in history.runs.values()
            if run.began <= moment
            and (self._world.deaths.get(run.pid, end) >= end if run.decided is None else run.decided > end)
        ]

    # The rest

    def _check_logs(self) -> None:
        for fact in self._world.logs:
            excused = fact["pid"] in self._world.complained and self._world.troubled(
                fact["pid"], fact["t"] - AFTER, fact["t"]
            )
            if fact["level"] in ("ERROR", "CRITICAL") and not excused:
                text = f"{fact['text']}\n{fact['trace'] or ''}"
                self.findings.append(Finding("error in the log", None, "none", f"pid {fact['pid']}: {text}"))

    def _check_held(self) -> None:
        for fact in self._world.held:
            frozen = any(w.overlaps(fact["t"] - fact["seconds"], fact["t"]) for w in self._world.frozen[fact["pid"]])
            if fact["seconds"] > LONGEST_HOLD and not frozen:
                self._complain(
                    self._world.history(fact["id"]), "acknowledgement held", f"{LONGEST_HOLD} s", f"{fact['seconds']} s"
                )


def _describe(sight: Sight) -> str:
    if sight.values is None:
        return f"{sight.reader} sees {sight.trouble or 'an unknown message'}"
    names = ("status", "progress", "total", "attempts", "run", "last", "exception", "skipped")
    shown = " ".join(f"{name}={sight.values[name]}" for name in names if name in sight.values)
    return f"{sight.reader} sees {shown}"
