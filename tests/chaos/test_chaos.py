"""About a minute of chaos; ``python -m tests.chaos`` runs longer."""

from __future__ import annotations

from typing import Any, Final

import pytest

from ..servers import ServerMissing
from .plan import make_plan
from .runner import Settings, run

SHORT: Final = {"seconds": 8.0, "jobs": 200, "fault_every": 1.2}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("broker", "store", "seed"),
    [("redis", "piggyback", 1), ("redis", "memcached", 2), ("redis", "sqlite", 3), ("rabbitmq", "redis", 4)],
)
def test_every_status_is_right(broker: str, store: str, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        report = run(Settings(broker=broker, store=store, seed=seed, **SHORT))
    except ServerMissing as missing:
        pytest.skip(str(missing))
    assert not report.findings, "\n".join(map(str, report.findings[:5]))
    # And the run had faults and readers
    # (While a broker restarts on a busy machine, many messages cannot be sent.)
    assert report.figures["runs"] > 100 and report.figures["faults"] > 3 and report.figures["sights"] > 100


def test_a_seed_gives_the_same_plan() -> None:
    settings: dict[str, Any] = {
        "seconds": 60,
        "jobs": 500,
        "workers": 2,
        "store": "redis",
        "broker": "redis",
        "fault_every": 2,
        "quiet": set(),
    }
    assert make_plan(7, **settings) == make_plan(7, **settings)
    assert make_plan(8, **settings).faults != make_plan(7, **settings).faults
    assert {fault.target for fault in make_plan(7, **settings).faults} == {"worker", "store", "broker"}
    assert {fault.target for fault in make_plan(7, **{**settings, "quiet": {"store", "broker"}}).faults} == {"worker"}
