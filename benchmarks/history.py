"""The history of runs: the start of a second and of an eleventh run, beside the same script without the history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import Any, cast

from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis.operations import Operations
from dramatiq_status.backends.redis.protocol import UpdateCall
from dramatiq_status.backends.redis.script import UPDATE, Script
from dramatiq_status.history import run_ended
from dramatiq_status.testing.updates import enqueue, start
from dramatiq_status.update import Update
from tests.servers import RedisServer

from .common import Options, Table, placed, timed_rows

#: Number of starts a round.
STARTS = 200

#: A function that measures one round: microseconds of the server and of the caller a start.
Case = Callable[[], tuple[float, float]]

_STORED = "written[13], written[14] = 'h', define_history().add(key, old, generation - old.generation > 0)"


class PlainCall(UpdateCall):
    """A call of the script without the history: it writes the version a second time in place of the history."""

    script = Script.of(UPDATE.text.replace(_STORED, "written[13], written[14] = 'v', version"))


def run(options: Options) -> Iterator[Table]:
    assert PlainCall.script != UPDATE
    starts = STARTS // 10 if options.quick else STARTS
    with RedisServer() as server, placed("same", server):
        for number in (2, 11):
            cases = {
                "without": case(server, PlainCall, number, starts),
                "with": case(server, UpdateCall, number, starts),
            }
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
            for _ in range(options.rounds(30)):
                for name, measure in cases.items():
                    times[name].append(measure())
            of_server, of_caller = ({name: [pair[i] for pair in times[name]] for name in cases} for i in (0, 1))
            rows = [["history", "us", "ratio", "80 % in", "goal", "caller's us", "ratio", "80 % in"]]
            for ours, theirs in zip(
                timed_rows(of_server, "without", goals={"with": "<= 1.03"}), timed_rows(of_caller, "without")
            ):
                rows.append([*ours, *theirs[1:]])
            yield Table(
                f"The start of run {number}, after a failure, on Redis: processor time of the server; same", rows
            )


def case(server: RedisServer, call: type[UpdateCall], number: int, starts: int) -> Case:
    """Make a case that starts the run of this number of many messages a round."""
    backend = RedisBackend(url=server.url)
    backend.operations = Operations(backend.keys, backend.transport, call)
    rounds = count()

    def used() -> float:
        found = cast(dict[str, Any], backend.client.info("cpu"))
        return float(found["used_cpu_user"] + found["used_cpu_sys"])

    def measure() -> tuple[float, float]:
        ids = [f"{call.__name__}-{number}-{next(rounds)}-{index}" for index in range(starts)]
        backend.update_many([(message_id, update) for message_id in ids for update in earlier_runs(number)])
        update = start(number, generation=number, attempts=number)
        begin, begun = used(), perf_counter()
        for message_id in ids:
            backend.update(message_id, update)
        caller, spent = perf_counter() - begun, used() - begin
        backend.client.flushdb()
        return spent / starts * 1e6, caller / starts * 1e6

    return measure


def earlier_runs(number: int) -> list[Update]:
    """Return the updates of all runs before a run, each of which has failed and is retried."""
    sent = {"a": '"import_rows"', "Q": '"default"', "E": "5"}
    failed = {"x": '{"type":"ValueError","message":"It does not work."}', "D": "9", "N": run_ended(8, failed=True)}
    found = [enqueue(**sent)]
    for run in range(1, number):
        found += [start(run, generation=run, attempts=run, t="1000"), enqueue(generation=run + 1, **sent, **failed)]
    return found
