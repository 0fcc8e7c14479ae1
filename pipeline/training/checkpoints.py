"""Checkpoints that are either whole or not there, that say so themselves, and that any engine can go on from.

    checkpoints/step-00000500/rank-00000.safetensors   pieces of the weights that train and of the optimizer's state
                              rank-00000.json          what each piece is part of, and checksums of the file's blocks
                              state.json               step, fingerprint, scalars, score, checksums of the rank files

Every process writes the pieces that it holds, from a copy and in a thread of its own, while training goes on. The
folder has a temporary name until all of them are done and on the disk: a kill at any moment leaves the older
checkpoints and at most a hidden `.tmp` folder, which the next save removes. Only safetensors and JSON are read back,
never a pickle.

The directory must be one that every process sees (several machines: a shared file system).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts import blocks, json_digest
from pipeline.errors import InputError
from pipeline.files import fsync_file, move_directory, sweep
from pipeline.training.pieces import Piece, share
from pipeline.training.ranks import Words

FORMAT = 2
STATE = "state.json"

log = logging.getLogger("t5-pipeline")


class Damaged(Exception):
    """A checkpoint is not what was written; the message says what is wrong with which file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files were verified.

    score: what the validation at this very step gave, larger is better; None where there was none.
    """

    step: int
    path: Path
    scalars: dict[str, Any]
    score: float | None = None
    files: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def _pieces(self) -> dict[str, list[tuple[int, int, str, str]]]:
        """Of each tensor: (start, stop, file, key in it), by start."""
        found: dict[str, list[tuple[int, int, str, str]]] = {}
        for file in self.files:
            for key, (name, start, numel, _, _) in _json(self.path / file)["pieces"].items():
                found.setdefault(name, []).append((start, start + numel, Path(file).stem + ".safetensors", key))
        for pieces in found.values():
            pieces.sort()
        return found

    @cached_property
    def _shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {
            name: (tuple(shape), dtype)
            for file in self.files
            for name, _, _, shape, dtype in _json(self.path / file)["pieces"].values()
        }

    def names(self, prefix: str = "") -> list[str]:
        """Names of the tensors that were saved, those that begin with `prefix`."""
        return [name for name in self._shapes if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name][0]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements start … stop − 1 of a tensor, flattened, on the CPU; only these are read.

        Raises:
            InputError: no file holds them.
        """
        shape, dtype = self._shapes[name]
        stop = math.prod(shape) if stop is None else stop
        values_N = torch.empty(stop - start, dtype=getattr(torch, dtype))
        missing = stop - start
        for begin, end, file, key in self._pieces[name]:
            low, high = max(start, begin), min(stop, end)
            if low < high:
                with safe_open(self.path / file, framework="pt") as opened:
                    values_N[low - start : high - start] = opened.get_slice(key)[low - begin : high - begin]
                missing -= high - low
        if missing:
            raise InputError(f"{self.path}: {name} is not whole ({missing:,} elements are missing)")
        return values_N

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        return self.read(name).view(self.shape(name))

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Every tensor whose name begins with `prefix`, by the rest of its name."""
        return {name.removeprefix(prefix): self.tensor(name) for name in self.names(prefix)}


class Checkpoints:
    """The checkpoints of one training run. Every process has one of these; all call the same methods in the same order.

    fingerprint: everything that shapes the trajectory; a checkpoint of another one is refused.
    keep_last, keep_every, keep_best: the newest so many are kept, those of every so manieth step for ever (0: none),
        and the one with the best score.
    words: what the processes agree by, apart from what training says meanwhile.
    """

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_best: bool = False,
        words: Words | None = None,
    ) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.keep_best = keep_best
        self._words = words or Words(0, 1)
        self._thread: threading.Thread | None = None
        self._trouble: str | None = None

    # -------------------------------------------------------------------------------------------------------- writing

    def save(
        self,
        step: int,
        pieces: Sequence[Piece],
        scalars: Mapping[str, Any],
        *,
        score: float | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to write a checkpoint in the background, of the pieces as they are now.

        A copy of this process's share of them is made first; the caller may change them as soon as this returns. One
        of the same step is replaced. `before` is called in the background before the checkpoint gets its name.

        Raises:
            InputError: an earlier one could not be written.
        """
        self.wait()
        mine = [piece.copied() for piece in share(pieces, self._words.rank, self._words.world)]
        state = {"format": FORMAT, "step": step, "fingerprint": self.fingerprint, "scalars": dict(scalars)}
        state |= {"score": score}
        # A daemon: a process that must die does not wait for a disk.
        self._thread = threading.Thread(
            target=self._in_background, args=(step, mine, state, before), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        """True once a checkpoint could not be written; `wait` says why."""
        return self._trouble is not None

    def wait(self) -> None:
        """Returns when everything that was begun is on the disk, under its name, on all processes.

        Raises:
            InputError: it could not be written (a full disk); the older ones are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise InputError(trouble)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """At the end, whichever way it comes, what was begun is finished; an error of the body's own goes before."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(InputError):
                self.wait()
            raise
        self.wait()

    def _in_background(self, step: int, *rest: Any) -> None:
        try:
            self._write(step, *rest)
        except Exception as error:  # another process is gone in the middle of it
            self._trouble = f"{self._path(step)}: was not finished ({error}); run the same command to go on"

    def _write(self, step: int, pieces: Sequence[Piece], state: dict[str, Any], before: Callable[[], None]) -> None:
        words, first = self._words, self._words.rank == 0
        final = self._path(step)
        folder = final.with_name(f".{final.name}.tmp")
        said = ""

        def together(do: Callable[[], None]) -> bool:
            """Does it, and tells whether all processes could do theirs."""
            nonlocal said
            try:
                do()
            except Exception as error:  # whatever it is: the other processes wait for an answer
                said = said or f"{final}: cannot be written ({error}); make room, then run again"
            return words.largest(int(bool(said))) == 0

        def begin() -> None:
            if first:
                sweep(self.directory)
                folder.mkdir(parents=True)

        def finish() -> None:
            if first:
                before()
                names = [f"rank-{rank:05d}.json" for rank in range(words.world)]
                state["files"] = {name: json_digest(_json(folder / name)) for name in names}
                _write_json(folder / STATE, state | {"sha256": json_digest(state)})
                move_directory(folder, final)

        done = together(begin) and together(lambda: _write_pieces(folder, words.rank, pieces)) and together(finish)
        if done and first:
            try:
                self._prune()
            except OSError as error:
                log.warning("%s: an old checkpoint could not be removed (%s)", self.directory, error)
        elif not done:
            if first:
                shutil.rmtree(folder, ignore_errors=True)
            self._trouble = said or f"{final}: another process could not write its part; make room, then run again"

    # -------------------------------------------------------------------------------------------------------- reading

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest intact checkpoint (of no later step than `at_most`); a damaged one is passed over with a warning.

        Each process reads through its share of the files, and all come to the same answer.

        Raises:
            InputError: the newest intact one belongs to another fingerprint, or there are some and none is intact.
        """
        steps = [step for step in self.steps() if at_most is None or step <= at_most]
        # What the first process sees counts: a shared file system may show the others a change later.
        there = self._words.from_first(len(steps))
        for index in range(there):
            found = self._read_together(self._words.from_first(steps[-1 - index] if index < len(steps) else 0))
            if isinstance(found, Checkpoint):
                return found
            log.warning("%s; going back to the one before", found)
        if there:
            raise InputError(f"{self.directory}: every checkpoint is damaged; remove the folder to start from step 0")
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of this step.

        Raises:
            InputError: there is none, it is damaged, or it belongs to another fingerprint.
        """
        if step not in self.steps():
            there = ", ".join(f"{step:,}" for step in self.steps()) or "none"
            raise InputError(f"{self.directory}: no checkpoint of step {step:,}; there are: {there}")
        found = self._read_together(step)
        if isinstance(found, Damaged):
            raise InputError(f"{found}; choose another step or remove the folder")
        return found

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; whether they are intact is not looked at."""
        if not self.directory.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: training goes on from `step` and will write them anew."""
        for later in self.steps():
            if later > step:
                self._remove(later)

    def _read_together(self, step: int) -> Checkpoint | Damaged:
        """Verifies a checkpoint, each process a share of it."""
        found: Checkpoint | Damaged
        try:
            found = self._read(step, self._words.rank, self._words.world)
        except Damaged as damage:
            found = damage
        if self._words.largest(int(isinstance(found, Damaged))) and not isinstance(found, Damaged):
            return Damaged(f"{self._path(step)}: another process found it damaged")
        return found

    def _read(self, step: int, rank: int = 0, world: int = 1) -> Checkpoint:
        path = self._path(step)
        state = _checked(path / STATE)
        if state["step"] != step or state["format"] != FORMAT:
            raise Damaged(f"{path / STATE}: is of step {state['step']}, format {state['format']}")
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{path}: this checkpoint belongs to other settings (fingerprint {state['fingerprint']}, "
                f"now {self.fingerprint}); use another run directory or remove {self.directory}"
            )
        for index, (name, digest) in enumerate(state["files"].items()):
            written = _read_json(path / name)
            if json_digest(written) != digest:
                raise Damaged(f"{path / name}: its checksum is wrong")
            if index % world == rank:
                _verify(path / f"{Path(name).stem}.safetensors", written)
        return Checkpoint(step, path, state["scalars"], state["score"], tuple(state["files"]))

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    # ------------------------------------------------------------------------------------------------------ retention

    def _prune(self) -> None:
        """Removes what need not be kept. The newest, which has just been written whole, always stays."""
        steps = self.steps()
        keep = set(steps[-self.keep_last :])
        if self.keep_every:
            keep |= {step for step in steps if step % self.keep_every == 0}
        if self.keep_best:
            scored = [(score, -step) for step in steps if (score := self._score(step)) is not None]
            keep |= {-step for _, step in [max(scored)]} if scored else set()
        for step in steps:
            if step not in keep:
                self._remove(step)

    def _score(self, step: int) -> float | None:
        try:
            score: float | None = _checked(self._path(step) / STATE)["score"]
            return score
        except (Damaged, KeyError):
            return None

    def _remove(self, step: int) -> None:
        """Renames first: a kill in the middle leaves a folder that no one takes for a checkpoint."""
        path = self._path(step)
        going = path.with_name(f".{path.name}.gone.tmp")
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)


