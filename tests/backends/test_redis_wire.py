"""The commands that a Redis backend sends, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import hiredis
import pytest

from dramatiq_status.backend import Query
from dramatiq_status.backends.redis import RedisBackend
from dramatiq_status.backends.redis import clock as redis_clock
from dramatiq_status.backends.redis.script import LIST, UPDATE
from dramatiq_status.cursor import Cursor
from dramatiq_status.testing.conformance import (
    counting,
    deleting,
    enqueue,
    finish,
    heartbeat,
    outside,
    start,
    to_total,
    write,
)
from dramatiq_status.update import Update

from ..proxy import Proxy
from ..servers import RedisServer

NAMES = {UPDATE.sha: "update", LIST.sha: "list", UPDATE.text: "the update script", LIST.text: "the list script"}

#: Commands of the driver when it connects.
GREETINGS = ("CLIENT", "HELLO", "SELECT")


class RecordingProxy(Proxy):
    """A proxy that keeps the requests that it forwards."""

    def __init__(self, port: int) -> None:
        self._parser = hiredis.Reader(encoding="utf-8")
        self._commands: list[list[str]] = []
        super().__init__(port)

    def on_request(self, data: bytes) -> None:
        self._parser.feed(data)
        while command := self._parser.gets():
            self._commands.append(command)

    def commands(self) -> list[list[str]]:
        """Return the commands since the last call, with names for scripts and for the present time."""
        commands, self._commands = self._commands, []
        return [named(command) for command in commands if command[0] not in GREETINGS]


def named(command: list[str]) -> list[str]:
    named = [NAMES.get(text, text) for text in command]
    return [re.sub(r"^1\d{15}$", "MICROSECONDS", re.sub(r"^1\d{12}$", "NOW", text)) for text in named]


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    # A busy machine must not change what is sent.
    monkeypatch.setattr(redis_clock, "QUICK", 60.0)
    with RecordingProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def backend(proxy: RecordingProxy) -> Iterator[RedisBackend]:
    """Yield a backend that knows the server's clock, on a server that has the scripts."""
    with closing(RedisBackend(host="127.0.0.1", port=proxy.port, namespace="n", timeout=20_000)) as backend:
        backend.client.script_load(UPDATE.text)
        backend.client.script_load(LIST.text)
        backend.read("m")
        proxy.commands()
        yield backend


#: The last arguments of an update that may move a message in the index.
INDEX = ["MICROSECONDS", "100000", "2", "n index:"]

