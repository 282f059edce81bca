"""Backends that record every state that a reader could have seen, in the order of the updates."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from threading import RLock
from typing import Any, cast

from pymemcache.client.base import Client

from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.clock import ServerClock
from dramatiq_status.backends.redis.operations import Operations
from dramatiq_status.backends.redis.protocol import UpdateCall, Updates
from dramatiq_status.backends.redis.requests import ScriptCall
from dramatiq_status.backends.redis.script import UPDATE, Script
from dramatiq_status.backends.redis.transport import Steps
from dramatiq_status.backends.stub import StubBackend
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.record import FINISHED_AT, RESULT, SKIPPED, STATE, WORKING, Record
from dramatiq_status.snapshot import Snapshot
from dramatiq_status.update import Kind, Outcome, Update

#: Letters of the states queued, working, completed and failed, by their stored numbers.
LETTERS = "qwcf"


class Recorder(StatusBackend):
    """Base of the recording backends.

    The writer may send the start and the end of a short run in one update; a reader then never finds ``working``.
    The recorder splits such an update, so that sequences can be compared.
    """

    def records(self, message_id: str) -> list[Record]:
        """Return the record after each update, in the store's order."""
        raise NotImplementedError

    def count_run(self, message_id: str) -> int:
        """Count the runs of a message, over all processes: 0 for the first."""
        raise NotImplementedError

    def sequence(self, message_id: str) -> str:
        """Return the states, a letter each; equal states in a row have one letter."""
        return "".join(LETTERS[int(state)] for state, _ in groupby(r[STATE] for r in self.records(message_id)))

    def history(self, message_id: str) -> list[Snapshot]:
        """Return the snapshots that a reader could have seen, the last one of each state."""
        found: list[Snapshot] = []
        for record in self.records(message_id):
            snapshot = take_snapshot(message_id, record, self.now())
            assert snapshot is not None, record
            if found and found[-1].state is snapshot.state:
                found.pop()
            found.append(snapshot)
        return found


def _before_its_end(record: Record) -> Record:
    """Return the record between the start and the end of a run, which came together in one update."""
    ended = (FINISHED_AT, SKIPPED, RESULT)
    return {**{name: text for name, text in record.items() if name not in ended}, STATE: str(WORKING)}


class InProcessRecorder(Recorder):
    """Recorder in memory, for stores to which only this process writes, one update at a time."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._recording = RLock()
        self._history: defaultdict[str, list[Record]] = defaultdict(list)
        self._run_counts: defaultdict[str, int] = defaultdict(int)

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        return [self.update(message_id, update) for message_id, update in updates]

    def update(self, message_id: str, update: Update) -> Outcome:
        with self._recording:
            outcome = self._record_one(message_id, update)
            self._note(message_id, update, outcome)
        return outcome

    def begin_update(self, message_id: str, update: Update) -> Callable[[], Outcome]:
        with self._recording:
            noted = self._history[message_id][:]
            outcome = super().begin_update(message_id, update)()
            # Some backends carry out complex updates in begin_update().
            if self._history[message_id] == noted:
                self._note(message_id, update, outcome)
        return lambda: outcome

    def _record_one(self, message_id: str, update: Update) -> Outcome:
        """Carry out one update by the recorded backend."""
        raise NotImplementedError

    def _note(self, message_id: str, update: Update, outcome: Outcome) -> None:
        if outcome is Outcome.APPLIED and update.kind is not Kind.HEARTBEAT:
            record = self.read(message_id)
            if update.kind is Kind.WITHDRAWAL:
                self._history[message_id].clear()
                return
            assert record is not None
            if update.start and update.state is not None:
                self._history[message_id].append(_before_its_end(record))
            self._history[message_id].append(record)

    def records(self, message_id: str) -> list[Record]:
        with self._recording:
            return list(self._history[message_id])

    def count_run(self, message_id: str) -> int:
        with self._recording:
            self._run_counts[message_id] += 1
            return self._run_counts[message_id] - 1


class RecordingStubBackend(InProcessRecorder, StubBackend):
    def _record_one(self, message_id: str, update: Update) -> Outcome:
        return StubBackend.update_many(self, [(message_id, update)])[0]


class RecordingMemcachedBackend(InProcessRecorder, MemcachedBackend):
    def _record_one(self, message_id: str, update: Update) -> Outcome:
        return MemcachedBackend.update(self, message_id, update)


# The update script, and one more line that records the history.  The last argument is for this line only.
_RECORDING_SCRIPT = Script.of(f"""
local kind = table.remove(ARGV)
local function carry_out()
{UPDATE.text}
end
local outcomes = carry_out()
if outcomes[1] == 1 and kind ~= 'heartbeat' then
  redis.call('RPUSH', KEYS[1] .. ':history', cjson.encode({{kind, redis.call('HGETALL', KEYS[1])}}))
end
return outcomes
""")


class RecordingCall(UpdateCall):
    """A call for one update."""

    script = _RECORDING_SCRIPT

    def arguments(self, clock: ServerClock) -> list[Any]:
        ((_, update),) = self.updates
        if update.kind is Kind.HEARTBEAT:
            kind = "heartbeat"
        else:
            kind = "both" if update.start and update.state is not None else "one"
        return [*super().arguments(clock), kind]

    def pack(self, clock: ServerClock) -> bytes:
        return ScriptCall.pack(self, clock)


class RecordingOperations(Operations):
    def requests_of(self, updates: Updates) -> Sequence[UpdateCall]:
        return [request for update in updates for request in super(RecordingOperations, self).requests_of([update])]

    def update_many(self, updates: Updates) -> Steps[list[Outcome]]:
        # One call for each update, so that the script finds the record after each of them.
        outcomes: list[Outcome] = []
        for update in updates:
            outcomes += yield from super().update_many([update])
        return outcomes


class RecordingRedisBackend(Recorder, RedisBackend):
    """Recorder whose Redis writes the history, complete and in order for all processes."""

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.operations = RecordingOperations(self.keys, self.transport, RecordingCall)
        assert self.client.script_load(_RECORDING_SCRIPT.text) == _RECORDING_SCRIPT.sha

    def records(self, message_id: str) -> list[Record]:
        found: list[Record] = []
        for line in cast(list[bytes], self.client.lrange(self.keys.key_of(message_id) + ":history", 0, -1)):
            kind, pairs = json.loads(line)
            if not pairs:
                # A broker has refused the message.
                found.clear()
                continue
            record = dict(zip(pairs[::2], pairs[1::2]))
            if kind == "both":
                found.append(_before_its_end(record))
            found.append(record)
        return found

    def count_run(self, message_id: str) -> int:
        return cast(int, self.client.incr(self.keys.key_of(message_id) + ":runs")) - 1


class CountingMemcachedBackend(Recorder, MemcachedBackend):
    """Recorder for many processes, whose memcached counts runs. It records only the last state of a message."""

    def __init__(self, *, servers: str, **parameters: Any) -> None:
        super().__init__(servers=servers, **parameters)
        self._client, self._counting = Client(servers), RLock()

    def records(self, message_id: str) -> list[Record]:
        record = self.read(message_id)
        return [] if record is None else [record]

    def count_run(self, message_id: str) -> int:
        name = f"{self.namespace}-runs-{message_id}"
        with self._counting:
            self._client.add(name, b"0", noreply=False)
            return cast(int, self._client.incr(name, 1)) - 1
