"""Numbers of every type count: those of NumPy, fractions, decimals, enums, and subclasses of int and float."""

from __future__ import annotations

import asyncio
import math
import numbers
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import dramatiq
import numpy
import pytest

from dramatiq_status import StatusRegistry, aio, current_progress, current_status, track
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.checks import check_duration, check_limit, check_number
from dramatiq_status.fields import MAX_COUNT, plain_number
from dramatiq_status.testing import bound_status

from .recording import RecordingBackend, make_broker, run
from .servers import RedisServer


class Float(float):
    def __repr__(self) -> str:
        return "a float"


class Int(int):
    def __repr__(self) -> str:
        return "an int"


class Size(IntEnum):
    LARGE = 3


class Colour(str, Enum):
    RED = "red"


class Index:
    def __index__(self) -> int:
        return 4


class Measure:
    """A real number that is neither a float nor rational."""

    def __float__(self) -> float:
        return 0.5


numbers.Real.register(Measure)

#: Numbers, each with its plain number and the type of that.
PLAIN: list[tuple[Any, int | float]] = [
    (3, 3),
    (2.5, 2.5),
    (Float(2.5), 2.5),
    (Int(7), 7),
    (Size.LARGE, 3),
    (Index(), 4),
    (Measure(), 0.5),
    (Fraction(4, 2), 2),
    (Fraction(1, 4), 0.25),
    (Decimal("2.00"), 2),
    (Decimal("0.25"), 0.25),
    (numpy.int64(5), 5),
    (numpy.uint8(200), 200),
    (numpy.float64(2.5), 2.5),
    (numpy.float32(0.25), 0.25),
]

NO_NUMBERS: list[Any] = [True, False, numpy.bool_(True), "5", None, 1j, [1], numpy.timedelta64(5, "s"), Colour.RED]


@pytest.mark.parametrize(("value", "plain"), PLAIN, ids=lambda value: type(value).__name__)
def test_numbers_become_ints_and_floats(value: Any, plain: float) -> None:
    # Given a number of some type
    # When it is converted to a plain number
    found = plain_number(value)
    # Then the result is the same number, and exactly an int or a float
    assert found == plain and type(found) is type(plain)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_other_types_are_no_numbers(value: Any) -> None:
    # Given a value of another type
    # When it is used as a number
    # Then the error names its type
    assert plain_number(value) is None
    with bound_status(), pytest.raises(TypeError, match=type(value).__name__):
        current_progress().increment(value)
    for check in (check_number, check_duration):
        with pytest.raises(TypeError, match=type(value).__name__):
            check("limit", value)


@pytest.mark.parametrize(
    "value",
    [
        *[Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("-1e500"), Decimal(MAX_COUNT + 1)],
        *[Fraction(10**400), Float("nan"), numpy.float64("inf"), numpy.float32("nan"), Int(MAX_COUNT + 1)],
    ],
    ids=ascii,
)
def test_infinite_and_too_large_numbers_raise(value: Any) -> None:
    # Given a number that is not finite, or to which a store cannot add
    # When it is used as a number
    with bound_status() as status:
        writes: list[Callable[[], object]] = [
            lambda: current_progress().increment(value),
            lambda: current_progress().decrement(value),
            lambda: status.update(progress=value),
            lambda: status.update(total=value),
            lambda: track([], total=value),
            lambda: track([], progress=value),
        ]
        for write in writes:
            # Then the line with the call raises an error
            with pytest.raises(ValueError, match="finite number of at most"):
                write()


def test_booleans_are_stored_as_booleans() -> None:
    # Given bools of Python and NumPy
    with bound_status() as status:
        # When they are written
        status.update(yes=numpy.bool_(True), deep=[numpy.bool_(False)])
        # Then they are stored as true or false, and not as numbers
        assert status["yes"] is True and status["deep"] == [False] and status["deep"][0] is False


def test_a_database_number_may_be_an_enum(redis_server: RedisServer, redis_broker_url: str) -> None:
    # Given a database whose number is a member of an enum
    database = IntEnum("Database", {"STATUSES": 1}).STATUSES  # type: ignore[misc]
    with closing(
        RedisBackend(host="127.0.0.1", port=numpy.int64(redis_server.port), db=database, timeout=20_000)
    ) as backend:
        # When the backend is called
        # Then the call succeeds
        assert backend.read("unknown") is None


def test_counts_and_durations_may_be_of_any_integer_type() -> None:
    # Given whole numbers of other types
    # When they are passed as counts, or as durations in milliseconds
    # Then they are taken as ints
    values: list[Any] = [Int(7), numpy.int64(7), Decimal(7), 7.0, Fraction(14, 2)]
    for value in values:
        found = [check_number("n", value), check_limit(value), check_duration("timeout", value)]
        assert found == [7, 7, 7] and {type(number) for number in found} == {int}
    assert check_duration("timeout", timedelta(seconds=1)) == 1000
    backend = StubBackend(timeout=numpy.int64(500), max_field_size=Int(100))
    assert (repr(backend.timeout), repr(backend.max_field_size)) == ("500", "100")
    # And fractions raise errors
    for check in (check_number, check_duration):
        for wrong in (0.5, Decimal("1.5"), math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match="whole number"):
                check("n", wrong)  # type: ignore[arg-type]


