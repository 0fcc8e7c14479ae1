"""YAML with the line number of every key, for error messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.core.errors import InputError

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Located:
    """Parsed data and the line of every key in it: `lines[("stages", "prepare", "corpus")] == 7`.

    `overridden` maps keys that were set later to the flag that set them, such as `--set`.
    """

    path: Path
    data: Any
    lines: dict[Key, int]
    overridden: dict[Key, str] = field(default_factory=dict)

    def where(self, key: Key) -> str:
        """`recipes/demo.yaml:7: stages.prepare.corpus`, with the line of the nearest enclosing key."""
        known = key
        while known and known not in self.lines and known not in self.overridden:
            known = known[:-1]
        place = self.overridden.get(known) or f"{self.path}:{self.lines.get(known, 1)}"
        return f"{place}: {'.'.join(map(str, key)) or 'the file'}"


def read_yaml(path: Path) -> Located:
    """Read one YAML file.

    Raises:
        InputError: if the file is missing, is not YAML, or contains a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); give a YAML file") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Key, int] = {}
        if node is not None:
            _collect_lines(path, node, (), lines)
        return Located(path, yaml.safe_load(text), lines)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: is not valid YAML ({error.problem}); fix the file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML ({' '.join(str(error).split())}); fix the file") from None


def _collect_lines(path: Path, node: yaml.Node, key: Key, lines: dict[Key, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = (*key, str(name.value))
            if inner in lines:
                raise InputError(
                    f"{path}:{name.start_mark.line + 1}: {'.'.join(map(str, inner))}: duplicate key; it is"
                    f" also on line {lines[inner]}; remove one"
                )
            lines[inner] = name.start_mark.line + 1
            _collect_lines(path, value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*key, index)] = value.start_mark.line + 1
            _collect_lines(path, value, (*key, index), lines)
