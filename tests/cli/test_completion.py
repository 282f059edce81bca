"""Tests of the scripts for shells, in the shells that are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dramatiq_status.cli.arguments import STATES
from dramatiq_status.cli.completion import script_for

from .terminals import environment, on_pipe


def complete(tmp_path: Path, *words: str) -> set[str]:
    """Complete the last word in bash, without Python on the path."""
    script = tmp_path / "completion.bash"
    script.write_text(script_for("bash"))
    given = " ".join(f"'{word}'" for word in ("dramatiq-status", *words))
    code = f"source {script}; COMP_WORDS=({given}); COMP_CWORD={len(words)}; _dramatiq_status; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(
        ["/bin/bash", "--norc", "-c", code], capture_output=True, text=True, env=environment(PATH="/nowhere")
    )
    assert done.stderr == "" and done.returncode == 0
    return set(done.stdout.split())


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    assert {"get", "wait", "watch", "list", "demo", "--version"} <= complete(tmp_path, "")
    assert complete(tmp_path, "wa") == {"wait", "watch"}
    assert complete(tmp_path, "list", "--st") == {"--state"}
    assert complete(tmp_path, "list", "--state", "") == set(STATES)
    assert complete(tmp_path, "watch", "abc", "--progress", "p") == {"plain"}
    assert complete(tmp_path, "wait", "--timeout", "") == set()
    assert complete(tmp_path, "completion", "") == {"bash", "zsh", "fish", "--help"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_valid(shell: str) -> None:
    program = shutil.which(shell)
    done = on_pipe("completion", shell)
    assert done.status == 0 and done.output.count("--progress" if shell != "fish" else "-l progress") >= 2
    if program is None:
        pytest.skip(f"{shell} is not installed")
    check = subprocess.run([program, "-n"], input=done.output, capture_output=True, text=True)
    assert check.returncode == 0 and check.stderr == ""
