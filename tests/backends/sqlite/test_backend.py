"""The conformance of SQLite, and tests of its file, of locks between processes, of kills and of forks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import Query, StatusBackend
from dramatiq_status.backends import SQLiteBackend
from dramatiq_status.backends.sqlite import connections as sqlite_connections
from dramatiq_status.backends.sqlite.backend import MAX_SWEPT, ROWS_PER_QUERY, SWEPT_PER_CHANGE
from dramatiq_status.backends.sqlite.schema import TABLE
from dramatiq_status.cursor import Cursor
from dramatiq_status.errors import BackendError
from dramatiq_status.record import (
    COMPLETED,
    GENERATION,
    LIVE_TTL,
    ORIGIN,
    PROGRESS,
    STATE,
    VERSION,
    Record,
    to_document,
)
from dramatiq_status.testing.conformance import (
    BackendConformance,
    enqueue,
    finish,
    heartbeat,
    outside,
    start,
    together,
    write,
)
from dramatiq_status.update import Outcome

#: Time-out for tests that are not about time-outs, in milliseconds.
PATIENT = 20_000

#: Number of processes that write to one file, and number of writes of each.
PROCESSES, WRITES = 8, int(os.environ.get("SQLITE_WRITES", "5000"))

#: Script of another process that increments several messages in a call, and prints a line after each stored call.
COUNT = f"""
import os, sys
from dramatiq_status.backends import SQLiteBackend, StubBackend
from dramatiq_status.update import Kind, Outcome, Update
path, times, *ids = sys.argv[1:]
backend = SQLiteBackend(path, timeout={PATIENT})
for _ in range(int(times)):
    outcomes = backend.update_many([(message_id, Update(Kind.OUTSIDE, increment=1)) for message_id in ids])
    assert set(outcomes) == {{Outcome.APPLIED}}
    os.write(1, b".")
