"""A backend of your own, with nothing but the standard library: each status is a file in a directory, which any
number of processes of one host use together.

What an update does to a record is worked out by `apply`. A backend finds the record, calls it, and stores the result,
while no other process does. That it keeps what backends promise is tested by a suite to inherit, in a file of pytest's:

    import pytest
    from dramatiq_status.testing.conformance import BackendConformance
    from third_party_backend import DirectoryBackend

    class TestDirectoryBackend(BackendConformance):
        @pytest.fixture
        def backend(self, tmp_path):
            return DirectoryBackend(tmp_path, timeout=20_000)  # a busy machine shall not fail a test
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

from dramatiq_status import BackendError
from dramatiq_status.backend import StatusBackend
from dramatiq_status.record import Record, from_document, to_document
from dramatiq_status.update import Outcome, Update, apply


class DirectoryBackend(StatusBackend):
    """Keeps statuses in the files of a directory, on a disk of this host's own.  Where there is ``fcntl``.

    Parameters:
      path(str | os.PathLike): The directory; it is made where there is none, for its owner alone, as its files are.
      **parameters: `namespace`, `timeout` and `max_field_size`, as for every backend.
    """

    why_no_list = "its files can only be found by message id. SQLiteBackend lists."

    def __init__(self, path: str | os.PathLike[str], **parameters: Any) -> None:
        super().__init__(**parameters)
        self.path = Path(path).absolute()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def update_many(self, updates: Sequence[tuple[str, Update]]) -> list[Outcome]:
        outcomes = []
        with self._locked():
            for message_id, update in updates:
                file, now = self._file(message_id), self.now()
                record, expires_at = _load(file, now)
                applied = apply(record, update, now)
                outcomes.append(applied.outcome)
                # What was refused gives back the record that it was given.
                if applied.record is not None and applied.record is not record:
                    _store(file, applied.record, expires_at if applied.ttl is None else now + applied.ttl)
        return outcomes

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        # It needs no lock: a file is replaced as a whole, never written to.
        with _translated_errors():
            return [_load(self._file(message_id), self.now())[0] for message_id in message_ids]

    def delete(self, message_id: str) -> bool:
        with self._locked():
            file = self._file(message_id)
            found = _load(file, self.now())[0] is not None
            file.unlink(missing_ok=True)
            return found

    def sweep(self) -> None:
        """Delete the files of statuses that have expired, once a day, say: reading only overlooks them."""
        with self._locked():
            for file in self.path.glob("*.status"):
                if _load(file, self.now())[0] is None:
                    file.unlink()

    def _file(self, message_id: str) -> Path:
        # An id may hold slashes, and be longer than a name. A namespace has no spaces: no two keys look the same.
        return self.path / f"{sha256(f'{self.namespace} {message_id}'.encode()).hexdigest()}.status"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep all other writers out, those of other processes and threads alike, and wait for them no longer than
        `timeout`. A process that is killed leaves no lock behind.
        """
        deadline = time.monotonic() + self.timeout / 1000
        with _translated_errors(), ExitStack() as stack:
            # The next writer holds back the others, so that a busy writer, which returns at once, is not always first.
            with self._lock("next", deadline):
                stack.enter_context(self._lock("lock", deadline))
            yield

    @contextmanager
    def _lock(self, name: str, deadline: float) -> Iterator[None]:
        # A lock belongs to the open file. It is opened again each time, so that threads do not share one.
        with open(self.path / name, "w", opener=_open_privately) as file:
            try:
                while not _try_lock(file):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"others have it locked for {self.timeout} milliseconds.")
                    time.sleep(0.0003)
                yield
            finally:
                # Closing would do, but for a child that was forked meanwhile: it has the file open, too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _open_privately(path: str, flags: int) -> int:
    # Whatever others may have put there, no link is followed.
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _load(file: Path, now: int) -> tuple[Record | None, int]:
    """Read a record and when it expires; None where it is missing, expired or damaged."""
    try:
        with open(file, "rb", opener=_open_privately) as opened:
            expires_at, document = opened.read().decode().split("\n", 1)
        return (from_document(document), int(expires_at)) if int(expires_at) > now else (None, 0)
    except (FileNotFoundError, ValueError):
        return None, 0


def _store(file: Path, record: Record, expires_at: int) -> None:
    new = file.with_name("new")
    with open(new, "wb", opener=_open_privately) as opened:
        opened.write(f"{expires_at}\n{to_document(record)}".encode())
    os.replace(new, file)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raise nothing but what callers of a backend expect."""
    try:
        yield
    except OSError as e:
        raise BackendError(f"The directory of the statuses cannot be used: {e}") from e
