"""Checks of names and values of fields, and their encoding as JSON.

Values are encoded in the call that writes them.  A wrong value raises its error there, and not later in a
background thread.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from numbers import Integral, Rational, Real
from operator import index
from typing import Any, Final

from .record import PROGRESS, STATES, TOTAL, UNKNOWN_TOTAL, USER_PREFIX, Record, State, number_text

#: Names that users may not write: fields that only the library writes, and values that readers derive.
RESERVED: Final = frozenset(
    (
        "message_id",
        "actor_name",
        "queue_name",
        "enqueued_at",
        "scheduled_at",
        "started_at",
        "finished_at",
        "updated_at",
        "heartbeat_at",
        "attempts",
        "exception",
        "skipped",
        "cancelled",
        "cancel_requested_at",
        "cancel_seen_at",
        "cancel_reason",
        "rate",
        "truncated",
        "retrying",
        "scheduled",
        "stalled",
        "finished",
        "duration",
        "time_remaining",
        "percent",
        "runs",
    )
)

#: Maximum size of the name of a field, in UTF-8 bytes.
MAX_NAME_SIZE: Final = 255

#: Maximum number of fields that a run writes, that one call writes, and that are sent with a message.
MAX_FIELDS: Final = 1000

#: Maximum number of levels of nested lists and dicts.  A reader's decoder supports a few hundred levels minus the depth
#: of the stack from which the reader calls it.
MAX_DEPTH: Final = 100

#: Maximum of a progress and of a total.  Redis' script counts in doubles, which are exact up to here.
MAX_COUNT: Final = 2**53

# Names of types of bools.  NumPy's bool is not a subclass of Python's bool. In old versions of NumPy it has the method
# __index__(), so that it would count as a number.
_BOOLS: Final = frozenset(("bool", "bool_"))

# Types whose values the encoder does not change.
_PLAIN: Final = frozenset((str, int, float, bool, type(None)))

_NUMBERS = {state.value: number for number, state in enumerate(STATES)}


def encode_fields(fields: Mapping[str, Any], *, max_size: int) -> tuple[Record, int | None]:
    """Check and encode the fields that a user writes.

    Parameters:
      fields(Mapping[str, Any]): JSON values by names.
      max_size(int): Maximum size of an encoded value, in bytes.

    Returns:
      tuple[Record, int | None]: JSON texts by stored names, and the stored number of the
      state if ``status`` is one of the fields.

    Raises:
      TypeError: When a name is not a string, or JSON cannot express a value.
      ValueError: When a name is reserved or malformed, a value is too large, NaN or infinite, the state is unknown, or
        there are too many fields.
    """
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"At most {MAX_FIELDS} fields can be written at once, not {len(fields)}.")
    encoded: Record = {}
    state = None
    for name, value in fields.items():
        if name == "status":
            state = state_number(value)
        elif name == "progress":
            encoded[PROGRESS] = encode_count("progress", value)
        elif name == "total":
            encoded[TOTAL] = encode_total(value)
        else:
            encoded[_stored_name(name)] = encode_value(name, value, max_size)
    return encoded, state


def plain_value(value: Any, encoded: Record, state: int | None) -> Any:
    """Return the plain JSON value that a reader gets for a value.

    Parameters:
      value: Value of one field.
      encoded(Record): Result of :func:`encode_fields` for this field.
      state(int): Result of :func:`encode_fields` for this field.
    """
    if value.__class__ in _PLAIN:
        return value
    for text in encoded.values():
        return json.loads(text)
    return None if state is None else STATES[state].value


def user_name(name: Any) -> str:
    """Check the name of a user's field, and return its stored name."""
    if not isinstance(name, str):
        raise TypeError(f"Field names must be strings, not {type(name).__name__}: {name!r}.")
    if name in RESERVED:
        raise ValueError(
            f"Field {name!r} belongs to dramatiq-status: choose another name. The other names that belong to it "
            f"are {', '.join(sorted(RESERVED - {name}))}."
        )
    if not name:
        raise ValueError("Field names must not be empty.")
    if not name.isprintable():
        # Control characters and lone surrogates are not printable.
        raise ValueError(f"Field names must be printable, not {name!r}.")
    if len(name) * 4 > MAX_NAME_SIZE and len(name.encode()) > MAX_NAME_SIZE:
        raise ValueError(f"Field names must have at most {MAX_NAME_SIZE} bytes; {name[:32]!r}... has more.")
    return USER_PREFIX + name


# A program writes the same few names over and over.
_stored_name = lru_cache(maxsize=256)(user_name)


def count_name(name: Any) -> str:
    """Check the name of a field to which a user adds a number, and return its stored name."""
    if name == "status":
        raise ValueError("Field 'status' cannot be incremented: it is no number.")
    return {"progress": PROGRESS, "total": TOTAL}.get(name) or user_name(name)


def deleted_names(names: Iterable[Any]) -> frozenset[str]:
    """Check the names of fields that a user deletes, and return their stored names."""
    for name in names:
        if name in ("status", "progress", "total"):
            raise ValueError(
                f"Field {name!r} cannot be deleted: every status has it. Set the progress to 0, or the total to None."
            )
    return frozenset(map(user_name, names))


def name_of_field(stored: str) -> str:
    """Return the quoted name of a field, as users write it, for an error about a count.

    >>> name_of_field(":rows"), name_of_field("t")
    ("'rows'", "'total'")
    """
    return repr("total" if stored == TOTAL else stored.removeprefix(USER_PREFIX))


