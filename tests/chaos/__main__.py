"""The command line: ``python -m tests.chaos --seconds 60 --seed 7 --store redis --broker redis``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from dataclasses import fields

from .plan import BROKER_FAULTS, STORE_FAULTS
from .runner import Report, Settings, run


def main() -> int:
    """Carry out one run; return 1 where something is wrong."""
    settings = _parse()
    # Brokers log every connection that a fault cuts.
    logging.basicConfig(level=logging.CRITICAL)
    print(
        f"seed {settings.seed}: {settings.jobs} jobs in {settings.seconds:g} s, {settings.broker} and {settings.store}"
    )
    report = run(settings, lambda line: print(line, flush=True))
    _print(report)
    return 1 if report.findings else 0


def _parse() -> Settings:
    defaults = {field.name: field.default for field in fields(Settings)}
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--store", choices=sorted(STORE_FAULTS), default=defaults.pop("store"))
    parser.add_argument("--broker", choices=sorted(BROKER_FAULTS), default=defaults.pop("broker"))
    parser.add_argument("--quiet", action="append", choices=("worker", "store", "broker"), default=[])
    parser.add_argument("--ignored", action="append", default=[])
    del defaults["quiet"], defaults["ignored"]
    for name, default in defaults.items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    options = vars(parser.parse_args())
    options["quiet"], options["ignored"] = frozenset(options["quiet"]), frozenset(options["ignored"])
    return Settings(**options)


def _print(report: Report) -> None:
    for finding in report.findings:
        print(f"\n{finding}")
    print("\n" + "\n".join(f"{name}: {figure}" for name, figure in report.figures.items()))
    for what, count in Counter(finding.what for finding in report.findings).most_common():
        print(f"WRONG: {count} × {what}")
    print(f"{len(report.findings)} findings")


if __name__ == "__main__":
    sys.exit(main())
