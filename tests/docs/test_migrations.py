"""The pages for users of other libraries name what exists: each piece of Python in their tables runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from fastapi import FastAPI

import dramatiq_status
from dramatiq_status import StatusMiddleware, StatusRegistry
from dramatiq_status.backends import RedisBackend, StubBackend
from dramatiq_status.web import allow_all, status_app

from ..recording import make_stub_broker
from .pages import ROOT

PAGES = sorted((ROOT / "docs" / "how-to").glob("migrate-from-*.rst"))

#: Values in place of the dots of a signature.
DOTS = {"url": "redis_url", "authorize": "allow_all", "status_ttl": "1_000"}


def ours(page: Path) -> list[str]:
    """Return the code in the columns of this package."""
    cells = re.findall(
        r"^   \* - .*\n(?:     [^-].*\n)*     - (.*(?:\n       .*)*)", page.read_text("utf-8"), flags=re.MULTILINE
    )
    found = [code for cell in cells for code in re.findall(r"``([^`]+)``", cell)]
    return [re.sub(r"(\w+)=\.\.\.", lambda one: f"{one[1]}={DOTS[one[1]]}", code) for code in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_in_the_tables_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAMATIQ_STATUS_URL", "memory://")
    # Given the pieces of Python in the table
    codes = [code for code in ours(page) if is_python(code)]
    assert len(codes) >= 6
    # When each of them runs with the names of a page, then none fails
    assert {code: error for code in codes if (error := failure_of(code)) is not None} == {}


def is_python(code: str) -> bool:
    """Whether a piece is code, and not the name of a field, a state or an event."""
    if code.startswith("@"):
        return True
    try:
        (node,) = ast.parse(code).body
    except SyntaxError:
        return False
    return not (isinstance(node, ast.Expr) and isinstance(node.value, (ast.Name, ast.Constant)))


def failure_of(code: str) -> str | None:
    """Run a piece of code with a broker, two messages and their handles, and return its error."""
    backend, broker = StubBackend(), make_stub_broker()
    namespace: dict[str, Any] = {name: getattr(dramatiq_status, name) for name in dramatiq_status.__all__}
    namespace |= {"__name__": __name__, "allow_all": allow_all, "status_app": status_app}
    namespace |= {"dramatiq": dramatiq, "RedisBackend": RedisBackend, "redis_url": "redis://127.0.0.1:6379/0"}
    namespace |= {"app": FastAPI(), "backend": backend, "broker": broker, "i": 1, "n": 3}
    if "add_middleware" not in code:
        broker.add_middleware(StatusMiddleware(backend=backend))
        dramatiq.set_broker(broker)
        work = dramatiq.actor(lambda: None, actor_name="work", broker=broker)
        message, other = work.send(), work.send()
        status, progress = StatusRegistry.get(message), StatusRegistry.progress(message)
        status.update(step="reading", vino="veritas", progress=1, status="completed")
        namespace |= {"message": message, "other": other, "message_id": message.message_id, "id": message.message_id}
        namespace |= {"status": status, "progress": progress, "group": [message], "snapshot": status.read()}
    try:
        exec(f"{code}\ndef tracked(): ..." if code.startswith("@") else code, namespace)
    except Exception as e:
        return repr(e)
    finally:
        dramatiq.set_broker(None)  # type: ignore[arg-type]
    return None
