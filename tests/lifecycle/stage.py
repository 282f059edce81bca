"""A broker with the usual middleware, StatusMiddleware at a chosen position, and an actor that runs a script."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any, Final

import dramatiq
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import Retry
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    MiddlewareError,
    Pipelines,
    Retries,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
    TimeLimitExceeded,
)
from dramatiq.rate_limits import backends as rate_limits
from dramatiq.results import Results
from dramatiq.results import backends as results

from dramatiq_status import StatusMiddleware, current_progress, current_status
from dramatiq_status.backends import RedisBackend
from dramatiq_status.record import STATE
from dramatiq_status.snapshot import Snapshot

from ..recording import eventually, make_stub_broker, wait_until_it_runs
from .recorder import LETTERS, Recorder

#: Positions of StatusMiddleware: before all other middleware, among them, after all.
POSITIONS: Final = ("first", "middle", "last")

#: Maximum number of seconds that a test waits for an event.
PATIENCE: Final = 30.0


class Boom(Exception):
    """An exception after which a message is retried."""


class Expected(Exception):
    """The exception in the actor's option `throws`."""


class Nasty(MiddlewareError):
    """An exception that Dramatiq does not catch when a middleware raises it."""


class Audit(Middleware):
    """Middleware that counts enqueued and finished copies of each message."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._changed = Condition()

    def after_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        with self._changed:
            self._open[message.message_id] += 1
            self._changed.notify_all()

    def after_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        with self._changed:
            self._closed[message.message_id] += 1
            self._changed.notify_all()

    after_nack = after_ack

    def wait(self, message_id: str, *, rounds: int = 1) -> None:
        """Wait until as many copies have been acknowledged or rejected as were enqueued."""

        def done() -> bool:
            return self._closed[message_id] >= max(rounds, self._open[message_id])

        with self._changed:
            assert self._changed.wait_for(done, PATIENCE), (
                f"{message_id}: {self._open[message_id]} enqueued, {self._closed[message_id]} done"
            )


class Unruly(Middleware):
    """A middleware of another package: it carries out the message's option ``unruly``, a pair of a hook and an action,
    once for each message.
    """

    def __init__(self) -> None:
        self._done: set[str] = set()

    def _act(self, hook: str, broker: dramatiq.Broker, message: Any) -> None:
        wanted, deed = message.options.get("unruly", (None, None))
        if wanted != hook or message.message_id in self._done:
            return
        self._done.add(message.message_id)
        if deed == "fail":
            message.fail()
        elif deed == "skip":
            raise SkipMessage
        elif deed == "put back and skip":
            # Return the message itself and no copy, so that StatusMiddleware finds the options that it has added.
            broker.enqueue(getattr(message, "_message", message))
            raise SkipMessage
        elif deed == "requeue and skip":
            broker.enqueue(message.copy(), delay=20)
            raise SkipMessage
        else:
            raise {"error": ValueError, "nasty": Nasty, "interrupt": TimeLimitExceeded}[deed](deed)

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
        self._act("before_retry" if message.options.get("retries") else "before_enqueue", broker, message)

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self._act("before_process_message", broker, message)

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self._act("after_process_message", broker, message)

    def before_ack(self, broker: dramatiq.Broker, message: Any) -> None:
        self._act("before_ack", broker, message)


#: Time limit of all stages: its thread never ends.
_time_limit = TimeLimit(interval=20)


def make_middleware(*, retries: bool) -> list[Middleware]:
    """Make Dramatiq's own middleware in their usual order, then the unruly one."""
    # Start the thread of the time limit's manager, unless it runs.  Under gevent, the manager is not a thread: the
    # `dramatiq-gevent` command starts it.
    if not getattr(_time_limit.manager, "is_alive", lambda: True)():
        _time_limit.after_process_boot(None)
    return [
        AgeLimit(),
        _time_limit,
        ShutdownNotifications(),
        Callbacks(),
        Pipelines(),
        *([Retries(min_backoff=10, max_backoff=20)] if retries else []),
        Results(backend=results.StubBackend()),
        GroupCallbacks(rate_limits.StubBackend()),
        CurrentMessage(),
        Unruly(),
    ]


def insert(middleware: list[Middleware], ours: Middleware, position: str) -> list[Middleware]:
    """Insert StatusMiddleware at the chosen position."""
    at = {"first": 0, "middle": 5, "last": len(middleware)}[position]
    return [*middleware[:at], ours, *middleware[at:]]


def make_broker(
    url: str, middleware: list[Middleware], *, namespace: str, client: redis.Redis | None = None
) -> dramatiq.Broker:
    """Make a broker by its URL.  The Redis broker notices the death of a worker within seconds."""
    if url.startswith("redis://"):
        return RedisBroker(
            **({"url": url} if client is None else {"client": client}),
            middleware=middleware,
            namespace=namespace,
            heartbeat_timeout=3000,
            maintenance_chance=1_000_000,
        )
    if url.startswith("amqp://"):
        return RabbitmqBroker(url=url, middleware=middleware)
    return make_stub_broker(*middleware)


def watch_acks(worker: dramatiq.Worker, see: Callable[[Any], object], *, after: bool = False) -> None:
    """Call `see` when a message is acknowledged or rejected, directly before the broker's call or directly after it."""
    for queue_name, thread in list(worker.consumers.items()):
        if not queue_name.endswith(".DQ"):
            # It is there as soon as the thread has connected.
            consumer = eventually(lambda thread=thread: thread.consumer)
            for name in ("ack", "nack"):
                setattr(consumer, name, _seen(getattr(consumer, name), see, after))


