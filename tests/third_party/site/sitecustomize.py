"""Adds a StatusMiddleware to every broker of a process, the processes that it starts included.

Python imports this as it starts, from a directory in ``PYTHONPATH``.  Neither Dramatiq nor threading is imported here:
a process that patches the standard library for gevent has to do so before.
"""

from __future__ import annotations

import functools
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


class AtImport:
    """Changes Dramatiq's Broker once it is imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "dramatiq.broker" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                track_all(module.Broker)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def track_all(broker_class: Any) -> None:
    """Let every broker end its construction with a StatusMiddleware of its own."""
    initialize = broker_class.__init__

    @functools.wraps(initialize)
    def initialize_and_track(self: Any, *args: Any, **kwargs: Any) -> None:
        from dramatiq_status import StatusMiddleware, backend_from_url

        initialize(self, *args, **kwargs)
        self.add_middleware(StatusMiddleware(backend=backend_from_url(os.environ["EVERYWHERE_STORE"])))

    broker_class.__init__ = initialize_and_track
    note_trouble()


def note_trouble() -> None:
    """Write down what a hook of ours has raised, and what our writer did not expect."""
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


sys.meta_path.insert(0, AtImport())  # type: ignore[arg-type]
