"""What type checkers accept of callers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Code of a caller.  Its last line is an error, so that a checker which takes everything for Any fails the test.
CALLER = """
import dramatiq

from dramatiq_status import Batch, StatusRegistry, aio


def follow(message: dramatiq.Message[int], group: dramatiq.group, pipeline: dramatiq.pipeline) -> list[Batch]:
    nested = [group, pipeline, message, message.message_id]
    aio.StatusRegistry.batch(group)
    return [StatusRegistry.batch(group), StatusRegistry.batch(pipeline), StatusRegistry.batch(nested)]


StatusRegistry.batch(5)
"""


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_batch_takes_a_group(checker: str, tmp_path: Path) -> None:
    # Given a caller that makes batches of groups and pipelines, and one of a number
    caller = tmp_path / "caller.py"
    caller.write_text(CALLER)
    if checker == "mypy":
        pytest.importorskip("mypy")
        command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", str(caller)]
    else:
        found = shutil.which("pyright")
        if found is None:
            pytest.skip("needs pyright")
        command = [found, "--pythonpath", sys.executable, str(caller)]
    # When a type checker reads it
    environ = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    # Then its only error is the number
    errors = [line for line in done.stdout.splitlines() if "caller.py:" in line and "error" in line]
    assert len(errors) == 1 and f"caller.py:{len(CALLER.splitlines())}" in errors[0], done.stdout + done.stderr
