"""Tests that the update script and ``protocol.py`` have the same names for the same numbers."""

from __future__ import annotations

import re
from importlib.resources import files

from dramatiq_status import cancel_log, history
from dramatiq_status.backends.redis.protocol import UNLISTED, WireKind
from dramatiq_status.record import COMPLETED, DEFAULT_LIVE_TTL, DEFAULT_TOTAL, FAILED, LONGEST_TTL, QUEUED, WORKING
from dramatiq_status.update import Outcome

HEAD = (files("dramatiq_status.backends.redis") / "lua" / "update" / "head.lua").read_text(encoding="utf-8")


def constants(head: str) -> dict[str, str]:
    """Return the constants of the script by their names: ``local A, B = 1, '2'``."""
    found: dict[str, str] = {}
    for names, values in re.findall(r"^local ([A-Z_]+(?:, [A-Z_]+)*) = ([\d',\] ]+)$", head, re.MULTILINE):
        split_names, split_values = names.split(", "), values.split(", ")
        assert len(split_names) == len(split_values), names
        found.update(zip(split_names, split_values))
    return found


def test_the_script_has_the_wire_kinds_of_the_client() -> None:
    # Given the wire kinds that the client sends
    sent = {name: f"'{number}'" for name, number in vars(WireKind).items() if not name.startswith("_")}
    # Then the script has all of them, and no others, as texts: it compares arguments
    quoted = {name: value for name, value in constants(HEAD).items() if value.startswith("'")}
    others = {
        "QUEUED",
        "WORKING",
        "COMPLETED",
        "FAILED",
        "HAS_FAILED",
        "LOST",
        "LIVE_TTL_TEXT",
        "DEFAULT_TOTAL",
    }
    assert {name: value for name, value in quoted.items() if name not in others} == sent


def test_the_script_has_the_outcomes_states_and_times_of_the_library() -> None:
    # Then the constants of the script have the values of the library
    found = constants(HEAD)
    for outcome in ("APPLIED", "DUPLICATE", "REFUSED", "MISSING", "UNCOUNTED", "CANCELLED", "REQUESTED"):
        assert found[outcome] == str(Outcome[outcome].value)
    assert found["LATE"] == str(Outcome.LATE.value) and found["UNLISTED"] == str(UNLISTED)
    assert found["LIVE_TTL"] == str(DEFAULT_LIVE_TTL) and found["LONGEST_TTL"] == str(LONGEST_TTL)
    assert found["DEFAULT_TOTAL"] == f"'{DEFAULT_TOTAL}'"
    assert found["LIVE_TTL_TEXT"] == f"'{DEFAULT_LIVE_TTL}'"
    assert [found[name] for name in ("QUEUED", "WORKING", "COMPLETED", "FAILED")] == [
        f"'{n}'" for n in (QUEUED, WORKING, COMPLETED, FAILED)
    ]
    for name in ("HAS_FAILED", "LOST"):
        assert found[name] == f"'{getattr(history, name)}'"
    for name in ("MAX_RUNS", "MAX_HISTORY_SIZE", "SMALL_HISTORY", "MAX_EXCEPTION_SIZE"):
        assert found[name] == str(getattr(history, name))
    for name in ("MAX_LOGGED", "LOG_TTL"):
        assert found[name] == str(getattr(cancel_log, name))
