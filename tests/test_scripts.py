"""`scripts/services`, with a part of the system of its own: its work beside other programs that install packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

#: Beginning of each scenario, in a mount namespace: a copy of /usr/sbin, no RabbitMQ, and an apt-get that ends when a
#: scenario lets it.
BEGIN = r"""
set -eu
cd "$TMP"
mkdir sbin bin
cp -a /usr/sbin/. sbin
mount --bind sbin /usr/sbin
rm -f /usr/sbin/rabbitmq-server
[ ! -d /usr/lib/rabbitmq/bin ] || mount -t tmpfs none /usr/lib/rabbitmq/bin
policy=/usr/sbin/policy-rc.d
rm -f "$policy"

cat >bin/apt-get <<'SCRIPT'
#!/bin/bash
tail -n 1 /usr/sbin/policy-rc.d >"$TMP/$NAME.policy"
read -r <"$TMP/$NAME.go"
SCRIPT
chmod 755 bin/apt-get
mkfifo one.go two.go

services() { # Runs it in a session of its own.
    NAME=$1 PATH=$TMP/bin:$PATH exec setsid "$ROOT/scripts/services" >"$1.out" 2>&1
}
until_() { until "$@"; do sleep 0.02; done; }
show() { if [ -L "$policy" ]; then readlink "$policy"; else cat "$policy"; fi; }
"""


def can_isolate() -> bool:
    needed = ("unshare", "mount", "flock", "setsid", "apt-get")
    if os.geteuid() != 0 or not all(map(shutil.which, needed)):
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_isolate(), reason="Needs root, apt-get and mount namespaces.")


def play(tmp_path: Path, scenario: str) -> list[str]:
    """Play a scenario, and return the lines that it has printed."""
    environment = {**os.environ, "TMP": str(tmp_path), "ROOT": str(Path(__file__).parents[1])}
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", BEGIN + scenario],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "make, shown",
    [
        ('printf "exit 104\\n" >"$policy"', ["exit 104"]),
        ('ln -s nowhere "$policy"', ["nowhere"]),
        ('printf "exit 104\\n" >/usr/sbin/other; ln -s other "$policy"', ["other"]),
        (":", []),
    ],
    ids=["file", "dangling link", "relative link", "none"],
)
def test_two_scripts_at_once_restore_the_policy(make: str, shown: list[str], tmp_path: Path) -> None:
    # Given a system that has a policy of its own for services, or none
    # When two scripts install servers at the same time, and the first ends first
    printed = play(
        tmp_path,
        f"""
        {make}
        services one & one=$!
        until_ test -s one.policy
        services two & two=$!
        until_ grep -q -e Waiting -e Installing two.out
        cat two.out
        echo >one.go
        wait $one || true
        until_ test -s two.policy
        echo >two.go
        wait $two || true
        cat one.policy two.policy
        show || true
        """,
    )
    # Then the second waits for the first, no service is started, and the policy is what it was
    assert printed == ["Waiting for another scripts/services to end ...", "exit 101", "exit 101", *shown]


@pytest.mark.parametrize("make, shown", [("exit 104", ["exit 104"]), ("", [])], ids=["policy", "none"])
def test_a_script_cleans_up_after_a_killed_one(make: str, shown: list[str], tmp_path: Path) -> None:
    # Given a script that was killed while it installed
    # When it runs again
    printed = play(
        tmp_path,
        f"""
        [ -z "{make}" ] || echo "{make}" >"$policy"
        services one & one=$!
        until_ test -s one.policy
        kill -KILL -- -$one
        wait $one || true
        show | tail -n 1
        services two & two=$!
        until_ test -s two.policy
        echo >two.go
        wait $two || true
        cat two.policy
        show || true
        """,
    )
    # Then the policy of the killed script is not restored as the system's
    assert printed == ["exit 101", "exit 101", *shown]


def test_the_script_waits_for_another_package_manager(tmp_path: Path) -> None:
    # Given a real apt-get with its own state, and a process that holds the lock of dpkg
    # When servers are installed
    printed = play(
        tmp_path,
        r"""
        rm bin/apt-get
        mkdir -p lists/partial
        printf '%s\n' "Package: rabbitmq-server" "Status: install ok installed" "Version: 1" "Architecture: all" >status
        printf 'Dir::State::status "%s/status";\nDir::State::lists "%s/lists";\nDir::Bin::dpkg "/bin/true";\n' \
            "$TMP" "$TMP" >apt.conf
        export APT_CONFIG=$TMP/apt.conf
        python3 -c '
import fcntl
with open("lock-frontend", "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    open("locked", "w").close()
    open("one.go").readline()
' &
        until_ test -e locked
        services two & two=$!
        until_ grep -q -e Waiting -e 'E:' two.out
        echo >one.go
        wait $two || true
        cat two.out
        """,
    )
    # Then the script waits until the lock is free, and then goes on (RabbitMQ is not really installed)
    assert printed[:2] == ["Installing rabbitmq-server ...", "Waiting for another package manager to end ..."]
    assert len(printed) == 3 and printed[2].startswith("rabbitmq-server is missing")
