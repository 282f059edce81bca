"""Tests of the servers of other tests: they stop, freeze and come back on request, and never outlive the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from . import servers
from .conftest import StartServer
from .servers import FIRST_PORT, MemcachedServer, RabbitmqServer, RedisServer, Server, ServerFailed

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=[RedisServer, MemcachedServer], ids=["redis", "memcached"])
def server(request: pytest.FixtureRequest, start_server: StartServer) -> Server:
    return start_server(request.param())


def answers(server: Server) -> bool:
    request, answer = server.hello
    try:
        return server.ask(request, timeout=0.2).startswith(answer)
    except OSError:
        return False


def delayed(server: Server) -> Server:
    """Make a server begin later, as on a busy machine."""
    command = server._command
    server._command = lambda: ["sh", "-c", 'sleep 0.2; exec "$@"', "sh", *command()]  # type: ignore[method-assign]
    return server


def test_a_server_that_another_run_has_started_is_not_taken_for_ours(server: Server) -> None:
    # Given the server of another test run, and a server of this run that has chosen the same port
    ours = delayed(type(server)(port=server.port))
    # When the server of this run is started
    # Then it does not take the answers of the other one for its own
    with closing(ours), pytest.raises(ServerFailed, match="ended as it started"):
        ours.start()
    assert answers(server)


def test_a_port_that_another_run_has_taken_meanwhile(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a port that was free when it was chosen, and is taken now
    found = iter([server.port, servers.free_port()])
    monkeypatch.setattr(servers, "free_port", lambda: next(found))
    # When a server is started
    with closing(delayed(type(server)())) as ours:
        ours.start()
        # Then the server has another port
        assert ours.port != server.port
        assert answers(ours)


@pytest.mark.skipif(sys.platform != "linux", reason="Reads /proc.")
def test_no_client_gets_the_port_of_a_server_that_is_down() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert first <= FIRST_PORT or not any(first <= servers.free_port() <= last for _ in range(200))


@pytest.mark.parametrize("end", [Server.stop, Server.kill], ids=["stop", "kill"])
def test_server_that_ended_comes_back_on_its_port(server: Server, end: Callable[[Server], None]) -> None:
    port = server.port
    end(server)
    assert not answers(server)

    server.start()
    assert server.port == port
    assert answers(server)


def test_paused_server_accepts_connections_and_answers_nothing(server: Server) -> None:
    server.pause()
    with pytest.raises(TimeoutError):
        server.ask(server.hello[0], timeout=0.2)

    server.resume()
    assert answers(server)


def test_paused_server_can_be_stopped(server: Server) -> None:
    server.pause()
    server.stop()
    assert not server.running


def test_server_outlives_the_thread_that_restarted_it(server: Server) -> None:
    thread = threading.Thread(target=server.restart)
    thread.start()
    thread.join()
    assert answers(server)


def test_reset_empties_redis_and_forgets_its_scripts(redis_server: RedisServer) -> None:
    redis_server.reset()
    redis_server.ask(b"SET a 1\r\n")
    sha = redis_server.ask(b"SCRIPT LOAD 'return 1'\r\n").split(b"\r\n")[1]

    redis_server.reset()
    assert redis_server.ask(b"DBSIZE\r\n") == b":0\r\n"
    assert redis_server.ask(b"SCRIPT EXISTS " + sha + b"\r\n") == b"*1\r\n:0\r\n"


def test_reset_empties_memcached(memcached_server: MemcachedServer) -> None:
    memcached_server.reset()
    memcached_server.ask(b"set a 0 0 1\r\n1\r\n")

    memcached_server.reset()
    assert memcached_server.ask(b"get a\r\n") == b"END\r\n"


def test_rabbitmq_speaks_amqp(rabbitmq_server: RabbitmqServer, rabbitmq_url: str) -> None:
    pika = pytest.importorskip("pika")
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    assert connection.is_open
    connection.close()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_server_dies_with_the_process_that_started_it(
    redis_server: RedisServer, end: signal.Signals, tmp_path: Path
) -> None:
    # Given another process that started a server
    script = "import time, tests.servers as s; print(s.RedisServer().start().port, flush=True); time.sleep(100)"
    starter = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        # The data of a server stays behind if its starter is killed. It stays in this directory.
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert starter.stdout is not None
    port = int(starter.stdout.readline())

    # When this process is ended
    starter.send_signal(end)
    starter.wait()
    starter.stdout.close()

    # Then no server listens on the port any more
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    pytest.fail("the server outlived the process that started it")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_server_outlives_a_forked_child(server: Server) -> None:
    # Given a child forked off the tests, which runs the handlers of an orderly exit
    if (child := os.fork()) == 0:
        server.close()
        os._exit(0)
    os.waitpid(child, 0)

    assert answers(server)
