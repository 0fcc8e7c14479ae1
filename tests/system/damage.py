"""Seeded damage to files: bytes, entries of JSON and YAML, and other things in place of a file."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**70), 10**50, 1e308, float("nan"), float("inf"), 1e-320, "", " ", "a",
    "x" * 300, "../../victim", "/dev/zero", "/dev/null", "/", "..", "\0", "\x1b[2J\n\u202e", "\ud800", "{text}", "{a.b[0]!r}",
    "lm_adapt@4", "prompt_tune", "none.yaml", [], [None], [[[]]], ["a"] * 50, [1, 2], {}, {"": ""}, {"a": {"b": [1]}},
    {"1": 2}, "2020-01-02", "s3://x/y", "~", "$HOME", "<b>", "%s%n", "0x10", "1e9",
]  # fmt: skip


def damage_bytes(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content) + 1)
    match draw.randrange(8):
        case 0:
            return b""
        case 1:
            return content[:at]
        case 2:
            return content[:at] + draw.randbytes(draw.choice([1, 4, 100])) + content[at:]
        case 3:
            return content[:at] + draw.randbytes(8) + content[at + 8 :]
        case 4:
            return content + content
        case 5:
            return (
                content[:at]
                + draw.choice([b"[" * 5_000, b"9" * 5_000, b"\xff\xfe", b"\0" * 64, b"\r", b"'\""])
                + content[at:]
            )
        case 6:
            return draw.randbytes(200)
        case _:
            flipped = bytearray(content or b"\0")
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)


def damage_tree(draw: random.Random, tree: Any) -> Any:
    """Replace, rename or remove one entry of plain data."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if not places:
        return draw.choice(VALUES)
    node, key = draw.choice(places)
    match draw.randrange(6):
        case 0 if isinstance(node, dict):
            node[draw.choice(["", "x", "superseded", "tune\\1", "y" * 300, "a\nb", "1", "uses"])] = node.pop(key)
        case 1:
            del node[key]
        case 2 if isinstance(node, list):
            node.extend([draw.choice(VALUES)] * 20)
        case _:
            node[key] = draw.choice(VALUES)
    return tree


def damage(draw: random.Random, path: Path, victim: Path) -> str:
    """Damage or replace a file; returns what was done."""
    content, kind = path.read_bytes(), draw.randrange(12)
    if path.suffix == ".json" and kind < 7:
        with contextlib.suppress(ValueError):
            path.write_text(json.dumps(damage_tree(draw, json.loads(content))))
            return "entry"
    if kind < 8:
        path.write_bytes(damage_bytes(draw, content))
        return "bytes"
    path.unlink()
    match draw.randrange(6):
        case 0:
            path.mkdir()
        case 1:
            os.mkfifo(path)
        case 2:
            path.symlink_to(victim / "thesis.txt")
        case 3:
            path.symlink_to(path.name)
        case 4:
            with path.open("wb") as file:
                file.truncate(2**40)
        case _:
            return "missing"
    return "replaced"
