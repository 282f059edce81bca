"""Messages of tests without a worker: the test sends the updates."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from dramatiq_status.backend import StatusBackend, now_ms
from dramatiq_status.record import ACTOR_NAME, COMPLETED, HEARTBEAT_INTERVAL, QUEUE_NAME, STARTED_AT, Record
from dramatiq_status.testing.updates import enqueue, heartbeat, start, write
from dramatiq_status.update import EnqueueId, Update


class Job:
    """A message whose updates a test sends."""

    def __init__(self, backend: StatusBackend, message_id: str | None = None) -> None:
        self.backend = backend
        self.message_id = message_id or str(uuid4())
        self._enqueue_id = EnqueueId(uuid4().int % 1_000_000_000 + 1, 1)
        self._run_token = uuid4().int % 1_000_000_000 + 1
        self._sequence = 0

    def enqueue(self) -> Job:
        self._update(enqueue(*self._enqueue_id, **{ACTOR_NAME: '"work"', QUEUE_NAME: '"default"'}))
        return self

    def requeue(self) -> Job:
        """Enqueue the message again, as a retry."""
        self._enqueue_id = self._enqueue_id._replace(generation=self._enqueue_id.generation + 1)
        return self.enqueue()

    def start(self, heartbeat_interval: int = 15_000) -> Job:
        """Start the run.  It stalls soon if the interval between heartbeats is short."""
        self._sequence += 1
        fields = {STARTED_AT: str(now_ms()), HEARTBEAT_INTERVAL: str(heartbeat_interval)}
        self._update(start(self._run_token, *self._enqueue_id, sequence=self._sequence, create=False, **fields))
        return self

    def write(self, **fields: Any) -> Job:
        self._write({f":{name}": json.dumps(value) for name, value in fields.items()})
        return self

    def restore(self, **fields: Any) -> Job:
        """Write the whole record, as a run does after the store has lost it."""
        self._write({f":{name}": json.dumps(value) for name, value in fields.items()}, create=True)
        return self

    def beat(self) -> Job:
        self._update(heartbeat(self._run_token))
        return self

    def finish(self, state: int = COMPLETED) -> Job:
        self._write({}, state=state, create=True)
        return self

    def _write(self, fields: Record, **parameters: Any) -> None:
        self._sequence += 1
        update = write(self._run_token, self._sequence, *self._enqueue_id, **parameters)
        self._update(update._replace(fields=fields))

    def _update(self, update: Update) -> None:
        self.backend.update(self.message_id, update)
