"""A corpus and a task from the documentation that comes with Python, available on every machine.

The corpus is the docstrings of the standard library, parsed from its source files (nothing is imported, so the result
does not depend on the platform), and the topics of the language reference (`pydoc_data.topics`). It is laid out in
pages; the last word of each page is the kind of its entry:

    write(self, data) Write some data bytes to the transport. […] method

The task is to classify a docstring as a class's, a function's or a method's; these words are removed from its input.
Docstrings held out for validation and test are not on any page, nor are texts with the same opening words.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from t5_pipeline.data_prep.corpora.decontamination import Decontamination

STDLIB_DOCS = "stdlib-docs"
STDLIB_KINDS = "stdlib-kinds"

KINDS = ("class", "function", "method")
PAGE_WIDTH = 160  # characters
MAX_ROWS_PER_KIND = 600
SHARES = {"test": 0.25, "validation": 0.15}  # of the rows; the rest is for training
TASK_SPLITS = ("train", "validation", "test")
SHORTEST_TEXT = 20  # characters; shorter docstrings are too uninformative for the task
OPENING = 9  # words; a text with the same first words as a held-out docstring counts as a near copy

_NO_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_NO_DOCUMENTATION |= {"ensurepip", "lib-dynload", "pydoc_data", "encodings"}


@dataclass(frozen=True)
class Entry:
    """One docstring. `name` is qualified ("asyncio.tasks.wait_for"), `head` reads like "wait_for(fut, timeout)"."""

    name: str
    kind: str
    module: str
    head: str
    text: str


@dataclass(frozen=True)
class Page:
    """A page of the corpus."""

    name: str
    text: str


def documents() -> Iterator[Page]:
    """The pages of the corpus in a fixed order, decontaminated of the task's validation and test rows."""
    texts = [entry.text for split in SHARES for entry in _task_entries()[split]]
    held_out = Decontamination([*texts, *(" ".join(text.split()[:OPENING]) for text in texts)])
    sections = [(entry.name, f"{entry.head} {entry.text}", entry.kind) for entry in _entries()]
    sections += [(f"topic {topic}", text, "topic") for topic, text in _topics()]
    for name, text, foot in sections:
        if not held_out.found_in(text):
            for number, page in enumerate(textwrap.wrap(text, PAGE_WIDTH), 1):
                yield Page(f"{name} p. {number}", f"{page} {foot}")


def task_rows(split: str) -> list[dict[str, str]]:
    """Rows {"name", "text", "kind"} of one of `TASK_SPLITS`, balanced over kinds."""
    return [{"name": entry.name, "text": _without_kinds(entry), "kind": entry.kind} for entry in _task_entries()[split]]


def _without_kinds(entry: Entry) -> str:
    """The first page of an entry as a task input, without the kind and the words for kinds."""
    text = re.sub("|".join(KINDS), "", f"{entry.head} {entry.text}", flags=re.IGNORECASE)
    return textwrap.wrap(text, PAGE_WIDTH)[0]


@cache
def _task_entries() -> dict[str, list[Entry]]:
    """The docstrings of each split: chosen by a hash of the qualified name, deduplicated, balanced over kinds."""
    by_text: dict[str, list[Entry]] = {}
    for entry in _entries():
        if entry.kind in KINDS and len(entry.text) >= SHORTEST_TEXT:
            by_text.setdefault(entry.text.casefold(), []).append(entry)
    by_kind: dict[str, list[Entry]] = {kind: [] for kind in KINDS}
    for entries in by_text.values():
        if len({entry.kind for entry in entries}) == 1:
            first = min(entries, key=_hash)
            by_kind[first.kind].append(first)
    size = min(MAX_ROWS_PER_KIND, *map(len, by_kind.values()))
    splits: dict[str, list[Entry]] = {split: [] for split in TASK_SPLITS}
    for entries in by_kind.values():
        rest = sorted(entries, key=_hash)[:size]
        for split, share in SHARES.items():
            splits[split] += rest[: int(size * share)]
            rest = rest[int(size * share) :]
        splits["train"] += rest
    return {split: sorted(entries, key=_hash) for split, entries in splits.items()}


def _hash(entry: Entry) -> str:
    return hashlib.sha256(entry.name.encode()).hexdigest()


@contextmanager
def _collector_off() -> Iterator[None]:
    """Syntax trees have no cycles: visiting their nodes would free nothing, and take a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def _entries() -> tuple[Entry, ...]:
    """Every docstring of the standard library, in the order of its files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    entries: dict[str, Entry] = {}
    with warnings.catch_warnings(), _collector_off():
        warnings.simplefilter("ignore")  # about literals in the library itself
        for file in sorted(library.rglob("*.py")):
            parts = file.relative_to(library).with_suffix("").parts
            if _NO_DOCUMENTATION & set(parts) or any(part.startswith(("config-", "_sysconfigdata")) for part in parts):
                continue
            try:
                tree = ast.parse(file.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError, OSError):
                continue  # deliberately invalid files (lib2to3's test data)
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            for entry in _docstrings(tree, module, "", "module"):
                entries.setdefault(entry.name, entry)  # a property's setter has the name of its getter
    return tuple(entries.values())


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, module: str, name: str, kind: str
) -> Iterator[Entry]:
    text = " ".join((ast.get_docstring(node) or "").split())
    if text:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                head = f"{node.name}({ast.unparse(node.args)})"
            case ast.ClassDef():
                head = f"class {node.name}" + (f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else "")
            case _:
                head = f"module {module}"
        yield Entry(f"{module}.{name}" if name else module, kind, module, " ".join(head.split()), text)
    if kind not in ("module", "class"):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = "class" if isinstance(child, ast.ClassDef) else "method" if kind == "class" else "function"
            yield from _docstrings(child, module, f"{name}.{child.name}" if name else child.name, inner)


def _topics() -> list[tuple[str, str]]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions ship Python without it
        return []
    return [(topic, " ".join(text.split())) for topic, text in sorted(topics.items())]
