"""The pictures show what the programs of today draw."""

from __future__ import annotations

import pytest

from dramatiq_status import State

from .pages import ROOT, script

DOCS = ROOT / "docs"


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_picture_of_the_states_is_drawn_by_its_script(colours: str) -> None:
    drawing = script("states-picture")
    picture = (DOCS / "explanation" / f"states-{colours}.svg").read_text(encoding="utf-8")
    assert picture == drawing.svg(getattr(drawing, colours.upper()))
    assert {box.state for box in drawing.BOXES} == set(State)
