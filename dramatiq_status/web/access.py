"""Access to statuses: `authorize`, read tokens, and the origin of requests that change a status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ..snapshot import Snapshot
from .tokens import TokenSigner

#: Header in which a request carries a read token.
TOKEN_HEADER: Final = "X-Status-Token"


class Access(str, Enum):
    """Level of access that `authorize` returns.  `authorize` may return the string instead of the member."""

    NONE = "none"
    READ = "read"
    WRITE = "write"


if TYPE_CHECKING:
    Granted = Access | str

    #: Type of functions that decide about one request and one status.  The status is None for the dashboard.
    Authorize = Callable[[Request, Snapshot | None], Granted | Awaitable[Granted]]


def allow_all(request: Request, snapshot: Snapshot | None) -> Access:
    """Let every visitor read every status, and change none."""
    return Access.READ


class AccessCheck:
    """The check of access to statuses: by a read token, or else by `authorize`.

    Parameters:
      authorize(Authorize): A function or a coroutine function.  A function runs in a thread, so that it may block.
      signer(TokenSigner): Checks read tokens; None to accept no token.
    """

    def __init__(self, authorize: Authorize, signer: TokenSigner | None) -> None:
        if not callable(authorize):
            raise TypeError(
                f"authorize must be a function of a request and a snapshot that returns 'none', 'read' or 'write', "
                f"not {type(authorize).__name__}; allow_all lets every visitor read every status."
            )
        self._authorize = authorize
        self._signer = signer
        # A call that cannot block needs no thread.
        self._in_loop = authorize is allow_all or iscoroutinefunction(authorize)

    async def check(self, request: Request, snapshot: Snapshot | None) -> Access:
        """Return the access to one status, or to the dashboard; the request's header may carry a token."""
        tokens = (request.headers.get(TOKEN_HEADER),)
        return (await self.check_many(request, (snapshot,), tokens))[0]

    async def check_many(
        self, request: Request, snapshots: Sequence[Snapshot | None], tokens: Sequence[str | None] = ()
    ) -> list[Access]:
        """Return the access to many statuses.

        Parameters:
          request(Request)
          snapshots(Sequence[Snapshot])
          tokens(Sequence[str]): Read tokens, one for each snapshot, or none at all.
        """
        found = [Access.READ if self._has_token(*pair) else None for pair in zip(snapshots, tokens or ())]
        found += [None] * (len(snapshots) - len(found))
        open_ones = [index for index, access in enumerate(found) if access is None]

        def decide() -> list[Granted | Awaitable[Granted]]:
            return [self._authorize(request, snapshots[index]) for index in open_ones]

        decided = decide() if self._in_loop or not open_ones else await run_in_threadpool(decide)
        for index, granted in zip(open_ones, decided):
            found[index] = access_of(await granted if isawaitable(granted) else granted)
        return [access or Access.NONE for access in found]

    def _has_token(self, snapshot: Snapshot | None, token: str | None) -> bool:
        if self._signer is None or snapshot is None or not token:
            return False
        return self._signer.allows(token, snapshot.message_id)


def access_of(granted: object) -> Access:
    """Convert what `authorize` has returned.

    Raises:
      TypeError: When it is no level of access.
    """
    try:
        return Access(granted)
    except ValueError:
        raise TypeError(f"authorize must return 'none', 'read' or 'write', not {granted!r}.") from None


def is_own_origin(request: Request) -> bool:
    """Return whether a request comes from a page of this site, or from a program that is no browser.

    Browsers send ``Sec-Fetch-Site``; older ones send only ``Origin``; other programs send neither.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
