"""The cost of a page of a list as the number of jobs grows, and the cost of the index for writers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from dramatiq_status import StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.sqlite import SQLiteBackend
from dramatiq_status.record import ACTOR_NAME, COMPLETED, ENQUEUED_AT, FAILED, QUEUE_NAME
from dramatiq_status.update import EnqueueId, Kind, Update
from tests.servers import RedisCluster, RedisServer

from .common import RUN_TOKEN, Case, Options, Table, interleave, placed, running_updates, timed_rows

SIZES = (1_000, 100_000)
ENQUEUE_ID = EnqueueId(1_234_567_890, 1)
GOAL = "<= 10,000 us, flat"
#: Number of actors, each with a set of the index.
MANY_ACTORS = 1_000


def run(options: Options) -> Iterator[Table]:
    sizes = (500, 1_000) if options.quick else SIZES
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        servers = [stack.enter_context(RedisServer()) for _ in sizes]
        stores: dict[str, list[StatusBackend]] = {
            "Redis": [RedisBackend(url=server.url, timeout=20_000) for server in servers],
            "SQLite": [SQLiteBackend(directory / f"{size}.sqlite", timeout=20_000) for size in sizes],
        }
        rows = [["case", "us", "ratio", "80 % in", "goal"]]
        for store, backends in stores.items():
            for backend, size in zip(backends, sizes):
                fill(backend, size)
            with placed("same", *servers):
                for what, make in PAGES.items():
                    cases = {
                        f"{store}, {what}, of {size:,}": partial(make, backend, size)
                        for backend, size in zip(backends, sizes)
                    }
                    times = interleave(cases, rounds=options.rounds(40), calls=10)
                    rows += timed_rows(times, next(iter(cases)), goals=dict.fromkeys(cases, GOAL))
        yield Table("A page of 50 against the number of jobs; same", rows)

        cluster = stack.enter_context(RedisCluster())
        clustered = RedisBackend(cluster_nodes=cluster.addresses, timeout=20_000)
        fill(clustered, sizes[-1])
        rows = [["case", "us", "ratio", "80 % in", "goal"]]
        for store, backend in (*((name, backends[-1]) for name, backends in stores.items()), ("Cluster", clustered)):
            cases = {
                f"{store}, {what}": partial(page, backend, after=after)
                for what, after in places(backend, sizes[-1]).items()
            }
            with placed("same", *servers, *cluster.nodes):
                times = interleave(cases, rounds=options.rounds(40), calls=10)
            first, *others = cases
            rows += timed_rows(times, first, goals=dict.fromkeys(others, "<= 1.10"))
        yield Table(f"A page of 50 of {sizes[-1]:,} jobs, wherever it is; same", rows)

        actors = 100 if options.quick else MANY_ACTORS
        server = servers[0]
        many = RedisBackend(url=server.url, namespace="many", timeout=20_000)
        for first in range(0, 20 * actors, 100):
            names = [f"actor{number % actors}" for number in range(first, first + 100)]
            many.update_many([(str(uuid4()), update) for name in names for update in life(name)[:1]])
        with placed("same", server):
            cases = {f"{what}, of {actors:,} actors": partial(make, many, 20 * actors) for what, make in PAGES.items()}
            del cases[f"failed ones, of {actors:,} actors"], cases[f"of one actor, of {actors:,} actors"]
            times = interleave(cases, rounds=options.rounds(40), calls=10)
        rows = [["case", "us", "ratio", "80 % in", "goal"]]
        rows += timed_rows(times, next(iter(cases)), goals=dict.fromkeys(cases, GOAL))
        yield Table("A page of 50 from many sets of the index, Redis; same", rows)

    with RedisServer() as server, placed("same", server):
        cases = {
            **writing(
                "without the index", RedisBackend(url=server.url, namespace="without", max_listed=0, timeout=20_000)
            ),
            **writing("with it", RedisBackend(url=server.url, namespace="with", timeout=20_000)),
        }
        times = interleave(cases, rounds=options.rounds(80), calls=100)
        rows = [["case", "us", "ratio", "80 % in", "goal"]]
        goals = {"one update, with it": "<= 1.05", "enqueue, start, completed, with it": "<= 1.05"}
        for what in ("one update", "enqueue, start, completed"):
            pair = {name: series for name, series in times.items() if name.startswith(what)}
            rows += timed_rows(pair, f"{what}, without the index", goals=goals)
        yield Table("What the index costs, Redis; same", rows)


#: Queries by name: functions of a backend and of the number of jobs.
PAGES = {
    "the first page": lambda backend, size: page(backend),
    "failed ones": lambda backend, size: page(backend, state="failed"),
    "of one actor": lambda backend, size: page(backend, actor_name="actor7"),
    "count": lambda backend, size: StatusRegistry.count(backend=backend),
}


def page(backend: StatusBackend, **parameters: object) -> None:
    if len(StatusRegistry.list(**parameters, backend=backend)) != 50:  # type: ignore[arg-type]
        raise AssertionError("The page is not full.")


def places(backend: StatusBackend, size: int) -> dict[str, str | None]:
    """Return the cursors of the first page, of one in the middle, and of the last one."""
    found: dict[str, str | None] = {"the first page": None}
    after, number = None, 0
    while number < size - 50:
        snapshots = StatusRegistry.list(limit=50, after=after, backend=backend)
        after, number = snapshots[-1].cursor, number + len(snapshots)
        if number == size // 2:
            found["a page in the middle"] = after
    return {**found, "the last page": after}


def fill(backend: StatusBackend, size: int) -> None:
    """Store jobs of ten actors.  Of a hundred jobs, 60 have failed, 20 are completed and 20 are running."""
    for first in range(0, size, 100):
        updates = []
        for number in range(first, first + 100):
            message_id = str(uuid4())
            updates += [(message_id, update) for update in life(f"actor{number % 10}")[: 2 if number % 5 == 1 else 3]]
            if number % 5 > 1:
                updates[-1] = (message_id, updates[-1][1]._replace(state=FAILED))
        backend.update_many(updates)


def life(actor: str) -> list[Update]:
    """Return all updates of a job."""
    enqueued = {ACTOR_NAME: f'"{actor}"', QUEUE_NAME: '"default"', ENQUEUED_AT: "1795479267029"}
    return [
        Update(Kind.ENQUEUE, ENQUEUE_ID, fields=enqueued),
        running_updates(ENQUEUE_ID)[1],
        Update(Kind.RUN, ENQUEUE_ID, RUN_TOKEN, 2, state=COMPLETED, fields={"F": "1795479267029"}),
    ]


def writing(name: str, backend: RedisBackend) -> dict[str, Case]:
    message_id, places = str(uuid4()), count(2)
    backend.update_many([(message_id, update) for update in running_updates(ENQUEUE_ID)])

    def update() -> None:
        fields = {":step": '"reading"', "p": "500"}
        backend.update(message_id, Update(Kind.RUN, ENQUEUE_ID, RUN_TOKEN, next(places), fields=fields))

    def live() -> None:
        other_id = str(uuid4())
        for update in life("actor"):
            backend.update(other_id, update)

    return {f"one update, {name}": update, f"enqueue, start, completed, {name}": live}
