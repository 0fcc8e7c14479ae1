"""A classification task with ten rows, which tests write to a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t5_pipeline.data_prep.tasks.config import TaskConfig

ROWS = [{"text": f"the name of module {i} is returned", "label": ("good", "bad")[i % 2]} for i in range(10)]


def settings(data: Path | str, **changed: Any) -> TaskConfig:
    fields: dict[str, Any] = {"name": "t", "data": str(data), "inputs": "sentence: {text}", "targets": "{label}"}
    return TaskConfig(**{**fields, "labels": ["good", "bad"], **changed})


def write(folder: Path, name: str = "train.jsonl", rows: list[dict[str, Any]] | None = None) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)))
    return path