def _write_pieces(folder: Path, rank: int, pieces: Sequence[Piece]) -> None:
    file = folder / f"rank-{rank:05d}.safetensors"
    keyed = {f"{piece.name}@{piece.start}": piece for piece in pieces}
    try:
        save_file({key: piece.values_N.contiguous() for key, piece in keyed.items()}, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    described = {
        key: [piece.name, piece.start, piece.values_N.numel(), list(piece.shape), str(piece.values_N.dtype)[6:]]
        for key, piece in keyed.items()
    }
    about = file.with_suffix(".json")
    _write_json(about, {"pieces": described, "size": file.stat().st_size, "blocks": blocks(file)})
    for written in (file, about):
        fsync_file(written)


def _verify(path: Path, written: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise Damaged(f"{path}: is missing")
    size, found = path.stat().st_size, blocks(path)
    if size != written["size"]:
        raise Damaged(f"{path}: has {size:,} bytes, {written['size']:,} were written")
    for index, (now, then) in enumerate(zip(found, written["blocks"], strict=True)):
        if now != then:
            raise Damaged(f"{path}: block {index} of {len(found)} has the wrong checksum")


def _checked(path: Path) -> dict[str, Any]:
    """A JSON file that holds its own checksum."""
    content = _read_json(path)
    if content.pop("sha256", None) != json_digest(content):
        raise Damaged(f"{path}: its checksum is wrong")
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = _json(path)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: cannot be read ({error!r})") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: cannot be read (no JSON object)")
    return content


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
