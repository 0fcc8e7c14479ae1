"""Files and slices of task splits, shared by the code that reads rows and the code that computes their digests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from t5_pipeline.core.errors import InputError

SUFFIXES = tuple(
    f".{kind}{compression}"
    for kind in ("jsonl", "json", "csv", "tsv", "parquet")
    for compression in ("", ".gz", ".zst")
)

_BOUND = re.compile(r"-?\d+%?")


@dataclass(frozen=True)
class Slice:
    """A range of a file's rows (or passages, if it has them), written `[:90%]` or `[-500:]`.

    >>> Slice("10%", "").of(25)
    slice(3, 25, None)
    >>> Slice("", "-5").of(25)
    slice(0, 20, None)
    """

    begin: str
    end: str

    def of(self, rows: int) -> slice:
        """The range of `rows` rows. Percentages are rounded to the nearest row, halves up."""
        return slice(self._at(self.begin, rows, 0), self._at(self.end, rows, rows))

    @staticmethod
    def _at(bound: str, rows: int, missing: int) -> int:
        if not bound:
            return missing
        number = int(bound.removesuffix("%"))
        if bound.endswith("%"):
            number = (rows * number + 50) // 100
        return min(max(number + rows if bound.startswith("-") else number, 0), rows)


def split_slice(split: str) -> tuple[str, Slice | None]:
    """The name of a split without its slice, and the slice.

    >>> split_slice("train[:90%]")
    ('train', Slice(begin='', end='90%'))

    Raises:
        ValueError: if the slice is malformed.
    """
    if "[" not in split or not split.endswith("]"):
        return split, None
    name, _, inside = split[:-1].rpartition("[")
    begin, colon, end = (part.strip() for part in inside.partition(":"))
    if not name:
        raise ValueError(f"`{split}` has no split name; write one before the slice, as in train{split}")
    if not colon:
        raise ValueError(f"`{split}` has no range of rows; write {name}[:90%], {name}[100:200] or {name}[-500:]")
    for bound in (begin, end):
        if bound and not _BOUND.fullmatch(bound):
            raise ValueError(f"`{split}`: {bound!r} is not a whole number of rows or percent; write {name}[:90%]")
        if bound.endswith("%") and abs(int(bound[:-1])) > 100:
            raise ValueError(f"`{split}`: {bound} is more than 100%; use at most 100%")
    comparable = (
        begin and end and begin.endswith("%") == end.endswith("%") and begin.startswith("-") == end.startswith("-")
    )
    if comparable and int(begin.strip("%")) >= int(end.strip("%")):
        raise ValueError(f"`{split}`: {begin}:{end} contains no row; swap or change the bounds")
    return name, Slice(begin, end)


def split_file(data: str, split: str) -> Path | None:
    """The file of a split: in the folder `data`, or next to the file `data`; None if there is none.

    A split may name its file with or without the suffix, which may be in any case; a slice is ignored. If `data` is a
    file, it is the split of the same name, or else `train`, but never any other split.

    Raises:
        InputError: if several files have the name of the split.
    """
    path, split = Path(data), split_slice(split)[0]
    if path.is_dir():
        return _named(path, split)
    if not path.is_file():
        return None
    if split in (path.name, _stem(path)):
        return path
    return _named(path.parent, split) or (path if split == "train" else None)


def _named(folder: Path, split: str) -> Path | None:
    named = folder / split
    if named.is_file() or not named.parent.is_dir():
        return named if named.is_file() else None
    files = sorted(file for file in named.parent.iterdir() if _stem(file) == named.name and file.is_file())
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise InputError(f"{folder}: {names} are both the split {split!r}; name one of them with its suffix")
    return files[0] if files else None


def _stem(path: Path) -> str:
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]
