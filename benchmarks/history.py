"""The history of runs: the start of a second and of an eleventh run, beside the same script without the history."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from statistics import median
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

#: A time in epoch milliseconds, with as many digits as the present time.
NOW = 1_795_479_267_029

#: Texts of the script, each with the text that replaces it in the script without the history.
CUTS = (
    ("'C', 'S', 'x', 'N')", "'C')"),
    ("if earlier then", "if false then"),
    ("local old = read(key, start and attempts ~= '1')", "local old = read(key)"),
    ("if old.attempts then\n        history", "if false then\n        history"),
)


def script_without() -> Script:
    """Make the script without the history of runs."""
    text = UPDATE.text
    for old, new in CUTS:
        assert old in text, old
        text = text.replace(old, new)
    return Script.of(text)


class PlainCall(UpdateCall):
    """A call of the script without the history."""

    script = script_without()


class Case:
    """Starts of the same run, such as the second one, of many messages in each round.

    Parameters:
      server(RedisServer)
      call(type[UpdateCall]): The call, with its script.
      number(int): Number of the run.
      starts(int): Number of messages a round.
    """

    def __init__(self, server: RedisServer, call: type[UpdateCall], number: int, starts: int) -> None:
        self._backend = RedisBackend(url=server.url, timeout=20_000)
        self._backend.operations = Operations(self._backend.keys, self._backend.transport, call)
        self._call, self._number, self._starts, self._rounds = call, number, starts, count()
        self._start = start(2**61, generation=number, attempts=number, S=str(NOW + 30_000 * number))

    def script(self) -> float:
        """Return the server's processor time of a start in a pipeline, in microseconds."""
        client = self._backend.client
        pipeline = client.pipeline(transaction=False)
        for message_id in self._messages():
            call = self._call(self._backend.keys, 0, [(message_id, self._start)], [0])
            pipeline.execute_command(
                "EVALSHA", call.script.sha, 1, *call.keys, *call.arguments(self._backend.transport.clock)
            )
        spent = self._used()
        outcomes = pipeline.execute()
        spent = self._used() - spent
        assert all(outcome == [1] for outcome in outcomes), outcomes[0]
        client.flushdb()
        return spent / self._starts * 1e6

    def callers(self) -> Iterator[float]:
        """Start each message in a round trip of its own, and yield the caller's microseconds."""
        for message_id in self._messages():
            begun = perf_counter()
            self._backend.update(message_id, self._start)
            yield (perf_counter() - begun) * 1e6

    def _messages(self) -> list[str]:
        """Store messages that wait for this run, and return their ids."""
        ids = [f"{self._call.__name__}-{next(self._rounds)}" for _ in range(self._starts)]
        earlier = earlier_runs(self._number)
        self._backend.update_many([(message_id, update) for message_id in ids for update in earlier])
        return ids

    def _used(self) -> float:
        found = cast(dict[str, Any], self._backend.client.info("cpu"))
        return float(found["used_cpu_user"] + found["used_cpu_sys"])


def run(options: Options) -> Iterator[Table]:
    starts = STARTS // 10 if options.quick else STARTS
    for placement in ("same", "cross"):
        with RedisServer() as server, placed(placement, server):
            for number in (2, 11):
                # The goal is about the start of a second run.
                goals = {"with": "<= 1.03"} if number == 2 else {}
                cases = {
                    "without": Case(server, PlainCall, number, starts),
                    "with": Case(server, UpdateCall, number, starts),
                }
                of_script: dict[str, list[float]] = {name: [] for name in cases}
                of_caller: dict[str, list[float]] = {name: [] for name in cases}
                for _ in range(options.rounds(15)):
                    for name, case in cases.items():
                        of_script[name].append(case.script())
                    # The cases start messages in turns, so that other work on the machine disturbs both.
                    trips = list(zip(*(case.callers() for case in cases.values())))
                    for name, series in zip(cases, zip(*trips)):
                        of_caller[name].append(median(series))
                rows = [["history", "script's us", "ratio", "80 % in", "caller's us", "ratio", "80 % in", "goal"]]
                for script, caller in zip(
                    timed_rows(of_script, "without"), timed_rows(of_caller, "without", goals=goals)
                ):
                    rows.append([*script, *caller[1:]])
                yield Table(
                    f"The start of run {number}, after a failure, on Redis: the server's processor time of a script "
                    f"call in a pipeline, and a round trip as its caller sees it; {placement}",
                    rows,
                )


def earlier_runs(number: int) -> list[Update]:
    """Return the updates of all runs before a run, each of which has failed and is retried."""
    sent = {"a": '"import_rows"', "Q": '"default"', "E": str(NOW)}
    found = [enqueue(**sent)]
    for run in range(1, number):
        begun = NOW + 30_000 * run
        failed = {
            "x": '{"type":"ValueError","message":"It does not work."}',
            "D": str(begun + 20_000),
            "N": run_ended(begun + 10_000, failed=True),
        }
        found += [
            start(run, generation=run, attempts=run, S=str(begun), t="1000"),
            enqueue(generation=run + 1, **sent, **failed),
        ]
    return found