"""


#: Filters of lists, by names of :func:`fill`.
queried = pytest.mark.parametrize(
    "query",
    [
        Query(),
        Query(COMPLETED),
        Query(None, "actor-1"),
        Query(None, None, "queue-1"),
        Query(COMPLETED, "actor-1"),
        Query(COMPLETED, None, "queue-1"),
        Query(None, "actor-1", "queue-1"),
        Query(COMPLETED, "actor-1", "queue-1"),
    ],
    ids=lambda query: "-".join(str(value) for value in query if value is not None) or "all",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "status.db"


@pytest.fixture
def backend(path: Path) -> Iterator[SQLiteBackend]:
    backend = SQLiteBackend(path, timeout=PATIENT)
    yield backend
    backend.close()


@pytest.fixture
def other(path: Path, backend: SQLiteBackend) -> Iterator[sqlite3.Connection]:
    """Yield another connection to the file of `backend`, which exists."""
    backend.read("x")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        yield connection


class TestSQLite(BackendConformance):
    @pytest.fixture
    def backend(self, backend: SQLiteBackend) -> SQLiteBackend:
        return backend

    @pytest.fixture
    def make_backend(self, path: Path) -> Iterator[Callable[..., StatusBackend]]:
        made: list[SQLiteBackend] = []

        def make(**parameters: Any) -> StatusBackend:
            made.append(SQLiteBackend(path, timeout=PATIENT, **parameters))
            return made[-1]

        yield make
        for backend in made:
            backend.close()

    def ttl_of(self, backend: StatusBackend, message_id: str) -> int | None:
        found = execute(backend, f"SELECT expires_at FROM {TABLE} WHERE message_id = ?", message_id)
        return found[0][0] - backend.now() if found else None

    def set_ttl(self, backend: StatusBackend, message_id: str, ttl: int) -> None:
        change = f"UPDATE {TABLE} SET expires_at = ?1, listed_until = max(listed_until, ?1) WHERE message_id = ?2"
        execute(backend, change, backend.now() + ttl, message_id)

    @contextmanager
    def refusing(self, backend: StatusBackend, message_id: str) -> Iterator[None]:
        execute(
            backend,
            f"CREATE TRIGGER refusing BEFORE INSERT ON {TABLE} WHEN NEW.message_id = '{message_id}' "
            "BEGIN SELECT RAISE(ABORT, 'No.'); END",
        )
        yield
        execute(backend, "DROP TRIGGER refusing")

    def damages(self) -> dict[str, Callable[[Any, str], None]]:
        def document_of(document: object) -> Callable[[Any, str], None]:
            row = f"INSERT INTO {TABLE} VALUES (?, ?, ?, {2**60}, {2**60}, 1, '1', '\"actor\"', NULL)"
            return lambda backend, message_id: execute(backend, row, backend.namespace, message_id, document) and None

        def record_of(fields: Record) -> Callable[[Any, str], None]:
            return document_of(to_document(fields).encode())

        sound: Record = {STATE: "1", VERSION: "1", ORIGIN: "7", GENERATION: "1"}
        return {
            "not UTF-8": document_of(b"\xff\xfe"),
            "text": document_of(to_document(sound)),
            "number": document_of(5),
            "empty": document_of(b""),
            "other format": document_of(to_document(sound).replace("1", "2", 1).encode()),
            "cut off": document_of(to_document(sound).encode()[:-2]),
            "unknown state": record_of({**sound, STATE: "4"}),
            "no version": record_of({STATE: "1", ORIGIN: "7", GENERATION: "1"}),
        }

    # The file

    @pytest.mark.parametrize("path", ["", ":memory:", "file:x.db?mode=memory"])
    def test_a_path_in_memory_raises_an_error(self, path: str) -> None:
        # Given a path that is no file for SQLite
        # When a backend is made
        # Then the error names the backend to use
        with pytest.raises(ValueError, match=r"StubBackend"):
            SQLiteBackend(path)

    def test_a_path_of_another_type_raises_an_error(self) -> None:
        with pytest.raises(TypeError, match=r"path must be a str or an os\.PathLike, not int"):
            SQLiteBackend(5)  # type: ignore[arg-type]

    def test_a_missing_directory_raises_an_error(self, tmp_path: Path) -> None:
        # Given a path in a directory that does not exist
        missing = tmp_path / "missing"
        # When a backend is made
        # Then the error names the directory
        with pytest.raises(ValueError, match=rf"there is no directory '{missing}': create it"):
            SQLiteBackend(missing / "status.db")

    def test_new_files_are_readable_for_their_owner_only(self, path: Path, message_id: str) -> None:
        # Given a process that makes its files readable for all users
        before = os.umask(0o022)
        try:
            # When the backend creates the database
            backend = SQLiteBackend(path)
            backend.update(message_id, enqueue())
        finally:
            os.umask(before)
        # Then only the owner can read it and the files beside it, and no other file is left
        assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
            path.name + end: 0o600 for end in ("", "-wal", "-shm")
        }
        backend.close()

    def test_an_existing_file_keeps_its_mode(self, path: Path, message_id: str) -> None:
        # Given a file that was created for a group
        path.touch()
        path.chmod(0o660)
        # When the backend uses it
        backend = SQLiteBackend(path)
        backend.update(message_id, enqueue())
        # Then the group can still read it
        assert path.stat().st_mode & 0o777 == 0o660
        backend.close()

    def test_a_symbolic_link_raises_an_error(self, tmp_path: Path, message_id: str) -> None:
        # Given symbolic links with the name of the database, to a file and to nothing
        victim = tmp_path / "victim"
        victim.write_bytes(b"")
        for target in (victim, tmp_path / "nothing"):
            link = tmp_path / f"link-{target.name}"
            link.symlink_to(target)
            # When the backend is used
            # Then it raises an error, and writes nothing
            with pytest.raises(BackendError, match="symbolic link"):
                SQLiteBackend(link).update(message_id, enqueue())
        assert victim.read_bytes() == b"" and not (tmp_path / "nothing").exists()

    def test_a_file_on_a_file_system_without_links(
        self, path: Path, message_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def link(*paths: Any) -> None:
            raise PermissionError("It knows none.")

        # Given a file system that has no hard links
        monkeypatch.setattr(os, "link", link)
        # When the backend creates the database
        backend = SQLiteBackend(path)
        backend.update(message_id, enqueue())
        # Then only the owner can read it
        assert path.stat().st_mode & 0o777 == 0o600
        backend.close()

    def test_a_path_of_a_directory_raises_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is a directory"):
            SQLiteBackend(tmp_path)

    def test_a_relative_path_is_made_absolute(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message_id: str
    ) -> None:
        # Given a relative path
        monkeypatch.chdir(tmp_path)
        backend = SQLiteBackend("status.db", timeout=PATIENT)
        # When the process changes its directory before the backend is used
        monkeypatch.chdir("/")
        backend.update(message_id, enqueue())
        backend.close()
        # Then the file is in the first directory
        assert (tmp_path / "status.db").exists()

    def test_a_path_may_be_bytes(self, path: Path, message_id: str) -> None:
        # Given a path as bytes
        backend = SQLiteBackend(os.fsencode(path), timeout=PATIENT)  # type: ignore[arg-type]
        # When the backend is used
        backend.update(message_id, enqueue())
        backend.close()
        # Then the file has this path
        assert backend.path == path and path.exists()

    def test_a_directory_that_was_deleted_raises_an_error(self, tmp_path: Path, message_id: str) -> None:
        # Given a backend whose directory was removed
        directory = tmp_path / "gone"
        directory.mkdir()
        backend = SQLiteBackend(directory / "status.db")
        directory.rmdir()
        # When the backend is used
        # Then the error names the directory
        with pytest.raises(BackendError, match=f"there is no directory {directory}"):
            backend.read(message_id)

    def test_a_file_that_is_no_database_raises_an_error(self, path: Path, message_id: str) -> None:
        # Given a file that is no database
        path.write_bytes(b"not a database, and long enough for a header " * 100)
        backend = SQLiteBackend(path)
        # When the backend is used
        for call in (lambda: backend.read(message_id), lambda: backend.update(message_id, enqueue())):
            # Then the error names the file, and the file is unchanged
            with pytest.raises(BackendError, match=str(path)) as caught:
                call()
            assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
        assert path.read_bytes().startswith(b"not a database")

    def test_a_damaged_file_raises_an_error(self, path: Path, backend: SQLiteBackend) -> None:
        # Given a file whose pages were overwritten, except for the first ones
        ids = [uuid4().hex for _ in range(500)]
        backend.update_many([(message_id, enqueue()) for message_id in ids])
        backend.close()
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(8 * 4096)
            file.write(b"\xa5" * (size - 8 * 4096))
        # When all statuses are read
        # Then the error names the file
        with pytest.raises(BackendError, match=str(path)):
            backend.read_many(ids)

    def test_a_deleted_file_is_created_again(
        self, path: Path, backend: SQLiteBackend, message_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a file that is deleted while a process has it open, and that another process creates again
        monkeypatch.setattr(sqlite_connections, "CHECK_INTERVAL", 0)
        backend.update(message_id, start(1))
        for each in path.parent.iterdir():
            each.unlink()
        other, its_id = SQLiteBackend(path, timeout=PATIENT), uuid4().hex
        other.update(its_id, start(1))
        # When the first process continues
        # Then it uses the new file
        assert backend.update(message_id, outside(step="1")) is Outcome.MISSING
        assert backend.update(message_id, start(1)) is Outcome.APPLIED
        assert None not in [*backend.read_many([message_id, its_id]), *other.read_many([message_id, its_id])]
        # And the new file is not damaged
        assert execute(other, "PRAGMA integrity_check") == [("ok",)]
        other.close()

    def test_ids_of_other_programs_are_not_listed(self, backend: SQLiteBackend, message_id: str) -> None:
        # Given a row of another program, with an id that is no text, before a message
        backend.update(message_id, start(1))
        document = to_document({"s": "1", "v": "1", "e": "7", "n": "1"}).encode()
        row = f"INSERT INTO {TABLE} VALUES (?, ?, ?, {2**60}, {2**60}, 5, '1', '\"actor\"', NULL)"
        execute(backend, row, backend.namespace, b"blob", document)
        # When the list is read, in one page and in pages of one message
        # Then only the message is listed
        assert [found.message_id for found in StatusRegistry.list(backend=backend)] == [message_id]
        assert [found.message_id for found in StatusRegistry.list(limit=1, backend=backend)] == [message_id]

    def test_the_file_is_checked_once_in_an_interval(
        self, path: Path, backend: SQLiteBackend, message_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a file in use
        monkeypatch.setattr(sqlite_connections, "CHECK_INTERVAL", 3600)
        looked: list[Path] = []
        identify = sqlite_connections._identify
        monkeypatch.setattr(sqlite_connections, "_identify", lambda path: looked.append(path) or identify(path))  # type: ignore[func-returns-value]
        # When it is used often
        for _ in range(20):
            backend.update(message_id, start(1))
        # Then it is checked when it is opened, once more, and not again
        assert looked == [path, path]

    def test_other_tables_are_left_alone(self, path: Path, message_id: str) -> None:
        # Given a file of another application
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA user_version = 7")
            connection.execute("CREATE TABLE orders AS SELECT 42 AS number")
        # When the backend uses it as well
        backend = SQLiteBackend(path, timeout=PATIENT)
        backend.update(message_id, enqueue())
        # Then the other tables are unchanged
        assert execute(backend, "SELECT number FROM orders") == [(42,)]
        assert execute(backend, "PRAGMA user_version") == [(7,)]
        backend.close()

    def test_the_longest_time_to_live(self, backend: SQLiteBackend, message_id: str) -> None:
        # Given a time to live that is too large for a column
        # When a message is enqueued with it
        backend.update(message_id, enqueue(**{LIVE_TTL: "9" * 15}))
        # Then its status can be read
        assert backend.read(message_id) is not None

    def test_the_repr_has_the_path(self, backend: SQLiteBackend, path: Path) -> None:
        assert repr(backend) == f"<SQLiteBackend {str(path)!r} 'dramatiq-status'>"

    # Transactions

    def test_a_call_is_a_transaction(self, backend: SQLiteBackend) -> None:
        # Given updates of many messages
        ids = [uuid4().hex for _ in range(50)]
        # When they are written in one call
        statements = traced(backend, lambda: backend.update_many([(m, u) for m in ids for u in (enqueue(), start(1))]))
        # Then the call is one transaction, which writes the row of each message once
        words = [statement.split()[0] for statement in statements]
        assert (words.count("BEGIN"), words.count("COMMIT"), words.count("INSERT")) == (1, 1, 50)

    def test_reading_is_a_query(self, backend: SQLiteBackend) -> None:
        # Given as many messages as one query can have
        ids = [uuid4().hex for _ in range(ROWS_PER_QUERY)]
        # When they are read
        statements = traced(backend, lambda: backend.read_many(ids))
        # Then the call is one query
        assert len(statements) == 1

    def test_a_failed_call_leaves_nothing(self, backend: SQLiteBackend) -> None:
        # Given a file that cannot grow
        one, two = uuid4().hex, uuid4().hex
        backend.update(one, start(1))
        execute(backend, "PRAGMA max_page_count = 20")
        # When a call writes more than there is room for
        text = '"' + "x" * 200_000 + '"'
        with pytest.raises(BackendError, match="full"):
            backend.update_many([(one, outside(increment=1)), (two, enqueue(field=text))])
        # Then none of its updates is stored, and the next call succeeds
        record = backend.read(one)
        assert record is not None and PROGRESS not in record and backend.read(two) is None
        assert backend.update(two, enqueue()) is Outcome.APPLIED

    def test_a_plain_write_touches_no_index_of_lists(self, backend: SQLiteBackend, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When its progress is written
        statements = traced(backend, lambda: backend.update(message_id, outside(increment=1)))
        # Then only its document and expiry are written
        (written,) = (statement for statement in statements if statement.split()[0] in ("INSERT", "UPDATE"))
        assert not any(column in written for column in ("state", "position", "listed_until"))

    # Locks

    def test_a_locked_file_raises_an_error_after_the_time_out(
        self, backend: SQLiteBackend, other: sqlite3.Connection, path: Path, message_id: str
    ) -> None:
        # Given another connection with a long transaction
        backend.update(message_id, start(1))
        hurried = SQLiteBackend(path, timeout=50)
        other.execute("BEGIN IMMEDIATE")
        # When the backend writes
        # Then it raises a BackendError with a cause
        for call in (lambda: hurried.update(message_id, outside(step="1")), lambda: hurried.delete(message_id)):
            with pytest.raises(BackendError, match="other threads or processes for 50 milliseconds") as caught:
                call()
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        # And reads succeed
        assert hurried.read(message_id) is not None
        # And after the transaction, writes succeed
        other.execute("ROLLBACK")
        assert hurried.delete(message_id)
        hurried.close()

    def test_a_file_with_an_exclusive_lock(
        self, backend: SQLiteBackend, other: sqlite3.Connection, path: Path, message_id: str
    ) -> None:
        # Given another connection with an exclusive lock
        backend.close()
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        # When the backend reads
        # Then it raises a BackendError
        with pytest.raises(BackendError, match="locked by other threads or processes"):
            SQLiteBackend(path, timeout=50).read(message_id)

    def test_a_call_waits_for_a_lock(self, backend: SQLiteBackend, other: sqlite3.Connection, message_id: str) -> None:
        # Given another connection with a transaction
        backend.update(message_id, start(1))
        other.execute("BEGIN IMMEDIATE")
        # When the backend writes, and the transaction ends
        tried = threading.Event()
        find_lock(backend, tried.set)
        release = threading.Thread(target=lambda: tried.wait(30) and other.execute("ROLLBACK"))
        release.start()
        outcome = backend.update(message_id, outside(step="1"))
        release.join()
        # Then the write has waited for its end
        assert tried.is_set() and outcome is Outcome.APPLIED

    def test_many_processes_create_the_file_at_once(self, path: Path) -> None:
        # Given a file that does not exist
        ids = [uuid4().hex for _ in range(8)]
        backends = [SQLiteBackend(path, timeout=PATIENT) for _ in ids]
        # When many processes use it at the same time
        together(*[lambda b=b, m=m: b.update(m, enqueue()) for b, m in zip(backends, ids)])  # type: ignore[misc]
        # Then the updates of each process are stored
        assert all(backends[0].read_many(ids))
        for backend in backends:
            backend.close()

    # Processes

    def test_processes_lose_no_update(self, backend: SQLiteBackend, path: Path, message_id: str) -> None:
        # Given a running message
        backend.update(message_id, start(1))
        # When many processes increment its progress at the same time
        command = [sys.executable, "-c", COUNT, str(path), str(WRITES), message_id]
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(PROCESSES)]
        codes = [process.wait(100) for process in processes]
        # Then the sum is exact
        record = backend.read(message_id)
        assert codes == [0] * PROCESSES
        assert record is not None and record[PROGRESS] == str(PROCESSES * WRITES)

    def test_killed_processes_lose_no_update_and_leave_no_half_update(self, backend: SQLiteBackend, path: Path) -> None:
        # Given running messages
        ids = [uuid4().hex for _ in range(50)]
        backend.update_many([(message_id, start(1)) for message_id in ids])
        command = [sys.executable, "-c", COUNT, str(path), "1000000", *ids]
        stored = killed = 0
        for _ in range(5):
            # When processes that increment all of them are killed
            processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
            for process in processes:
                assert process.stdout is not None
                stored += len(process.stdout.read(20))
            for process in processes:
                os.kill(process.pid, signal.SIGKILL)
            for process in processes:
                stored += len(process.communicate()[0])
                killed += process.returncode == -signal.SIGKILL
            # Then the file is not damaged
            assert execute(backend, "PRAGMA integrity_check") == [("ok",)]
            # And each call is stored for all messages or for none
            (count,) = {record and int(record[PROGRESS]) for record in backend.read_many(ids)}
            # And all updates with an outcome are stored, and at most one more call of each process
            assert count is not None and stored <= count <= stored + killed
        assert killed == 20

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_childs_updates_outlive_the_parents_connections(self, path: Path, message_id: str) -> None:
        # Given a process with a connection
        backend = SQLiteBackend(path, timeout=PATIENT)
        backend.update(message_id, start(1))
        to_parent, to_child = os.pipe(), os.pipe()
        # When the process forks, and the child connects as well
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            code = 1
            try:
                backend.update(message_id, outside(increment=1))
                os.write(to_parent[1], b".")
                os.read(to_child[0], 1)
                backend.update(message_id, outside(increment=1))
                code = 0
            finally:
                os._exit(code)
        os.read(to_parent[0], 1)
        # And the parent closes its connection, which is its last one
        backend.update(message_id, outside(increment=1))
        backend.close()
        os.write(to_child[1], b".")
        _, status = os.waitpid(child, 0)
        for end in (*to_parent, *to_child):
            os.close(end)
        # Then later updates of the child are stored
        record = backend.read(message_id)
        backend.close()
        assert os.waitstatus_to_exitcode(status) == 0
        assert record is not None and record[PROGRESS] == "3"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_forks_in_the_middle_of_writes(self, backend: SQLiteBackend, message_id: str) -> None:
        # Given threads that increment the progress all the time
        backend.update(message_id, start(1))
        over, counts = threading.Event(), [0, 0, 0]

        def count(n: int) -> None:
            while not over.is_set():
                backend.update(message_id, outside(increment=1))
                counts[n] += 1

        threads = [threading.Thread(target=count, args=(n,)) for n in range(len(counts))]
        for thread in threads:
            thread.start()
        # When the process forks several times, and the children increment the progress as well
        codes: list[int] = []
        while len(codes) < 10 and not any(codes):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                code = 1
                try:
                    for _ in range(20):
                        backend.update(message_id, outside(increment=1))
                    code = 0
                finally:
                    os._exit(code)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        over.set()
        for thread in threads:
            thread.join()
        # Then the sum is exact
        record = backend.read(message_id)
        assert codes == [0] * 10
        assert record is not None and record[PROGRESS] == str(sum(counts) + 10 * 20)

    # Expiry

    @pytest.mark.parametrize("ends", [False, True], ids=["waiting", "finished"])
    def test_expired_rows_are_deleted_as_messages_change_their_states(self, backend: SQLiteBackend, ends: bool) -> None:
        # Given many expired rows, and one that has not expired
        alive = uuid4().hex
        for message_id in [uuid4().hex for _ in range(100)]:
            backend.update_many([(message_id, update) for update in ([start(1), finish(1)] if ends else [start(1)])])
        expire(backend)
        execute(backend, f"INSERT INTO {TABLE} VALUES ('other', ?, x'', {2**60}, {2**60}, 1, '1', NULL, NULL)", alive)
        before = rows_of(backend)
        for update, made in ((enqueue(), 1), (start(1), 0), (finish(1), 0)):
            # When a message is enqueued, and changes its state
            backend.update("x", update)
            after = rows_of(backend)
            # Then a few expired rows are deleted each time
            assert after == before + made - SWEPT_PER_CHANGE
            before = after
        # And after some more messages, all expired rows are deleted
        for _ in range(20):
            backend.update(uuid4().hex, enqueue())
        assert rows_of(backend) == 1 + 1 + 20

    @pytest.mark.parametrize("made, deleted", [(100, MAX_SWEPT), (500, 500)])
    def test_a_call_deletes_a_limited_number_of_expired_rows(
        self, backend: SQLiteBackend, made: int, deleted: int
    ) -> None:
        # Given a thousand expired rows
        backend.update_many([(uuid4().hex, start(1)) for _ in range(1_000)])
        expire(backend)
        # When many messages are enqueued in one call
        backend.update_many([(uuid4().hex, enqueue()) for _ in range(made)])
        # Then it deletes at least as many rows as it creates, and not all of them
        assert rows_of(backend) == 1_000 + made - deleted

    def test_updates_without_a_new_state_delete_no_rows(self, backend: SQLiteBackend, message_id: str) -> None:
        # Given expired rows
        backend.update(message_id, start(1))
        backend.update_many([(uuid4().hex, start(1)) for _ in range(10)])
        execute(backend, f"UPDATE {TABLE} SET expires_at = 1 WHERE message_id <> ?", message_id)
        before = rows_of(backend)
        # When a message is updated without a new state
        backend.update(message_id, outside(step="1"))
        # Then no row is deleted
        assert rows_of(backend) == before

    def test_an_expired_row_is_no_status(self, backend: SQLiteBackend, message_id: str) -> None:
        # Given an expired row that is not deleted
        backend.update(message_id, start(1, step="1"))
        expire(backend)
        # When it is read, written to and deleted
        # Then no call finds it
        assert backend.read(message_id) is None
        assert backend.update(message_id, outside(step="2")) is Outcome.MISSING
        assert backend.delete(message_id) is False

    # Listing

    @queried
    def test_a_page_takes_as_many_steps_however_many_there_are(self, backend: SQLiteBackend, query: Query) -> None:
        # Given a thousand messages, those of each actor in one queue
        fill(backend, 0, 1_000)
        few = steps_of(backend, lambda: backend.find(query, limit=50, after=None))
        # When there are twenty times as many
        fill(backend, 1_000, 20_000)
        many = steps_of(backend, lambda: backend.find(query, limit=50, after=None))
        # Then a page takes SQLite as many steps as before
        assert many <= few * 1.2

    @queried
    def test_a_page_takes_as_many_steps_wherever_it_is(self, backend: SQLiteBackend, query: Query) -> None:
        # Given messages, those of each actor in one queue
        fill(backend, 0, 2_000)
        found = backend.find(query, limit=1_000, after=None)
        middle = Cursor(found[len(found) // 2].position, found[len(found) // 2].message_id)
        first = steps_of(backend, lambda: backend.find(query, limit=20, after=None))
        # When a page in the middle is listed
        further = steps_of(backend, lambda: backend.find(query, limit=20, after=middle))
        plan = plan_of(backend, lambda: backend.find(query, limit=20, after=middle))
        # Then it takes SQLite as many steps as the first page, and other rows are only passed in an index
        assert further <= first * 1.2
        searches = [step for step in plan if "message_id" not in step and "rowid=?" not in step and "INDEX" in step]
        assert searches and all("USING COVERING INDEX" in step for step in searches), plan

    @queried
    def test_a_count_looks_up_no_rows(self, backend: SQLiteBackend, query: Query) -> None:
        # Given messages
        fill(backend, 0, 2_000)
        # When they are counted
        plan = plan_of(backend, lambda: backend.count(query))
        # Then SQLite looks up only rows that have expired earlier than their entries in the index
        covering = [step for step in plan if "USING COVERING INDEX" in step]
        lookups = [step for step in plan if "INDEX" in step and step not in covering]
        assert covering and len(lookups) <= 1 and all(f"{TABLE}_expiry" in step for step in lookups), plan

    @queried
    def test_expired_rows_are_passed_in_an_index(self, backend: SQLiteBackend, query: Query) -> None:
        # Given some messages, and twenty thousand newer ones that have finished and expired, and are not deleted
        fill(backend, 0, 1_000)
        steps = steps_of(backend, lambda: backend.find(query, limit=50, after=None))
        ids = [one.message_id for one in backend.find(query, limit=50, after=None)]
        number = backend.count(query)
        for n in range(1, 21):
            copies = f"namespace, message_id || '-{n}', document, 1, 1, position + {n * 10_000}, state, actor, queue"
            execute(backend, f"INSERT INTO {TABLE} SELECT {copies} FROM {TABLE} WHERE expires_at > 1")
        # When a page is listed
        more = steps_of(backend, lambda: backend.find(query, limit=50, after=None))
        # Then it contains the first messages, and each expired row has taken a few steps
        assert [one.message_id for one in backend.find(query, limit=50, after=None)] == ids
        assert backend.count(query) == number
        assert more - steps <= 20_000 * 6

    @queried
    def test_a_row_that_expires_earlier_than_in_its_index_is_not_listed(
        self, backend: SQLiteBackend, query: Query
    ) -> None:
        # Given messages, some of which expire earlier than in the indexes
        fill(backend, 0, 1_000)
        whole = backend.find(query, limit=1_000, after=None)
        gone = {one.message_id for one in whole[10:300:3]}
        for message_id in gone:
            change = f"UPDATE {TABLE} SET expires_at = 1, listed_until = {2**60} WHERE message_id = ?"
            execute(backend, change, message_id)
        # When they are listed and counted
        seventh = Cursor(whole[6].position, whole[6].message_id)
        found = backend.find(query, limit=100, after=seventh)
        # Then the expired messages are left out
        expected = [one for one in whole if one.message_id not in gone]
        assert gone and found == expected[7:107] and backend.count(query) == len(expected)

    def test_a_message_that_lives_long_is_listed_to_its_end(self, backend: SQLiteBackend, message_id: str) -> None:
        # Given a message that runs for ten times as long as it lives without a heartbeat
        now, written = backend.now(), 0
        backend.now = lambda: now  # type: ignore[method-assign]
        backend.update(message_id, start(1, **{LIVE_TTL: "60000"}))
        for n in range(100):
            now += 6_000
            statements = traced(backend, lambda n=n: backend.update(message_id, write(1, n + 2, step=str(n))))  # type: ignore[misc]
            written += any("listed_until" in statement for statement in statements)
        # When its time is over after its last update
        listed = []
        for pause in (59_999, 1):
            now += pause
            listed.append((len(backend.find(Query(), limit=50, after=None)), backend.count(Query())))
        # Then it is listed until this time
        assert listed == [(1, 1), (0, 0)]

    def test_few_updates_that_extend_the_time_to_live_change_indexes(
        self, backend: SQLiteBackend, message_id: str
    ) -> None:
        # Given a running message that lives for a week
        now = backend.now()
        backend.now = lambda: now  # type: ignore[method-assign]
        backend.update(message_id, start(1))
        known = set()
        # When it has a heartbeat every 15 seconds for a day
        for _ in range(4 * 60 * 24):
            now += 15_000
            backend.update(message_id, heartbeat(1))
            known |= {execute(backend, f"SELECT listed_until FROM {TABLE}")[0][0]}
        # Then only some of the heartbeats have changed the indexes of lists
        assert 5 < len(known) < 15

    def test_a_list_by_actor_and_queue_uses_the_index_with_fewer_rows(self, backend: SQLiteBackend) -> None:
        # Given an actor that has few of its messages in one queue
        for first in range(0, 10_000, 500):
            fields = [{"a": '"actor"', "Q": f'"queue-{n % 2_000}"'} for n in range(first, first + 500)]
            backend.update_many([(uuid4().hex, start(1, **one)) for one in fields])  # type: ignore[arg-type]
        # When the messages of both are listed and counted
        query = Query(None, "actor", "queue-7")
        steps = [
            steps_of(backend, lambda: backend.find(query, limit=50, after=None)),
            steps_of(backend, lambda: backend.count(query)),
        ]
        # Then SQLite does not pass all messages of the actor
        assert backend.count(query) == 5 and max(steps) < 10_000

    def test_two_transitions_of_a_millisecond_are_in_order(self, backend: SQLiteBackend) -> None:
        # Given a clock that stands still
        backend.now = lambda: 1_000_000  # type: ignore[method-assign]
        ids = [uuid4().hex for _ in range(3)]
        # When messages change their states, in one call and in several
        backend.update_many([(ids[0], enqueue()), (ids[1], enqueue()), (ids[0], start(1))])
        backend.update(ids[2], enqueue())
        backend.update(ids[1], start(1))
        # Then the message that has changed last is the newest
        found = [one.message_id for one in backend.find(Query(), limit=50, after=None)]
        assert found == [ids[1], ids[2], ids[0]]


def execute(backend: StatusBackend, statement: str, *values: object) -> list[Any]:
    """Run a statement on the connection that the backend uses next."""
    assert isinstance(backend, SQLiteBackend)
    return backend._connections.call(lambda connection: connection.execute(statement, values).fetchall())


def rows_of(backend: SQLiteBackend) -> int:
    """Return the number of rows, with expired ones."""
    return int(execute(backend, f"SELECT count(*) FROM {TABLE}")[0][0])


def traced(backend: SQLiteBackend, call: Callable[[], object]) -> list[str]:
    """Return the statements of a call."""
    statements: list[str] = []
    backend._connections.call(lambda connection: connection.set_trace_callback(statements.append))
    call()
    backend._connections.call(lambda connection: connection.set_trace_callback(None))
    return statements


def steps_of(backend: SQLiteBackend, call: Callable[[], object]) -> int:
    """Return the number of steps of SQLite's virtual machine in a call."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    call()
    backend._connections.call(lambda connection: connection.set_progress_handler(step, 1))
    call()
    backend._connections.call(lambda connection: connection.set_progress_handler(None, 0))
    return steps