UPDATES: dict[str, tuple[Update, list[str]]] = {
    "enqueue": (enqueue(a='"x"'), ["0", "7", "1", "1", "a", '"x"', *INDEX]),
    "start": (start(1), ["1", "7", "1", "1", "1", "1", "1", "", "1", "0", "3600000", "1", "S", "5", *INDEX]),
    "write": (write(1, 2, p="3"), ["4", "1", "2", "0", "1", "p", "3"]),
    "increment": (write(1, 3, increment=0.5), ["4", "1", "3", "0.5", "0"]),
    "finish": (finish(1, 4), ["1", "7", "1", "1", "4", "0", "0", "2", "1", "0", "3600000", "1", "F", "6", *INDEX]),
    "outside": (outside(step='"ž"'), ["2", "0", "1", ":step", '"ž"']),
    "increment from outside": (outside(increment=2), ["2", "2", "0"]),
    "state from outside": (outside(state=2, increment=1), ["5", "2", "1", "3600000", "0", *INDEX]),
    "heartbeat": (heartbeat(1), ["3", "1", "0"]),
    "counts from outside": (
        counting(outside(step="1"), done=2, x=0.5),
        ["7", "0", "0", "2", ":done", "2", "x", "0.5", "5", "", "0", "3600000", "1", ":step", "1", *INDEX],
    ),
    "deletion by a run": (
        deleting(write(1, 5), "step"),
        [*("7", "0", "1", ":step", "0", "1", "7", "1", "1", "5"), *("0", "0", "", "1", "0", "3600000"),
         *("1", "-:step", "1"), *INDEX],
    ),
    "progress to the total": (
        to_total(outside()),
        ["7", "1", "0", "0", "5", "", "0", "3600000", "0", *INDEX],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UPDATES)
def test_one_update_is_one_script_call(proxy: RecordingProxy, backend: RedisBackend, name: str) -> None:
    # Given an update
    update, arguments = UPDATES[name]
    # When it is sent in each way
    backend.update("m", update)
    backend.update_many([("m", update)])
    backend.begin_update("m", update)()
    # Then each is one call of the script
    assert proxy.commands() == [["EVALSHA", "update", "1", "n:m", "NOW", *arguments]] * 3


def test_many_updates_share_script_calls(proxy: RecordingProxy, backend: RedisBackend) -> None:
    # Given updates of several messages, and more updates than one call takes
    # When they are sent
    backend.update_many([("m", write(1, 9)), ("ž", enqueue()), ("m", heartbeat(1))])
    backend.update_many([("m", heartbeat(1))] * 130)
    # Then each call has as many updates as fit, and has the parameters of the index once
    assert proxy.commands() == [
        [*("EVALSHA", "update", "3", "n:m", "n:ž", "n:m"), *("NOW", "4", "1", "9", "0", "0"), *("0", "7", "1", "0"),
         *("3", "1", "0"), *INDEX],
        ["EVALSHA", "update", "128", *["n:m"] * 128, "NOW", *["3", "1", "0"] * 128],
        ["EVALSHA", "update", "2", *["n:m"] * 2, "NOW", *["3", "1", "0"] * 2],
    ]  # fmt: skip


def test_a_delete_is_one_script_call(proxy: RecordingProxy, backend: RedisBackend) -> None:
    backend.delete("m")
    assert proxy.commands() == [["EVALSHA", "update", "1", "n:m", "", "6", "0", "", *INDEX[1:]]]


def test_updates_without_an_index(proxy: RecordingProxy, backend: RedisBackend) -> None:
    with closing(RedisBackend(client=backend.client, namespace="n", timeout=20_000, max_listed=0)) as backend:
        backend.read("m")
        proxy.commands()
        backend.update("m", enqueue())
    assert proxy.commands() == [
        ["EVALSHA", "update", "1", "n:m", "NOW", "0", "7", "1", "0", "MICROSECONDS", "0", "2", ""]
    ]


@pytest.mark.parametrize(
    "read", [lambda backend, ids: backend.read_many(ids), lambda backend, ids: backend.snapshots(ids)], ids=["r", "s"]
)
def test_reads_have_one_command_for_each_message(
    proxy: RecordingProxy, backend: RedisBackend, read: Callable[[RedisBackend, list[str]], Any]
) -> None:
    # Given messages, more of them than one pipeline takes
    ids = ["m", "ž", *("x" for _ in range(2000))]
    # When they are read
    read(backend, ids)
    read(backend, [])
    # Then there is one command for each message
    assert proxy.commands() == [["HGETALL", f"n:{message_id}"] for message_id in ids]


def test_lists_and_counts_are_one_script_call(proxy: RecordingProxy, backend: RedisBackend) -> None:
    # Given queries
    # When their messages are listed and counted
    backend.find(Query(), limit=5, after=None)
    backend.find(Query(2, 'x"y', "q"), limit=5, after=Cursor(17, "m"))
    backend.count(Query(actor_name="x"))
    # Then each is one call of the script
    assert proxy.commands() == [
        ["EVALSHA", "list", "1", "n index:", "", "", "", "5", "", "", "n:", "1"],
        ["EVALSHA", "list", "1", "n index:", "2", '"q"', '"x\\"y"', "5", "17", "m", "n:", "1"],
        ["EVALSHA", "list", "1", "n index:", "", "", '"x"', "0", "1000", "", "n:", "1"],
    ]


def test_the_commands_of_a_subscription(proxy: RecordingProxy, backend: RedisBackend) -> None:
    backend.subscribe(["m", "ž"]).close()
    assert proxy.commands() == [["SUBSCRIBE", "n:m", "n:ž"]]


FIRST_CALLS: dict[str, tuple[Callable[[RedisBackend], Any], list[list[str]]]] = {
    "read": (lambda backend: backend.read("m"), [["TIME"], ["HGETALL", "n:m"]]),
    "update": (
        lambda backend: backend.update("m", outside(step="1")),
        [
            ["TIME"],
            ["EVALSHA", "update", "1", "n:m", "", "2", "0", "1", ":step", "1"],
            ["SCRIPT", "LOAD", "the update script"],
            ["EVALSHA", "update", "1", "n:m", "NOW", "2", "0", "1", ":step", "1"],
        ],
    ),
    "find": (
        lambda backend: backend.find(Query(), limit=1, after=None),
        [
            ["TIME"],
            ["EVALSHA", "list", "1", "n index:", "", "", "", "1", "", "", "n:", "1"],
            ["SCRIPT", "LOAD", "the list script"],
            ["EVALSHA", "list", "1", "n index:", "", "", "", "1", "", "", "n:", "1"],
        ],
    ),
}


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_the_first_call_queries_the_time_and_loads_the_script(proxy: RecordingProxy, name: str) -> None:
    # Given a new backend, and a server without scripts
    call, commands = FIRST_CALLS[name]
    with closing(RedisBackend(host="127.0.0.1", port=proxy.port, namespace="n", timeout=20_000)) as backend:
        # When it makes a call
        call(backend)
    # Then it queries the time in the same round trip, and loads the script if it calls one
    assert proxy.commands() == commands
