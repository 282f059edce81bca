"""Hooks for processes that fork."""

from __future__ import annotations

import os
from collections.abc import Callable


def at_fork(**hooks: Callable[[], object]) -> None:
    """Do what ``os.register_at_fork`` does, and nothing on Windows, where no process forks.

    Parameters:
      **hooks(Callable): Functions by the names that ``os.register_at_fork``
        has for them: ``before``, ``after_in_parent``, ``after_in_child``.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**hooks)