def _seen(tell_broker: Callable[[Any], None], see: Callable[[Any], object], after: bool) -> Callable[[Any], None]:
    def tell(message: Any) -> None:
        for step in (tell_broker, see) if after else (see, tell_broker):
            step(message)

    return tell


class Stage:
    """A broker, the store and the actors.

    Parameters:
      url: URL of the broker, ``stub://`` for Dramatiq's stub.
      backend: The backend that records statuses.
      position: One of POSITIONS.
      name: Name of the queue, and of the broker's keys.
      retries: Whether there is a Retries middleware.
      middleware: The other middleware; by default the usual ones.
      ours: The class of StatusMiddleware.
      piggyback: Whether the statuses are sent with the commands of the broker, whose URL is that of the store.
    """

    def __init__(
        self,
        url: str,
        backend: Recorder,
        *,
        position: str = "last",
        name: str = "lifecycle",
        retries: bool = True,
        middleware: list[Middleware] | None = None,
        ours: type[StatusMiddleware] = StatusMiddleware,
        piggyback: bool = False,
        **options: Any,
    ) -> None:
        self.backend = backend
        self.name = name
        self.retries = retries
        self.audit = Audit()
        self.middleware = ours(backend=backend, **options)
        others = make_middleware(retries=retries) if middleware is None else middleware
        ordered = [self.audit, *insert(others, self.middleware, position)]
        self.piggyback = piggyback
        client = backend.broker_client() if isinstance(backend, RedisBackend) and piggyback else None
        self.broker = make_broker(url, ordered, namespace=name, client=client)
        #: The states that the store had when messages were acknowledged or rejected, by id.
        self.at_ack: defaultdict[str, set[str]] = defaultdict(set)
        #: Functions by the steps of a script.
        self.steps: dict[str, Callable[[str], Any]] = {
            "return": lambda rest: None,
            "result": lambda rest: rest,
            "raise": self._raise,
            "throw": self._throw,
            "retry": self._retry,
            "skip": self._skip,
            "loop": self._loop,
            "say": self._say,
            "progress": self._progress,
            "send": self._send,
            "send self": self._send_self,
            "call": self._call,
        }
        # Options of Retries, which a broker without Retries refuses.
        limits: dict[str, Any] = {"throws": (Expected,), "max_retries": 3} if retries else {}
        self.play = dramatiq.actor(self._play, broker=self.broker, queue_name=name, actor_name="play", **limits)
        #: Actor without retries that also runs scripts: in Dramatiq 1.17 a message cannot forbid its retries by a 0.
        self.once = dramatiq.actor(
            self._play,
            broker=self.broker,
            queue_name=name,
            actor_name="once",
            **({**limits, "max_retries": 0} if retries else {}),
        )
        self.other = dramatiq.actor(self._other, broker=self.broker, queue_name=name, actor_name="other")

    # The actors

    def _play(self, *script: str) -> Any:
        """Carry out the n-th part of the script in the n-th run, and the last part later on.  Commas separate steps."""
        message = CurrentMessage.get_current_message()
        assert message is not None
        script = script or ("return",)
        part = script[min(self.backend.count_run(message.message_id), len(script) - 1)]
        value = None
        for step in part.split(","):
            name, _, rest = step.partition(":")
            value = self.steps[name](rest)
        return value

    def _other(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def _raise(self, rest: str) -> None:
        raise Boom(rest)

    def _throw(self, rest: str) -> None:
        raise Expected(rest)

    def _retry(self, rest: str) -> None:
        raise Retry("later", delay=int(rest))

    def _skip(self, rest: str) -> None:
        raise SkipMessage

    def _loop(self, rest: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            time.sleep(0.005)

    def _say(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        current_status()[name] = value

    def _progress(self, rest: str) -> None:
        current_progress().progress = int(rest)

    def _send(self, rest: str) -> None:
        self.broker.enqueue(self.other.message().copy(message_id=rest))

    def _send_self(self, rest: str) -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        self.broker.enqueue(message.copy())

    def _call(self, rest: str) -> None:
        self.other.fn(rest)

    # Sending and looking

    def send(self, *script: str, **options: Any) -> str:
        """Send the actor a script and return the id of the message."""
        actor = self.once if options.get("max_retries") == 0 else self.play
        message_id: str = actor.send_with_options(args=script, **options).message_id
        return message_id

    def sequence(self, message_id: str) -> str:
        return self.backend.sequence(message_id)

    def read(self, message_id: str) -> Snapshot:
        return self.backend.history(message_id)[-1]

    @contextmanager
    def working(self, *, threads: int = 2) -> Iterator[dramatiq.Worker]:
        """Run a worker in this process for the length of the block."""
        worker = dramatiq.Worker(self.broker, worker_timeout=20, worker_threads=threads)
        worker.start()
        watch_acks(worker, self._see_ack, after=self.piggyback)
        wait_until_it_runs(worker)
        try:
            yield worker
        finally:
            worker.stop(timeout=int(PATIENCE * 1000))

    def _see_ack(self, message: Any) -> None:
        record = self.backend.read(message.message_id)
        self.at_ack[message.message_id].add(LETTERS[int(record[STATE])] if record else "")

    def close(self) -> None:
        if isinstance(self.broker, RabbitmqBroker):
            for queue in (self.name, f"{self.name}.DQ", f"{self.name}.XQ"):
                self.broker.channel.queue_delete(queue)
        self.broker.close()
        self.backend.close()
