"""Two applications on one store, which differ in their namespace alone: neither ever sees the other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import pytest

from dramatiq_status import StatusRegistry, current_progress, current_status
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import MemcachedBackend, RedisBackend, SQLiteBackend

from .recording import PATIENCE, make_broker, working

#: Two namespaces, of which the second one begins with the first one and the separator ":".
NAMESPACES = ("shop", "shop:eu")


class Application:
    """A broker with statuses and an actor; its jobs wait until they are let go."""

    def __init__(self, backend: StatusBackend) -> None:
        self.name, self.backend = backend.namespace, backend
        self.broker = make_broker(backend)
        self.go_on = threading.Event()
        started = self.started = threading.Semaphore(0)

        @dramatiq.actor(broker=self.broker)
        def work(steps: int) -> str:
            status, progress = current_status(), current_progress()
            status.update(owner=self.name, total=steps)
            status.flush()
            started.release()
            assert self.go_on.wait(PATIENCE)
            for _ in range(steps):
                progress.increment()
            return self.name

        self.work = work

    def send(self, message_id: str, steps: int) -> None:
        message = self.work.message_with_options(args=(steps,), status={"sent_by": self.name})
        self.broker.enqueue(message.copy(message_id=message_id))

    def wait_until_running(self, jobs: int) -> None:
        for _ in range(jobs):
            assert self.started.acquire(timeout=PATIENCE)

    def read_many(self, ids: list[str]) -> list[Any]:
        return StatusRegistry.read_many(ids, broker=self.broker)


@pytest.fixture(params=["redis", "memcached", "sqlite"])
def backends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[StatusBackend]]:
    with ExitStack() as stack:
        made: list[StatusBackend] = []
        for namespace in NAMESPACES:
            parameters: dict[str, Any] = {"namespace": namespace, "timeout": 20_000}
            if request.param == "redis":
                url = request.getfixturevalue("redis_url")
                made.append(RedisBackend(url=url, **parameters))
            elif request.param == "memcached":
                url = request.getfixturevalue("memcached_url")
                made.append(MemcachedBackend(servers=url.removeprefix("memcached://"), **parameters))
            else:
                made.append(SQLiteBackend(tmp_path / "status.db", **parameters))
            stack.enter_context(closing(made[-1]))
        yield made


@pytest.fixture
def applications(backends: list[StatusBackend]) -> Iterator[list[Application]]:
    """Yield both applications, with running workers."""
    with ExitStack() as stack:
        found = [Application(backend) for backend in backends]
        for application in found:
            stack.enter_context(working(application.broker, threads=4))
            stack.callback(application.go_on.set)
        yield found


def test_two_namespaces_have_statuses_of_the_same_ids(applications: list[Application]) -> None:
    shop, europe = applications
    # Given jobs with the same ids in both applications, of different sizes
    ids = [uuid4().hex for _ in range(3)]
    for application, steps in ((shop, 10), (europe, 20)):
        for message_id in ids:
            application.send(message_id, steps)
        application.wait_until_running(len(ids))
    # When the jobs of one application finish while those of the other one run
    shop.go_on.set()
    ends = [StatusRegistry.wait(message_id, broker=shop.broker) for message_id in ids]
    # Then each application reads the states of its own jobs
    assert [(end["owner"], end["sent_by"], end["progress"]) for end in ends] == [("shop", "shop", 10)] * 3
    assert [(one.working, one["owner"], one["total"]) for one in europe.read_many(ids)] == [(True, "shop:eu", 20)] * 3
    # And so do their batches
    batches = [StatusRegistry.batch(ids, broker=application.broker).read() for application in applications]
    assert [(batch.counts["completed"], batch.counts["working"]) for batch in batches] == [(3, 0), (0, 3)]
    # And when one application deletes a status, the other one still has its own
    assert StatusRegistry.delete(ids[0], broker=shop.broker)
    assert shop.read_many(ids)[0] is None and europe.read_many(ids)[0] is not None
    # And a write from outside to one is not in the other one
    StatusRegistry.get(ids[1], broker=europe.broker)["note"] = "mine"
    assert [application.read_many(ids)[1].get("note") for application in applications] == [None, "mine"]


def test_watchers_ignore_changes_in_another_namespace(applications: list[Application]) -> None:
    shop, europe = applications
    # Given a job with the same id in each application
    message_id = uuid4().hex
    for application in applications:
        application.send(message_id, 5)
        application.wait_until_running(1)
    # When each application watches its job, and the jobs end one after the other
    seen: dict[str, list[Any]] = {}

    def watch(application: Application) -> None:
        seen[application.name] = list(StatusRegistry.watch(message_id, broker=application.broker, timeout=60_000))

    watchers = [threading.Thread(target=watch, args=(application,)) for application in applications]
    for watcher in watchers:
        watcher.start()
    shop.go_on.set()
    watchers[0].join(PATIENCE)
    is_over = [not watcher.is_alive() for watcher in watchers]
    europe.go_on.set()
    watchers[1].join(PATIENCE)
    # Then the end of one job does not end the other watch
    assert is_over == [True, False]
    # And each watcher has received the states of its own job to the end
    for name, snapshots in seen.items():
        assert {snapshot["owner"] for snapshot in snapshots} == {name} and snapshots[-1].completed


def test_messages_of_another_namespace_are_unknown(applications: list[Application]) -> None:
    shop, europe = applications
    # Given jobs of one application alone
    ids = [uuid4().hex for _ in range(3)]
    for message_id in ids:
        shop.send(message_id, 5)
    shop.wait_until_running(len(ids))
    # When the other application reads them, also by ids that begin with a namespace
    asked = [*ids, *(f"eu:{message_id}" for message_id in ids), *(f":{message_id}" for message_id in ids)]
    # Then they are unknown to it
    assert europe.read_many(asked) == [None] * len(asked)
    assert not any(StatusRegistry.delete(message_id, broker=europe.broker) for message_id in asked)
    assert all(shop.read_many(ids))
    # And the first application does not find the other one's message by an id that could make the same key
    europe.send(ids[0], 5)
    europe.wait_until_running(1)
    assert shop.read_many([f"eu:{ids[0]}"]) == [None]


@pytest.mark.parametrize("backends", ["redis", "sqlite"], indirect=True)
def test_lists_have_only_messages_of_their_namespace(applications: list[Application]) -> None:
    shop, europe = applications
    # Given jobs of both applications, some with the same ids, as many as can run at once
    ids = {"shop": ["both", "shop-1", "shop-2"], "shop:eu": ["both", "eu-1"]}
    for application in applications:
        for message_id in ids[application.name]:
            application.send(message_id, 5)
        application.wait_until_running(len(ids[application.name]))
    # When the jobs of one application have finished
    shop.go_on.set()
    for message_id in ids["shop"]:
        StatusRegistry.wait(message_id, broker=shop.broker)
    for application, state, other in ((shop, "completed", "working"), (europe, "working", "completed")):
        names: dict[str, Any] = {"actor_name": "work", "queue_name": "default", "broker": application.broker}
        for query in ({}, {"state": state}):
            found = StatusRegistry.list(**query, **names)
            # Then each application lists and counts its own jobs
            assert sorted(snapshot.message_id for snapshot in found) == ids[application.name]
            assert {snapshot["owner"] for snapshot in found} == {application.name}
            assert StatusRegistry.count(**query, **names) == len(ids[application.name])
        assert StatusRegistry.list(state=other, **names) == [] and StatusRegistry.count(state=other, **names) == 0
