"""The plan of a run: its jobs and its faults, all from one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Final

#: Faults that each kind of store can have, with their weights.
STORE_FAULTS: Final[Mapping[str, Mapping[str, int]]] = {
    "redis": {"kill": 2, "restart": 1, "freeze": 3, "cut": 3, "delay": 2},
    "piggyback": {"kill": 2, "restart": 1, "freeze": 3, "cut": 3, "delay": 2},
    "redis-memory": {"kill": 2, "restart": 1, "freeze": 3, "cut": 3, "delay": 2},
    "memcached": {"kill": 1, "freeze": 3, "cut": 3, "delay": 2},
    "fleet": {"kill": 1, "freeze": 3, "cut": 3, "delay": 2},
    "sqlite": {"lock": 1},
    "cluster": {"kill": 2, "freeze": 2, "move": 4},
    "sentinel": {"kill": 2, "freeze": 1},
}

#: The store that is the Redis of the broker, with whose commands statuses are sent. Its faults are also the broker's.
PIGGYBACK: Final = "piggyback"

#: Number of servers of each kind of store that can be hurt one by one.
STORE_MEMBERS: Final[Mapping[str, int]] = {"fleet": 2, "cluster": 3}

#: Stores that lose data when a server is killed or restarted.
LOSSY_STORES: Final = frozenset(("redis-memory", "memcached", "fleet", "sentinel"))

#: Faults that each kind of broker can have, with their weights.
BROKER_FAULTS: Final[Mapping[str, Mapping[str, int]]] = {
    "redis": {"kill": 1, "restart": 1, "freeze": 2, "cut": 3, "delay": 2},
    "rabbitmq": {"kill": 1, "freeze": 2, "cut": 3, "delay": 2},
}

WORKER_FAULTS: Final = {"kill": 3, "terminate": 3, "freeze": 2}

#: Ends of a run, with their weights.
_ENDS: Final = {"return": 8, "boom": 4, "retry": 2, "throw": 1, "skip": 1, "limit": 1, "say failed": 1}

#: Shapes in which jobs are sent, with their weights.
_SHAPES: Final = {"single": 12, "parent": 2, "group": 1, "pipeline": 1}

#: Number of failing runs of a job that fails at the end, more than its retries allow.
_ALWAYS: Final = 99

#: Maximum number of retries of a job.
MAX_RETRIES: Final = 3


@dataclass(frozen=True)
class Job:
    """Plan of one job.

    Parameters:
      number: The number of the job in its run.
      at: Seconds from the beginning after which it is sent.
      shape: How it is sent: alone, with children, as a group, as a pipeline.
      actor: The actor that runs it.
      end: How its first runs end.
      failures: Number of runs that end so; the later runs return.
      steps: Number of increments.
      pause: Milliseconds of sleep a step.
      delay: Milliseconds for which the broker holds it back; None for no delay.
      children: Number of messages that it sends; each of them increments its progress.
      result: Whether its result is stored.
      throttle: Milliseconds between two throttled writes.
      notify: Whether it is interrupted when its worker is terminated.
    """

    number: int
    at: float
    shape: str = "single"
    actor: str = "play"
    end: str = "return"
    failures: int = 0
    steps: int = 0
    pause: int = 0
    delay: int | None = None
    children: int = 0
    result: bool = False
    throttle: int = 0
    notify: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the argument of the message."""
        return asdict(self)


@dataclass(frozen=True)
class Fault:
    """A fault of a worker, the store or the broker.

    Parameters:
      at: Seconds from the beginning.
      target: ``worker``, ``store`` or ``broker``.
      member: Number of the worker, or of the server.
      kind: What happens to it.
      seconds: Duration; 0 for a fault at one time only.
      amount: Seconds of delay, for a fault that delays.
    """

    at: float
    target: str
    member: int
    kind: str
    seconds: float
    amount: float = 0.0

    def __str__(self) -> str:
        extra = f", {self.amount:g}" if self.amount else ""
        return f"{self.at:7.2f}s {self.kind} {self.target} {self.member} for {self.seconds:.2f}s{extra}"


