"""Runs other projects' test suites twice, without our middleware and with it on every broker, and compares.

    scripts/third-party                 # all of them
    scripts/third-party dramatiq -k stub
    scripts/third-party dramatiq -k redis --piggyback     # RedisBackend.broker_client() in every RedisBroker

A test that passes without the middleware, and fails with it three times in a row, is a failure of ours.  The suites
are downloaded from the package index into a cache, with a virtual environment for their requirements, and never become
a part of this project.  They expect Redis, RabbitMQ and memcached on the usual ports.  The script starts all servers
there, if Linux allows it in a network namespace.  If a source distribution lacks the fixtures of its suite, stand-ins
of ours are used; ``--checkout dramatiq=DIRECTORY`` runs the suite of a clone, with its own fixtures.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple
from venv import EnvBuilder

from ..servers import MemcachedServer, RabbitmqServer, RedisServer

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dramatiq-status" / "third-party"

#: Seconds that one run of a suite may take.
PATIENCE = 1200

#: Number of failures in a row that count as a failure of the middleware.
TRIES = 3


#: Packages that every suite needs.
NEEDED = ("dramatiq[gevent,prometheus,rabbitmq,redis,watch]", "pytest>=8", "pytest-timeout")


class Suite(NamedTuple):
    """A suite, by the name of its package.

    Parameters:
      needs: Further packages to install.
      tests: Paths that pytest runs.
      options: Options of pytest.
      standins: Files that the source distribution lacks, and the names of the stand-ins; None for an empty file.
      expected: Reasons by parts of names, for tests that expect no other middleware.
    """

    needs: tuple[str, ...] = ()
    tests: tuple[str, ...] = ("tests",)
    options: tuple[str, ...] = ()
    standins: dict[str, str | None] = {}  # noqa: RUF012 - never written to
    expected: dict[str, str] = {}  # noqa: RUF012 - never written to


SUITES = {
    "dramatiq": Suite(
        # (The fixtures of a clone need a client of memcached.)
        needs=("pylibmc", "pytest-benchmark"),
        options=("--ignore=tests/benchmarks",),
        standins={
            "tests/__init__.py": None,
            "tests/common.py": "dramatiq_common.py",
            "tests/conftest.py": "dramatiq_conftest.py",
        },
        expected={"test_can_instantiate_brokers_without_middleware": "it says that there is no middleware at all"},
    ),
    "dramatiq-abort": Suite(
        needs=("dramatiq-abort",),
        standins={
            "tests/__init__.py": None,
            "tests/conftest.py": "abort_conftest.py",
            "tests/fixtures.py": "dramatiq_conftest.py",
        },
    ),
    "django-dramatiq": Suite(
        needs=("django-dramatiq", "pytest-django"),
        standins={
            "tests/__init__.py": None,
            "tests/conftest.py": "django_conftest.py",
            "tests/settings.py": "django_settings.py",
            **dict.fromkeys(
                f"tests/{name}.py"
                for name in (
                    *("testapp1/__init__", "testapp1/tasks", "testapp2/__init__", "testapp2/tasks"),
                    *("testapp3/__init__", "testapp3/tasks/__init__", "testapp3/tasks/other_tasks"),
                    *("testapp3/tasks/tasks", "testapp3/tasks/utils/__init__", "testapp3/tasks/utils/not_a_task"),
                )
            ),
        },
    ),
    "dramatiq-kombu-broker": Suite(
        needs=("dramatiq-kombu-broker", "pytest-env", "pytest-mock"),
        # That folder is for a proxy in a container.
        options=("--ignore=tests/integration",),
    ),
    "dramatiq-workflow": Suite(needs=("dramatiq-workflow",), tests=("dramatiq_workflow/tests",)),
}

#: Suites that cannot be run.
WITHOUT_TESTS = ("dramatiq-eager-broker", "dramatiq-pg", "dramatiq-sqs", "periodiq")


def main() -> int:
    arguments = parse()
    if arguments.inside:
        raise_loopback()
        return run_all(arguments)
    if arguments.fresh:
        shutil.rmtree(CACHE, ignore_errors=True)
    prepare(arguments.suites)
    apart = ["unshare", "--map-root-user", "--net", "--"]
    if not shutil.which(apart[0]) or subprocess.run([*apart, "true"], capture_output=True).returncode:
        print("No network of their own can be had: the servers are started on the usual ports of this host.")
        return run_all(arguments)
    command = [*apart, sys.executable, "-m", "tests.third_party", "--inside", *sys.argv[1:]]
    return subprocess.run(command, check=False).returncode


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/third-party", description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", help=f"of {', '.join(SUITES)}; all of them by default")
    parser.add_argument("-k", help="only tests with such names, as for pytest")
    parser.add_argument("--store", default="memory://", help="where statuses are kept, memory:// by default")
    parser.add_argument(
        "--piggyback", action="store_true", help="let every RedisBroker send the statuses with its commands"
    )
    parser.add_argument("--checkout", action="append", default=[], metavar="SUITE=DIRECTORY")
    parser.add_argument("--fresh", action="store_true", help="download all of it again, in its newest version")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.suites = arguments.suites or list(SUITES)
    arguments.checkout = dict(given.split("=", 1) for given in arguments.checkout)
    if unknown := {*arguments.suites, *arguments.checkout} - set(SUITES):
        parser.error(f"there is no suite {', '.join(sorted(unknown))}")
    return arguments


# Downloading


def python_of(name: str) -> Path:
    return CACHE / name / "venv" / "bin" / "python"


def prepare(names: Sequence[str]) -> None:
    """Download the sources of the suites, and install what they need."""
    for name in names:
        python, needs = python_of(name), " ".join((*NEEDED, *SUITES[name].needs))
        stamp = python.parent.parent / "needs"
        if not stamp.exists() or stamp.read_text() != needs:
            print(f"Installing what the suite of {name} needs ...", flush=True)
            EnvBuilder(with_pip=True, clear=True).create(python.parent.parent)
            pip(python, "install", *NEEDED, *SUITES[name].needs)
            stamp.write_text(needs)
        shutil.rmtree(CACHE / name / "sdist", ignore_errors=True)
        release = subprocess.run(
            [python, "-c", f"from importlib.metadata import version; print(version({name!r}))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        download = ("download", "--no-deps", "--no-binary", name, "--dest", str(CACHE / name / "sdist"))
        pip(python, *download, f"{name}=={release}")


def pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "-qq", "--disable-pip-version-check", *arguments], check=True)


def unpack(name: str, checkout: str | None, directory: Path) -> Path:
    """Lay out the sources of a suite where its tests run."""
    if checkout:
        return Path(shutil.copytree(checkout, directory / name, symlinks=True))
    (archive,) = (CACHE / name / "sdist").iterdir()
    with tarfile.open(archive) as file:
        file.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (root,) = (path for path in directory.iterdir() if path.is_dir())
    for place, ours in SUITES[name].standins.items():
        path = root / place
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text((HERE / "standins" / ours).read_text() if ours else "")
    return root


# Running


def raise_loopback() -> None:
    """Bring the loopback interface of the new network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        up_and_running = 0x41
        fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"lo", up_and_running))


