"""The pictures show what the programs of today draw."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

import pytest

from dramatiq_status import State

from .pages import ROOT

DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    """Import a script, whose name has no suffix."""
    loader = SourceFileLoader(name.replace("-", "_"), str(ROOT / "scripts" / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_picture_of_the_states_is_drawn_by_its_script(colours: str) -> None:
    drawing = script("states-picture")
    picture = (DOCS / "explanation" / f"states-{colours}.svg").read_text(encoding="utf-8")
    assert picture == drawing.svg(getattr(drawing, colours.upper()))
    assert {box.state for box in drawing.BOXES} == set(State)
