"""A stream of bytes to and from memcached.  All system calls of a call share one deadline."""

from __future__ import annotations

from collections.abc import Callable
from ssl import SSLWantReadError
from typing import Any, Final

from pymemcache.exceptions import MemcacheUnexpectedCloseError, MemcacheUnknownError

from ..._time import monotonic
from ...backend import MIN_BYTES_PER_SECOND
from .._socket import TIME_OUTS, limit_first_wait, wait_longer
from .._timed import closed_by_c, time_left, uninterrupted

#: Maximum number of bytes that are received at once.
_RECEIVE_SIZE: Final = 65_536

#: Maximum number of bytes that are sent at once.
_SEND_SIZE: Final = 262_144


class Stream:
    """A socket that pymemcache has connected.

    Parameters:
      client(pymemcache.Client): A client that connects, and that no other object uses.
      timeout(float): Seconds for each call.
      deadline(float): End of the call that needs the connection, by the monotonic clock.

    Attributes:
      timeout(float): Seconds for each call.
      deadline(float): End of the current call, by the monotonic clock.  Large requests and replies make it later.
      used(float): Time at which it was last given back to the pool, by the monotonic clock; 0 before the first time.
      socket(socket.socket): The socket.
      received(bytes): Received bytes.
      position(int): Number of these bytes that were read.
    """

    def __init__(self, client: Any, *, timeout: float, deadline: float) -> None:
        self._client = client
        self.received: bytes = b""
        self.position: int = 0
        self.timeout = timeout
        self.deadline: float = deadline
        self.used: float = 0.0
        client.timeout = client.connect_timeout = self._time_left()
        # The client's public methods would also wait for a reply, and each piece of the reply would get a whole
        # time-out.
        uninterrupted(client._connect, deadline)
        try:
            self.socket: Any = closed_by_c(client.sock)
            limit_first_wait(self.socket)
        except BaseException:
            client.close()
            raise

    # Time

    def begin(self, deadline: float) -> None:
        """Begin a call that ends at a time by the monotonic clock."""
        self.deadline = deadline

    def renew(self) -> None:
        """Begin another part of a long call, with as much time as the first part."""
        self.begin(monotonic() + self.timeout)

    def _time_left(self) -> float:
        left = self.deadline - monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _wait_longer(self, call: Callable[[Any], Any], argument: Any) -> Any:
        """Call a method of the socket, and wait until the deadline."""
        return wait_longer(self.socket, min(time_left(self.deadline), self.timeout), call, argument)

    def fileno(self) -> int:
        """Return the number of the socket, for a selector."""
        number: int = self.socket.fileno()
        return number

    # Bytes

    def exchange(self, request: bytes, size: int) -> bytes:
        """Send a short request and return the first bytes of the reply, with two system calls.

        Parameters:
          request(bytes): The request.
          size(int): Maximum number of bytes to return.
        """
        self.send(request)
        try:
            reply: bytes = self.socket.recv(size)
        except TIME_OUTS:
            reply = self._wait_longer(self.socket.recv, size)
        return reply

    def unread(self, reply: bytes) -> None:
        """Put the first bytes of a reply back, to read the whole reply."""
        if not reply:
            raise MemcacheUnexpectedCloseError
        self.received, self.position = reply, 0

    def send(self, request: bytes) -> None:
        """Send one request or several."""
        part = request[:_SEND_SIZE]
        try:
            sent = self.socket.send(part)
        except TIME_OUTS:
            sent = self._wait_longer(self.socket.send, part)
        if sent < len(request):
            self._send_rest(memoryview(request)[sent:])

    def _send_rest(self, request: memoryview) -> None:
        while request:
            sent = self._wait_longer(self.socket.send, request[:_SEND_SIZE])
            self.deadline += sent / MIN_BYTES_PER_SECOND
            request = request[sent:]

    def receive(self) -> None:
        """Wait for more bytes."""
        try:
            if monotonic() > self.deadline:
                # If bytes arrive one by one, no system call waits for long enough to end the call.
                raise TimeoutError
            received = self.socket.recv(_RECEIVE_SIZE)
        except TIME_OUTS:
            received = self._wait_longer(self.socket.recv, _RECEIVE_SIZE)
        if not received:
            raise MemcacheUnexpectedCloseError
        # A large reply may take the server longer than the time-out.
        self.deadline += len(received) / MIN_BYTES_PER_SECOND
        self.received = self.received[self.position :] + received
        self.position = 0

    def read_line(self) -> bytes:
        """Read a line."""
        while (end := self.received.find(b"\r\n", self.position)) < 0:
            self.receive()
        line = self.received[self.position : end]
        self.position = end + 2
        return line

    def read_block(self, size: int) -> bytes:
        """Read a number of bytes and the end of their line."""
        while len(self.received) < self.position + size + 2:
            self.receive()
        end = self.position + size
        block = self.received[self.position : end]
        if self.received[end : end + 2] != b"\r\n":
            raise MemcacheUnknownError(f"a value of {size} bytes is not followed by the end of a line")
        self.position = end + 2
        return block

    # The end

    def is_stale(self) -> bool:
        """Return whether the server has closed the connection, or has sent something unexpected."""
        timeout = self.socket.gettimeout()
        self.socket.settimeout(0)
        try:
            self.socket.recv(1)
        except (BlockingIOError, SSLWantReadError):
            self.socket.settimeout(timeout)
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        """Close the connection, even if a reply is still due."""
        self._client.close()
