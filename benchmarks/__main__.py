"""Run all benchmarks, or the ones that the command line names."""

from __future__ import annotations

import argparse
from importlib import import_module
from time import perf_counter

from .common import Options, versions

#: Modules with a function ``run(options)``, which yields tables.
BENCHMARKS = (
    "update",
    "increment",
    "read",
    "batch",
    "enqueue",
    "throughput",
    "confirm",
    "piggyback",
    "outage",
    "visibility",
    "watch",
    "cancel",
    "history",
    "lost",
    "contention",
    "size",
    "growth",
    "listing",
    "cluster",
    "web",
    "cli",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"one or more of {', '.join(BENCHMARKS)}; default all")
    parser.add_argument("--quick", action="store_true", help="only check that everything works")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of rounds; 2 runs twice as many")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    options = Options(arguments.quick, arguments.scale)
    print(versions(), end="\n\n", flush=True)
    for name in arguments.names or BENCHMARKS:
        begin = perf_counter()
        for table in import_module(f".{name}", __package__).run(options):
            print(table, flush=True)
        print(f".. {name} took {perf_counter() - begin:.0f} s", end="\n\n", flush=True)


if __name__ == "__main__":
    main()
