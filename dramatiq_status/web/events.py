"""The views that answer with a stream of events: of one message, and of many in one stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from ..aio import StatusRegistry
from ..checks import is_message_id
from ..errors import BackendError, StatusMissing
from ..rollup import BatchSnapshot
from ..snapshot import Snapshot
from .access import TOKEN_HEADER, Access
from .exposure import encode, tag_of
from .json_views import MAX_MESSAGES
from .site import Site
from .streams import EventStream, event

#: Milliseconds for which a stream waits for unknown messages after all other messages are finished.
MISSING_TIMEOUT: Final = 10_000

#: Maximum size of a body, in bytes: ids and tokens of all messages.
MAX_BODY: Final = 1_048_576


@dataclass(slots=True)
class FollowedMessage:
    """One message of a stream."""

    token: str | None
    #: Tag or version that the client has seen.
    seen: str | None
    #: Last snapshot from the store.
    snapshot: Snapshot | None = None
    access: Access | None = None
    #: Whether no read has been successful so far: the server of the message does not answer.
    is_unread: bool = False
    #: Tag of the snapshot that was sent last.
    sent: str | None = None
    over: bool = False


class EventViews:
    """The views that return streams of events.

    Parameters:
      site(Site)
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    async def one(self, request: Request) -> ASGIApp:
        """Answer with the events of one message.  The id of an event is the version of the status."""
        snapshot, access = await self._site.read(request)
        followed = FollowedMessage(
            request.headers.get(TOKEN_HEADER), request.headers.get("last-event-id"), snapshot, access
        )
        return self._respond(SingleMessageEvents(self._site, request, {snapshot.message_id: followed}))

    async def many(self, request: Request) -> ASGIApp:
        """Answer with the events of many messages in one stream."""
        messages = _messages_of(await _read_body(request))
        ids = [message_id for message_id in messages if is_message_id(message_id)]
        site = self._site
        found = await StatusRegistry.read_many(ids, return_errors=True, backend=site.backend, broker=site.broker)
        errors = [one for one in found if isinstance(one, BackendError)]
        if errors and len(errors) == len(found):
            raise errors[0]
        for message_id, snapshot in zip(ids, found):
            if isinstance(snapshot, BackendError):
                messages[message_id].is_unread = True
            else:
                messages[message_id].snapshot = snapshot
        feed = ManyMessageEvents(site, request, messages)
        await feed.check(messages.values())
        return self._respond(feed)

    def _respond(self, feed: MessageEvents) -> EventStream:
        return EventStream(self._site.streams, feed.events(), feed.check_again)


