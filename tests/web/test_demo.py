"""``demo --web`` in a real browser."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from ..cli.terminals import COMMAND, environment
from ..recording import eventually
from .browser import Tab


def test_the_page_of_the_demo_shows_its_jobs(tab: Tab, tmp_path: Path) -> None:
    # Given the demo, which opens a browser: here one that writes down the address
    note = tmp_path / "address"
    script = tmp_path / "browser.py"
    script.write_text(f"import sys; open({str(note)!r}, 'w').write(sys.argv[1])")
    variables = environment(BROWSER=f"{sys.executable} {shlex.quote(str(script))} %s", TMPDIR=str(tmp_path))
    with open(tmp_path / "output", "w") as output:
        demo = subprocess.Popen([*COMMAND, "demo", "--web"], env=variables, stdout=output, stderr=output)
    try:
        eventually(lambda: note.exists() and note.read_text())
        # Then the page has its five jobs, and follows them to their ends
        tab.open(note.read_text())
        rows = "[...document.querySelectorAll('#rows tr')]"
        tab.until(f"() => {rows}.filter((row) => /^demo-/.test(row.dataset.id)).length == 5")
        tab.until(f"() => {rows}.some((row) => row.dataset.s == 'failed' && /CardDeclined/.test(row.innerText))")
        tab.until(f"() => {rows}.filter((row) => row.dataset.s == 'completed').length >= 3")
        # And it stays until Ctrl-C
        eventually(lambda: "The page stays until Ctrl-C." in (tmp_path / "output").read_text())
        assert demo.poll() is None
    finally:
        demo.send_signal(2)
        assert demo.wait(30) == 0
