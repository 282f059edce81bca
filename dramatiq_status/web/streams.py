"""Server-Sent Events: a response that takes little memory, sends only the newest statuses, and ends when the server
ends.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

from starlette.types import Message, Receive, Scope, Send

from ..aio.tasks import end_of

#: Seconds of silence after which a comment is sent, so that proxies keep the connection.
COMMENT_INTERVAL: Final = 15.0

#: Seconds after which the access to a stream's statuses is checked again.
CHECK_INTERVAL: Final = 60.0

#: Maximum age of a stream, in seconds; the client then resumes.
MAX_AGE: Final = 600.0

#: Seconds between two checks of the server and of the streams' times.
TICK: Final = 0.1

#: Key under which a stream stores itself in the scope of its request.
STREAM: Final = "dramatiq_status.web.stream"

HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx passes each event on at once.
    (b"x-accel-buffering", b"no"),
    # Compressing middleware, such as Django's, would wait for more data.
    (b"content-encoding", b"identity"),
    (b"x-content-type-options", b"nosniff"),
]


class Streams:
    """The open streams of an application in one event loop, and the one timer that they share."""

    def __init__(self) -> None:
        self._open: dict[EventStream, None] = {}
        self._ticker: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, stream: EventStream) -> None:
        self._open[stream] = None
        if self._ticker is None or self._ticker.done() or self._ticker.get_loop() is not asyncio.get_running_loop():
            self._ticker = asyncio.create_task(self._tick(), name="dramatiq-status streams")

    def remove(self, stream: EventStream) -> None:
        self._open.pop(stream, None)

    def end(self) -> None:
        """End all streams.  Their clients resume, at this process or at another one."""
        for stream in list(self._open):
            stream.end()

    async def _tick(self) -> None:
        clock = asyncio.get_running_loop().time
        while self._open:
            await asyncio.sleep(TICK)
            if _server_ends():
                self.end()
                return
            now = clock()
            for stream in self._open:
                if stream.alarm <= now:
                    stream.wake()


def _server_ends() -> bool:
    """Return whether uvicorn has received a signal to end.

    uvicorn waits until open responses end, and does not notify the application.  Its handler of the signal is a method
    of the server, whose `should_exit` is then true.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True


class EventStream:
    """A response of Server-Sent Events, as an ASGI application.

    There is no queue: the stream takes the next event from the source only when the last one is sent, and the source
    then yields the newest statuses.

    Parameters:
      streams(Streams): Where the stream is registered while it is open.
      source(AsyncGenerator[bytes, None]): Yields events; the stream closes it.
      check(Callable): Checks the access again.  Returns the last events if the visitor has lost the access, else None.
    """

    __slots__ = (*("_check", "_is_over", "_leaving", "_next", "_receive", "_source", "_streams", "_wakeup", "alarm"),)

    def __init__(
        self,
        streams: Streams,
        source: AsyncGenerator[bytes, None],
        check: Callable[[], Awaitable[bytes | None]],
    ) -> None:
        self._streams = streams
        self._source = source
        self._check = check
        self._is_over = False
        self._wakeup: asyncio.Future[None] | None = None
        self._next: asyncio.Task[bytes] | None = None
        self._receive: Receive
        self._leaving: asyncio.Task[Message] | None = None
        #: Time at which the stream wakes if no event arrives, by the loop's clock.
        self.alarm: float = 0.0

    def wake(self, _: object = None) -> None:
        """Wake the stream, so that it checks for events, for its end and for its timers."""
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    def end(self) -> None:
        """End the response."""
        self._is_over = True
        self.wake()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Store the stream in the scope.  The application runs it after Starlette has routed the request.

        If the route ran the stream, the open calls of Starlette's middleware and routes would take several KiB of
        memory for each stream.
        """
        scope[STREAM] = self

    async def run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, until the source or the server ends, the client leaves, the visitor loses the access, or
        the stream is too old.
        """
        self._receive = receive
        self._listen()
        self._streams.add(self)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            if scope["method"] != "HEAD":
                await self._send_events(send)
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            # The client is gone.
            pass
        finally:
            self._streams.remove(self)
            self._is_over = True
            try:
                await end_of(*(task for task in (self._leaving, self._next) if task is not None))
            finally:
                await self._source.aclose()

    async def _send_events(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        close_at, check_at, comment_at = now + MAX_AGE, now + CHECK_INTERVAL, now + COMMENT_INTERVAL
        while not self._is_over:
            if self._next is None:
                self._next = loop.create_task(self._source.__anext__())
                self._next.add_done_callback(self.wake)
            if not self._next.done():
                self.alarm = min(close_at, check_at, comment_at)
                self._wakeup = loop.create_future()
                await self._wakeup
                self._wakeup = None
            now = loop.time()
            if now >= close_at:
                return
            if now >= check_at:
                check_at = now + CHECK_INTERVAL
                last = await self._check()
                if last is not None:
                    await send(_body(last))
                    return
            if self._next.done():
                finished, self._next = self._next, None
                try:
                    events = finished.result()
                except StopAsyncIteration:
                    return
            elif now >= comment_at:
                events = b":\n\n"
            else:
                continue
            await send(_body(events))
            comment_at = loop.time() + COMMENT_INTERVAL

    def _listen(self, received: asyncio.Task[Message] | None = None) -> None:
        """Wait until the client leaves.  A task that only calls `receive` takes less memory than a loop."""
        if received is not None and _is_last(received):
            self.end()
            return
        self._leaving = asyncio.create_task(self._receive())  # type: ignore[arg-type]
        self._leaving.add_done_callback(self._listen)


def _is_last(received: asyncio.Task[Message]) -> bool:
    if received.cancelled() or received.exception() is not None:
        return True
    return bool(received.result()["type"] == "http.disconnect")


def _body(events: bytes) -> Message:
    message: dict[str, Any] = {"type": "http.response.body", "body": events, "more_body": True}
    return message


def event(data: str, *, name: str = "", event_id: object = None) -> bytes:
    """Encode one event whose data is a text of one line."""
    head = (f"event: {name}\n" if name else "") + (f"id: {event_id}\n" if event_id is not None else "")
    return f"{head}data: {data}\n\n".encode()
