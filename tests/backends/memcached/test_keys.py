"""Keys of messages, and the servers that have them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient

from dramatiq_status.backend import MAX_NAMESPACE_SIZE
from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.testing.conformance import enqueue, outside
from dramatiq_status.update import Outcome

from ...servers import MemcachedServer
from .wire import PATIENT, Make, StartServer, seconds_left

# Keys


def test_no_message_id_is_sent_as_a_command(backend: MemcachedBackend) -> None:
    # Given ids that would be commands or several words on the wire
    ids = ["a\r\nflush_all", "a\nb", "a b", "\x00", "#" + "0" * 64, "x" * 2_000, "\ud800"]
    backend.update("other", enqueue())
    # When messages have these ids
    outcomes = [backend.update(message_id, enqueue(mark=f'"{n}"')) for n, message_id in enumerate(ids)]
    # Then each has its own status, and other messages are unchanged
    found = backend.read_many(ids)
    assert outcomes == [Outcome.APPLIED] * len(ids)
    assert [record and record[":mark"] for record in found] == [f'"{n}"' for n in range(len(ids))]
    assert backend.read("other") is not None


def test_an_id_that_is_the_hash_of_another_id_is_another_message(backend: MemcachedBackend) -> None:
    # Given an id that cannot be a key
    backend.update("a b", enqueue())
    # When another id is the hash in the first one's key
    _, _, hashed = backend._locate("a b")[0].decode().partition(":")
    # Then it is another message
    assert hashed.startswith("#") and backend.read(hashed) is None


def test_a_plain_id_is_part_of_its_key(make: Make) -> None:
    # Given the longest namespace and the longest plain id
    backend = make(namespace="n" * MAX_NAMESPACE_SIZE)
    # When the backend makes a key of both
    # Then the key consists of both
    assert backend._locate("x" * 200)[0] == b"n" * MAX_NAMESPACE_SIZE + b":" + b"x" * 200


# Servers and clients


@pytest.fixture
def two_servers(start_server: StartServer) -> list[MemcachedServer]:
    return [start_server(MemcachedServer()) for _ in range(2)]


def items_on(server: MemcachedServer) -> int:
    stats = dict(line.split(b" ")[1:] for line in server.ask(b"stats\r\n").split(b"\r\n")[:-2])
    return int(stats[b"curr_items"])


def test_several_servers_share_the_messages(two_servers: list[MemcachedServer]) -> None:
    # Given two servers
    addresses = [server.address for server in two_servers]
    backend = MemcachedBackend(servers=addresses, timeout=PATIENT)
    ids = [uuid4().hex for _ in range(100)]
    marks = [f'"{message_id}"' for message_id in ids]
    # When messages are written in one call
    outcomes = backend.update_many([(message_id, enqueue(mark=f'"{message_id}"')) for message_id in ids])
    # Then both servers have some, every backend for these servers finds them, and the order is kept
    counts = [items_on(server) for server in two_servers]
    assert outcomes == [Outcome.APPLIED] * 100 and sum(counts) == 100 and min(counts) > 10
    for other in (
        backend,
        MemcachedBackend(servers=addresses[::-1], timeout=PATIENT),
        MemcachedBackend(client=HashClient(addresses), timeout=PATIENT),
        MemcachedBackend(client=HashClient(addresses, use_pooling=True), timeout=PATIENT),
    ):
        assert [record and record[":mark"] for record in other.read_many(ids)] == marks
        assert other.update(ids[0], outside(step="1")) is Outcome.APPLIED
        other.close()


def hash_client(server: tuple[str, int], **parameters: Any) -> HashClient:
    return HashClient([server], **parameters)


@pytest.mark.parametrize("kind", [Client, PooledClient, hash_client])
def test_the_server_and_prefix_of_a_client_are_used(server: MemcachedServer, message_id: str, kind: Any) -> None:
    # Given a client with a prefix and time-outs
    client = kind(("127.0.0.1", server.port), key_prefix=b"app:", timeout=0.001, no_delay=False)
    backend = MemcachedBackend(client=client, timeout=PATIENT)
    # When a backend uses it
    backend.update(message_id, enqueue())
    # Then its server and prefix are used
    assert seconds_left(server, f"app:{backend.namespace}:{message_id}") is not None
    assert backend.read(message_id) is not None
    backend.close()


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        ({"client": "127.0.0.1:11211"}, TypeError, "HashClient, not str"),
        ({"servers": []}, ValueError, "at least one server"),
        ({"client": Client(("127.0.0.1", 1), key_prefix="x" * 200)}, ValueError, "key_prefix"),
    ],
    ids=["client", "servers", "key_prefix"],
)
def test_wrong_parameters_raise_an_error(parameters: dict[str, Any], error: type[Exception], message: str) -> None:
    # Given parameters without a server, or with a prefix that is too long
    # When a backend is made
    # Then an error is raised at once
    with pytest.raises(error, match=message):
        MemcachedBackend(**parameters)


def test_a_server_on_a_unix_socket(tmp_path: Path, message_id: str) -> None:
    # Given a server on a socket in the file system
    class OnASocket(MemcachedServer):
        def _command(self) -> list[str]:
            return [*super()._command()[:1], "-s", str(tmp_path / "socket"), "-u", "root"]

        def ask(self, request: bytes, *, timeout: float = 5.0) -> bytes:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout)
                connection.connect(str(tmp_path / "socket"))
                connection.sendall(request)
                return connection.recv(65536)

        def _listens(self) -> bool:
            # Its socket is in a directory of this test, where no other run has one.
            return True

    with OnASocket():
        backend = MemcachedBackend(servers=f"unix:{tmp_path}/socket", timeout=PATIENT)
        # When a message is written and read
        backend.update(message_id, enqueue())
        # Then it is stored
        assert backend.read(message_id) is not None
        backend.close()