def plan_of(backend: SQLiteBackend, call: Callable[[], object]) -> list[str]:
    """Return SQLite's plan of the last query of a call."""
    query = traced(backend, call)[-1]
    return [step for *_, step in execute(backend, f"EXPLAIN QUERY PLAN {query}")]


def expire(backend: SQLiteBackend) -> None:
    """Let all messages expire, at the times in their indexes."""
    execute(backend, f"UPDATE {TABLE} SET listed_until = 1 + listed_until - expires_at, expires_at = 1")


def find_lock(backend: SQLiteBackend, callback: Callable[[], None]) -> None:
    """Call a function when the backend has begun to write, even if the write fails."""
    backend._connections.call(
        lambda connection: connection.set_trace_callback(lambda statement: "BEGIN" in statement and callback())
    )


def fill(backend: SQLiteBackend, first: int, last: int) -> None:
    """Store messages of four actors in two queues, three in four of each completed."""
    for begin in range(first, last, 500):
        batch = []
        for n in range(begin, begin + 500):
            fields = {"a": f'"actor-{n % 4}"', "Q": f'"queue-{n % 2}"'}
            batch += [(f"m{n}", start(1, **fields))]  # type: ignore[arg-type]
            batch += [(f"m{n}", finish(1))] if n % 16 > 3 else []
        backend.update_many(batch)
