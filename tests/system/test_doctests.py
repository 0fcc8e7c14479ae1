"""Every example in a docstring is true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import t5_pipeline
import t5_pipeline.data_prep
import t5_pipeline.stages

MODULES = [
    module.name
    for package in (t5_pipeline, t5_pipeline.data_prep, t5_pipeline.stages)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0
