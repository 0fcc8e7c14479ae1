"""Checkpoints of a run: saved in the background, pruned, and found again.

Every process writes its shards from a copy, in a background thread. The directory has a temporary name until all of
them are on disk, so a kill at any moment leaves the older checkpoints and at most a hidden `.tmp` directory, which the
next save removes. format.py describes the files.

All processes must see the directory (on several machines: a shared file system).
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts.run_dir import checkpoint_name, checkpoint_steps
from t5_pipeline.core.atomic_files import move_directory, sweep
from t5_pipeline.core.errors import InputError, write_error
from t5_pipeline.core.printable import say
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
    """The checkpoints of one training run. Collective: every rank calls the same methods in the same order.

    Args:
        fingerprint: everything that shapes the trajectory; a checkpoint with another one is refused.
        keep_last: number of newest checkpoints to keep.
        keep_every: also keep every Nth step permanently; 0: off.
        keep_best: also keep the checkpoint with the best score.
        control_group: process group for checkpoint coordination, separate from the training loop's.
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
        self._failure: str | None = None

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
        """Start writing a checkpoint in the background; one of the same step is replaced.

        This process's share of the shards is copied first, so the caller may change them as soon as this returns.

        Args:
            score: validation score of this step, larger is better.
            before: called in the background before the checkpoint gets its final name.

        Raises:
            InputError: if an earlier checkpoint could not be written.
        """
        self.wait()
        mine = [shard.copied() for shard in share(shards, self._control_group.rank, self._control_group.world)]
        state = {"step": step, "fingerprint": self.fingerprint, "scalars": dict(scalars), "score": score}
        # A daemon: a process that must exit does not wait for the disk.
        self._thread = threading.Thread(
            target=self._in_background, args=(step, mine, state, before), name="checkpoint", daemon=True
        )
        self._thread.start()

    @property
    def failed(self) -> bool:
        """True if a checkpoint could not be written; `wait` raises the reason."""
        return self._failure is not None

    def wait(self) -> None:
        """Wait until the started checkpoint of all processes is on disk, under its final name.

        Raises:
            InputError: if it could not be written (a full disk); older checkpoints are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise InputError(failure)

    @contextlib.contextmanager
    def finishing(self) -> Iterator[None]:
        """Finish a started checkpoint when the body ends or raises; an error of the body takes precedence."""
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
        except Exception as error:  # another process died meanwhile
            self._failure = f"{self._path(step)}: was not finished ({error}); run the same command to resume"

    def _write(
        self, step: int, shards: Sequence[TensorShard], state: dict[str, Any], before: Callable[[], None]
    ) -> None:
        control_group, first = self._control_group, self._control_group.rank == 0
        final = self._path(step)
        folder = final.with_name(f".{final.name}.tmp")
        failure, by_first = "", False

        def together(do: Callable[[], None]) -> bool:
            """Whether all processes did their part."""
            nonlocal failure, by_first
            try:
                do()
            except Exception as error:  # of any kind: the other processes wait for the collective
                failure = failure or str(write_error(final, error))
            worst = control_group.all_reduce_max(0 if not failure else 2 if first else 1)
            by_first = worst == 2
            return worst == 0

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
            elif failure and not by_first:  # a stage prints the errors of its first process only
                say(f"error: rank {control_group.rank}: {failure}")
            self._failure = failure or (
                f"{final}: another process could not write its shards (see its message); fix that and run again"
            )

    # -------------------------------------------------------------------------------------------------------- reading

    def latest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest intact checkpoint (not after step `at_most`), None without any; damaged ones are skipped.

        Each process verifies its share of the files, and all return the same checkpoint.

        Raises:
            InputError: if the newest intact one belongs to another fingerprint, or all are damaged.
        """
        found, count = self._newest(at_most)
        if found is None and count:
            raise InputError(
                f"{self.directory}: all checkpoints are damaged; remove the directory to start from step 0"
            )
        return found

    def newest_intact(self, at_most: int) -> Checkpoint | None:
        """`latest`, but None if all checkpoints up to `at_most` are damaged."""
        return self._newest(at_most)[0]

    def _newest(self, at_most: int | None) -> tuple[Checkpoint | None, int]:
        """The newest intact checkpoint up to a step, and the number of checkpoints up to it, intact or not."""
        steps = [step for step in self.steps() if at_most is None or step <= at_most]
        # The view of rank 0 counts: a shared file system may show a change to the others later.
        count = self._control_group.broadcast(len(steps))
        for index in range(count):
            found = self._read_together(self._control_group.broadcast(steps[-1 - index] if index < len(steps) else 0))
            if isinstance(found, Checkpoint):
                return found, count
            log.warning("%s; using the checkpoint before it", found)
        return None, count

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of this step.

        Raises:
            InputError: if there is none, it is damaged, or it belongs to another fingerprint.
        """
        if step not in self.steps():
            existing = ", ".join(f"{step:,}" for step in self.steps()) or "none"
            raise InputError(f"{self.directory}: no checkpoint of step {step:,}; there are: {existing}")
        found = self._read_together(step)
        if isinstance(found, Damaged):
            raise InputError(f"{found}; choose another step or remove the checkpoint")
        return found

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, intact or not."""
        return checkpoint_steps(self.directory)

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints after `step`; training resumes there and writes them again."""
        for later in self.steps():
            if later > step:
                self._remove(later)

    def discard(self) -> None:
        """Remove all checkpoints and their directory, on one process."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read_together(self, step: int) -> Checkpoint | Damaged:
        """Verify a checkpoint, each process its share."""
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
        return self.directory / checkpoint_name(step)

    # ------------------------------------------------------------------------------------------------------ retention

    def _prune(self) -> None:
        """Remove checkpoints that need not be kept; the newest always stays."""
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
        """Rename first, so that a kill in between leaves nothing that looks like a checkpoint."""
        path = self._path(step)
        removed = path.with_name(f".{path.name}.gone.tmp")
        shutil.rmtree(removed, ignore_errors=True)
        path.rename(removed)
        shutil.rmtree(removed)
