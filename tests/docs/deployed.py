"""The servers of the page on deployment: each command that the page shows is run on a port of its own."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.request import urlopen

from ..recording import PATIENCE, eventually
from ..servers import free_port
from .pages import ROOT, blocks_of
from .sessions import Shell

FLASK_APP = """
import tasks
from dramatiq_status import StatusRegistry
from flask import Flask

first = tasks.import_rows.send_with_options(delay=600_000)     # with --preload, before the fork
assert StatusRegistry.get(first).queued
app = Flask(__name__)

@app.get("/")
def start():
    message = tasks.import_rows.send_with_options(delay=600_000)
    return [str(StatusRegistry.get(one).state) for one in (first, message)]
"""


def commands_for(app: str) -> list[str]:
    """Return the commands of the page that serve an application."""
    blocks = blocks_of((ROOT / "docs" / "how-to" / "deploy.rst").read_text(encoding="utf-8"))
    text = "\n".join(block.text for block in blocks if block.argument == "sh")
    return [line.partition("#")[0].strip() for line in text.splitlines() if re.search(rf"\b{app}\b", line)]


def serving(command: str, port: int) -> Shell:
    """Run a server in the current directory. Its workers end with it."""
    where = f"--port {port}" if command.startswith("uvicorn") else f"--bind 127.0.0.1:{port}"
    return Shell(Path.cwd(), f"exec {command} {where}", subprocess.DEVNULL)


def visit(server: Shell, port: int) -> socket.socket:
    """Connect to a server as soon as it listens."""

    def connect() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), PATIENCE)
        except ConnectionRefusedError:
            assert server.process.poll() is None
            return None

    found = eventually(connect)
    assert found is not None
    return found


def check_servers(path: str) -> None:
    """Check that the servers of app.py end their open streams, with a last chunk or at a limit of their own, and that
    those of flask_app.py store and read statuses before and after they fork.
    """
    asgi, wsgi = commands_for("app:app"), commands_for("flask_app:app")
    assert (len(asgi), len(wsgi)) == (4, 2)
    if sys.version_info >= (3, 12):
        # The last process of hypercorn would wait for its visitor forever.
        asgi = [command for command in asgi if not command.startswith("hypercorn")]
    Path("flask_app.py").write_text(FLASK_APP)
    with ExitStack() as stack:
        # All start at the same time.
        asgi_servers, wsgi_servers = (
            [(stack.enter_context(serving(command, port)), port) for command in commands for port in [free_port()]]
            for commands in (asgi, wsgi)
        )
        visitors = [stack.enter_context(closing(visit(*server))) for server in asgi_servers]
        for visitor in visitors:
            visitor.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert visitor.recv(1000).startswith(b"HTTP/1.1 200")
        for server, _ in asgi_servers:
            server.process.terminate()
        for server, port in wsgi_servers:
            visit(server, port).close()
            # Several requests reach several processes.
            for _ in range(6):
                with urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as reply:
                    assert json.load(reply) == ["queued", "queued"]
        for command, visitor in zip(asgi, visitors):
            got = rest_of(visitor)
            assert got.endswith(b"0\r\n\r\n") or "--graceful-timeout" in command, (command, got)


def rest_of(visitor: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    got = b""
    try:
        while part := visitor.recv(65_536):
            got += part
    except ConnectionResetError:
        pass
    return got
