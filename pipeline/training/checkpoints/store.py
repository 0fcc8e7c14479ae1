"""The checkpoints of a run: written in the background while training goes on, kept or removed, found again.

Every process writes the shards that it holds, from a copy and in a thread of its own. The folder has a temporary name
until all of them are done and on the disk: a kill at any moment leaves the older checkpoints and at most a hidden
`.tmp` folder, which the next save removes. What is in a checkpoint: checkpoint_files.py.

The directory must be one that every process sees (several machines: a shared file system).
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5_pipeline.core.atomic_files import move_directory, sweep
from t5_pipeline.core.errors import InputError, cannot_be_written
from t5_pipeline.training.checkpoints.format import (
    Checkpoint,
    Damaged,
    read_checkpoint,
    read_score,
    write_shards,
    write_state,
)
from t5_pipeline.training.checkpoints.tensor_shards import TensorShard, share
from t5_pipeline.training.distributed.collectives import HostCollectives

log = logging.getLogger("t5-pipeline")


class Checkpoints:
    """The checkpoints of one training run. Every process has one of these; all call the same methods in the same order.

    fingerprint: everything that shapes the trajectory; a checkpoint of another one is refused.
    keep_last, keep_every, keep_best: the newest so many are kept, those of every so manieth step for ever (0: none),
        and the one with the best score.
    control_group: what the processes agree by, apart from what training says meanwhile.
    """

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_best: bool = False,
        control_group: HostCollectives | None = None,
    ) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self.keep_last = keep_last
        self.keep_every = keep_every
        self.keep_best = keep_best
        self._control_group = control_group or HostCollectives(0, 1)
        self._thread: threading.Thread | None = None
        self._trouble: str | None = None

    # -------------------------------------------------------------------------------------------------------- writing

    def save(
        self,
        step: int,
        shards: Sequence[TensorShard],
        scalars: Mapping[str, Any],
        *,
        score: float | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Begins to write a checkpoint in the background, of the shards as they are now.

        A copy of this process's share of them is made first; the caller may change them as soon as this returns. One
        of the same step is replaced. `before` is called in the background before the checkpoint gets its name.

        Raises:
            InputError: an earlier one could not be written.
        """
        self.wait()
        mine = [shard.copied() for shard in share(shards, self._control_group.rank, self._control_group.world)]
        state = {"step": step, "fingerprint": self.fingerprint, "scalars": dict(scalars), "score": score}
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

    def _write(
        self, step: int, shards: Sequence[TensorShard], state: dict[str, Any], before: Callable[[], None]
    ) -> None:
        control_group, first = self._control_group, self._control_group.rank == 0
        final = self._path(step)
        folder = final.with_name(f".{final.name}.tmp")
        said = ""

        def together(do: Callable[[], None]) -> bool:
            """Does it, and tells whether all processes could do theirs."""
            nonlocal said
            try:
                do()
            except Exception as error:  # whatever it is: the other processes wait for an answer
                said = said or str(cannot_be_written(final, error))
            return control_group.all_reduce_max(int(bool(said))) == 0

        def begin() -> None:
            if first:
                sweep(self.directory)
                folder.mkdir(parents=True)

        def finish() -> None:
            if first:
                before()
                write_state(folder, state, control_group.world)
                move_directory(folder, final)

        done = (
            together(begin) and together(lambda: write_shards(folder, control_group.rank, shards)) and together(finish)
        )
        if done and first:
            try:
                self._prune()
            except OSError as error:
                log.warning("%s: an old checkpoint could not be removed (%s)", self.directory, error)
        elif not done:
            if first:
                shutil.rmtree(folder, ignore_errors=True)
            self._trouble = (
                said or f"{final}: another process could not write its part, and says why; mend that, then run again"
            )

    # -------------------------------------------------------------------------------------------------------- reading

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest intact checkpoint (of no later step than `at_most`); a damaged one is passed over with a warning.

        Each process reads through its share of the files, and all come to the same answer.

        Raises:
            InputError: the newest intact one belongs to another fingerprint, or there are some and none is intact.
        """
        steps = [step for step in self.steps() if at_most is None or step <= at_most]
        # What the first process sees counts: a shared file system may show the others a change later.
        there = self._control_group.broadcast(len(steps))
        for index in range(there):
            found = self._read_together(self._control_group.broadcast(steps[-1 - index] if index < len(steps) else 0))
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
            found = read_checkpoint(
                self._path(step), step, self.fingerprint, self._control_group.rank, self._control_group.world
            )
        except Damaged as damage:
            found = damage
        if self._control_group.all_reduce_max(int(isinstance(found, Damaged))) and not isinstance(found, Damaged):
            return Damaged(f"{self._path(step)}: another process found it damaged")
        return found

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
            return read_score(self._path(step))
        except (Damaged, KeyError):
            return None

    def _remove(self, step: int) -> None:
        """Renames first: a kill in the middle leaves a folder that no one takes for a checkpoint."""
        path = self._path(step)
        going = path.with_name(f".{path.name}.gone.tmp")
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
        shutil.rmtree(going)
