"""YAML with the line number of every key, for error messages, and with bounded time and memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from t5_pipeline.core.bounded import read_file
from t5_pipeline.core.errors import InputError

MAX_BYTES = 2**18
MAX_NODES = 50_000  # with repetitions by aliases
_TYPES = ("null", "bool", "int", "float", "str", "timestamp", "seq", "map", "merge")
_TAGS = {f"tag:yaml.org,2002:{name}" for name in _TYPES}
_INTEGER, _LONGEST_INTEGER = "tag:yaml.org,2002:int", 100
_FLOAT, _MERGE = "tag:yaml.org,2002:float", "tag:yaml.org,2002:merge"
_BOOL, _TIMESTAMP = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"
_OCTAL = re.compile(r"[-+]?0[\d_]+")

_REMEDIES = {
    "'\\t'": "use spaces instead of the tab",
    "cannot start any token": "put the text in quotes",
    "mapping values are not allowed": "indent keys of a level alike, and put a text with a colon in quotes",
    "expected <block end>": "indent keys of a level alike, and close all quotes",
    "another document": "keep one of the documents between ---",
    "undefined alias": "define it above with &",
}
"""Part of a message of PyYAML → remedy."""

Key = tuple[str | int, ...]


class NotYAML(InputError):
    """A text that YAML cannot read."""


@dataclass(frozen=True)
class Located:
    """Parsed data and the line of every key in it: `lines[("stages", "prepare", "corpus")] == 7`.

    Attributes:
        overridden: keys that were set later, and the flag that set them, such as `--set`.
        keys_only: name keys without the file, because it is a copy in which a correction would be lost.
    """

    path: Path
    data: Any
    lines: dict[Key, int]
    overridden: dict[Key, str] = field(default_factory=dict)
    keys_only: bool = False

    def where(self, key: Key) -> str:
        """`recipes/demo.yaml:7: stages.prepare.corpus`, with the line of the nearest enclosing key; else the path."""
        if not key:
            return str(self.path)
        known = key
        while known and known not in self.lines and known not in self.overridden:
            known = known[:-1]
        name = ".".join(map(str, key))
        if self.keys_only:
            return name
        place = self.overridden.get(known) or f"{self.path}:{self.lines.get(known, 1)}"
        return f"{place}: {name}"


def read_yaml(path: Path) -> Located:
    """Read one YAML file.

    Raises:
        InputError: if the file is missing, is too large, is not YAML, or contains a key twice or a number like 010.
    """
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None
    lines: dict[Key, int] = {}
    return Located(path, _parse(text, path, lines), lines)


def parse_value(text: str, where: str) -> Any:
    """Parse a value that was given on the command line. It has no comments: one with a # where YAML begins one is text.

    Args:
        where: the flag that gave it, for errors.

    Raises:
        NotYAML: if it is not YAML.
        InputError: if it contains a key twice or a number like 010.

    >>> parse_value("[1, 2]", "--set"), parse_value("question #1", "--set"), parse_value("'a #1'", "--set")
    ([1, 2], 'question #1', 'a #1')
    """
    return text if "#" in text and _has_comment(text) else _parse(text, where, {})


def _has_comment(text: str) -> bool:
    """Whether YAML would leave out the end of a text."""
    after_comments = (yaml.BlockEndToken, yaml.StreamEndToken)
    try:
        ends = [token.end_mark.index for token in yaml.scan(text) if not isinstance(token, after_comments)]
    except yaml.YAMLError:
        return False
    return text[ends[-1] :].strip() != ""


def _parse(text: str, where: Path | str, lines: dict[Key, int]) -> Any:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _Nodes(where, lines).walk(node, (), ())
        return _separate(yaml.SafeLoader("").construct_document(node))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1 if error.problem_mark else 1}" if isinstance(where, Path) else ""
        raise NotYAML(f"{where}{line}: is not valid YAML ({error.problem}); {_remedy(error, where)}") from None
    except yaml.reader.ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}" if isinstance(where, Path) else ""
        raise NotYAML(
            f"{where}{line}: contains the character U+{error.character:04X}, which YAML does not allow; remove it"
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        problem = " ".join(str(error).split())
        raise NotYAML(f"{where}: is not valid YAML ({problem}); fix {_what(where)}") from None
    except RecursionError:
        raise InputError(f"{where}: is nested too deeply; fix {_what(where)}") from None


def _remedy(error: yaml.MarkedYAMLError, where: Path | str) -> str:
    """The remedy for a text that is not YAML."""
    remedies = (advice for words, advice in _REMEDIES.items() if words in (error.problem or ""))
    return next(remedies, f"fix {_what(where)}")


def _what(where: Path | str) -> str:
    return "the file" if isinstance(where, Path) else "the value"


def _separate(value: Any) -> Any:
    """A copy in which the places that an alias names share nothing, so that one of them can be changed."""
    if isinstance(value, dict):
        return {key: _separate(item) for key, item in value.items()}
    return [_separate(item) for item in value] if isinstance(value, list) else value


class _Nodes:
    """Checks a tree of nodes and collects the lines of its keys."""

    def __init__(self, where: Path | str, lines: dict[Key, int]) -> None:
        self.where = where
        self.lines = lines
        self.left = MAX_NODES
        self.loader = yaml.SafeLoader("")

    def walk(self, node: yaml.Node, key: Key, outer: tuple[yaml.Node, ...]) -> None:
        self.left -= 1
        place = self._place(node.start_mark.line + 1, key)
        if self.left < 0:
            raise InputError(
                f"{place}: contains more than {MAX_NODES:,} values (aliases count each time);"
                f" shorten {_what(self.where)}"
            )
        if any(node is other for other in outer):
            raise InputError(f"{place}: contains itself by an alias; remove it")
        if node.tag not in _TAGS:
            raise InputError(f"{place}: the tag {node.tag} is not supported; remove it")
        if node.tag == _INTEGER and len(node.value) > _LONGEST_INTEGER:
            raise InputError(f"{place}: is a number of {len(node.value):,} digits; change it")
        if base := _unusual_base(node):
            raise InputError(
                f"{place}: YAML reads {node.value} as a number in base {base}; write a decimal number"
                f' without leading zeros, or text in quotes: "{node.value}"'
            )
        if not self._fits_tag(node):
            raise InputError(f"{place}: {node.value} does not fit the tag {node.tag}; remove the tag")
        outer = (*outer, node)
        if isinstance(node, yaml.MappingNode):
            read: dict[Any, yaml.ScalarNode] = {}
            for name, value in node.value:
                if not isinstance(name, yaml.ScalarNode):
                    raise InputError(f"{place}: has a key that is not text; fix it")
                self.walk(name, (*key, name.value), outer)
                self._add((*key, name.value), name)
                if name.tag != _MERGE:
                    self._check_not_equal(name, key, read)
                self.walk(value, (*key, name.value), outer)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self.lines[(*key, index)] = value.start_mark.line + 1
                self.walk(value, (*key, index), outer)

    def _add(self, key: Key, node: yaml.Node) -> None:
        line = node.start_mark.line + 1
        if key in self.lines:
            raise InputError(
                f"{self._place(line, key)}: duplicate key; it is also on line {self.lines[key]}; remove one"
            )
        self.lines[key] = line

    def _check_not_equal(self, name: yaml.ScalarNode, key: Key, read: dict[Any, yaml.ScalarNode]) -> None:
        """Refuse a key that YAML reads as equal to an earlier one, whose value it would replace."""
        other = read.setdefault(self.loader.construct_document(name), name)
        if other is not name:
            place = self._place(name.start_mark.line + 1, (*key, name.value))
            raise InputError(
                f"{place}: duplicate key; YAML reads it as equal to {other.value} on line {other.start_mark.line + 1};"
                " remove one, or write both in quotes"
            )

    def _fits_tag(self, node: yaml.Node) -> bool:
        """Whether the text of a boolean or a date has the form that its tag requires, which PyYAML does not check."""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in (_BOOL, _TIMESTAMP):
            return True
        form = self.loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        return bool(form == node.tag)

    def _place(self, line: int, key: Key) -> str:
        """The key, and in a file its line."""
        if isinstance(self.where, Path):
            return f"{self.where}:{line}: {'.'.join(map(str, key)) or 'the file'}"
        return ".".join([self.where, *map(str, key)])


def _unusual_base(node: yaml.Node) -> int | None:
    """The base of a number that only YAML 1.1 does not read as decimal: 8 for 010, 60 for 1:30; None for any other."""
    if node.tag == _INTEGER and _OCTAL.fullmatch(node.value):
        return 8
    return 60 if node.tag in (_INTEGER, _FLOAT) and ":" in node.value else None
