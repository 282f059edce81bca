"""Every scenario where the statuses go along with the commands of the broker, and what that costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware

from dramatiq_status import StatusMiddleware
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend

from ..conftest import StartServer
from ..recording import eventually
from ..servers import RedisServer
from .recorder import RecordingRedisBackend
from .scenarios import SCENARIOS, End, Scenario
from .stage import Stage
from .test_scenarios import end_of


@pytest.fixture(
    scope="module",
    params=[("last", True), ("last", False), ("first", True)],
    ids=["last", "last-no-retries", "first"],
)
def stage(request: pytest.FixtureRequest, redis_server: RedisServer) -> Iterator[Stage]:
    """One stage and its worker for all scenarios; each looks at its own messages only."""
    position, retries = request.param
    backend = RecordingRedisBackend(url=redis_server.url, namespace=f"s-{uuid4()}", timeout=20_000)
    stage = Stage(redis_server.url, backend, position=position, name=f"q-{uuid4()}", retries=retries, rides=True)
    with stage.working():
        yield stage
    stage.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_readers_see_the_states_of_each_scenario(stage: Stage, scenario: Scenario) -> None:
    # Given a worker, and where our middleware stands to the one that makes the difference
    order = [type(middleware).__name__ for middleware in stage.broker.middleware]
    ahead = scenario.cause in order and order.index("StatusMiddleware") < order.index(str(scenario.cause))
    expected = scenario.expected(retries=stage.retries, ahead=ahead)
    if expected.states == "q":
        # A message that another middleware refused leaves nothing behind.
        expected = End("", 0)
    # When it happens
    sent = scenario.perform(stage, scenario)
    if expected.states not in ("", "q"):
        for message_id in sent.values():
            stage.audit.wait(message_id)
    # Then these are the states that the store went through, and this is how it ended
    ends = {role: expected if role == "it" else scenario.others for role in sent}
    assert {role: end_of(stage, message_id) for role, message_id in sent.items()} == ends
    # And the last of them was in the store when the command of the broker had returned
    last = {message_id: ends[role].states[-1] for role, message_id in sent.items() if len(ends[role].states) > 1}
    assert [message_id for message_id, state in last.items() if state not in stage.at_ack[message_id]] == []


# Round trips


def make_broker(url: str, *, namespace: str = "dramatiq-status", rides: bool = True) -> RedisBroker:
    backend = RedisBackend(url=url, namespace=namespace, timeout=20_000)
    broker = RedisBroker(**({"client": backend.broker_client()} if rides else {"url": url}))
    broker.add_middleware(StatusMiddleware(backend=backend, heartbeat_interval=3_600_000))
    return broker


def backend_of(broker: dramatiq.Broker) -> StatusBackend:
    return next(found.backend for found in broker.middleware if isinstance(found, StatusMiddleware))


def state_of(broker: dramatiq.Broker, message: dramatiq.Message[Any]) -> str | None:
    snapshot = backend_of(broker).snapshot(message.message_id)
    return None if snapshot is None else snapshot.state


class Done(Middleware):
    """Counts the messages that were acknowledged or rejected."""

    def __init__(self) -> None:
        self.count = 0

    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self.count += 1

    after_nack = after_ack


def test_a_job_takes_the_round_trips_that_it_takes_without_tracking(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a server without other clients, and jobs that are short on any machine
    monkeypatch.setattr("dramatiq_status.deliveries._START_AFTER", 60.0)
    redis_url = start_server(RedisServer()).url
    broker = make_broker(redis_url)
    done = Done()
    broker.add_middleware(done)

    @dramatiq.actor(broker=broker)
    def work() -> None: ...

    admin = redis.Redis.from_url(redis_url)

    def reads() -> int:
        return int(admin.info("stats")["total_reads_processed"])

    # When messages are sent, after the first one has loaded the scripts
    work.send()
    before = reads()
    messages = [work.send() for _ in range(50)]
    # Then each takes one round trip; the other one is the command that counts them
    assert reads() - before == 51
    # When they are processed
    before = reads()
    fetches = admin.info("commandstats")["cmdstat_evalsha"]["calls"]
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=4)
    worker.start()
    try:
        eventually(lambda: done.count == 51)
    finally:
        worker.stop()
    # Then each takes one more, besides those with which the broker fetches
    fetches = admin.info("commandstats")["cmdstat_evalsha"]["calls"] - fetches - 2 * 51
    connects = reads() - before - 51 - fetches - 3
    assert 0 <= connects <= 4 * (4 + 2), connects
    assert {state_of(broker, message) for message in messages} == {"completed"}
    broker.close()


def test_a_job_that_takes_longer_is_shown_at_once(redis_url: str) -> None:
    # Given a job that writes nothing
    broker = make_broker(redis_url)
    end = threading.Event()

    @dramatiq.actor(broker=broker)
    def work() -> None:
        assert end.wait(30)

    message = work.send()
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    try:
        # When it runs, it is shown as working; and when it ends, as completed
        eventually(lambda: state_of(broker, message) == "working")
        end.set()
        eventually(lambda: state_of(broker, message) == "completed")
    finally:
        worker.stop()


# Both or neither


def test_a_message_that_the_broker_refuses_leaves_no_status(redis_server: RedisServer, redis_url: str) -> None:
    # Given a broker whose user may write statuses, and no queues
    admin = redis.Redis.from_url(redis_url)
    admin.acl_setuser(
        "sender", enabled=True, passwords=["+secret"], keys=["dramatiq-status*"], categories=["+@all", "-@dangerous"]
    )
    try:
        broker = make_broker(f"redis://sender:secret@127.0.0.1:{redis_server.port}/0")

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        message = work.message()
        # When a message is sent
        with pytest.raises(redis.ResponseError):
            broker.enqueue(message)
        # Then it is unknown
        assert state_of(broker, message) is None
    finally:
        admin.acl_deluser("sender")


def test_a_user_without_rights_to_transactions_or_to_statuses_can_still_send(
    redis_server: RedisServer, redis_url: str
) -> None:
    # Given users who may not open transactions, or may not write statuses
    admin = redis.Redis.from_url(redis_url)
    users = {
        "plain": (["+@all", "-multi", "-@dangerous"], ["dramatiq*"]),
        "blind": (["+@all"], ["dramatiq", "dramatiq:*"]),
    }
    for name, (categories, keys) in users.items():
        rights = {"categories": [right for right in categories if "@" in right], "keys": keys}
        admin.acl_setuser(name, enabled=True, passwords=["+secret"], commands=["-multi"] * (name == "plain"), **rights)
    try:
        for name, expected in (("plain", "queued"), ("blind", None)):
            broker = make_broker(f"redis://{name}:secret@127.0.0.1:{redis_server.port}/0")

            @dramatiq.actor(broker=broker, queue_name=name)
            def work() -> None: ...

            # When they send a message
            message = work.send()
            # Then the broker has it
            assert broker.do_qsize(name) == 1
            found = RedisBackend(url=redis_url).snapshot(message.message_id)
            assert (None if found is None else found.state) == expected
    finally:
        for name in users:
            admin.acl_deluser(name)


def test_a_broker_of_another_database_goes_without_the_statuses(redis_server: RedisServer, redis_url: str) -> None:
    # Given a client of another backend's, and a backend that was made of the broker's client
    client = RedisBackend(url=redis_server.database(1)).broker_client()
    other, same = RedisBackend(url=redis_url), RedisBackend(client=client)
    broker = RedisBroker(client=client)
    # Then only the second one's statuses go along
    assert other.carrier(broker) is None and same.carrier(broker) is not None
    assert RedisBackend(url=redis_url).carrier(RedisBroker(url=redis_url)) is None
    # And statuses are stored in either case
    for backend in (other, same):
        broker = RedisBroker(client=client)
        broker.add_middleware(StatusMiddleware(backend=backend))

        @dramatiq.actor(broker=broker)
        def work() -> None: ...

        assert state_of(broker, work.send()) == "queued"
