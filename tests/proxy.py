"""A proxy between a client and a server, which makes the replies as slow, or as damaged, as a test wants them."""

from __future__ import annotations

import socket
import threading
import time

#: Bytes that are read from a socket at once.
BUFFER = 65_536


class Proxy:
    """A proxy that forwards connections from its own loopback port to a server. Each connection has its own threads.

    Parameters:
      port: The server's port on loopback.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        #: Port of the proxy.
        self.port: int = self._listener.getsockname()[1]
        #: Bytes of a reply that are forwarded at once, and the seconds between two pieces; None for all at once.
        self.drip: tuple[int, float] | None = None
        #: Number of bytes of replies after which the proxy forwards no more; None for no limit.
        self.stop_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The thread that accepts connections wakes with an error.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def on_request(self, data: bytes) -> None:
        """Handle bytes for the server before they are forwarded. A subclass overrides this."""

    def on_reply(self, data: bytes) -> bytes:
        """Return the bytes to forward in the place of bytes from the server. A subclass overrides this."""
        return data

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # The listener is closed.
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for work in (self._requests, self._replies):
                threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := client.recv(BUFFER):
                self.on_request(data)
                server.sendall(data)
        except OSError:
            pass
        _end(server)

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while data := server.recv(BUFFER):
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                data = self.on_reply(data)
                while data:
                    if self.stop_after is not None:
                        self.stop_after -= len(data)
                        if self.stop_after < 0:
                            return
                    size, pause = self.drip or (len(data), 0.0)
                    client.sendall(data[:size])
                    data = data[size:]
                    time.sleep(pause)
        except OSError:
            pass
        _end(client)


def _end(peer: socket.socket) -> None:
    try:
        peer.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    peer.close()