def run_all(arguments: argparse.Namespace) -> int:
    ours: dict[str, list[str]] = {}
    with ExitStack() as stack:
        for server in (RedisServer(port=6379), RabbitmqServer(port=5672), MemcachedServer(port=11211)):
            stack.enter_context(server)
        for name in arguments.suites:
            ours[name] = compare(name, arguments)
    print(f"Without tests in their source distributions: {', '.join(WITHOUT_TESTS)}.")
    for name, tests in ours.items():
        for test in tests:
            print(f"FAILED {name}: {test}")
    return 1 if any(ours.values()) else 0


def compare(name: str, arguments: argparse.Namespace) -> list[str]:
    """Run a suite without and with the middleware; return the tests that fail because of it."""
    select = ("-k", arguments.k) if arguments.k else ()
    checkout = arguments.checkout.get(name)
    without, _ = run(name, checkout, None, select)
    found, trouble = run(name, checkout, arguments.store, select, piggyback=arguments.piggyback)
    ours = once = broken(found, without)
    for _ in range(TRIES - 1):
        if ours:
            again, _ = run(name, checkout, arguments.store, select, only=ours, piggyback=arguments.piggyback)
            ours = [test for test in broken(again, without) if test in ours]
    expected = {test: why for part, why in SUITES[name].expected.items() for test in ours if part in test}
    print(f"{name}: without the middleware {told(without)}; with it {told(found)}", flush=True)
    for test in set(once) - set(ours):
        print(f"  failed with the middleware, and passed when it was run again: {test}")
    for test, why in expected.items():
        print(f"  expected to fail: {test}: {why}")
    for test in sorted(test for test, outcome in without.items() if outcome == "failed"):
        print(f"  fails without the middleware: {test}")
    return [*(test for test in ours if test not in expected), *trouble]


