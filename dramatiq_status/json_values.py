"""Copies of JSON values, and conversion to values that all JSON encoders support."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from math import inf, isfinite
from typing import Any

from .fields import MAX_DEPTH
from .record import State
from .times import json_time


def copy_of(value: Any, convert: Callable[[Any], Any] = lambda leaf: leaf, max_depth: float = inf) -> Any:
    """Copy a JSON value with all nested lists and dicts, so that a reader that changes its copy does not change the
    snapshot.

    Parameters:
      value: JSON value.
      convert(Callable): Converts each value that is neither a list nor a dict.
      max_depth(int): Number of levels to copy; lists and dicts below them become None.
    """
    if value.__class__ is not list and value.__class__ is not dict:
        return convert(value)
    found = value.copy()
    # This is a loop and no recursion, because another program may have stored a value that is nested more deeply than
    # calls can be.
    level, depth = [found], 1
    while level:
        below = []
        for container in level:
            for key, inner in container.items() if container.__class__ is dict else enumerate(container):
                if inner.__class__ is not list and inner.__class__ is not dict:
                    container[key] = convert(inner)
                elif depth < max_depth:
                    container[key] = copy = inner.copy()
                    below.append(copy)
                else:
                    container[key] = None
        level, depth = below, depth + 1
    return found


def to_json_value(value: Any) -> Any:
    """Convert the value of a field into one that all JSON encoders encode in the same way."""
    # Another program may have stored a value that is nested more deeply than encoders support.
    return copy_of(value, _to_json_leaf, MAX_DEPTH)


def _to_json_leaf(value: Any) -> Any:
    if isinstance(value, float):
        # Other programs may have stored NaN, or 1e400.
        return value if isfinite(value) else None
    if isinstance(value, (datetime, timedelta)):
        return json_time(value)
    return value.value if isinstance(value, State) else value