def test_workers_count_with_numbers_of_all_types(every_backend: StatusBackend) -> None:
    backend = every_backend
    # Given a job that writes numbers of all types, and whose message carries some
    broker = make_broker(backend, asyncio=True, status_ttl=numpy.int64(60_000), max_pending=Int(1000))
    seen: list[Any] = []

    @dramatiq.actor(broker=broker, status_throttle=numpy.int64(1))
    def work() -> None:
        progress, status = current_progress(), current_status()
        status.update(total=numpy.float64(500.0), step="begun")
        for value, _ in PLAIN:
            progress.increment(value)
        progress.decrement(numpy.int64(1))
        seen.append((progress.progress, progress.total))
        status["values"] = [value for value, _ in PLAIN]
        for number, (value, _) in enumerate(PLAIN):
            status[f"value{number}"] = value
        status["colour"] = Colour.RED

    @dramatiq.actor(broker=broker)
    def count(parent_id: str) -> None:
        StatusRegistry.progress(parent_id, backend=backend).increment(numpy.float64(0.25))
        StatusRegistry.progress(parent_id, backend=backend).increment(Float(0.25))
        StatusRegistry.get(parent_id, backend=backend)["child"] = numpy.int64(1)

    @dramatiq.actor(broker=broker)
    def follow() -> None:
        for _ in track([1, 2], total=Decimal(4), progress=Fraction(4, 2)):  # type: ignore[arg-type]
            pass

    given = {"part": Fraction(1, 2), "size": Size.LARGE, "deep": {"a": (numpy.int64(1),)}, "total": numpy.int64(9)}
    message = work.send_with_options(status=given)
    followed = follow.send()
    # Then each encoder can encode its options
    assert message.options["status"] == {"part": 0.5, "size": 3, "deep": {"a": [1]}, "total": 9}
    assert {name: type(value) for name, value in message.options["status"].items()} == {
        "part": float,
        "size": int,
        "deep": dict,
        "total": int,
    }
    # When it has run, and another job has incremented its progress
    run(broker)
    count.send(message.message_id)
    run(broker)
    # Then the status has all numbers
    total = sum(plain for _, plain in PLAIN)
    snapshot = StatusRegistry.get(message, backend=backend).read()
    assert snapshot is not None and seen == [(total - 1, 500)]
    assert (snapshot.state, snapshot["progress"], snapshot["total"]) == ("completed", total - 0.5, 500)
    assert snapshot["values"] == [plain for _, plain in PLAIN]
    values = [snapshot[f"value{number}"] for number in range(len(PLAIN))]
    assert [(value, type(value)) for value in values] == [(plain, type(plain)) for _, plain in PLAIN]
    assert (snapshot["part"], snapshot["size"], snapshot["colour"], snapshot["child"]) == (0.5, 3, "red", 1)
    snapshot = StatusRegistry.read(followed.message_id, backend=backend)
    assert snapshot is not None and (snapshot["progress"], snapshot["total"]) == (4, 4)


def test_calls_from_outside_count_with_numbers_of_all_types(every_backend: StatusBackend) -> None:
    backend = every_backend
    # Given a message that waits
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        pass

    message = work.send()
    # When it is incremented from outside, synchronously and in an event loop
    progress = StatusRegistry.progress(message, backend=backend)
    progress.total = numpy.int64(40)
    progress.progress = Fraction(1, 2)  # type: ignore[assignment]
    progress.increment(Decimal("2.5"))  # type: ignore[arg-type]
    progress.decrement(Float(0.5))

    async def count() -> None:
        progress = aio.StatusRegistry.progress(message, backend=backend)
        await progress.set(progress=numpy.float64(await progress.progress), total=Int(50))
        await progress.increment(numpy.float32(0.5))
        await progress.decrement(Size.LARGE)

    asyncio.run(count())
    # Then the status has all increments
    snapshot = StatusRegistry.read(message.message_id, backend=backend)
    assert snapshot is not None and (snapshot["progress"], snapshot["total"]) == (0, 50)


def test_stores_get_plain_floats() -> None:
    # Given a job that counts by a subclass of float
    backend = RecordingBackend()
    broker = make_broker(backend)

    @dramatiq.actor(broker=broker)
    def work() -> None:
        current_progress().increment(Float(2.5))

    # When it has run
    message = work.send()
    run(broker)
    # Then the store has got a plain float
    sent = [update.increment for update in backend.writes(message.message_id)]
    assert {type(number) for number in sent} <= {int, float} and sum(sent) == 2.5
