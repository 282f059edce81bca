"""Every snippet of the README does what is said there."""

from __future__ import annotations

import asyncio
import doctest
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO

from dramatiq_status import StatusMiddleware, StatusRegistry, current_progress, current_status
from dramatiq_status.backends import StubBackend

from .jobs import Job
from .recording import PATIENCE, UNMEASURED, Broken, RecordingBackend, eventually, make_stub_broker, run, working
from .servers import RedisServer

README = Path(__file__).parent.parent / "README.rst"
SNIPPETS = {
    name: textwrap.dedent(code)
    for name, code in re.findall(
        r"\.\. code-block:: python\n   :name: ([\w-]+)\n\n((?:   .*\n|\n)+)", README.read_text(encoding="utf-8") + "\n"
    )
}

#: What the actors of a snippet are sent, and what is stored of the first of them.
ACTORS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "first-actor": ("import_rows", ("orders.csv",), {"status": "completed", "progress": 100, "step": "reading"}),
    "fields": ("import_rows", ("orders.csv",), {"step": "indexing", "rows": 100}),
    "counts": ("import_pages", ([1, 2, 3],), {"rows": 6, "progress": 6, "total": 6, "step": None}),
    "progress": ("make_thumbnails", ([1] * 20,), {"progress": 20, "total": 20}),
    "track": ("import_rows", ("orders.csv",), {"progress": 500, "total": 500, "step": "indexing"}),
    "legs": ("rebuild", (), {"progress": 0, "total": 3000, "step": "unpack"}),
    "threads": ("download", ([1] * 30,), {"progress": 30, "total": 30}),
    "async": ("crawl", ([1] * 7,), {"progress": 7, "total": 7}),
    "sending": ("import_file", ("orders.csv",), {"status": "completed"}),
    "parent-bar": ("import_files", ([1] * 5,), {"progress": 5, "total": 5}),
    "verdict": ("charge", ("order",), {"status": "failed", "reason": "card refused"}),
    "throttle": ("import_rows", ("orders.csv",), {"progress": 100, "total": 100}),
}

#: Snippets that look at a job that runs, at 42 of 100.
LOOKING = (
    "first-reader",
    "get",
    "read",
    "read-many",
    "read-many-errors",
    "list",
    "pages",
    "write",
    "outage",
    "view",
    "delete",
)


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    broker = make_stub_broker()
    broker.add_middleware(AsyncIO())
    broker.add_middleware(StatusMiddleware(backend=StubBackend()))
    dramatiq.set_broker(broker)
    yield broker
    dramatiq.set_broker(None)  # type: ignore[arg-type]


@pytest.fixture
def namespace(broker: StubBroker) -> dict[str, Any]:
    """What the snippets take for granted."""

    async def fetch_later(url: Any) -> None: ...

    found: dict[str, Any] = {
        "__name__": __name__,
        "read_rows": lambda path: list(range(100)),
        "iter_rows": lambda path: iter(range(500)),
        "card_accepted": lambda order: False,
        **dict.fromkeys(("insert", "check", "index", "shrink", "fetch"), lambda value: None),
    }
    exec(SNIPPETS["imports"], found)
    found["broker"] = broker
    found["index_file"] = dramatiq.actor(lambda path: None, actor_name="index_file")
    found["fetch_later"] = fetch_later
    return found


@contextmanager
def a_running_job(broker: StubBroker) -> Iterator[dramatiq.Message[Any]]:
    """A job that stands at 42 of 100 until the block ends."""
    go_on = threading.Event()

    @dramatiq.actor(broker=broker, actor_name="import_rows")
    def import_rows() -> None:
        current_progress().increment(42)
        current_status()["step"] = "reading"
        assert go_on.wait(PATIENCE)

    with working(broker):
        message = import_rows.send()
        eventually(lambda: StatusRegistry.get(message).get("step"))
        yield message
        go_on.set()
        eventually(lambda: not broker.queues["default"].unfinished_tasks)


def check_examples(name: str, namespace: dict[str, Any]) -> None:
    """Run a snippet; where it is a dialogue its answers count."""
    code = SNIPPETS[name]
    if ">>>" not in code:
        exec(code, namespace)
        return
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    example = doctest.DocTestParser().get_doctest(code, namespace, name, str(README), 0)
    runner = doctest.DocTestRunner(optionflags=flags)
    report: list[str] = []
    assert runner.run(example, out=report.append).failed == 0, "".join(report)


