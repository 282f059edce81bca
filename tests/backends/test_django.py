"""Statuses in the cache of a Django project: its settings file, its database, its transactions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ..recording import PATIENCE

#: An engine of Django's whose connections end when the database is restarted.
ENGINE = '''
"""SQLite behaves like a server here: `restart()` ends all its connections, and only new ones work."""

import sqlite3

from django.db.backends.sqlite3 import base

opened = []


def restart():
    while opened:
        opened.pop().close()


class DatabaseWrapper(base.DatabaseWrapper):
    def get_new_connection(self, conn_params):
        connection = super().get_new_connection(conn_params)
        opened.append(connection)
        return connection

    def is_usable(self):
        # The engines of Django for database servers check it in this way, too.
        try:
            self.connection.execute("SELECT 1")
        except sqlite3.Error:
            return False
        return True
'''

#: Settings of a project that create the backend before they name the caches.
SETTINGS = """
from pathlib import Path

from django.core.cache import cache

from dramatiq_status.backends import CacheBackend

BACKEND = CacheBackend(cache)

HERE = Path(__file__).parent
SECRET_KEY = "x"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "engine", "NAME": HERE / "db.sqlite3"}}
CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "statuses"},
    "down": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://127.0.0.1:1"},
}
"""

#: Beginning of every script.
BEGIN = """
import threading, time

import django
import dramatiq
from django.core.cache import caches
from django.core.management import call_command
from django.db import close_old_connections, connection, connections, transaction
from dramatiq.brokers.stub import StubBroker

import engine.base
import settings
from dramatiq_status import BackendError, StatusMiddleware, StatusRegistry, current_status
from dramatiq_status.backends import CacheBackend

django.setup()
call_command("createcachetable")
backend = settings.BACKEND
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the directory of a Django project."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").touch()
    (tmp_path / "engine" / "base.py").write_text(ENGINE)
    (tmp_path / "settings.py").write_text(SETTINGS)
    return tmp_path


def run_script(project: Path, script: str) -> str:
    """Run a script in a project, and return what it has printed and logged."""
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "settings",
        "PYTHONPATH": os.pathsep.join((str(project), root)),
    }
    command = [sys.executable, "-c", BEGIN + textwrap.dedent(script)]
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=5 * PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_settings_file_can_create_the_backend(project: Path) -> None:
    # Given a settings file that creates the backend before it names the caches
    # When the project uses its cache, and the backend
    printed = run_script(
        project,
        """
        broker = StubBroker(middleware=[StatusMiddleware(backend=backend)])

        @dramatiq.actor(broker=broker)
        def work():
            pass

        message = work.send()
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM statuses")
            print(type(caches["default"]).__name__, cursor.fetchone()[0], backend.snapshot(message.message_id).state)
        """,
    )
    # Then both use the cache that the file names
    assert printed.split()[-3:] == ["DatabaseCache", "1", "queued"]


def test_an_outage_of_a_database_ends(project: Path) -> None:
    # Given a running job with its status in a database
    # When the database is restarted, which breaks the connection of the writer's thread, and the job continues
    printed = run_script(
        project,
        f"""
        broker = StubBroker()
        broker.add_middleware(StatusMiddleware(backend=backend))
        go_on, end = threading.Event(), threading.Event()

        @dramatiq.actor(broker=broker)
        def work():
            current_status()["step"] = "one"
            assert go_on.wait({PATIENCE})
            current_status()["step"] = "two"
            assert end.wait({PATIENCE})

        def wait_until(predicate):
            deadline = time.monotonic() + {PATIENCE}
            while True:
                # This thread's own connection has nothing to do with the writer's.
                connections.close_all()
                snapshot = backend.snapshot(message.message_id)
                if predicate(snapshot) or time.monotonic() > deadline:
                    return snapshot
                time.sleep(0.02)

        broker.emit_after("process_boot")
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
        worker.start()
        message = work.send()
        wait_until(lambda snapshot: snapshot.get("step") == "one")
        engine.base.restart()
        go_on.set()
        wait_until(lambda snapshot: snapshot.get("step") == "two")
        end.set()
        snapshot = wait_until(lambda snapshot: snapshot.finished)
        worker.stop(timeout=1_000)
        print("found", snapshot.state, snapshot["step"])
        """,
    )
    # Then the outage has begun and ended
    assert "found completed two" in printed and "does not answer" in printed and "answers again" in printed


def test_a_call_that_fails_closes_the_broken_connections_of_its_thread(project: Path) -> None:
    # Given a thread whose connection to the database has ended
    # When it calls the cache twice
    printed = run_script(
        project,
        """
        assert backend.snapshot("m") is None
        engine.base.restart()
        for _ in range(2):
            try:
                print("found", backend.snapshot("m"))
            except BackendError as e:
                print("failed:", e)
        """,
    )
    # Then only the first call fails
    assert printed.splitlines()[-2:] == [
        "failed: ConnectionProxy.get() has failed with ProgrammingError.",
        "found None",
    ]


def test_a_transaction_is_left_alone(project: Path) -> None:
    # Given a cache whose server is down, and open transactions, one of them without autocommit
    # When a status is read in each, and a connection to the database has broken
    printed = run_script(
        project,
        """
        backend = CacheBackend(caches["down"])

        connection.is_usable = lambda: False

        def fail():
            connection.errors_occurred = True
            try:
                backend.snapshot("m")
            except BackendError:
                print(connection.connection is raw)

        with transaction.atomic():
            raw = connection.connection
            fail()
        connection.set_autocommit(False)
        fail()
        connection.set_autocommit(True)
        fail()
        """,
    )
    # Then the connection was not closed before the end of the last transaction
    assert printed.splitlines()[-3:] == ["True", "True", "False"]