def encode_value(name: str, value: Any, max_size: int) -> str:
    """Encode the value of a field as a JSON text.

    >>> encode_value("step", "reading", 1024)
    '"reading"'
    """
    kind = value.__class__
    try:
        if kind is str:
            text = _encode_text(value)
        elif kind is int and -MAX_COUNT <= value <= MAX_COUNT:
            # The encoder takes ten times as long.
            text = str(value)
        elif kind is bool:
            text = "true" if value else "false"
        else:
            text = _encode(value)
    except TypeError as e:
        raise TypeError(
            f"Field {name!r} of type {type(value).__name__} cannot be stored as JSON: {e}. Write a string, a number, "
            f"a bool, None, or a list or dict of these."
        ) from None
    except ValueError as e:
        raise ValueError(
            f"Field {name!r} of type {type(value).__name__} cannot be stored as JSON: {e}. "
            f"Write None instead of NaN or infinity."
        ) from None
    except RecursionError:
        raise ValueError(f"Field {name!r} of type {type(value).__name__} is nested too deeply.") from None
    if len(text) > max_size:
        raise ValueError(
            f"Field {name!r} of type {type(value).__name__} takes {len(text)} bytes as JSON, more than the "
            f"{max_size} that a field may have: store it elsewhere and write a reference, or raise the "
            f"backend's max_field_size."
        )
    if kind is not str and isinstance(value, (dict, list, tuple)):
        _check_keys(name, value)
    return text


def encode_count(name: str, value: Any) -> str:
    """Encode a progress."""
    if value.__class__ is int and -MAX_COUNT <= value <= MAX_COUNT:
        # The checks below take three times as long.
        return str(value)
    return number_text(check_count(name, value))


def encode_total(value: Any) -> str:
    """Encode a total.  It is not negative; None stands for an unknown total."""
    if value.__class__ is int and 0 <= value <= MAX_COUNT:
        return str(value)
    return UNKNOWN_TOTAL if value is None else number_text(check_total(value))


def check_total(value: Any) -> int | float:
    """Check a total, and return it as a plain number.  It is not negative."""
    total = check_count("total", value)
    if total < 0:
        raise ValueError(f"Field 'total' must not be negative, not {value!r}.")
    return total


def check_count(name: str, value: Any) -> int | float:
    """Check a progress, a total or an increment, and return it as a plain number: finite, from -2**53 to 2**53."""
    number = plain_number(value)
    if number is None:
        raise TypeError(f"Field {name!r} must be a number, not {type(value).__name__}.")
    # A comparison with NaN is false.
    if not -MAX_COUNT <= number <= MAX_COUNT:
        raise ValueError(f"Field {name!r} must be a finite number of at most 2**53, not {value!r}.")
    return number


def plain_number(value: Any) -> int | float | None:
    """Convert a number of any type into a plain int or float.

    Numbers are instances of :class:`numbers.Real` or :class:`decimal.Decimal`, and objects with ``__index__``,
    except bools.  A whole number becomes an int, unless it is a float.  Every other number becomes a float.  A
    ``Decimal`` or a fraction that is too large for a float becomes infinite.

    >>> plain_number(Fraction(4, 2)), plain_number(numpy.float64(2.5)), plain_number(Decimal("NaN")), plain_number("2")
    (2, 2.5, nan, None)

    Returns:
      int | float | None: None if the value is no number.
    """
    if value.__class__ is int or value.__class__ is float:
        return value
    if isinstance(value, (Real, _decimal())) and not isinstance(value, Integral):
        return _plain_real(value)
    if type(value).__name__ in _BOOLS:
        return None
    try:
        return index(value)
    except TypeError:
        return None


def _decimal() -> Any:
    """Return the class ``Decimal``, or an empty tuple while its module is not loaded and no such value can exist.  To
    import the module would take the command line 1.4 ms.
    """
    return getattr(sys.modules.get("decimal"), "Decimal", ())


def _plain_real(value: Any) -> int | float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    except ValueError:
        # A signaling NaN.
        number = math.nan
    if isinstance(value, (Rational, _decimal())) and math.isfinite(number) and value == int(value):  # type: ignore[arg-type]
        return int(value)  # type: ignore[arg-type]
    return number


def state_number(value: Any) -> int:
    """Check a state, and return its stored number."""
    number = _NUMBERS.get(value) if isinstance(value, str) else None
    if number is None:
        names = ", ".join(repr(state.value) for state in State)
        raise ValueError(f"Field 'status' must be one of {names}, not {value!r}.")
    return number


def _check_keys(name: str, value: Any, depth: int = 1) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"Field {name!r} is nested too deeply: {MAX_DEPTH} levels are allowed.")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"Field {name!r} of type dict has the key {key!r} of type {type(key).__name__}, which would "
                    f"come back as a string: use string keys."
                )
            if isinstance(inner, (dict, list, tuple)):
                _check_keys(name, inner, depth + 1)
    else:
        for inner in value:
            if isinstance(inner, (dict, list, tuple)):
                _check_keys(name, inner, depth + 1)


def _plain_inside(value: Any) -> int | float | bool:
    """Return a value to encode instead of a value that the encoder does not support."""
    if type(value).__name__ in _BOOLS:
        return bool(value)
    number = plain_number(value)
    if number is None:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return number


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain_inside).encode
# The encoder's own function for texts. It returns the same text as the encoder.
_encode_text = json.encoder.encode_basestring_ascii