@pytest.mark.parametrize("name", sorted(ACTORS))
def test_actors(name: str, broker: StubBroker, namespace: dict[str, Any]) -> None:
    actor, arguments, expected = ACTORS[name]
    if name == "async":
        namespace["fetch"] = namespace["fetch_later"]
    # Given the actors of a snippet
    exec(SNIPPETS[name], namespace)
    # When one is sent a message, and all have run
    message = namespace[actor].send(*arguments)
    run(broker)
    # Then this is what is stored
    found = StatusRegistry.get(message).to_dict()
    assert {field: found.get(field) for field in expected} == expected


@pytest.mark.parametrize("name", LOOKING)
def test_looking_at_a_running_job(name: str, broker: StubBroker, namespace: dict[str, Any]) -> None:
    with a_running_job(broker) as message:
        namespace |= {"message_id": message.message_id, "first_id": message.message_id, "second_id": "x"}
        namespace["status"] = StatusRegistry.get(message)
        check_examples(name, namespace)
        if name == "read-many":
            assert namespace["done"] == 0
        elif name == "write":
            found = StatusRegistry.get(message)
            assert (found["seen_by"], found["priority"], found["progress"]) == ("ann", "high", 52)
        elif name == "outage":
            assert namespace["snapshot"].working
        elif name == "pages":
            # The second page is empty.
            first = namespace["jobs_view"](SimpleNamespace(GET={}))
            second = namespace["jobs_view"](SimpleNamespace(GET={"after": first["next"]}))
            assert [job["message_id"] for job in first["jobs"]] == [message.message_id]
            assert second == {"jobs": [], "next": None}
        elif name == "view":
            assert [namespace["job_status"](None, i)[0] for i in (message.message_id, "x")] == [200, 404]