@dataclass(frozen=True)
class Plan:
    """The jobs and the faults of a run."""

    jobs: tuple[Job, ...]
    faults: tuple[Fault, ...]


def make_plan(
    seed: int, *, seconds: float, jobs: int, workers: int, store: str, broker: str, fault_every: float, quiet: set[str]
) -> Plan:
    """Draw a plan.

    Parameters:
      seed: The same seed and parameters give the same plan.
      seconds: Seconds in which jobs are sent and faults begin.
      jobs: Number of jobs that are sent, without their children.
      workers: Number of workers.
      store: Kind of store.
      broker: Kind of broker.
      fault_every: Mean seconds between two faults.
      quiet: Targets without faults.
    """
    jobs_random, faults_random = Random(f"jobs {seed}"), Random(f"faults {seed}")
    return Plan(
        tuple(_draw_job(jobs_random, number, seconds * number / jobs) for number in range(jobs)),
        tuple(_draw_faults(faults_random, seconds, workers, store, broker, fault_every, quiet)),
    )


def _draw_job(random: Random, number: int, at: float) -> Job:
    shape = _choose(random, _SHAPES)
    if shape == "parent":
        return Job(number, at, shape, children=random.randint(2, 8), steps=0, pause=random.choice((0, 0, 5)))
    end = _choose(random, _ENDS)
    failures = 0 if end == "return" else random.choice((1, 1, 2, _ALWAYS))
    if end in ("throw", "skip", "say failed"):
        failures = random.choice((1, _ALWAYS))
    actor = random.choice(("play", "play", "play", "play", "play_async", "nobody" if random.random() < 0.1 else "play"))
    return Job(
        number,
        at,
        shape,
        actor=actor if shape == "single" else "play",
        end=end,
        failures=failures,
        steps=random.choice((0, 1, 5, 20, 50)),
        pause=random.choice((0, 0, 0, 1, 10)),
        delay=random.choice((None, None, None, 0, 100, 1000)) if shape == "single" else None,
        result=random.random() < 0.2,
        throttle=random.choice((0, 0, 50, 500)),
        notify=random.random() < 0.2,
    )


def _draw_faults(
    random: Random, seconds: float, workers: int, store: str, broker: str, fault_every: float, quiet: set[str]
) -> list[Fault]:
    kinds = {"worker": WORKER_FAULTS, "store": STORE_FAULTS[store], "broker": BROKER_FAULTS[broker]}
    if store == PIGGYBACK:
        quiet = quiet | {"broker"}
    weights = {target: weight for target, weight in _TARGETS.items() if target not in quiet}
    faults: list[Fault] = []
    at = random.uniform(0.5, 1.5) * fault_every
    while weights and at < seconds:
        target = _choose(random, weights)
        kind = _choose(random, kinds[target])
        members = {"worker": workers, "store": STORE_MEMBERS.get(store, 1), "broker": 1}[target]
        faults.append(
            Fault(
                round(at, 3),
                target,
                random.randrange(members),
                kind,
                seconds=round(_duration(random, kind), 2),
                amount=_amount(random, kind),
            )
        )
        at += random.uniform(0.3, 1.7) * fault_every
    return faults


_TARGETS: Final = {"worker": 4, "store": 5, "broker": 2}


def _duration(random: Random, kind: str) -> float:
    if kind in ("cut", "terminate"):
        return 0.0
    return random.choice((random.uniform(0.1, 0.6), random.uniform(0.6, 2.0), random.uniform(2.0, 5.0)))


def _amount(random: Random, kind: str) -> float:
    if kind == "delay":
        return random.choice((0.005, 0.05, 0.3, 0.7))
    return 0.0


def _choose(random: Random, weights: Mapping[str, int]) -> str:
    return random.choices(list(weights), list(weights.values()))[0]
