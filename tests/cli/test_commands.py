"""Tests of the commands that print and end, in real processes with real stores."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from dramatiq_status import Snapshot, StatusRegistry
from dramatiq_status.backend import StatusBackend
from dramatiq_status.backends import RedisBackend, SQLiteBackend, backend_from_url
from dramatiq_status.cli.main import main
from dramatiq_status.cli.text import width
from dramatiq_status.history import run_ended
from dramatiq_status.record import COMPLETED, FAILED, FINISHED_AT, QUEUED, STARTED_AT, WORKING
from dramatiq_status.testing.updates import enqueue, finish, life_to, named, outside, start, write
from dramatiq_status.update import Kind, Update

from ..recording import UNMEASURED, eventually
from .terminals import COMMAND, environment, on_pipe, on_terminal, screen_of

IDS = {
    name: f"{name:-<8}-1111-4d0e-9c5b-6f1d2a7e4b90" for name in ("queued", "working", "completed", "failed", "unknown")
}
SIZES = (20, 40, 60, 80, 120, 160, 400)


def fill(backend: StatusBackend) -> None:
    """Store a job in each state."""
    for name, state in (("queued", QUEUED), ("working", WORKING), ("completed", COMPLETED), ("failed", FAILED)):
        boom = {"x": '{"type":"OSError","message":"gone"}'} if state == FAILED else {}
        updates = life_to(state, a=f'"job_{name}"', Q='"default"', E="1795479267029")
        updates[-1] = updates[-1]._replace(fields={**updates[-1].fields, **named(boom)})
        backend.update_many([(IDS[name], update) for update in updates])


class Place:
    """A store with a job in each state."""

    def __init__(self, backend: StatusBackend, url: str) -> None:
        self.backend = backend
        self.url = url
        fill(backend)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    backend = SQLiteBackend(tmp_path / "status.db", timeout=20_000)
    yield Place(backend, f"sqlite:///{tmp_path}/status.db".replace("sqlite:////", "sqlite:////"))
    backend.close()


@pytest.fixture(params=["sqlite", "redis", "memcached"])
def every_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    backend: StatusBackend
    if request.param == "sqlite":
        backend, url = SQLiteBackend(tmp_path / "status.db", timeout=20_000), f"sqlite:///{tmp_path}/status.db"
    elif request.param == "redis":
        url = request.getfixturevalue("redis_url") + "?timeout=20000"
        backend = backend_from_url(url)
    else:
        request.getfixturevalue("memcached_url")
        url = request.getfixturevalue("memcached_server").url + "?timeout=20000"
        backend = backend_from_url(url)
    yield Place(backend, url)
    backend.close()


def run(place: Place, *arguments: str) -> int:
    """Run a command in this process."""
    return main([*arguments, "--url", place.url])


# Exit statuses


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["completed"], 0),
        (["failed"], 1),
        (["unknown"], 3),
        (["queued"], 4),
        (["working"], 4),
        (["completed", "working"], 4),
        (["working", "failed"], 1),
        (["failed", "unknown", "completed"], 3),
    ],
)
def test_the_exit_status_of_get(every_place: Place, names: list[str], status: int) -> None:
    assert run(every_place, "get", *(IDS[name] for name in names)) == status
    assert run(every_place, "get", "--json", *(IDS[name] for name in names)) == status


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (["completed"], 0),
        (["failed", "completed"], 1),
        (["working"], 4),
        (["completed", "working"], 4),
        (["unknown"], 3),
    ],
)
def test_the_exit_status_of_wait(every_place: Place, names: list[str], status: int) -> None:
    assert run(every_place, "wait", "--timeout", "1.5", *(IDS[name] for name in names)) == status


def test_a_store_that_does_not_answer_ends_with_status_5(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["get", "x"], ["wait", "x"], ["list"], ["count"], ["where"]):
        assert main([*command, "--url", "redis://ann:secret@127.0.0.1:1/0?timeout=300"]) == 5
    printed = capsys.readouterr()
    assert "redis://***@127.0.0.1:1/0" in printed.err and "secret" not in printed.err + printed.out


def test_wrong_arguments_end_with_status_2(place: Place) -> None:
    for arguments in (
        ["list", "--limit", "0"],
        ["list", "--state", "running"],
        ["wait"],
        ["wait", "x", "--timeout", "-1"],
    ):
        with pytest.raises(SystemExit) as ended:
            run(place, *arguments)
        assert ended.value.code == 2
    assert main([]) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["wach", "x"], 2, "wach is no command; did you mean watch? See: dramatiq-status --help"),
        (["\x1b[31m"], 2, "\\x1b[31m is no command. See: dramatiq-status --help"),
        (["get", IDS["queued"][:7] + "x"], 3, f"; did you mean {IDS['queued'][:8]}?"),
        (["get", "zzzzzzzz"], 3, "or its status has expired. See: dramatiq-status list"),
        (["list", "--after", "5"], 2, "--after: '5' is no cursor. Give the one that the last page has printed."),
        (["where", "--broker", "tests.jbs"], 2, "no module 'tests.jbs' here; did you mean tests.jobs? Run the command"),
    ],
)
def test_mistakes_have_a_hint(
    place: Place, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, complaint: str
) -> None:
    assert main([*arguments, *(["--url", place.url] if arguments[0] in ("get", "list") else [])]) == status
    found = capsys.readouterr().err
    assert complaint in found and found.startswith("dramatiq-status: ") and found.count("\n") == 1


# Waiting


def test_wait_ends_with_the_job(every_place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    # Given a job that ends while it is waited for
    def end() -> None:
        time.sleep(0.3)
        every_place.backend.update(IDS["working"], finish(1))

    thread = threading.Thread(target=end)
    thread.start()
    # When it is waited for
    status = run(every_place, "wait", IDS["working"])
    thread.join()
    # Then the command ends well, and prints the job
    assert status == 0
    assert capsys.readouterr().out.startswith(f"Completed  {IDS['working']}  job_working")


def test_redis_publishes_the_end_of_a_job(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given readers that poll once an hour
    monkeypatch.setattr(RedisBackend, "poll_interval", (3_600_000, 3_600_000))
    monkeypatch.setattr(RedisBackend, "recheck_interval", 3_600_000)
    with closing(RedisBackend(url=redis_url, timeout=20_000)) as backend, closing(Redis.from_url(redis_url)) as client:
        fill(backend)
        done: list[int] = []
        url = f"{redis_url}?timeout=20000"
        arguments = ["wait", IDS["queued"], IDS["working"], "--any", "--timeout", "30", "--url", url]
        thread = threading.Thread(target=lambda: done.append(main(arguments)))
        thread.start()
        # When a job ends after the command has subscribed to its changes
        eventually(lambda: any(IDS["working"].encode() in name for name in client.pubsub_channels()))
        time.sleep(0.5)
        assert thread.is_alive()
        backend.update(IDS["working"], finish(1))
        thread.join()
    # Then the command ends by the published change: at the next poll it would have timed out
    assert done == [0]


def test_wait_with_any_ends_with_the_first_job(place: Place) -> None:
    assert run(place, "wait", "--any", IDS["working"], IDS["completed"]) == 0


def test_wait_for_a_job_that_is_deleted(every_place: Place) -> None:
    def delete() -> None:
        time.sleep(0.3)
        every_place.backend.delete(IDS["working"])

    thread = threading.Thread(target=delete)
    thread.start()
    assert run(every_place, "wait", IDS["working"]) == 3
    thread.join()


def test_ctrl_c_ends_a_command_without_a_traceback(place: Place) -> None:
    # Given a command that waits
    process = subprocess.Popen([*COMMAND, "wait", IDS["working"], "--url", place.url], env=environment())
    time.sleep(1.5)
    # When it is interrupted
    process.send_signal(2)
    # Then it ends at once, without a traceback
    assert process.wait(20) == 130


class Interrupt:
    """A finder of modules that Ctrl-C interrupts."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "dramatiq_status.cli.commands":
            raise KeyboardInterrupt


