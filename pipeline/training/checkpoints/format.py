"""Checkpoint files: engine-neutral tensor shards with checksums.

    checkpoints/step-00000500/rank-00000.safetensors   shards of the trained weights and the optimizer's state
                              rank-00000.json          the tensor of each shard, and checksums of the file's blocks
                              state.json               step, fingerprint, scalars, score, checksums of the rank files

Only safetensors and JSON are read, never a pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from t5_pipeline.core.atomic_files import fsync_file
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.checksums import block_sha256, json_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.training.checkpoints.tensor_shards import TensorShard

FORMAT = 2
STATE = "state.json"


class Damaged(Exception):
    """A checkpoint differs from what was written; the message names the file and the problem."""


class _Shard(NamedTuple):
    """A shard on disk: elements `start` … `stop` − 1 of a flattened tensor, under `key` in a file."""

    start: int
    stop: int
    file: str
    key: str


class _SavedTensor(NamedTuple):
    """A tensor on disk; its shards are sorted by `start`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    shards: list[_Shard]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk.

    Attributes:
        score: validation score of exactly this step, larger is better; None without one.
    """

    step: int
    path: Path
    scalars: dict[str, Any]
    score: float | None = None
    files: tuple[str, ...] = field(default=(), repr=False)

    @cached_property
    def _tensors(self) -> dict[str, _SavedTensor]:
        """The saved tensors by name."""
        found: dict[str, _SavedTensor] = {}
        for file in self.files:
            for key, (name, start, numel, shape, dtype) in read_json(self.path / file)["pieces"].items():
                tensor = found.setdefault(name, _SavedTensor(tuple(shape), getattr(torch, dtype), []))
                tensor.shards.append(_Shard(start, start + numel, f"{Path(file).stem}.safetensors", key))
        for tensor in found.values():
            tensor.shards.sort()
        return found

    def names(self, prefix: str = "") -> list[str]:
        """Names of the saved tensors that begin with `prefix`."""
        return [name for name in self._tensors if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read elements start … stop − 1 of a flattened tensor to the CPU, and only these.

        Raises:
            InputError: if no file contains them.
        """
        tensor = self._tensors[name]
        stop = math.prod(tensor.shape) if stop is None else stop
        values_N = torch.empty(stop - start, dtype=tensor.dtype)
        missing = stop - start
        for begin, end, file, key in tensor.shards:
            low, high = max(start, begin), min(stop, end)
            if low < high:
                with safe_open(self.path / file, framework="pt") as opened:
                    values_N[low - start : high - start] = opened.get_slice(key)[low - begin : high - begin]
                missing -= high - low
        if missing:
            raise InputError(
                f"{self.path}: {name} lacks {missing:,} elements; remove this checkpoint to resume from the one before"
            )
        return values_N

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, on the CPU."""
        return self.read(name).view(self.shape(name))

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix`, by the rest of the name."""
        return {name.removeprefix(prefix): self.tensor(name) for name in self.names(prefix)}


def read_checkpoint(path: Path, step: int, fingerprint: str, rank: int, world: int) -> Checkpoint:
    """Verify and open a checkpoint; of the tensor files, this process verifies its share.

    Raises:
        Damaged: if a file differs from what was written.
        InputError: if it belongs to another fingerprint, or has another version's format.
    """
    state = _checked(path / STATE)
    if state["format"] != FORMAT:
        raise InputError(
            f"{path}: has format {state['format']}, but this version reads only format {FORMAT}; resume with the"
            f" version that wrote it, or remove {path.parent} to start from step 0"
        )
    if state["step"] != step:
        raise Damaged(f"{path / STATE}: belongs to step {state['step']}")
    if state["fingerprint"] != fingerprint:
        raise InputError(
            f"{path}: this checkpoint belongs to other settings (fingerprint {state['fingerprint']}, "
            f"now {fingerprint}); use another run directory or remove {path.parent}"
        )
    for index, (name, digest) in enumerate(state["files"].items()):
        written = _read_object(path / name)
        if json_digest(written) != digest:
            raise Damaged(f"{path / name}: has the wrong checksum")
        if index % world == rank:
            _verify(path / f"{Path(name).stem}.safetensors", written)
    return Checkpoint(step, path, state["scalars"], state["score"], tuple(state["files"]))


def read_score(path: Path) -> float | None:
    """The score of a checkpoint.

    Raises:
        Damaged, KeyError: if it cannot be read.
    """
    score: float | None = _checked(path / STATE)["score"]
    return score


def write_state(folder: Path, state: Mapping[str, Any], world: int) -> None:
    """Write state.json, after the shards of all processes."""
    names = [f"rank-{rank:05d}.json" for rank in range(world)]
    files = {name: json_digest(read_json(folder / name)) for name in names}
    whole = {"format": FORMAT, **state, "files": files}
    _write_json(folder / STATE, whole | {"sha256": json_digest(whole)})


def write_shards(folder: Path, rank: int, shards: Sequence[TensorShard]) -> None:
    """Write and sync the shards of one process.

    Raises:
        OSError: if they cannot be written.
    """
    file = folder / f"rank-{rank:05d}.safetensors"
    keyed = {f"{shard.name}@{shard.start}": shard for shard in shards}
    try:
        save_file({key: shard.values_N.contiguous() for key, shard in keyed.items()}, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    described = {
        key: [shard.name, shard.start, shard.values_N.numel(), list(shard.shape), str(shard.values_N.dtype)[6:]]
        for key, shard in keyed.items()
    }
    about = file.with_suffix(".json")
    _write_json(about, {"pieces": described, "size": file.stat().st_size, "blocks": block_sha256(file)})
    for written in (file, about):
        fsync_file(written)


def _verify(path: Path, written: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise Damaged(f"{path}: does not exist")
    size, found = path.stat().st_size, block_sha256(path)
    if size != written["size"]:
        raise Damaged(f"{path}: has {size:,} bytes instead of {written['size']:,}")
    for index, (now, then) in enumerate(zip(found, written["blocks"], strict=True)):
        if now != then:
            raise Damaged(f"{path}: block {index} of {len(found)} has the wrong checksum")


def _checked(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains its own checksum."""
    content = _read_object(path)
    if content.pop("sha256", None) != json_digest(content):
        raise Damaged(f"{path}: has the wrong checksum")
    return content


def _read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises Damaged, because another checkpoint may be intact."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: is not a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