def broken(found: dict[str, str], without: dict[str, str]) -> list[str]:
    return sorted(test for test, outcome in without.items() if outcome == "passed" != found.get(test, "missing"))


def told(outcomes: dict[str, str]) -> str:
    count = Counter(outcomes.values())
    return f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped"


def run(
    name: str,
    checkout: str | None,
    store: str | None,
    select: Sequence[str],
    *,
    only: Sequence[str] = (),
    piggyback: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """Run a suite once.

    Returns:
      What became of each test, and what our middleware logged that it should not.
    """
    suite = SUITES[name]
    with tempfile.TemporaryDirectory(prefix="dramatiq-status-third-party-") as temporary:
        root = unpack(name, checkout, Path(temporary))
        report, log, trouble = (Path(temporary) / file for file in ("report.xml", "log", "trouble"))
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment["PATH"] = f"{python_of(name).parent}{os.pathsep}{os.environ['PATH']}"
        if store:
            site = Path(temporary) / "site"
            site.mkdir()
            (site / "sitecustomize.py").symlink_to(HERE / "site" / "sitecustomize.py")
            # Not the whole project: a suite has a package `tests`, too.
            (site / "dramatiq_status").symlink_to(HERE.parent.parent / "dramatiq_status")
            environment |= {
                "PYTHONPATH": str(site),
                "EVERYWHERE_STORE": store,
                "EVERYWHERE_TROUBLE": str(trouble),
                "EVERYWHERE_PIGGYBACK": "1" if piggyback else "",
            }
        command = [
            *(str(python_of(name)), "-m", "pytest", "-q", "-o", "addopts=", "--timeout=120", "--no-header"),
            *("-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={report}"),
            *(suite.options or ()),
            *(only or suite.tests),
            *select,
        ]
        with log.open("wb") as file:
            subprocess.run(command, cwd=root, env=environment, stdout=file, stderr=file, timeout=PATIENCE, check=False)
        if not report.exists():
            raise SystemExit(f"The suite of {name} did not run:\n{log.read_text(errors='replace')[-4000:]}")
        return outcomes_of(report), trouble.read_text().splitlines() if trouble.exists() else []


def outcomes_of(report: Path) -> dict[str, str]:
    """Read the outcome of each test, by the name that pytest takes."""
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        file, classname = case.get("file") or "", case.get("classname") or ""
        # What is behind the module is the class.
        module = file.removesuffix(".py").replace("/", ".")
        inner = classname.removeprefix(module).removeprefix(".").replace(".", "::")
        test = "::".join(part for part in (file, inner, case.get("name") or "") if part)
        if found.get(test) != "failed":
            found[test] = outcome
    return found


if __name__ == "__main__":
    sys.exit(main())
