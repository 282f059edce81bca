"""The command that serves the dashboard to browsers on this machine."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any, Final

from .exits import COMPLETED, CommandError
from .store import Store

#: Names of the host in requests that browsers on this machine send to a server on the loopback address.
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]", "::1")


def serve(arguments: Namespace, store: Store) -> int:
    """Serve the dashboard until a signal ends the process.

    Visitors need no password.  A server that other machines can reach therefore needs the option `--allow-all`.  On the
    loopback address, the server refuses requests with another host name, because a page of another site could let its
    own name resolve to this address.

    Raises:
      CommandError: When the extra ``web`` is not installed, ``--allow-all`` is missing, or the address is taken.
    """
    try:
        import uvicorn
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from ..web import Access, status_app
    except ImportError as e:
        raise CommandError(f"serve needs the extra web: pip install 'dramatiq-status[web]' ({e}).") from e
    local = arguments.host in LOOPBACK
    if not local and not arguments.allow_all:
        raise CommandError(
            f"{arguments.host} can be reached from other machines, and every visitor would see all jobs. "
            f"Give --allow-all to allow that."
        )
    access = Access.WRITE if arguments.write else Access.READ

    async def authorize(request: Any, snapshot: Any) -> Access:
        return access

    fields = ("*", "args", "kwargs", "traceback", "exception.message") if local else ("*",)
    app: Any = status_app(authorize=authorize, backend=store.backend, fields=fields, title="dramatiq-status")
    if local:
        app = TrustedHostMiddleware(app, allowed_hosts=list(LOOPBACK[:3]))
    config = uvicorn.Config(app, host=arguments.host, port=arguments.port, log_level="warning", lifespan="off")
    try:
        listening = config.bind_socket()
        # Connections that arrive before the event loop runs wait in the socket's queue.
        listening.listen(config.backlog)
    except (SystemExit, OSError):
        raise CommandError(f"{arguments.host}:{arguments.port} is taken, or is no address of this machine.") from None
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    print(f"{store.name} is shown at http://{host}:{listening.getsockname()[1]}/ until Ctrl-C.", file=sys.stderr)
    uvicorn.Server(config).run(sockets=[listening])
    return COMPLETED
