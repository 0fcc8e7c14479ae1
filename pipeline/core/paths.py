"""Paths and names that are given or read from files: they must not lead out of a directory, or replace a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from t5_pipeline.core.errors import InputError

MAX_NAME = 100  # bytes; file systems allow 255, and temporary files and moved results get longer names

_RESTORE = "restore the file, or move it away"


def below(path: str, where: object, remedy: str = _RESTORE) -> str:
    """A relative path without `..`, unchanged.

    Args:
        where: file that contains the path, for errors.
        remedy: what to do about another path, for errors.

    Raises:
        InputError: if it is empty, absolute, or has a part `..`.

    >>> below("steps/000500/model", "manifest.json")
    'steps/000500/model'
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise InputError(f"{where}: the path {path!r} does not stay inside its directory; {remedy}")
    return path


def inside(root: Path, path: str, where: object, remedy: str = _RESTORE) -> Path:
    """`root / path`, if it is below `root` lexically and after following symbolic links.

    Args:
        where: file that contains the path, for errors.
        remedy: what to do about a path that is not, for errors.

    Raises:
        InputError: if it is not.
    """
    found = root / below(path, where, remedy)
    try:
        stays = found.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        stays = False
    if not stays:
        raise InputError(f"{where}: {found} is a link that leads out of {root}; replace it by a directory or file")
    return found


def refuse_links_out(root: Path, names: Iterable[str]) -> None:
    """Check that writing and deleting below `root/NAME` changes nothing outside `root`, and that renaming can work.

    Raises:
        InputError: if one of the names, or a file or directory below it, is a link that leads out of `root`, is on
            another file system, or is something else than a file or directory, at which a stage could wait forever.
    """
    for name in names:
        top = inside(root, name, root)
        if not top.exists():
            continue
        device = root.stat().st_dev
        _refuse_mount(top, top.stat(), device, root)
        for place, folders, files in os.walk(top):
            for entry in (*folders, *files):
                path = Path(place, entry)
                try:
                    found = path.lstat()
                except FileNotFoundError:  # a temporary file of a process that is saving
                    continue
                if stat.S_ISLNK(found.st_mode):
                    inside(root, str(path.relative_to(root)), root)
                elif not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                    raise InputError(f"{path}: is neither a file nor a directory; remove it")
                else:
                    _refuse_mount(path, found, device, root)


def _refuse_mount(path: Path, found: os.stat_result, device: int, root: Path) -> None:
    if found.st_dev != device:
        raise InputError(
            f"{path}: is on another file system than {root}, so results cannot be renamed;"
            " mount the whole run directory instead"
        )


def check_file_name(name: str, where: object, reserved: Iterable[str] = (), longest: int = MAX_NAME) -> None:
    """Check a name that becomes the name of a directory.

    Args:
        where: location of the name, for errors.
        reserved: names that have another use.
        longest: maximum bytes.

    Raises:
        InputError: if it is not a valid name of one directory.
    """
    problem = None
    if name in (*reserved, ".", ".."):
        problem = f"must not be {name}, which is reserved"
    elif "/" in name or "\\" in name:
        problem = r"must not contain / or \, because a directory gets this name"
    elif not name.isprintable():
        problem = "must not contain control characters, because a directory gets this name"
    elif len(name.encode()) > longest:
        problem = f"is longer than {longest} bytes"
    if problem is not None:
        raise InputError(f"{where}: {problem}; choose another name")


def refuse_to_replace(path: Path, where: str = "--output") -> None:
    """Protect existing files; an empty directory may be replaced.

    Args:
        where: setting that names the path, for errors.

    Raises:
        InputError: if `path` exists.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{where}: {path} already exists; choose another path, or remove it")
