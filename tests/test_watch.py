"""Tests of watches: the decisions of a watcher, and watches on all stores, with and without subscriptions."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from math import inf
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis

from dramatiq_status import (
    BackendError,
    Snapshot,
    State,
    StatusMissing,
    StatusRegistry,
    StatusTimeout,
    current_status,
    track,
    watch,
)
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.decoding import take_snapshot
from dramatiq_status.following import BURST, MessageWatcher, PollSchedule
from dramatiq_status.record import GENERATION, HEARTBEAT_AT, HEARTBEAT_INTERVAL, ORIGIN, STATE, UPDATED_AT, VERSION

from .conftest import StartServer
from .jobs import Job
from .recording import PATIENCE, begun, eventually, make_broker, working
from .servers import RedisServer

PROJECT = Path(__file__).parent.parent

#: Time in milliseconds that is longer than any test.
NEVER = 3_600_000


def snapshot(version: int = 1, *, state: int = 1, updated_at: int = 0, now: int = 0, **fields: str) -> Snapshot:
    record = {
        STATE: str(state),
        ORIGIN: "1",
        GENERATION: "1",
        VERSION: str(version),
        UPDATED_AT: str(updated_at),
        **fields,
    }
    taken = take_snapshot("m", record, now)
    assert taken is not None
    return taken


def make_watcher(timeout: int | None = None, missing_timeout: int = 1000, interval: int = 0) -> MessageWatcher:
    return MessageWatcher("m", 100.0, timeout=timeout, missing_timeout=missing_timeout, interval=interval)


class TestMessageWatcher:
    def test_watchers_show_each_version_once(self) -> None:
        # Given a watcher
        watcher = make_watcher()
        # When it reads two versions, each twice
        shown = [watcher.observe(snapshot(version), 100.0) for version in (1, 1, 2, 2)]
        # Then it shows each once
        assert shown == [True, False, True, False]
        assert not watcher.finished

    def test_watchers_show_a_record_that_was_lost_and_created_again(self) -> None:
        # Given a watcher that has read a version
        watcher = make_watcher()
        watcher.observe(snapshot(7, updated_at=1), 100.0)
        # When the record was lost and created again, with a lower version, or by chance with the same one
        # Then the watcher shows it
        assert watcher.observe(snapshot(1, updated_at=2), 100.0)
        assert watcher.observe(snapshot(1, updated_at=3), 100.0)

    def test_watchers_show_that_a_message_stalls(self) -> None:
        # Given a watcher that has read a running message
        watcher = make_watcher()
        running = {HEARTBEAT_AT: "0", HEARTBEAT_INTERVAL: "1000"}
        assert not snapshot(1, now=0, **running).stalled
        watcher.observe(snapshot(1, now=0, **running), 100.0)
        # When the message stalls, stays stalled, and goes on
        timestamps = [60_000, 70_000, 0]
        # Then the watcher shows each of these changes once
        assert [watcher.observe(snapshot(1, now=now, **running), 100.0) for now in timestamps] == [True, False, True]

    @pytest.mark.parametrize("state", [2, 3])
    def test_watchers_end_with_the_final_state(self, state: int) -> None:
        watcher = make_watcher()
        # When the watcher reads a final state
        # Then it shows this snapshot as the last one
        assert watcher.observe(snapshot(state=state), 100.0) and watcher.finished

    def test_watchers_raise_for_a_message_that_is_unknown_for_too_long(self) -> None:
        # Given a message that is unknown
        watcher = make_watcher(missing_timeout=1000)
        assert not watcher.observe(None, 100.0)
        # When the time is nearly over
        # Then the watcher still waits for the rest of the time
        assert watcher.time_left(100.75) == 0.25
        assert not watcher.observe(None, 100.75)
        # And when the time is over, it raises StatusMissing
        with pytest.raises(StatusMissing):
            watcher.observe(None, 101.0)

    def test_watchers_wait_for_a_record_that_vanishes(self) -> None:
        # Given a message that the watcher has read
        watcher = make_watcher(missing_timeout=1000)
        watcher.observe(snapshot(), 100.0)
        # When its record vanishes
        # Then the watcher waits the whole time for it
        assert not watcher.observe(None, 150.0)
        assert watcher.time_left(150.0) == 1.0
        assert watcher.observe(snapshot(2), 150.5)
        assert watcher.time_left(150.5) == inf

    def test_outages_do_not_count_as_time_of_a_missing_message(self) -> None:
        # Given a message that has vanished
        watcher = make_watcher(missing_timeout=1000)
        watcher.observe(None, 100.0)
        # When the store does not answer for longer than a message may be missing
        watcher.failed(BackendError("away"))
        # Then the time begins again
        assert watcher.time_left(110.0) == inf
        assert not watcher.observe(None, 110.0)

    def test_watchers_raise_the_error_of_the_first_read(self) -> None:
        # Given a store that does not answer to the first read
        # When the watcher gets the error
        # Then it raises the error
        with pytest.raises(BackendError, match="away"):
            make_watcher().failed(BackendError("away"))

    def test_watchers_raise_when_their_time_is_over(self) -> None:
        # Given a watcher with a time-out of half a second
        watcher = make_watcher(timeout=500)
        watcher.observe(snapshot(), 100.0)
        # When half of it has passed, then some is left
        watcher.check(100.25)
        assert watcher.time_left(100.25) == 0.25
        # And when all of it has passed, it raises StatusTimeout
        assert watcher.time_left(100.75) == 0
        with pytest.raises(StatusTimeout, match=r"'m'.* 500 milliseconds"):
            watcher.check(100.5)

    def test_watchers_rest_between_two_snapshots(self) -> None:
        # Given a watcher with an interval of 50 ms between two snapshots
        watcher = make_watcher(interval=50)
        assert watcher.pause(100.0) == 0
        # When it has shown a snapshot
        watcher.observe(snapshot(), 100.0)
        # Then it shows no other one within the interval
        assert watcher.pause(100.02) == pytest.approx(0.03)
        assert watcher.pause(100.06) == 0


class TestPollSchedule:
    @pytest.fixture
    def schedule(self) -> PollSchedule:
        backend = StubBackend()
        assert (backend.poll_interval, backend.watch_interval, backend.recheck_interval) == ((50, 1000), 50, 5000)
        return PollSchedule(backend)

    def looked(self, schedule: PollSchedule, now: float, version: int) -> float:
        """Note a read, and return the seconds until the next one."""
        schedule.begin_read(now)
        schedule.observe(version)
        return schedule.due() - now

    def test_polling_backs_off_while_nothing_changes(self, schedule: PollSchedule) -> None:
        # Given a store without subscriptions
        assert schedule.due() < 0
        # When nothing changes
        pauses = [self.looked(schedule, 100.0, 1) for _ in range(12)]
        # Then it is read at growing intervals of at most a second
        assert pauses[:3] == [pytest.approx(0.05), pytest.approx(0.075), pytest.approx(0.1125)]
        assert pauses[-1] == pytest.approx(1.0)
        # And after a change it is read as often as at first
        assert self.looked(schedule, 200.0, 2) == pytest.approx(0.05)

    def test_watchers_with_a_subscription_also_read_now_and_then(self, schedule: PollSchedule) -> None:
        # Given a store that publishes changes
        schedule.pushed = True
        # When it publishes none
        # Then it is read nevertheless, at long intervals
        assert self.looked(schedule, 100.0, 1) == pytest.approx(5.0)

    def test_finished_messages_are_read_seldom(self, schedule: PollSchedule) -> None:
        # Given a store without subscriptions
        # When a message is finished
        schedule.begin_read(100.0)
        schedule.observe(1, finished=True)
        # Then it is read as seldom as with a subscription
        assert schedule.due() == pytest.approx(105.0)
        # And as often as before when it was enqueued again
        assert self.looked(schedule, 105.0, 2) == pytest.approx(0.05)

    def test_published_versions_cause_a_read_only_if_they_are_new(self, schedule: PollSchedule) -> None:
        # Given a store that publishes changes, and a version that was read
        schedule.pushed = True
        self.looked(schedule, 100.0, 4)
        # When this version is published
        schedule.publish(4)
        # Then no read is due
        assert schedule.due() == pytest.approx(105.0)
        # And when another version is published, a read is due at once
        schedule.publish(5)
        assert schedule.due() <= 100.0

    def test_many_changes_cause_one_read(self, schedule: PollSchedule) -> None:
        # Given a message that changes all the time
        schedule.pushed = True
        now, looks = 100.0, 0
        # When it is read as soon as allowed, for a second
        while now < 101.0:
            schedule.begin_read(now)
            schedule.observe(looks)
            looks += 1
            schedule.publish(looks)
            now = max(now, schedule.due())
        # Then it is read each 50 ms, except for the first reads
        assert BURST < looks <= BURST + 20

    def test_changes_during_a_read_cause_another_read(self, schedule: PollSchedule) -> None:
        # Given a read that is under way
        schedule.pushed = True
        schedule.begin_read(100.0)
        # When a version is published that the read has not returned
        schedule.publish(2)
        schedule.observe(1)
        # Then another read is due
        assert schedule.due() <= 100.0
        # And none if the read has returned it
        schedule.begin_read(100.0)
        schedule.publish(3)
        schedule.observe(3)
        assert schedule.due() == pytest.approx(105.0)

    def test_older_versions_cause_one_read(self, schedule: PollSchedule) -> None:
        # Given a published version that is older than the one that was read: the record may have been created again
        schedule.pushed = True
        self.looked(schedule, 100.0, 9)
        schedule.publish(3)
        # When the message was read again
        # Then no further read is due
        assert schedule.due() <= 100.0
        assert self.looked(schedule, 100.0, 9) == pytest.approx(5.0)

    def test_reads_back_off_in_an_outage(self, schedule: PollSchedule) -> None:
        # Given a store that publishes changes
        schedule.pushed = True
        self.looked(schedule, 100.0, 1)
        # When it does not answer
        pauses = []
        for _ in range(12):
            schedule.begin_read(100.0)
            schedule.fail()
            pauses.append(schedule.due() - 100.0)
        # Then it is read less and less often, at least once a second
        assert pauses[0] == pytest.approx(0.05) and pauses[-1] == pytest.approx(1.0)
        # And when it answers, the intervals are as before
        assert self.looked(schedule, 200.0, 1) == pytest.approx(5.0)


@pytest.fixture
def backend(polled_backend: StatusBackend) -> StatusBackend:
    return polled_backend


class TestEveryBackend:
    def test_watch_shows_all_states_from_the_present_one_to_the_final_one(self, backend: StatusBackend) -> None:
        # Given a message that waits
        job = Job(backend).enqueue()
        steps = iter([job.start, lambda: job.write(step="a"), lambda: job.write(step="b"), job.finish])
        # When it is watched, and changes after each snapshot
        seen = []
        for found in StatusRegistry.watch(job.message_id, backend=backend):
            seen.append((found.state, found.get("step")))
            next(steps, lambda: None)()
        # Then the watcher receives each state once
        assert seen == [
            (State.QUEUED, None),
            (State.WORKING, None),
            (State.WORKING, "a"),
            (State.WORKING, "b"),
            (State.COMPLETED, "b"),
        ]

    def test_slow_watchers_get_the_newest_snapshot(self, backend: StatusBackend) -> None:
        # Given a watcher that has received the start of a job
        job = Job(backend).enqueue().start()
        snapshots = StatusRegistry.watch(job.message_id, backend=backend)
        next(snapshots)
        # When the job changes many times before the next step of the watcher
        for n in range(50):
            job.write(n=n)
        job.finish()
        # Then the watcher receives the end alone
        assert [(found.state, found["n"]) for found in snapshots] == [(State.COMPLETED, 49)]

    def test_watch_waits_for_an_unknown_message_that_is_enqueued(self, backend: StatusBackend) -> None:
        # Given a caller that waits for an unknown message
        job = Job(backend)
        waiting = InThread(lambda: StatusRegistry.wait(job.message_id, backend=backend, missing_timeout=NEVER))
        # When it is enqueued, and runs
        job.enqueue().start().finish()
        # Then the caller gets its final snapshot
        assert waiting.result().completed

    def test_watch_raises_for_a_missing_message(self, backend: StatusBackend) -> None:
        # Given an unknown message
        # When it is watched
        # Then the watch raises StatusMissing
        with pytest.raises(StatusMissing, match="nobody"):
            list(StatusRegistry.watch("nobody", backend=backend, missing_timeout=20))

    def test_watch_raises_for_a_message_that_is_deleted(self, backend: StatusBackend) -> None:
        # Given a message that is watched
        job = Job(backend).enqueue()
        snapshots = StatusRegistry.watch(job.message_id, backend=backend, missing_timeout=20)
        next(snapshots)
        # When it is deleted
        backend.delete(job.message_id)
        # Then the watch raises StatusMissing
        with pytest.raises(StatusMissing):
            next(snapshots)

    @pytest.mark.parametrize("timeout", [0, 30])
    def test_watch_raises_after_its_timeout(self, backend: StatusBackend, timeout: int) -> None:
        # Given a message that does not end
        job = Job(backend).enqueue()
        seen = []
        # When it is watched for a moment
        with pytest.raises(StatusTimeout):
            for found in StatusRegistry.watch(job.message_id, backend=backend, timeout=timeout):
                seen.append(found.state)
        # Then the watch yields the present state, and raises StatusTimeout
        assert seen == [State.QUEUED]

    @pytest.mark.parametrize("together", [False, True])
    def test_watch_keeps_the_interval(self, backend: StatusBackend, together: bool) -> None:
        # Given a backend with a watch interval of an hour
        backend.watch_interval = NEVER
        job = Job(backend).enqueue().start()
        batch = StatusRegistry.batch([job.message_id], backend=backend)
        watched: Iterator[object] = batch.watch(timeout=200)
        if not together:
            watched = StatusRegistry.watch(job.message_id, timeout=200, backend=backend)
        seen = 0
        # When a message changes after each snapshot
        with pytest.raises(StatusTimeout):
            for seen, _ in enumerate(watched, 1):
                job.write(n=seen)
        # Then the watcher receives the first change no earlier than its time-out, and no second one
        assert seen <= 2

    def test_watch_shows_that_a_message_is_stalled(self, backend: StatusBackend) -> None:
        # Given a job whose worker is gone, so that no heartbeat comes any more
        job = Job(backend).enqueue().start(heartbeat_interval=50).beat()
        backend.recheck_interval = 20
        # When it is watched
        seen = []
        for found in StatusRegistry.watch(job.message_id, backend=backend):
            seen.append(found)
            if found.stalled:
                job.finish()
        # Then the watcher shows that the job stalls, although its record has not changed
        assert [found.stalled for found in seen[-2:]] == [True, False]
        assert seen[-2].version == seen[0].version and seen[-1].completed

    def test_watch_raises_for_invalid_durations(self, backend: StatusBackend) -> None:
        # Given invalid durations
        # When they are passed to a watch
        # Then an error names the argument at once
        with pytest.raises(ValueError, match="timeout"):
            StatusRegistry.watch("m", backend=backend, timeout=-1)
        with pytest.raises(TypeError, match="missing_timeout"):
            StatusRegistry.wait("m", backend=backend, missing_timeout="1")  # type: ignore[arg-type]


class TestRedis:
    """Watches with a subscription.  The backend polls only once an hour."""

    @pytest.fixture
    def told(self, redis_url: str) -> Iterator[RedisBackend]:
        backend = RedisBackend(url=redis_url, timeout=20_000)
        backend.recheck_interval = NEVER
        with closing(backend):
            yield backend

    def test_watch_shows_the_states_of_a_job_with_a_retry(self, told: RedisBackend) -> None:
        # Given a job that fails in its first run, and waits for the watcher in its second one
        broker = make_broker(told)
        seen_step = threading.Event()

        @dramatiq.actor(broker=broker, max_retries=1)
        def work() -> None:
            snapshot = current_status().read()
            assert snapshot is not None
            if snapshot.attempts == 1:
                raise ValueError("boo")
            current_status().update(step="again")
            assert seen_step.wait(PATIENCE)
            for _ in track(range(10)):
                pass

        message = work.send()
        seen: list[Snapshot] = []
        with ExitStack() as stack:
            # When it is watched
            for found in StatusRegistry.watch(message, broker=broker):
                if not seen:
                    stack.enter_context(working(broker))
                if found.get("step") == "again":
                    seen_step.set()
                seen.append(found)
        # Then the watcher receives each state that lasts, and never `failed`
        assert seen[0].queued and seen[-1].completed and seen[-1].progress == 1.0
        assert any(found.working and found.get("step") == "again" for found in seen)
        assert not any(found.failed for found in seen)
        versions = [found.version for found in seen]
        assert versions == sorted(set(versions))

    def test_watch_misses_no_change_before_the_subscription(
        self, told: RedisBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a job that ends after the first read, before the watcher has subscribed
        job = Job(told).enqueue()
        subscribe = told.subscribe

        def late(message_ids: Any) -> Any:
            job.start().finish()
            return subscribe(message_ids)

        monkeypatch.setattr(told, "subscribe", late)
        # When it is watched
        seen = [found.state for found in StatusRegistry.watch(job.message_id, backend=told)]
        # Then the watcher receives the end
        assert seen == [State.QUEUED, State.COMPLETED]

    def test_finished_messages_need_no_subscription(self, told: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a job that has ended
        job = Job(told).enqueue().start().finish()

        def fail(message_ids: Any) -> Any:
            raise AssertionError("A finished message will not change.")

        monkeypatch.setattr(told, "subscribe", fail)
        # When wait() is called for it
        # Then one read is enough
        assert StatusRegistry.wait(job.message_id, backend=told).completed

    def test_watch_subscribes_again_after_a_lost_connection(self, told: RedisBackend) -> None:
        # Given a message that is watched
        job = Job(told).enqueue()
        snapshots = StatusRegistry.watch(job.message_id, backend=told)
        assert next(snapshots).queued
        job.start()
        assert next(snapshots).working
        # When the connection is lost, and the message changes meanwhile
        assert listeners(told) == 1
        told.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        job.write(step="a")
        # Then the watcher receives the change
        assert next(snapshots)["step"] == "a"
        # And the watcher subscribes again
        watching = InThread(lambda: [found.state for found in snapshots])
        eventually(lambda: listeners(told) == 1)
        job.finish()
        assert watching.result() == [State.COMPLETED]

    def test_watch_continues_after_an_outage(self, start_server: StartServer) -> None:
        # Given a message that is watched
        server = start_server(RedisServer())
        with (
            closing(RedisBackend(url=server.url, timeout=2_000)) as backend,
            closing(RedisBackend(url=server.url, timeout=20_000)) as patient,
        ):
            job = Job(patient).enqueue().start()
            first, snapshots = begun(
                lambda: StatusRegistry.watch(job.message_id, backend=backend, missing_timeout=NEVER)
            )
            assert first.working
            # When the server ends, and comes back without its memory, and the job is restored by its run
            server.kill()
            watching = InThread(lambda: list(snapshots))
            server.start()
            job.restore(step="again").finish()
            # Then the watcher receives the end
            assert watching.result()[-1].completed

    def test_watch_raises_after_its_timeout_in_an_outage(
        self, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Given a message that is watched for a while
        server = start_server(RedisServer())
        with (
            closing(RedisBackend(url=server.url, timeout=20_000)) as backend,
            closing(RedisBackend(url=server.url, timeout=200)) as hasty,
        ):
            job = Job(backend).enqueue()
            snapshots = StatusRegistry.watch(job.message_id, backend=backend, timeout=500)
            next(snapshots)
            # When the server hangs, and the time-outs are short
            server.pause()
            monkeypatch.setattr(backend, "snapshot", hasty.snapshot)
            monkeypatch.setattr(backend, "subscribe", hasty.subscribe)
            # Then the watch raises StatusTimeout nevertheless
            with pytest.raises(StatusTimeout):
                next(snapshots)

    def test_watch_subscribes_again_after_a_refusal(self, told: RedisBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a server that refuses the first subscription, and a watcher that soon subscribes again
        monkeypatch.setattr(watch, "SUBSCRIBE_INTERVAL", 0.0)
        subscribe, refusals = told.subscribe, iter([BackendError("too many connections")])

        def refusing(message_ids: Any) -> Any:
            for refusal in refusals:
                raise refusal
            return subscribe(message_ids)

        monkeypatch.setattr(told, "subscribe", refusing)
        job = Job(told).enqueue()
        # When a message is watched
        watching = InThread(lambda: list(StatusRegistry.watch(job.message_id, backend=told)))
        # Then the watcher subscribes again, and receives changes
        eventually(lambda: listeners(told) == 1)
        job.finish()
        assert watching.result()[-1].completed

    def test_watch_notices_that_a_status_has_expired(self, told: RedisBackend) -> None:
        # Given a message that is watched
        told.recheck_interval = 20
        job = Job(told).enqueue()
        snapshots = StatusRegistry.watch(job.message_id, backend=told, missing_timeout=20)
        next(snapshots)
        # When its status expires, which the server does not publish
        told.client.pexpire(f"{told.namespace}:{job.message_id}", 1)
        # Then the watch raises StatusMissing
        with pytest.raises(StatusMissing):
            next(snapshots)

    def test_watch_polls_if_the_user_may_not_subscribe(self, start_server: StartServer) -> None:
        # Given a user with all rights except the right to subscribe
        server = start_server(RedisServer())
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("ACL", "SETUSER", "poor", "on", "nopass", "~*", "&*", "+@all", "-subscribe")
        url = server.url.replace("redis://", "redis://poor:x@")
        with closing(RedisBackend(url=url, timeout=20_000)) as backend:
            backend.poll_interval = (1, 20)
            job = Job(backend).enqueue()
            # When a message is watched
            seen = []
            for found in StatusRegistry.watch(job.message_id, backend=backend):
                seen.append(found.state)
                if found.queued:
                    job.start().finish()
            # Then the watcher polls, and receives the changes
            assert seen == [State.QUEUED, State.COMPLETED]

    def test_watchers_that_stop_close_their_connection(self, told: RedisBackend) -> None:
        # Given a watcher
        job = Job(told).enqueue().start()
        for _ in StatusRegistry.watch(job.message_id, backend=told):
            job.write(step="a")
            if listeners(told):
                # When it stops early
                break
        # Then its connection is closed
        eventually(lambda: listeners(told) == 0)

    def test_greenlets_watch_side_by_side(self, redis_url: str) -> None:
        # Given greenlets that each wait for a job, and one that runs the jobs
        script = textwrap.dedent(
            """
            from gevent import monkey; monkey.patch_all()
            import gevent
            from dramatiq_status import StatusRegistry
            from dramatiq_status.backends import RedisBackend
            from tests.jobs import Job

            backend = RedisBackend(url=URL, timeout=20_000)
            jobs = [Job(backend).enqueue() for _ in range(20)]
            waiting = [gevent.spawn(StatusRegistry.wait, job.message_id, backend=backend) for job in jobs]
            while sum(int(client["sub"]) for client in backend.client.client_list()) < 20:
                gevent.sleep(0.01)
            for job in jobs:
                job.start().finish()
            print([greenlet.get(timeout=20).completed for greenlet in waiting] == [True] * 20)
            """
        ).replace("URL", repr(redis_url))
        # When they run
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE * 3
        )
        # Then no greenlet delays another one
        assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork.")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_watches_work_after_a_fork(self, told: RedisBackend) -> None:
        # Given a watcher with a subscription
        job = Job(told).enqueue()
        snapshots = StatusRegistry.watch(job.message_id, backend=told)
        next(snapshots)
        job.start()
        assert next(snapshots).working
        # When the process forks, and the child changes the message and continues the watch
        if (child := os.fork()) == 0:
            try:
                StatusRegistry.get(job.message_id, backend=told)["step"] = "child"
                os._exit(0 if next(snapshots)["step"] == "child" else 1)
            except BaseException:
                os._exit(2)
        # Then both processes receive the change
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert next(snapshots)["step"] == "child"
        job.finish()
        assert [found.state for found in snapshots] == [State.COMPLETED]


class InThread:
    """A thread that runs a blocking call."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._found: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._found = call()
        except BaseException as e:
            self._error = e

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "It did not end in time."
        if self._error is not None:
            raise self._error
        return self._found


def listeners(backend: RedisBackend) -> int:
    """Return the number of connections with subscriptions."""
    return sum(int(client["sub"]) > 0 for client in backend.client.client_list())
