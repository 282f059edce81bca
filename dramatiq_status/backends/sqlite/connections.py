"""Connections to a SQLite file.  One thread at a time uses a connection, and all connections are closed before a
fork.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from ... import _time as time
from ..._interrupts import WeakList
from ..._process import at_fork
from ...errors import BackendError, StoreRefused

#: Seconds between two attempts of a call to lock the file: at first, and at most.  A write takes about a hundred
#: microseconds.  SQLite's own pauses are milliseconds, and each is longer than the one before.
PAUSES: Final = (0.0002, 0.01)

#: Errors by which SQLite refuses a value.
_REFUSALS: Final = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)

#: Maximum number of seconds that a fork waits for the calls of other threads.
FORK_TIMEOUT: Final = 1.0

#: Seconds between two checks whether the file was deleted or replaced.
CHECK_INTERVAL: Final = 1.0

T = TypeVar("T")


class _Connection(sqlite3.Connection):
    """A connection that can have weak references."""

    #: Identity of the file that it has opened, see :func:`_identify`.
    file: tuple[int, int] | None = None


class Connections:
    """Pool of connections.  A call takes the idle connection that was used last.  So there are as many connections as
    threads that use the file at the same time.

    SQLite keeps the locks of a file for the whole process, in its own memory.  A child process has a copy of that
    memory but not the locks.  SQLite would rely on the copy, even for a new connection of the child, which would then
    lose updates.  So all connections are closed before a fork.

    SQLite does not notice when the file is deleted or replaced: it would continue to write to a file that no other
    process can open.  So the file is checked once a second.

    Parameters:
      path(Path): The file.
      timeout(int): Milliseconds that a call may wait for the locks of other connections.
      prepare(Callable): Prepares each new connection.
    """

    def __init__(self, path: Path, timeout: int, prepare: Callable[[sqlite3.Connection], None]) -> None:
        self._path = path
        self._timeout = timeout
        self._prepare = prepare
        self._idle: deque[_Connection] = deque()
        # All open connections, idle or in use.
        self._open = WeakList[_Connection]()
        self._inherited: list[_Connection] = []
        self._forking = False
        # Identity of the file at the last check, and time of the next check by the monotonic clock.
        self._file: tuple[int, int] | None = None
        self._check_at = 0.0
        _ALL.add(self)

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Call a function with a connection, and repeat this while the file is locked.

        Parameters:
          work(Callable): Takes a connection without a transaction.  After an exception, the connection may have one.

        Raises:
          StoreRefused: When SQLite refuses a value.
          BackendError: When the file is locked for longer than the time-out, or SQLite fails.
        """
        deadline = time.monotonic() + self._timeout / 1000
        pause, longest = PAUSES
        while True:
            connection = None
            try:
                connection = self._take()
                result = work(connection)
            except BaseException as e:
                is_locked = isinstance(e, sqlite3.OperationalError) and "lock" in str(e)
                if connection is not None:
                    if is_locked and not connection.in_transaction:
                        self._idle.append(connection)
                    else:
                        # Closing rolls the transaction back, also after an interrupt (time limit, abort, shutdown).
                        self._close(connection)
                if not isinstance(e, sqlite3.Error):
                    raise
                if isinstance(e, _REFUSALS):
                    raise StoreRefused(self._describe(e, is_locked)) from e
                if not is_locked or time.monotonic() >= deadline:
                    raise BackendError(self._describe(e, is_locked)) from e
            else:
                self._idle.append(connection)
                return result
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, longest)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            try:
                self._close(self._idle.pop())
            except IndexError:
                return

    def _take(self) -> _Connection:
        while True:
            while self._is_forking():
                time.sleep(PAUSES[0])
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            else:
                if self._is_current(connection):
                    return connection
                self._close(connection)
                continue
            try:
                if not self._is_forking():
                    self._prepare(connection)
                    connection.file = self._file = _identify(self._path)
                    return connection
            except BaseException:
                self._close(connection)
                raise
            self._close(connection)

    def _connect(self) -> _Connection:
        _make_file(self._path)
        connection = sqlite3.connect(
            self._path, timeout=0, isolation_level=None, check_same_thread=False, factory=_Connection
        )
        # Another program may have stored texts that are not UTF-8.  They must not hide the other rows of a page.
        connection.text_factory = _to_text
        self._open.add(connection)
        return connection

    def _is_current(self, connection: _Connection) -> bool:
        now = time.monotonic()
        if now >= self._check_at:
            self._file = _identify(self._path)
            self._check_at = now + CHECK_INTERVAL
        return connection.file == self._file

    def _is_forking(self) -> bool:
        return self._forking

    def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()

    def _describe(self, error: sqlite3.Error, is_locked: bool) -> str:
        if is_locked:
            return f"{self._path} was locked by other threads or processes for {self._timeout} milliseconds: {error}."
        if not self._path.parent.is_dir():
            return f"Cannot open {self._path}: there is no directory {self._path.parent}; create it."
        if isinstance(error, sqlite3.OperationalError):
            return f"Cannot use {self._path}: {error}."
        return f"Cannot use {self._path}: {error}. Move it away if it is damaged, or name another file."

    def begin_fork(self) -> None:
        """Close all connections, and open none until the end of the fork."""
        self._forking = True
        deadline = time.monotonic() + FORK_TIMEOUT
        self.close()
        while any(self._open) and time.monotonic() < deadline:
            time.sleep(PAUSES[0])
            self.close()

    def end_fork(self) -> None:
        """Continue in the parent process."""
        self._forking = False

    def end_fork_in_child(self) -> None:
        """Continue in the child process."""
        # Connections that are still open belong to the parent: closing them could release its locks.  Either a call has
        # used them for longer than the fork has waited, or the process was forked in C, without `begin_fork`.
        self._inherited += self._open
        self._idle, self._open = deque(), WeakList()
        self._forking = False


def _make_file(path: Path) -> None:
    """Create the file if there is none, readable for this user only; SQLite would make it readable for all users.

    SQLite gives the mode of this file to the files beside it.

    Raises:
      BackendError: When the path is a symbolic link: another user may have created the link.
    """
    if path.is_symlink():
        raise BackendError(f"{path} is a symbolic link: name the file that it leads to, if that is the right one.")
    if path.exists():
        return
    new = path.with_name(f".{random.getrandbits(64):016x}.new")
    try:
        _create(new)
        try:
            # It is created under another name, because closing a file releases the locks of all threads on it.
            os.link(new, path)
        except FileExistsError:
            # Another process was faster.
            pass
        except OSError:
            # The file system has no links.
            _create(path)
        finally:
            os.unlink(new)
    except OSError:
        # SQLite cannot open the file, and its error contains the reason.
        pass


def _create(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _identify(path: Path) -> tuple[int, int] | None:
    """Return the identity of the file at a path, None if there is none.  A file that replaces it has another
    identity.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_ALL: Final = WeakList[Connections]()


def _for_all(method: Callable[[Connections], None]) -> Callable[[], None]:
    def call() -> None:
        for connections in _ALL:
            method(connections)

    return call


at_fork(
    before=_for_all(Connections.begin_fork),
    after_in_parent=_for_all(Connections.end_fork),
    after_in_child=_for_all(Connections.end_fork_in_child),
)


def _to_text(stored: bytes) -> str:
    return stored.decode(errors="replace")
