"""Banned constructions in text that users and contributors read (see "Style" in CONTRIBUTING.md).

Checks documentation, recipe comments, and the docstrings, comments, string literals and names of the code.
One file or folder: `pytest tests/system/test_language.py -k engines.md`.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from t5_pipeline.config.registry import STAGES

ROOT = Path(__file__).parents[2]
CODE = ("pipeline", "data_prep", "stages", "benchmarks", "tests")
CONFIGURATIONS = ("recipes", "accelerate_configs")

# Regular expressions, in which a space matches any white space, and the text to write instead.
BANNED = {
    r"\bmend(s|ed|ing)?\b": "fix, repair or check",
    r"\banew\b": "again; or recompute, rebuild, rerun",
    r"\bmanieth\b": "every Nth",
    r"\bevery so\b": "every N",
    r"\bso many\b": "N, or the number meant",
    r"\b(go|goes|going|went|gone) on\b": "resume or continue",
    r"(?<!there\s)\b(is|are|was|were) no (?!longer\b|more\b|less\b|fewer\b|later\b|earlier\b|matter\b)[a-z]+": "is not a …",
    r"\blet(s|ting)? (it |them )?go\b": "free or release",
    r"\b(take[ns]?|taking|took) ((it|them|one another|each other) )?up\b(?! (space|memory))": "load, resume or start",
    r"\bst(and|ands|ood|anding)\b(?!-| for\b| alone\b)": "be or appear; a run has progress, it does not stand",
    r"\bl(ie|ies|ay|ying) (in|on|at|there|beside|under|below|where|within|outside)\b": "be in, or be stored in",
    r"(?<!by\s)(?<!other\s)\bhand(s|ed|ing)? ((it|them) )?on\b": "pass",
    r"(?-i:(^|\. )Of (each|what|which|an?) )|[:;] of (each|what|which|an?) ": "put the head noun first",
    r"(?-i:(^|\. )What) (?!for\b)(?=[^?]*?(\.|$))": "begin with a noun",
    r"\b(that|which|it|they|must|file|directory|corpus) holds? (an?|no|one|the|every|its|their|only|what)\b(?! lock)": "contain or store",
    r"\bfor want of\b": "for lack of",
    r"\bbut for\b": "except",
    r"\bin company\b|\bthe company\b": "in a batch with others; batch composition",
    r"\btold\b": "signaled, reported or given",
    r"\b(that|which) (is|are|was|were) (already )?there\b|\b(is|are|was|were) not (yet )?there\b": "exists; is missing",
    r"\bthings? (that|which) (is|are)\b": "name them",
    r"\bsuch ones\b": "name them",
    r"\blaid aside\b": "moved",
    r"\bsee to (it|the|your)\b": "check",
    r"\b(is|are|was|were) wanted\b": "is required or requested",
    r"\bfor ever\b": "permanently",
    r"\bin silence\b": "silently",
    r"\bgiv(e|es|ing) way\b": "is dropped",
    r"\bspared\b": "avoided or saved",
    r"\bas (it was|they were)(?=[.,;)]|$)": "unchanged or up to date",
    r"\b(is|are|was|were) whole\b": "is complete",
    r"\b(a|the) law\b": "a distribution or a property",
    r"(^|[.;] |\n\s*)InputError,? (if|where|when|with)\b": "a section `Raises:` with `InputError: if …`",
    r"\bRaises InputError\b": "a section `Raises:` with `InputError: if …`",
}
PATTERNS = [(re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE), plain) for pattern, plain in BANNED.items()]
LONGEST_HELP = 90  # characters
CLAUSE = re.compile(r"(What|How|Where|Which|When|Who|Why)\b")
QUOTED = re.compile(r"`[^`\n]*`")


@cache  # most literals are in several files
def found(text: str) -> list[tuple[int, str, str]]:
    """Line offset, banned text and its replacement; quoted code is skipped."""
    text = QUOTED.sub(lambda match: "`" + "x" * (len(match[0]) - 2) + "`", text)
    return [
        (text.count("\n", 0, match.start()), " ".join(match[0].split()), plain)
        for pattern, plain in PATTERNS
        for match in pattern.finditer(text)
    ]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Texts of a file with the lines they begin at."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from comments(tokenize.generate_tokens(io.StringIO(content).readline))
        yield from literals(ast.parse(content))
    elif path.suffix == ".md":
        yield 1, content
    else:
        lines = [line.partition("#")[2].strip() if "#" in line else "" for line in content.splitlines()]
        yield 1, "\n".join(lines)


def comments(tokens: Iterator[tokenize.TokenInfo]) -> Iterator[tuple[int, str]]:
    """Comments; those in consecutive lines are one text."""
    first, lines = 0, list[str]()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            if token.start[0] != first + len(lines):
                yield first, "\n".join(lines)
                first, lines = token.start[0], []
            lines.append(token.string.lstrip("# "))
    yield first, "\n".join(lines)


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """String literals, docstrings included, and names of functions and classes."""
    parts = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            values = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name.replace("_", " ")


def files() -> list[Path]:
    """Every file with text for users or contributors."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
        (ROOT / "docs").glob("*.md")
    )
    code = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]
    return [*pages, *code, *(path for folder in CONFIGURATIONS for path in sorted((ROOT / folder).iterdir()))]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files(), ids=named)
def test_no_banned_construction(path: Path) -> None:
    errors = [(line + offset, text, plain) for line, content in texts(path) for offset, text, plain in found(content)]
    if path.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        errors += [(1, match[0], "begin with a noun phrase") for match in [CLAUSE.match(docstring)] if match]
    lines = [f"{named(path)}:{line}: “{text}”; write instead: {plain}" for line, text, plain in sorted(set(errors))]
    assert not lines, "\n".join(["", *lines])


@pytest.mark.parametrize("kind", STAGES)
def test_help_texts_fit_on_a_line(kind: str) -> None:
    texts = {name: field.description or "" for name, field in STAGES[kind].model_fields.items()}
    assert not {name: text for name, text in texts.items() if not 0 < len(text) <= LONGEST_HELP or text.endswith(".")}


@pytest.mark.parametrize(
    "text",
    [
        "recipes/demo.yaml:7: not a number; mend it",
        "it goes\n    on from the last checkpoint",
        "an output that is no label",
        "a share. Of each row the top pieces",
        "engines take one another up",
        "shards that are not there yet",
    ],
)
def test_banned_constructions_are_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no such file",
        "it is no longer than the input",
        "what the values of a field stand for",
        "started by hand on two machines",
        "a recommendation; `goes on` is code",
        "takes up memory",
    ],
)
def test_plain_english_is_not_refused(text: str) -> None:
    assert not found(text)
