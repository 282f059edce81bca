"""uvicorn in a thread of the test, and requests to it as they are on the wire."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from ..recording import PATIENCE, eventually


@dataclass
class Answer:
    """The answer of a server."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """A server that is running."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.url = f"http://{host}:{port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Make a request; underscores in the names of headers stand for hyphens."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        text = body if body is None or isinstance(body, (str, bytes)) else json.dumps(body)
        try:
            connection.request(method, path, text, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    @contextmanager
    def stream(self, path: str, body: Any = None, **headers: str) -> Iterator[Events]:
        """Open a stream of events."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), named)
        try:
            yield Events(connection.getresponse())
        finally:
            connection.close()


class Events:
    """The events of a stream, as they arrive."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response = response

    def next(self) -> dict[str, str]:
        """Wait for the next event; an empty dict is the end of the stream."""
        fields: dict[str, str] = {}
        while line := self.response.readline():
            if line == b"\n":
                if "data" in fields:
                    return fields
                fields.clear()
                continue
            name, _, value = line.decode().rstrip("\n").partition(": ")
            fields[name] = value
        return {}

    def data(self) -> Any:
        """Wait for the next event, and decode its data."""
        return json.loads(self.next()["data"])


@contextmanager
def serving(app: Any, *, port: int = 0, **options: Any) -> Iterator[Site]:
    """Run an ASGI application for the length of the block, by default on a free port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield Site(host, port)
    finally:
        server.should_exit = server.force_exit = True
        if sys.version_info >= (3, 12):
            # From then on, uvicorn waits for open connections even if it is forced to exit.
            loop, deadline = server.servers[0].get_loop(), time.monotonic() + PATIENCE
            while thread.is_alive() and time.monotonic() < deadline:
                for connection in list(server.server_state.connections):
                    loop.call_soon_threadsafe(connection.transport.abort)
                thread.join(0.05)
        thread.join(PATIENCE)
