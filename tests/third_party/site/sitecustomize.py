"""Adds a StatusMiddleware to every broker of a process, the processes that it starts included.

Python imports this as it starts, from a directory in ``PYTHONPATH``.  Neither Dramatiq nor threading is imported here:
a process that patches the standard library for gevent has to do so before.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class AtImport:
    """A finder that changes Dramatiq's Broker once it is imported, and its RedisBroker where the statuses piggyback."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        change = CHANGES.get(name)
        spec = PathFinder.find_spec(name, path) if change else None
        if change is not None and spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


#: Backend of the broker that is under construction, if its commands are to be sent with the statuses.
backends: list[Any] = []


def track_all(module: Any) -> None:
    """Let every broker end its construction with a StatusMiddleware of its own."""
    broker_class = module.Broker
    initialize = broker_class.__init__

    @functools.wraps(initialize)
    def initialize_and_track(self: Any, *args: Any, **kwargs: Any) -> None:
        from dramatiq_status import StatusMiddleware, backend_from_url

        initialize(self, *args, **kwargs)
        backend = backends.pop() if backends else backend_from_url(os.environ["EVERYWHERE_STORE"])
        self.add_middleware(StatusMiddleware(backend=backend))

    broker_class.__init__ = initialize_and_track
    note_trouble()


def piggyback_all(module: Any) -> None:
    """Give every RedisBroker a client with the broker's parameters that sends the statuses with its commands."""
    broker_class = module.RedisBroker
    initialize = broker_class.__init__
    own = {name for name in inspect.signature(initialize).parameters if name != "parameters"}

    @functools.wraps(initialize)
    def initialize_with_our_client(self: Any, *, url: str | None = None, client: Any = None, **given: Any) -> None:
        from dramatiq_status.backends import RedisBackend

        if client is None:
            parameters = {name: given.pop(name) for name in list(given) if name not in own}
            backend = RedisBackend(url=url) if url else RedisBackend(**parameters)
            client = backend.broker_client()
            backends.append(backend)
        initialize(self, client=client, **given)

    broker_class.__init__ = initialize_with_our_client


def note_trouble() -> None:
    """Record the exceptions of the middleware's hooks, and the unexpected ones of the writer."""
    import logging

    class Trouble(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if "StatusMiddleware" in text or "unexpected error" in text:
                exception = record.exc_info and record.exc_info[1]
                with open(os.environ["EVERYWHERE_TROUBLE"], "a", encoding="utf-8") as file:
                    file.write(f"{os.environ.get('PYTEST_CURRENT_TEST')}: {text} {exception!r}\n")

    for name in ("dramatiq", "dramatiq_status"):
        logging.getLogger(name).addHandler(Trouble(logging.ERROR))


CHANGES = {"dramatiq.broker": track_all}
if os.environ.get("EVERYWHERE_PIGGYBACK"):
    CHANGES["dramatiq.brokers.redis"] = piggyback_all
sys.meta_path.insert(0, AtImport())  # type: ignore[arg-type]