def test_ctrl_c_during_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dramatiq_status.cli.commands")
    monkeypatch.setattr(sys, "meta_path", [Interrupt, *sys.meta_path])
    assert main(["get", "x"]) == 130


# Output


def test_json_is_the_snapshot(every_place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    run(every_place, "get", "--json", IDS["failed"], IDS["completed"])
    failed, completed = map(json.loads, capsys.readouterr().out.splitlines())
    assert failed["message_id"] == IDS["failed"] and failed["exception"]["type"] == "OSError"
    assert completed["status"] == "completed" and completed["runs"][0]["outcome"] == "completed"
    assert {"percent", "stalled", "retrying"} <= failed.keys()


def test_commands_take_short_ids(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "get", "--json", IDS["failed"][:8]) == 1
    assert json.loads(capsys.readouterr().out)["message_id"] == IDS["failed"]
    # An ambiguous one names the candidates
    other = IDS["failed"][:9] + "2222-4d0e-9c5b-6f1d2a7e4b90"
    place.backend.update(other, enqueue())
    assert run(place, "get", IDS["failed"][:8]) == 2
    error = capsys.readouterr().err
    assert IDS["failed"] in error and other in error


def test_a_count_keeps_only_some_jobs_in_memory(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a thousand cancelled jobs
    ids = [str(number) for number in range(1_000)]
    place.backend.update_many([(message_id, enqueue()) for message_id in ids])
    place.backend.update_many([(message_id, Update(Kind.CANCEL)) for message_id in ids])
    found, kept = StatusRegistry.list, []

    def in_memory() -> int:
        # isinstance() would execute the code of other packages' proxies.
        return sum(type(one) is Snapshot for one in gc.get_objects())

    gc.collect()
    before = in_memory()

    def listed(*args: Any, **kwargs: Any) -> list[Snapshot]:
        kept.append(in_memory() - before)
        return found(*args, **kwargs)

    monkeypatch.setattr(StatusRegistry, "list", listed)
    # When they are counted
    assert run(place, "count", "--state", "cancelled") == 0
    # Then the count has read them part by part, and kept no more than two parts
    assert json.loads(capsys.readouterr().out) == 1_000
    assert len(kept) > 3 and max(kept) <= 500


def test_cancelled_jobs_are_listed_and_counted(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    StatusRegistry.cancel(IDS["queued"], backend=place.backend)
    for arguments, shown in ((["list"], IDS["queued"]), (["count"], "1\n")):
        assert run(place, *arguments, "--state", "cancelled") == 0
        assert shown in (output := capsys.readouterr().out) and len(output.splitlines()) == 1
    done = on_terminal("list", "--state", "cancelled", "--limit", "1", "--url", place.url)
    assert " 1 cancelled, last changed first" in done.output


def test_list_and_count_filter_jobs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, "count") == 0 and capsys.readouterr().out == "4\n"
    assert run(place, "count", "--json", "--state", "failed") == 0
    assert json.loads(capsys.readouterr().out) == {"count": 1}
    # When the list is read by pages
    found: list[dict[str, Any]] = []
    more: list[str] = []
    while True:
        assert run(place, "list", "--json", "--limit", "3", *more) == 0
        page = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        if not page:
            break
        found += page
        more = ["--after", page[-1]["cursor"]]
    # Then each job is there once
    assert sorted(job["message_id"] for job in found) == sorted(IDS[name] for name in IDS if name != "unknown")
    assert run(place, "list", "--after", "nonsense") == 2


def test_a_page_of_a_list_on_a_terminal(place: Place) -> None:
    # Given a job that was cancelled while it ran, and is the newest of five
    updates = life_to(FAILED, a='"job_cancelled"')
    fields = {"c": "true", "cr": '"user left"', "p": "3", "t": "9"}
    updates[-1] = updates[-1]._replace(fields={**updates[-1].fields, **named(fields)})
    place.backend.update_many([("cancelled-1111-4d0e-9c5b-6f1d2a7e4b90", update) for update in updates])
    lines = screen_of(on_terminal("list", "--limit", "2", "--url", place.url))
    # Then its row has the reason in place of the count
    assert "user left" in lines[1] and "3 of 9" not in lines[1]
    # And the cursor of the next page is in one line, from which it can be copied
    page = StatusRegistry.list(limit=2, backend=place.backend)
    assert lines[4:6] == [" 2 of 5, last changed first; the next page:", f" --after {page[-1].cursor}"]


def test_a_store_that_cannot_list(memcached_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"{memcached_url}?timeout=20000"
    assert main(["list", "--url", url]) == 2
    error = capsys.readouterr().err
    assert "cannot list" in error and len(error.splitlines()) == 1
    # And an unknown id has no hint to list
    assert main(["get", "zzzzzzzz", "--url", url]) == 3
    assert capsys.readouterr().err.endswith("or its status has expired.\n")


def test_delete_needs_yes_without_a_terminal(every_place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    # Without a terminal it does not ask, and deletes nothing
    done = on_pipe("delete", IDS["failed"], "--url", every_place.url)
    assert done.status == 2 and "--yes" in done.errors and every_place.backend.read(IDS["failed"]) is not None
    # With --yes it deletes
    assert run(every_place, "delete", "--yes", IDS["failed"], IDS["unknown"]) == 3
    assert every_place.backend.read(IDS["failed"]) is None


def test_delete_asks_on_a_terminal(place: Place) -> None:
    done = on_terminal("delete", IDS["failed"], "--url", place.url, answer="n\n")
    assert done.status == 2 and "[y/N]" in done.output and place.backend.read(IDS["failed"]) is not None
    done = on_terminal("delete", IDS["failed"], "--url", place.url, answer="y\n")
    assert done.status == 0 and place.backend.read(IDS["failed"]) is None


@pytest.mark.parametrize("columns", SIZES)
def test_a_terminal_shows_the_jobs_of_a_pipe(place: Place, columns: int) -> None:
    # Given a list on a pipe and on a terminal
    piped = on_pipe("list", "--url", place.url)
    done = on_terminal("list", "--url", place.url, columns=columns)
    lines = screen_of(done, columns)
    # Then both have the same jobs in the same order, one a row
    order = [re.split(r"\s{2,}", line)[2][:7] for line in piped.output.splitlines()]
    assert len(order) == 4
    rows = [line for line in lines if "job_" in line]
    assert [next(name for name in order if name in row) for row in rows] == order
    assert done.status == piped.status == 0 and "\x1b" not in piped.output


@pytest.mark.parametrize("command", ["get", "wait", "watch", "count"])
def test_a_terminal_and_a_pipe_have_the_same_records(place: Place, command: str) -> None:
    # Given a command whose jobs are over, on a pipe and on a terminal
    ids = [] if command == "count" else [IDS["completed"], IDS["failed"]]
    piped = on_pipe(command, *ids, "--url", place.url)
    done = on_terminal(command, *ids, "--url", place.url, columns=160)
    text = "\n".join(screen_of(done, 160))
    # Then both have the same jobs with the same states and reasons, and the same exit status
    assert done.status == piped.status
    if command == "count":
        assert text.strip() == piped.output.strip() == "4"
        return
    for output in (piped.output, text):
        assert output.index("Completed") < output.index("job_completed") < output.index("job_failed")
        assert "Failed" in output and "OSError: gone" in output
    if command == "get":
        # The pages are the same, except for the lengths of lines, and for texts that depend on the time
        found = [re.findall(r"^ [A-Z]\w+|^   [a-z]+", output, flags=re.MULTILINE) for output in (piped.output, text)]
        assert found[0] == found[1] and len(found[0]) > 10


def test_the_environment_chooses_colours(place: Place) -> None:
    done = on_terminal("list", "--url", place.url)
    assert "\x1b[1;97;41m" in done.output
    plain = on_terminal("list", "--url", place.url, NO_COLOR="1")
    assert "\x1b[1;7m" in plain.output and "41m" not in plain.output
    assert "\x1b" not in on_terminal("list", "--url", place.url, TERM="dumb").output
    assert "\x1b[1;97;41m" in on_pipe("get", IDS["failed"], "--url", place.url, FORCE_COLOR="1").output


def test_glyphs_of_a_terminal_without_unicode(place: Place) -> None:
    done = on_terminal("list", "--url", place.url, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.output.isascii() and " X " in "\n".join(screen_of(done))
    assert on_terminal("list", "--url", place.url, LC_ALL="ja_JP.UTF-8", PYTHONUTF8="1").output.isascii()


def test_a_closed_pipe_ends_the_command_without_an_error(place: Place) -> None:
    done = subprocess.run(
        f"{sys.executable} -m dramatiq_status list --url {place.url} | head -n 1", shell=True, env=environment(),
        capture_output=True, timeout=60, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert done.stdout.count(b"\n") == 1 and done.stderr == b""


def test_get_shows_the_life_of_a_job_and_its_children(place: Place) -> None:
    # Given a job whose first run has failed, with a child that failed and one that is completed
    begin = 1_795_479_267_000
    boom = named({"x": '{"type":"OSError","message":"gone"}', "N": run_ended(begin + 14_000, failed=True)})
    children = json.dumps([IDS["failed"], IDS["completed"], "no-such-job"])
    updates = [
        enqueue(a='"parent"', Q='"imports"', E=str(begin)),
        start(1)._replace(fields={STARTED_AT: str(begin + 2_000)}),
        enqueue(7, 2)._replace(fields=boom),
        start(2, 7, 2, attempts=2)._replace(fields={STARTED_AT: str(begin + 44_000)}),
        outside(children=children),
        finish(2, 9, 7, 2)._replace(fields={FINISHED_AT: str(begin + 72_000)}),
    ]
    place.backend.update_many([("parent", update) for update in updates])
    lines = screen_of(on_terminal("get", "parent", "--url", place.url))
    # Then each run and each wait has its length, and its part of the line above, to scale
    at = next(i for i, line in enumerate(lines) if line.startswith(" Timeline"))
    assert lines[at] == " Timeline    1 min 12 s from its enqueue to its end"
    waited, failed, again, completed = map(len, lines[at + 2].split())
    assert lines[at + 2].replace(" ", "").strip("━─") == ""
    assert waited < failed < completed < again and abs(again - 2.5 * failed) < 3
    assert lines[at + 3].endswith(" 28 s")
    told = [" ".join(line.split()[1:]) for line in lines[at + 5 : at + 9]]
    assert told == [
        "◦ Enqueued waited 2.0 s to imports", "✘ Run 1 failed ran 12 s OSError: gone",
        "↻ Queued again waited 30 s", "✓ Run 2 completed ran 28 s",
    ]  # fmt: skip
    # And the children are rolled up, and the failed one is named
    text = "\n".join(lines)
    assert " Children    2: 1 failed, 1 completed\n ✘ Failed    job_failed" in text


def test_get_shows_all_of_a_job(place: Place) -> None:
    # Given a job with fields of every kind, and one that is hostile
    fields = named(
        {"note": '"\\u001b[31mred\\n\\u202ertl [b]"', "file": '{"path":"a","sizes":[1,2]}', "log": f'"{"x" * 5000}"'}
    )
    place.backend.update(IDS["working"], write(1, 2)._replace(fields=fields))
    done = on_terminal("get", IDS["working"], "--url", place.url)
    text = "\n".join(screen_of(done))
    assert "[31mred" in text and "\x1b[31mred" not in done.output and "\u202e" not in done.output
    assert "whole by --json" in text and "sizes" in text and "job_working" in text and "Run 1 is working" in text
    assert " Fields      of this job" in text
    # And a narrow terminal cuts no time, and breaks no line
    narrow = on_terminal("get", IDS["working"], "--url", place.url, columns=40)
    lines = re.sub("\x1b[^m]*m", "", narrow.output).splitlines()
    assert all(width(line) <= 40 for line in lines)
    assert any(re.fullmatch(r"   started +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line) for line in lines)
    # A narrower one loses neither the day nor the second, and only the id is broken
    narrower = on_terminal("get", IDS["working"], "--url", place.url, columns=20)
    lines = [line.strip() for line in re.sub("\x1b[^m]*m", "", narrower.output).splitlines()]
    assert [line for line in lines if width(line) > 20] == [IDS["working"]]
    started = lines.index("started")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", " ".join(lines[started + 1 : started + 3]))


def test_each_command_explains_its_own_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("get", "wait", "watch", "cancel"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert text.count("exit status") == 2 and "  5  the store does not answer" in text
        assert ("asked to stop" in text.partition("exit status")[2]) == (command == "cancel")
        assert ("within --timeout" in text) == (command in ("wait", "watch"))


# The store


def test_where_shows_the_store_and_its_rule(every_place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(every_place, "where") == 0
    shown = capsys.readouterr().out
    assert "--url" in shown and "Answers" in shown
    assert run(every_place, "where", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answers"] and ("list" in found["can"]) == ("memcached" not in every_place.url)


def test_the_first_rule_wins(place: Place, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(f'[tool.dramatiq-status]\nurl = "{place.url}"\n')
    module = "import dramatiq\nfrom dramatiq.brokers.stub import StubBroker\nfrom dramatiq_status import *\n"
    module += f"broker = StubBroker(middleware=[StatusMiddleware(backend=backend_from_url({place.url!r}))])\n"
    (tmp_path / "shop.py").write_text(module + "dramatiq.set_broker(broker)\nother = 5\n")
    if sys.version_info >= (3, 11):
        assert "Found by    pyproject.toml" in on_pipe("where", cwd=tmp_path).output
    assert "Found by    DRAMATIQ_STATUS_URL" in on_pipe("where", cwd=tmp_path, DRAMATIQ_STATUS_URL=place.url).output
    for broker in ("shop", "shop:broker"):
        done = on_pipe("where", "--broker", broker, cwd=tmp_path, DRAMATIQ_STATUS_URL="redis://127.0.0.1:1")
        assert "Found by    --broker" in done.output, done
    # And a wrong one leads to a line that names what to do
    for broker, text in (("shop:other", "no broker"), ("shop.tasks", "no module"), ("nothing", "no module")):
        done = on_pipe("where", "--broker", broker, cwd=tmp_path)
        assert done.status == 2 and text in done.errors and len(done.errors.splitlines()) == 1, done
    # And so does a package whose own code raises an error
    packages = {
        "broken": "raise RuntimeError('boom')",
        "wrong": "raise ValueError('boom')",
        "lacking": "import missing_one",
    }
    for name, code in packages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
        for broker in (name, f"{name}.tasks"):
            done = on_pipe("where", "--broker", broker, cwd=tmp_path)
            assert done.status == 2 and "the import failed with" in done.errors, done
            assert ("boom" in done.errors or "missing_one" in done.errors) and len(done.errors.splitlines()) == 1, done


def test_a_command_without_a_store_names_the_options(tmp_path: Path) -> None:
    done = on_pipe("list", cwd=tmp_path)
    assert done.status == 2 and "no store is named" in done.errors
    # And the command that shows where the store is named lists all the ways
    done = on_pipe("where", cwd=tmp_path)
    assert done.status == 2 and "no store is named" in done.errors
    assert [line.split()[1] for line in done.output.splitlines()[1:]] == [
        "--url", "--broker", "DRAMATIQ_STATUS_URL", "pyproject.toml",
    ]  # fmt: skip
    assert done.output.count("not given") == 4 and on_pipe("where", "--json", cwd=tmp_path).output == ""
    (tmp_path / "pyproject.toml").write_text("[tool.dramatiq-status]\nhost = 'x'\n")
    if sys.version_info >= (3, 11):
        assert "no option 'host'" in on_pipe("list", cwd=tmp_path).errors


def test_help_imports_no_dramatiq() -> None:
    script = "import sys; from dramatiq_status.cli.main import main\n"
    for arguments in (["--help"], ["--version"], ["wait", "--help"]):
        check = f"{script}try: main({arguments!r})\nexcept SystemExit: pass\n"
        check += "assert not {'dramatiq', 'redis', 'pymemcache', 'rich', 'sqlite3'} & set(sys.modules), sys.modules"
        done = subprocess.run([sys.executable, "-c", check], env=UNMEASURED, capture_output=True, text=True)
        assert done.returncode == 0 and "dramatiq-status" in done.stdout, done.stderr


def test_get_loads_what_it_needs(tmp_path: Path) -> None:
    # The writer, the middleware and decimal numbers are for processes that write.
    unneeded = [
        "decimal",
        "rich",
        "redis",
        "difflib",
        *(f"dramatiq_status.{name}" for name in ("status", "middleware")),
    ]
    arguments = ["get", "job", "--url", f"sqlite:///{tmp_path}/status.db"]
    with closing(SQLiteBackend(tmp_path / "status.db", timeout=20_000)) as backend:
        backend.update("job", enqueue())
    check = f"import gc, sys; from dramatiq_status.cli.main import main; sys.argv = {['', *arguments]}\n"
    check += "assert main() == 4\n"
    check += f"assert gc.isenabled()\nfound = set({unneeded}) & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", check], env=UNMEASURED, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_job_that_begins_after_the_wait(place: Place) -> None:
    # The command waits for a job that is enqueued within the time for unknown jobs
    def send() -> None:
        time.sleep(0.2)
        place.backend.update_many([(IDS["unknown"], update) for update in (enqueue(), start(1), finish(1))])

    thread = threading.Thread(target=send)
    thread.start()
    assert run(place, "wait", IDS["unknown"]) == 0
    thread.join()
