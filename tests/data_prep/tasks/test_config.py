from __future__ import annotations

import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from tests.data_prep.tasks.small_task import settings


@pytest.mark.parametrize("changed", [
    {"labels": [False, True]},
    {"values": {"label": {"0": True}}},
    {"values": {"label": {False: datetime.date(2020, 1, 1)}}},
    {"labels": ["x", None]},
    {"labels": [datetime.date(2020, 1, 1)]},
])  # fmt: skip
def test_labels_and_values_that_yaml_does_not_read_as_text(changed: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="write it in quotes"):
        settings("rows", **changed)
    assert settings("rows", labels=[0, 1.5]).labels == ["0", "1.5"]


def test_values_of_one_text_are_refused() -> None:
    """YAML's true is the text True; the second of the two would replace the first."""
    with pytest.raises(ValidationError, match="two keys are the same text, True; remove one"):
        settings("rows", values={"label": {True: "good", "True": "bad"}})
