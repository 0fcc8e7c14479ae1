"""Which file holds a split of a task: one rule for who reads the rows and for who takes their digest."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = tuple(
    f".{kind}{compression}"
    for kind in ("jsonl", "json", "csv", "tsv", "parquet")
    for compression in ("", ".gz", ".zst")
    if not (kind == "parquet" and compression)
)


def split_file(data: str, split: str) -> Path | None:
    """The file that `split` names: inside the folder `data`, or beside the file `data`; None where there is none.

    A file name counts with or without its suffix. `data` may also be the file of one split: of that which has its name,
    or else of `train`. It never stands for a split that has no file.
    """
    path = Path(data)
    if path.is_dir():
        return _named(path, split)
    if not path.is_file():
        return None
    if split in (path.name, _stem(path)):
        return path
    return _named(path.parent, split) or (path if split == "train" else None)


def _named(folder: Path, split: str) -> Path | None:
    candidates = [folder / split, *(folder / f"{split}{suffix}" for suffix in SUFFIXES)]
    return next((file for file in candidates if file.is_file()), None)


def _stem(path: Path) -> str:
    suffix = next((s for s in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(s)), "")
    return path.name.removesuffix(suffix)
