"""Stage scripts read like pages: the function of a stage fits on a screen."""

from __future__ import annotations

import ast

import pytest

from t5_pipeline.config.registry import STAGES
from tests.tiny_run import ROOT

LONGEST = 45  # lines


@pytest.mark.parametrize("kind", STAGES)
def test_body_fits_on_a_screen(kind: str) -> None:
    tree = ast.parse((ROOT / "stages" / f"{kind}.py").read_text(encoding="utf-8"))
    (body,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == kind)
    assert body.end_lineno is not None
    assert body.end_lineno - body.lineno + 1 <= LONGEST
