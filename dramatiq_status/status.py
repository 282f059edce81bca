"""The handle of one message's status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .channel import Channel
from .fields import encode_fields
from .record import State
from .snapshot import Snapshot


class Status:
    """A live handle of one message's status: every look asks the store
    anew, in one round trip; take :meth:`read` to look more than once.

    In the message that is being processed (:func:`.current_status`)
    writes never block and never raise for a broken store.  A look at the store
    first waits until all that was written is stored, and raises
    :class:`.BackendError` where the store does not answer, there as everywhere: a field
    that cannot be read never seems to be missing.  From outside of a
    worker each write takes one round trip, is stored when
    it returns, and raises :class:`.StatusMissing` for an unknown
    message, and :class:`.BackendError`.

    Writes never lose anything to other writers: fields are merged one by one.
    A handle may be passed to, and used by, any number of threads.
    """

    __slots__ = ("_channel",)

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def message_id(self) -> str:
        """The id of the message; empty for a detached handle."""
        return self._channel.message_id

    # Writing

    def __setitem__(self, name: str, value: Any) -> None:
        """Set a field, not throttled.

        Raises:
          TypeError: When the name is not a string or the value is not JSON.
          ValueError: When the name is reserved, the state is unknown, or
            the value is NaN, infinite or too large.
        """
        fields, state = encode_fields({name: value}, max_size=self._channel.max_field_size)
        self._channel.write(fields, state=state)

    def update(self, fields: Mapping[str, Any] | None = None, /, *, force: bool = False, **more: Any) -> None:
        """Set many fields at once; one update for the store.

        A ``progress`` of 0, or below the present one, begins a new leg: the
        rate starts over.  Saying ``status="failed"`` (or ``"completed"``) in a running
        message makes that its final state when the actor returns.

        Parameters:
          fields(Mapping[str, Any]): Fields by name.
          force(bool): Whether to write at once, throttled or not.
          **more: Further fields by name.

        Raises:
          TypeError: When a name is not a string or a value is not JSON.
          ValueError: When a name is reserved, the state is unknown, or a
            value is NaN, infinite or too large.
        """
        if fields is not None:
            more = {**fields, **more}
        encoded, state = encode_fields(more, max_size=self._channel.max_field_size)
        self._channel.write(encoded, state=state, urgent=force)

    def flush(self) -> bool:
        """Wait until all that was written is stored.

        It blocks, as every look at the store does.  In a coroutine let a
        thread wait, so that others go on; it writes to the same message.

        >>> await asyncio.to_thread(status.flush)

        Returns:
          bool: False where the store is down, or took longer than the
          backend's time-out.
        """
        return self._channel.flush()

    def delete(self) -> bool:
        """Delete the status.  The message itself is not touched; if it
        runs, its next write brings the status back.

        Returns:
          bool: Whether there was one.
        """
        return self._channel.delete()

    # Reading

    def read(self) -> Snapshot | None:
        """Read everything in one round trip; None where the message is
        unknown or its status has expired.

        Raises:
          BackendError: When the store does not answer, or what the running
            message has written is not stored yet.
        """
        return self._channel.read()

    @property
    def state(self) -> State | None:
        """The state, which equals its name; None where it is unknown."""
        snapshot = self.read()
        return None if snapshot is None else snapshot.state

    @property
    def queued(self) -> bool:
        """Whether the message waits for a worker, for the first time or again."""
        return self.state is State.QUEUED

    @property
    def working(self) -> bool:
        """Whether the message runs."""
        return self.state is State.WORKING

    @property
    def completed(self) -> bool:
        """Whether the message was processed."""
        return self.state is State.COMPLETED

    @property
    def failed(self) -> bool:
        """Whether the message failed for good."""
        return self.state is State.FAILED

    @property
    def finished(self) -> bool:
        """Whether the message is completed or failed."""
        snapshot = self.read()
        return snapshot is not None and snapshot.finished

    @property
    def progress(self) -> float | None:
        """Progress by total, from 0.0 to 1.0; None when none was reported."""
        snapshot = self.read()
        return None if snapshot is None else snapshot.progress

    def __getitem__(self, name: str) -> Any:
        snapshot = self.read()
        if snapshot is None:
            raise KeyError(name)
        return snapshot[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Get a field, or `default` where there is none of that name.

        Raises:
          BackendError: As for :meth:`read`: `default` does not stand in for a
            store that does not answer.
        """
        snapshot = self.read()
        return default if snapshot is None else snapshot.get(name, default)

    def __contains__(self, name: object) -> bool:
        snapshot = self.read()
        return snapshot is not None and name in snapshot

    def to_dict(self) -> dict[str, Any]:
        """All fields by name; empty where the message is unknown."""
        snapshot = self.read()
        return {} if snapshot is None else snapshot.to_dict()

    def to_json(self) -> str:
        """All fields as a JSON object; an empty one where the message is unknown."""
        snapshot = self.read()
        return "{}" if snapshot is None else snapshot.to_json()

    def __bool__(self) -> bool:
        return self.read() is not None

    def __str__(self) -> str:
        return str(self.read() or "unknown")

    def __repr__(self) -> str:
        return f"<Status of {self.message_id or 'nothing'}>"