@pytest.mark.parametrize("name", ["wait", "watch", "json"])
def test_looking_at_a_finished_job(
    name: str, broker: StubBroker, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(SNIPPETS["first-actor"], namespace)
    message = namespace["import_rows"].send_with_options(args=("orders.csv",), status={"user_id": 42})
    run(broker)
    namespace["message_id"] = message.message_id
    check_examples(name, namespace)
    assert name == "json" or "completed" in capsys.readouterr().out


def test_batch(broker: StubBroker, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(SNIPPETS["first-actor"], namespace)
    with working(broker):
        exec(SNIPPETS["batch"], namespace)
    assert capsys.readouterr().out.endswith("completed (100%: 3 completed)\n")


def test_aio(broker: StubBroker, namespace: dict[str, Any]) -> None:
    for name in ("first-actor", "aio"):
        exec(SNIPPETS[name], namespace)
    message = namespace["import_rows"].send("orders.csv")
    run(broker)
    assert asyncio.run(namespace["job_page"](message.message_id))["seen_by"] == "ann"


def test_retrying(broker: StubBroker, namespace: dict[str, Any]) -> None:
    # Given a message that waits for another run
    @dramatiq.actor(min_backoff=60_000)
    def work() -> None:
        raise ConnectionError("the shop does not answer")

    message = work.send()
    with working(broker):
        eventually(lambda: StatusRegistry.get(message).get("exception"))
    # Then it looks like that
    namespace["message_id"] = message.message_id
    check_examples("retrying", namespace)


def test_options(broker: StubBroker, namespace: dict[str, Any]) -> None:
    # Given actors and a message with options
    exec(SNIPPETS["options"], namespace)
    # When it has been sent
    snapshot = StatusRegistry.read(namespace["message"])
    # Then its fields are there, and the actor that is not to be tracked is not
    assert snapshot is not None and dict(snapshot.fields) == {"user_id": 42, "label": "Orders of May"}
    assert StatusRegistry.read(namespace["ping"].send()) is None


def test_unit_tests(broker: StubBroker, namespace: dict[str, Any]) -> None:
    exec(SNIPPETS["first-actor"], namespace)
    exec(SNIPPETS["parent-bar"], namespace)
    tests = {"unit-test": "test_import_rows", "unit-test-parent": "test_import_one", "stub-test": "test_greet"}
    for name, test in tests.items():
        exec(SNIPPETS[name], namespace)
        namespace[test]()


STORES = ("redis-backend", "memcached-backend", "sqlite-backend", "cache-backend", "backend-from-url")


@pytest.mark.parametrize("name", STORES)
def test_backends(name: str, namespace: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_examples(name, namespace)
    assert namespace["backend"].namespace == "shop"


def test_moving_to_another_store(broker: StubBroker, namespace: dict[str, Any]) -> None:
    # Given a status in each of two stores
    old, new = StubBackend(), StubBackend()
    namespace |= {"old_backend": old, "new_backend": new}
    old_job, new_job = Job(old).enqueue(), Job(new).enqueue()
    # When they are read as the snippet does
    exec(SNIPPETS["moving"], namespace)
    # Then both are found, and the new store counts
    assert namespace["read_status"](old_job.message_id).queued and namespace["read_status"](new_job.message_id).queued
    Job(new, old_job.message_id).enqueue().start()
    assert namespace["read_status"](old_job.message_id).working
    assert namespace["read_status"]("unknown") is None


def test_own_backend(tmp_path: Path) -> None:
    # Given the backend and its tests, as their author would have them in a file
    (tmp_path / "conftest.py").write_text(
        'import pytest\n\npytest.register_assert_rewrite("dramatiq_status.testing.conformance")\n', encoding="utf-8"
    )
    code = SNIPPETS["own-backend"] + SNIPPETS["own-backend-test"]
    (tmp_path / "test_dict_backend.py").write_text(code, encoding="utf-8")
    # When they are run
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    tests = subprocess.run(command, cwd=tmp_path, env=UNMEASURED, capture_output=True, text=True, timeout=110)
    # Then they pass, and what needs more than a backend is skipped
    assert tests.returncode == 0, tests.stdout
    found = re.search(r"(\d+) passed, (\d+) skipped", tests.stdout)
    assert found is not None and int(found[1]) > 200 > int(found[2]), tests.stdout


def test_quick_start(redis_server: RedisServer, redis_url: str, tmp_path: Path) -> None:
    # Given the module of the quick start, and a worker of the `dramatiq` command
    code = SNIPPETS["quick-start"]
    assert code.count("redis://127.0.0.1:6379/0") == 1
    code = code.replace("redis://127.0.0.1:6379/0", redis_server.database(0))
    (tmp_path / "tasks.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "dramatiq", "tasks", "--processes", "1", "--threads", "2"]
    worker = subprocess.Popen(command, cwd=tmp_path)
    try:
        # When a reader follows a job
        reader = subprocess.run(
            [sys.executable, "-c", SNIPPETS["quick-start-reader"]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        worker.terminate()
        worker.wait(30)
    # Then it sees it move
    lines = reader.stdout.splitlines()
    assert lines[-1] == "completed (100%) done"
    assert len([line for line in lines if line.startswith("working (")]) > 3
    # And the statuses are in the file
    assert (tmp_path / "status.db").exists()


def test_redacted(broker: StubBroker, namespace: dict[str, Any]) -> None:
    # Given the middleware of the snippet
    namespace["backend"] = StubBackend()
    exec(SNIPPETS["redacted"], namespace)
    broker.middleware = [one for one in broker.middleware if not isinstance(one, StatusMiddleware)]
    broker.add_middleware(namespace["middleware"])

    @dramatiq.actor(broker=broker, max_retries=0)
    def work() -> None:
        raise ValueError("secret")

    # When a job fails
    message = work.send()
    run(broker)
    # Then its text is not stored
    assert StatusRegistry.get(message)["exception"] == {"type": "ValueError", "message": ""}


def test_health() -> None:
    # Given a store that is down
    backend = RecordingBackend()
    middleware = StatusMiddleware(backend=backend)
    broker = make_stub_broker(middleware)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    work.send()
    namespace: dict[str, Any] = {"status_middleware": middleware}
    exec(SNIPPETS["health"], namespace)
    registry = namespace["REGISTRY"]
    broken = Broken(backend)
    with working(broker):
        # When Prometheus looks, then it is told of the outage and its end
        eventually(lambda: registry.get_sample_value("status_store_up") == 0)
        assert registry.get_sample_value("status_pending_updates") >= 1
        assert registry.get_sample_value("status_dropped_updates_total") == 0
        broken.down = False
        eventually(lambda: registry.get_sample_value("status_store_up") == 1)


def test_no_snippet_is_left_out() -> None:
    seen = {
        *ACTORS,
        *LOOKING,
        "imports",
        "options",
        "redacted",
        "health",
        "wait",
        "watch",
        "json",
        "retrying",
        "unit-test",
        "unit-test-parent",
        "stub-test",
        "batch",
        "aio",
        # In test_web_recipes.py.
        "websocket",
        "django-settings",
        "django-view",
        # In web/test_json.py.
        "web",
    }
    seen |= {*STORES, "quick-start", "quick-start-reader", "own-backend", "own-backend-test", "moving"}
    assert set(SNIPPETS) == seen
    assert README.read_text(encoding="utf-8").count("code-block:: python") == len(SNIPPETS)
