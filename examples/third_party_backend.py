"""A backend that needs only the standard library.  It stores each status in a file of a directory, which any number of
processes of one host may use.

`apply` defines what an update does to a record. The backend loads the record, calls `apply`, and stores the result,
while no other process writes. The conformance suite tests that a backend keeps all promises. A test class inherits it:

    import pytest
    from dramatiq_status.testing.conformance import BackendConformance
    from third_party_backend import DirectoryBackend

    class TestDirectoryBackend(BackendConformance):
        @pytest.fixture
        def backend(self, tmp_path):
            return DirectoryBackend(tmp_path, timeout=20_000)  # so that no test fails on a busy machine
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
    """Backend that keeps statuses in files of a directory, on a disk of this host.  It needs ``fcntl``.

    Parameters:
      path(str | os.PathLike): The directory.  If it does not exist, it is created, and only its owner can read it.
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
                # For a refused update, `apply` returns the record that it got.
                if applied.record is not None and applied.record is not record:
                    _store(file, applied.record, expires_at if applied.ttl is None else now + applied.ttl)
        return outcomes

    def read_many(self, message_ids: Sequence[str]) -> list[Record | None]:
        # A read needs no lock, because each file is replaced as a whole.
        with _translated_errors():
            return [_load(self._file(message_id), self.now())[0] for message_id in message_ids]

    def delete(self, message_id: str) -> bool:
        with self._locked():
            file = self._file(message_id)
            found = _load(file, self.now())[0] is not None
            file.unlink(missing_ok=True)
            return found

    def sweep(self) -> None:
        """Delete the files of expired statuses.  Call it once a day, for example, because reads leave these files."""
        with self._locked():
            for file in self.path.glob("*.status"):
                if _load(file, self.now())[0] is None:
                    file.unlink()

    def _file(self, message_id: str) -> Path:
        # An id may have slashes, and may be longer than a file's name. A namespace has no spaces, so all keys differ.
        return self.path / f"{sha256(f'{self.namespace} {message_id}'.encode()).hexdigest()}.status"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock out all other writers, in this process and in others, and wait for them for at most `timeout`. A process
        that is killed leaves no lock behind.
        """
        deadline = time.monotonic() + self.timeout / 1000
        with _translated_errors(), ExitStack() as stack:
            # The writer whose turn is next holds this lock while it waits, so that no other writer can overtake it.
            with self._lock("next", deadline):
                stack.enter_context(self._lock("lock", deadline))
            yield

    @contextmanager
    def _lock(self, name: str, deadline: float) -> Iterator[None]:
        # A lock belongs to the open file. The file is opened again for each lock, so that threads do not share one.
        with open(self.path / name, "w", opener=_open_privately) as file:
            try:
                while not _try_lock(file):
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"another writer has kept it locked for {self.timeout} milliseconds.")
                    time.sleep(0.0003)
                yield
            finally:
                # Closing the file is not enough, because a child that was forked meanwhile has the file open, too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _open_privately(path: str, flags: int) -> int:
    # No symbolic link is followed, because another user may have put one there.
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _load(file: Path, now: int) -> tuple[Record | None, int]:
    """Read a record and its expiry; None for a missing, expired or damaged record."""
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
    """Convert the errors of the system into the error that callers of a backend expect."""
    try:
        yield
    except OSError as e:
        raise BackendError(f"The directory of the statuses cannot be used: {e}") from e
