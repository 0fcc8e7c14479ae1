"""Checkpoints that are either whole or not there, and that say so themselves.

    checkpoints/step-00000500/tensors.safetensors      weights that train, optimizer state
    checkpoints/step-00000500/state.json               step, fingerprint, scalars, checksums of blocks of every file

A checkpoint is written under a temporary name, fsynced and renamed: a kill at any moment leaves the older ones and at
most a hidden `.tmp` folder, which the next save removes. Only safetensors and JSON are read back, never a pickle.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.artifacts import blocks, json_digest
from pipeline.errors import InputError
from pipeline.files import sweep, write_directory

FORMAT = 1
TENSORS, STATE = "tensors.safetensors", "state.json"

log = logging.getLogger(__name__)


class Damaged(Exception):
    """A checkpoint is not what was written; the message says what is wrong with which file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose files were verified."""

    step: int
    path: Path
    scalars: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that was saved, on the CPU."""
        return load_file(self.path / TENSORS)


class Checkpoints:
    """The checkpoints of one training run.

    `fingerprint` stands for everything that shapes the trajectory: a checkpoint of another one is refused. The newest
    `keep_last` are kept, and those of `keep_steps` for ever.
    """

    def __init__(
        self, directory: Path, fingerprint: str, *, keep_last: int = 2, keep_steps: Iterable[int] = ()
    ) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self.keep_last = keep_last
        self.keep_steps = frozenset(keep_steps)

    def save(self, step: int, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, replaces one of the same step, and prunes.

        Raises:
            InputError: it cannot be written (a full disk); the older ones are untouched.
        """
        final = self.directory / f"step-{step:08d}"

        def fill(folder: Path) -> None:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
            state = {"format": FORMAT, "step": step, "fingerprint": self.fingerprint, "scalars": dict(scalars)}
            state["files"] = {TENSORS: {"size": (folder / TENSORS).stat().st_size, "blocks": blocks(folder / TENSORS)}}
            (folder / STATE).write_text(json.dumps(state | {"sha256": json_digest(state)}, indent=1) + "\n")

        try:
            sweep(self.directory)
            write_directory(final, fill)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{final}: cannot be written ({error}); make room, then run again") from error
        self.prune()
        return final

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest intact checkpoint (of no later step than `at_most`); a damaged one is passed over with a warning.

        Raises:
            InputError: the newest intact one belongs to another fingerprint, or there are some and none is intact.
        """
        steps = [step for step in self.steps() if at_most is None or step <= at_most]
        for step in reversed(steps):
            try:
                return self._read(step)
            except Damaged as damage:
                log.warning("%s; going back to the one before", damage)
        if steps:
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
        try:
            return self._read(step)
        except Damaged as damage:
            raise InputError(f"{damage}; choose another step or remove the folder") from None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; whether they are intact is not looked at."""
        if not self.directory.is_dir():
            return []
        names = (re.fullmatch(r"step-(\d{8,})", path.name) for path in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def prune(self) -> None:
        """Removes all but the newest `keep_last` and those of `keep_steps`."""
        for step in self.steps()[: -self.keep_last]:
            if step not in self.keep_steps:
                self._remove(step)

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints of later steps: training goes on from `step` and will write them anew."""
        for later in self.steps():
            if later > step:
                self._remove(later)

    def _read(self, step: int) -> Checkpoint:
        path = self.directory / f"step-{step:08d}"
        try:
            state = json.loads((path / STATE).read_bytes())
            checksum = state.pop("sha256")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise Damaged(f"{path / STATE}: cannot be read ({error!r})") from error
        if checksum != json_digest(state) or state["step"] != step:
            raise Damaged(f"{path / STATE}: its checksum is wrong")
        if state["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{path}: this checkpoint belongs to other settings (fingerprint {state['fingerprint']}, "
                f"now {self.fingerprint}); use another run directory or remove {self.directory}"
            )
        for name, written in state["files"].items():
            _verify(path / name, written)
        return Checkpoint(step, path, state["scalars"])

    def _remove(self, step: int) -> None:
        """Renames first: a kill in the middle leaves a folder that no one takes for a checkpoint."""
        path = self.directory / f"step-{step:08d}"
        going = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)


def _verify(path: Path, written: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise Damaged(f"{path}: is missing")
    size, found = path.stat().st_size, blocks(path)
    if size != written["size"]:
        raise Damaged(f"{path}: has {size:,} bytes, {written['size']:,} were written")
    for index, (now, then) in enumerate(zip(found, written["blocks"], strict=True)):
        if now != then:
            raise Damaged(f"{path}: block {index} of {len(found)} has the wrong checksum")
