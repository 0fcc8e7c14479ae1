"""Files and slices of task splits, shared by the code that reads rows and the code that computes their digests."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.files import COMPRESSIONS, FORMATS
from t5_pipeline.data_prep.sampling.permutation import Permutation

_SUFFIXES = [f"{form}{compression}" for form in FORMATS for compression in ("", *COMPRESSIONS)]

_TXT = re.compile(r"\.txt(\.gz|\.zst)?$", re.IGNORECASE)
_BOUND = re.compile(r"-?\d+%?")
_ORDER = re.compile(r"(shuffled|stratified)(?:\s*=\s*(\d{1,9}))?")


Order = Literal["file", "shuffled", "stratified"]
STRATIFIED_ORDER = 2
"""Version of the order `stratified`: raise it if a change puts other rows into slices, so that results become stale."""
_FILE_LENGTHS = [round(100 * 1.05**k) for k in range(284)]  # 100 to 10⁸ rows; below 100, 1% may be no row
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples are spread evenly over [0, 1), however many there are


@dataclass(frozen=True)
class Slice:
    """A range of a file's rows (or passages, if it has them): `[:90%]`, `[-500:]`, `[:90%, shuffled]`.

    Attributes:
        begin, end: bounds, as numbers or percentages; empty for the first or last row.
        order: the order of the rows in which the range is taken. In the order `stratified`, every range contains each
            class in proportion to its rows.
        seed: seed of the orders `shuffled` and `stratified`.
    """

    begin: str
    end: str
    order: Order = "file"
    seed: int = 0

    def of(self, rows: int, strata: Sequence[str] | None = None) -> list[int]:
        """The rows of the slice, in the order of the file.

        Args:
            rows: number of rows in the file.
            strata: the class of each row, for the order `stratified`.

        >>> Slice("", "-5").of(8)
        [0, 1, 2]
        >>> sorted(Slice("", "50%", "shuffled").of(8) + Slice("50%", "", "shuffled").of(8))
        [0, 1, 2, 3, 4, 5, 6, 7]
        >>> strata = ["no", "no", "no", "no", "yes", "yes"]
        >>> [strata[i] for i in Slice("", "50%", "stratified").of(6, strata)]
        ['no', 'no', 'yes']
        """
        chosen = self._order(rows, strata)[self.range_of(rows)]
        return sorted(chosen.tolist())

    def range_of(self, rows: int) -> slice:
        """The range of `rows` rows in the order. Percentages are rounded to the nearest row, halves up.

        >>> Slice("10%", "").range_of(25)
        slice(3, 25, None)
        """
        return slice(self._at(self.begin, rows, 0), self._at(self.end, rows, rows))

    def _order(self, rows: int, strata: Sequence[str] | None) -> npt.NDArray[np.int64]:
        order = np.arange(rows)
        if self.order == "file" or not rows:
            return order
        shuffled = Permutation(rows, self.seed, "slice")(order)
        if self.order == "shuffled":
            return shuffled
        assert strata is not None
        # Row k of a class of n rows is placed at (k + u)/n of the way, so that the classes are mixed evenly. Each class
        # has its own u: with u = ½ for all, the last tenth would contain no row of a class of 3.
        _, first_C, class_R = np.unique(np.asarray(strata)[shuffled], return_index=True, return_inverse=True)
        place_R = np.empty(rows)
        for number, one in enumerate(np.argsort(-first_C)):
            of_class = class_R == one
            count = np.count_nonzero(of_class)
            place_R[of_class] = (np.arange(count) + (number + 0.5) * _GOLDEN % 1) / count
        return shuffled[np.argsort(place_R, kind="stable")]

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
    ('train', Slice(begin='', end='90%', order='file', seed=0))
    >>> split_slice("train[90%:, shuffled=1]")
    ('train', Slice(begin='90%', end='', order='shuffled', seed=1))

    Raises:
        ValueError: if the slice is malformed.
    """
    if split.count("[") != split.count("]"):
        raise ValueError(f"`{split}` has a bracket without its partner; write a slice as in train[:90%]")
    if "[" not in split or not split.endswith("]"):
        return split, None
    name, _, inside = split[:-1].rpartition("[")
    bounds, comma, ordered = inside.partition(",")
    begin, colon, end = (part.strip() for part in bounds.partition(":"))
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
    order = _ORDER.fullmatch(ordered.strip())
    if comma and not order:
        raise ValueError(
            f"`{split}`: {ordered.strip()!r} is not an order of rows; write {name}[{bounds}, shuffled] or"
            f" {name}[{bounds}, stratified], with another seed as in shuffled=1"
        )
    if order is None:
        return name, Slice(begin, end)
    return name, Slice(begin, end, cast(Order, order[1]), int(order[2] or 0))


def share_rows(first: Slice | None, second: Slice | None) -> bool:
    """Whether two slices of one file (None: all of it) overlap at every length of the file at which neither is empty.

    >>> share_rows(None, Slice("1000", "2000")), share_rows(Slice("", "90%"), Slice("90%", ""))
    (True, False)
    """
    overlaps = []
    for rows in _FILE_LENGTHS:
        a, b = ((slice(0, rows) if part is None else part.range_of(rows)) for part in (first, second))
        if a.start < a.stop and b.start < b.stop:
            overlaps.append(max(a.start, b.start) < min(a.stop, b.stop))
    return bool(overlaps) and all(overlaps)


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
    if split in (path.name, stem(path.name)):
        return path
    return _named(path.parent, split) or (path if split == "train" else None)


def parallel_files(data: str, split: str, fields: Sequence[str]) -> dict[str, Path]:
    """The file of each field of a split, such as train.en and train.de; without those that do not exist.

    Raises:
        InputError: if a field has a plain and a compressed file.
    """
    name, found = split_slice(split)[0], {}
    for field in dict.fromkeys(fields):
        paths = [Path(data, f"{name}.{field}{suffix}") for suffix in ("", *COMPRESSIONS)]
        files = [path for path in paths if path.is_file()]
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise InputError(f"{data}: {names} are both field {field!r} of the split {split!r}; remove one")
        if files:
            found[field] = files[0]
    return found


def _named(folder: Path, split: str) -> Path | None:
    named = folder / split
    if named.is_file() or not named.parent.is_dir():
        return named if named.is_file() else None
    files = sorted(file for file in named.parent.iterdir() if stem(file.name) == named.name and file.is_file())
    # Text beside a file of another format is often a note.
    files = [file for file in files if not _TXT.search(file.name)] or files
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise InputError(f"{folder}: {names} are both the split {split!r}; name one of them with its suffix")
    return files[0] if files else None


def stem(name: str) -> str:
    """The name of a file without the suffixes of its format and compression.

    >>> stem("train.v2.CSV.gz")
    'train.v2'
    """
    suffix = next((s for s in sorted(_SUFFIXES, key=len, reverse=True) if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]
