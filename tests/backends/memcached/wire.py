"""A wire between a memcached backend and a server, on which a test sees each request, and other helpers."""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dramatiq_status.backends.memcached import MemcachedBackend
from dramatiq_status.backends.memcached.server import Server

from ...servers import MemcachedServer

#: Time-out in milliseconds that no test reaches by chance, even on a busy machine.
PATIENT = 20_000

DAY = 86_400_000

StartServer = Callable[[MemcachedServer], MemcachedServer]
Make = Callable[..., MemcachedBackend]

#: Function of a request that returns None to forward it, bytes to reply with instead, or False to cut the connection
#: after the server's reply.
Meddle = Callable[[bytes], "bytes | bool | None"]

#: JSON text of a large field.
LARGE = '"' + "x" * 60_000 + '"'


class Wire:
    """A proxy between clients and a server.  It keeps their requests, and a test can change their replies."""

    def __init__(self, server: MemcachedServer) -> None:
        self.server = server
        #: The bytes that a client has sent between two replies.
        self.requests: list[bytes] = []
        self.meddle: Meddle = lambda request: None
        #: Function that changes what is passed on to the server.
        self.rewrite: Callable[[bytes], bytes] = lambda request: request
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.server.port)) as server:
            try:
                self._pass_on(client, server)
            except OSError:
                return

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        asked = cut = False
        while True:
            for ready in select.select([client, server], [], [])[0]:
                data = ready.recv(1 << 20)
                if not data or (cut and ready is server):
                    return
                if ready is server:
                    asked = False
                    client.sendall(data)
                    continue
                if asked:
                    # The rest of a long request.
                    self.requests[-1] += data
                else:
                    self.requests.append(data)
                answer = self.meddle(data)
                if isinstance(answer, bytes):
                    client.sendall(answer)
                    continue
                asked, cut = True, cut or answer is False
                server.sendall(self.rewrite(data))

    def round_trips(self, call: Callable[[], Any]) -> int:
        """Return the number of round trips of a call."""
        before = len(self.requests)
        call()
        return len(self.requests) - before

    def close(self) -> None:
        # Closing alone leaves the thread that waits for clients waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Dripping:
    """A server that answers a byte at a time: from the start, or as soon as it has `greeted`."""

    def __init__(self, server: MemcachedServer, *, greeted: bool) -> None:
        self._server = server
        self._greeted = greeted
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server.port)) as server:
            try:
                while request := client.recv(65_536):
                    server.sendall(request)
                    reply = server.recv(65_536)
                    if self._greeted and request.startswith((b"version", b"mn")):
                        client.sendall(reply)
                        continue
                    for n in range(len(reply)):
                        client.sendall(reply[n : n + 1])
                        if self.over.wait(0.2):
                            return
            except OSError:
                return

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def once(meddle: Meddle, mark: bytes) -> Meddle:
    """Apply a change only to the first request that begins with `mark`."""
    left = [mark]

    def meddle_once(request: bytes) -> bytes | bool | None:
        if left and request.startswith(mark):
            left.pop()
            return meddle(request)
        return None

    return meddle_once


def server_of(backend: MemcachedBackend) -> Server:
    assert backend._servers.only is not None
    return backend._servers.only


def hurry(backend: MemcachedBackend, timeout: float) -> None:
    """Set the time-out of the existing connection and of all new ones, in seconds."""
    server = server_of(backend)
    connection = server.take_idle(time.monotonic())
    assert connection is not None
    server.timeout = connection.timeout = timeout
    server.give(connection)


@contextmanager
def refusing(backend: MemcachedBackend, server: MemcachedServer, message_id: str) -> Iterator[None]:
    """Let a server refuse each value of a message: on its way, the value becomes larger than any item may be."""
    key, found_server = backend._locate(message_id)
    command = re.compile(
        rb"((?:ms|add|cas) %b(?: 0 \d+)?) (\d+)((?: \d+)?(?: [TMC]\S+| c)*\r\n)" % re.escape(key), re.DOTALL
    )

    def enlarge(request: bytes) -> bytes:
        found = command.search(request)
        if found is None:
            return request
        end = found.end() + int(found[2])
        value = request[found.end() : end].ljust(2_000_000)
        return b"%b%b %d%b%b%b" % (request[: found.start()], found[1], len(value), found[3], value, request[end:])

    wire = Wire(server)
    wire.rewrite = enlarge
    client = found_server._client
    direct = client.server
    host, _, port = wire.address.partition(":")
    try:
        client.server = (host, int(port))
        backend.close()
        yield
    finally:
        # A connection that a thread is using stays open.
        wire.rewrite = lambda request: request
        client.server = direct
        backend.close()
        wire.close()


def seconds_left(server: MemcachedServer, key: str) -> int | None:
    reply = server.ask(f"mg {key} t\r\n".encode()).split()
    return int(reply[1][1:]) if reply[0] == b"HD" else None