class MessageEvents:
    """The events of one stream, about the messages that it follows.

    Parameters:
      site(Site)
      request(Request)
      messages(dict[str, FollowedMessage]): The messages by id.
    """

    def __init__(self, site: Site, request: Request, messages: dict[str, FollowedMessage]) -> None:
        self._site = site
        # A new request object for the same scope, without the parsed attributes that the first one caches.
        self._request = Request(request.scope)
        self._messages = messages

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield events: first the statuses that the client has not seen, then the changes, then the event ``end``.  If
        the store does not answer the first read of the watch, end without this event.
        """
        yield b"retry: 2000\n\n" + b"".join(self._first())
        ids = [message_id for message_id, followed in self._messages.items() if not followed.over]
        if ids:
            watch = self._watch(ids)
            try:
                async for found in watch:
                    events = b"".join([await self._change(*child) for child in _read_in(found)])
                    if events:
                        yield events
                    if all(followed.over for followed in self._messages.values()):
                        break
            except StatusMissing:
                yield b"".join(self.unknown(message_id) for message_id, one in self._messages.items() if not one.over)
            except BackendError:
                # The client resumes, and gets the status code 503 and the time to wait.
                return
            finally:
                await watch.aclose()
        yield event("{}", name="end")

    def _watch(self, ids: Sequence[str]) -> AsyncGenerator[Snapshot, None] | AsyncGenerator[BatchSnapshot, None]:
        backend, broker = self._site.backend, self._site.broker
        if len(ids) == 1:
            # A watch of one message takes less memory than a batch with one message.
            return StatusRegistry.watch(ids[0], missing_timeout=MISSING_TIMEOUT, backend=backend, broker=broker)
        return StatusRegistry.batch(ids, backend=backend, broker=broker).watch(missing_timeout=MISSING_TIMEOUT)

    def _first(self) -> Iterable[bytes]:
        for message_id, followed in self._messages.items():
            snapshot = followed.snapshot
            if followed.is_unread:
                continue
            if snapshot is None:
                followed.over = not is_message_id(message_id)
                yield self.unknown(message_id)
            elif followed.access is Access.NONE:
                followed.over = True
                yield self.refused(message_id)
            elif self._is_seen(followed, snapshot):
                followed.sent, followed.over = tag_of(snapshot), snapshot.finished
            else:
                yield self._send(followed, snapshot)

    async def _change(self, message_id: str, snapshot: Snapshot | None) -> bytes:
        followed = self._messages[message_id]
        vanished = snapshot is None and (followed.snapshot is not None or followed.is_unread)
        followed.snapshot, followed.is_unread = snapshot, False
        if followed.over:
            return b""
        if snapshot is None:
            if not vanished:
                return b""
            followed.sent = None
            return self.unknown(message_id)
        if followed.access is None:
            await self.check((followed,))
        if followed.access is Access.NONE:
            followed.over = True
            return self.refused(message_id)
        return b"" if followed.sent == tag_of(snapshot) else self._send(followed, snapshot)

    def _send(self, followed: FollowedMessage, snapshot: Snapshot) -> bytes:
        followed.sent, followed.over = tag_of(snapshot), snapshot.finished
        return self.status(snapshot, followed.sent)

    async def check(self, messages: Iterable[FollowedMessage]) -> None:
        """Check the access to messages whose status is known."""
        known = [followed for followed in messages if followed.snapshot is not None]
        levels = await self._site.access_check.check_many(
            self._request, [followed.snapshot for followed in known], [followed.token for followed in known]
        )
        for followed, level in zip(known, levels):
            followed.access = level

    async def check_again(self) -> bytes | None:
        """Check the access again; return the last events if the visitor may no longer read a status, else None."""
        open_ones = {message_id: one for message_id, one in self._messages.items() if not one.over}
        await self.check(open_ones.values())
        refused = [message_id for message_id, one in open_ones.items() if one.access is Access.NONE]
        if not refused:
            return None
        # One refused message ends the stream: when the client resumes, the others go on.
        return b"".join(self.refused(message_id) for message_id in refused)

    def _is_seen(self, followed: FollowedMessage, snapshot: Snapshot) -> bool:
        raise NotImplementedError

    def status(self, snapshot: Snapshot, tag: str) -> bytes:
        """Encode a status as an event."""
        raise NotImplementedError

    def refused(self, message_id: str) -> bytes:
        """Encode the refusal of a message as an event."""
        return event(encode({"id": message_id}), name="refused")

    def unknown(self, message_id: str) -> bytes:
        """Encode an unknown message as an event."""
        return event(encode({"id": message_id}), name="unknown")


class SingleMessageEvents(MessageEvents):
    """The events for ``EventSource``: the data of an event is the status, and the id of the event is the version."""

    def _is_seen(self, followed: FollowedMessage, snapshot: Snapshot) -> bool:
        return followed.seen == str(snapshot.version)

    def status(self, snapshot: Snapshot, tag: str) -> bytes:
        return event(self._site.exposure.to_json(snapshot), event_id=snapshot.version)


class ManyMessageEvents(MessageEvents):
    """The events for the element: an event's data is the message's id, a tag of its version, and the status."""

    def _is_seen(self, followed: FollowedMessage, snapshot: Snapshot) -> bool:
        return followed.seen == tag_of(snapshot)

    def status(self, snapshot: Snapshot, tag: str) -> bytes:
        found = {"id": snapshot.message_id, "tag": tag, "status": self._site.exposure.to_dict(snapshot)}
        return event(encode(found))


def _read_in(found: Snapshot | BatchSnapshot) -> Iterable[tuple[str, Snapshot | None]]:
    """Return the messages that the store could read, and their statuses."""
    if isinstance(found, Snapshot):
        return ((found.message_id, found),)
    unavailable = set(found.unavailable)
    return [child for child in found.children.items() if child[0] not in unavailable]


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"A body has at most {MAX_BODY} bytes.")
    return bytes(body)


def _messages_of(body: bytes) -> dict[str, FollowedMessage]:
    """Decode the body of a request: ``{"messages": [{"id": "…", "token": "…", "tag": "…"}, …]}``."""
    try:
        listed = json.loads(body)["messages"]
        found = {one["id"]: FollowedMessage(one.get("token"), one.get("tag")) for one in listed}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HTTPException(400, 'The body must be JSON: {"messages": [{"id": "…"}, …]}.') from None
    if len(found) > MAX_MESSAGES:
        raise HTTPException(413, f"A stream has at most {MAX_MESSAGES} messages.")
    if not found or not all(
        isinstance(message_id, str) and all(isinstance(text, (str, type(None))) for text in (one.token, one.seen))
        for message_id, one in found.items()
    ):
        raise HTTPException(400, "Ids, tokens and tags must be texts, and there must be one message at least.")
    return found
