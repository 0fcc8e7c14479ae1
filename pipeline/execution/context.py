"""The `Stage` that a stage script works with: settings, inputs, outputs, devices."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts import working
from t5_pipeline.artifacts.artifact import Artifact, recorded_model
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.artifacts.manifest import OutputRecord
from t5_pipeline.artifacts.run_dir import RunDir, step_name
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.recipe import Cell
from t5_pipeline.config.stage import CompileConfig, StageConfig
from t5_pipeline.config.training import ExecutionConfig, TrainingConfig
from t5_pipeline.core.atomic_files import move_directory, write_directory
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import say
from t5_pipeline.data_prep.tasks.counts import RowCounts
from t5_pipeline.execution.staleness import CellStatus

if TYPE_CHECKING:
    from accelerate import Accelerator

    from t5_pipeline.config.adaptation import T5Sizes
    from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
    from t5_pipeline.modeling.loaded import LoadedT5, ModelSource
    from t5_pipeline.modeling.t5 import T5

C = TypeVar("C", bound=StageConfig)
log = logging.getLogger("t5-pipeline")


@dataclass
class CellRun(Generic[C]):
    """One cell of the job."""

    status: CellStatus
    config: C
    directory: Path
    run_dir: RunDir
    started: str
    outputs: dict[str, OutputRecord] = field(default_factory=dict)
    steps: dict[int, OutputRecord] = field(default_factory=dict)
    step: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[RowCounts] = field(default_factory=list)
    verified: set[Path] = field(default_factory=set)

    @property
    def id(self) -> str:
        return self.status.cell.id

    def inputs(self, name: str) -> list[Artifact]:
        """The artifacts of an input field: one, or every prompt of a stage.

        Raises:
            InputError: if a file is damaged. (Token shards are checked block by block when they are read.)
        """
        found = [Artifact.of(record, self.run_dir) for record in self.status.inputs[name]]
        for artifact in found if self.config.inputs()[name] != "tokens" else ():
            if artifact.path not in self.verified:
                artifact.verify()
                self.verified.add(artifact.path)
        return found

    def steps_on_disk(self) -> dict[int, str]:
        """Paths of requested intermediate steps that are published and intact, in the manifest or not yet."""
        output = self.config.outputs[0]
        last = getattr(self.config, "steps", None)
        wanted = [step for step in self.status.steps_wanted if step != last]
        places = {step: f"steps/{step_name(step)}/{output}" for step in wanted}
        self._verify_published([place for place in places.values() if (self.directory / place).is_dir()])
        return {step: place for step, place in places.items() if self.directory / place in self.verified}

    def _verify_published(self, places: list[str]) -> None:
        """Add to `verified` which of these directories are in the manifest, or published and intact."""
        new = {place for place in places if self.directory / place not in self.verified}
        if not new:
            return
        manifest = manifests.read(self.directory)
        known = new.intersection(output.path for output in manifest.all_outputs()) if manifest else set()
        intact = working.intact(self.directory, new - known)
        self.verified.update(self.directory / place for place in known | intact)

    def claim(self, place: str) -> None:
        """Prepare to write a result: rename a directory with files of others, and name the result in working.json."""
        path, manifest = self.directory / place, manifests.read(self.directory)
        begun, published = working.results(self.directory), manifest.all_outputs() if manifest else []
        torn = begun.get(place, {}) is None and not any(place == output.path for output in published)
        known = {*(manifest.files if manifest else ()), *(begun.get(place) or ())}
        if not torn and (others := manifests.unknown_files(self.directory, place, known)):
            to = self.run_dir.set_aside(path)
            say(f"warning: {path}: contains {others[0]}, which is not of this program; moved to {to}")
        working.begin(self.directory, place)

    def input(self, name: str) -> Artifact:
        found = self.inputs(name)
        assert len(found) == 1, f"{name} has {len(found)} artifacts"
        return found[0]


class Stage(Generic[C]):
    """A running stage with one job: one cell, or several prompts that share a frozen T5.

    Attributes:
        config: settings of the first cell; settings that differ between cells are in `cells`.
        directory: directory of the job's metrics, log and checkpoints.
        stopped_by: signal received after the training loop finished; 0 if none.
        seconds_before: seconds of training in earlier processes, up to the checkpoint from which this one resumed.
    """

    def __init__(
        self,
        cells: list[CellRun[C]],
        directory: Path,
        run_dir: RunDir,
        resume_from: int | None,
        launch: LaunchContext,
        accelerator: Accelerator,
    ) -> None:
        self.cells = cells
        self.config = cells[0].config
        self.directory = directory
        self.run_dir = run_dir
        self.resume_from = resume_from
        self.launch = launch
        self.accelerator = accelerator
        self.stopped_by = 0
        self.seconds_before = 0.0
        self._began = time.monotonic()
        self.name = _name([cell.status.cell for cell in cells])

    @property
    def seconds(self) -> float:
        """Seconds since this process started the job."""
        return time.monotonic() - self._began

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the job, stored in its checkpoints."""
        return "+".join(sorted(cell.status.fingerprint or "" for cell in self.cells))

    @property
    def steps_wanted(self) -> list[int]:
        return self.cells[0].status.steps_wanted

    def steps_pending(self) -> list[int]:
        """Steps still to be published, ascending; the last one even if all are on disk."""
        published = set.intersection(*(set(cell.steps_on_disk()) for cell in self.cells))
        return [step for step in self.steps_wanted if step not in published] or self.steps_wanted[-1:]

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def input(self, name: str) -> Artifact:
        return self.cells[0].input(name)

    def inputs(self, name: str) -> list[Artifact]:
        return self.cells[0].inputs(name)

    def record_rows(self, counts: Sequence[RowCounts]) -> None:
        """Log and record the counts of each cell's rows, or of all tasks of the only cell."""
        cells = self.cells if len(counts) == len(self.cells) else self.cells * len(counts)
        for cell, found in zip(cells, counts, strict=True):
            if not any(found in other.rows for other in self.cells):
                log.info("%s: %s", self.name, found)
                for warning in found.warnings:
                    log.warning("%s", warning)
            if found not in cell.rows:
                cell.rows.append(found)

    def model_source(self) -> ModelSource:
        """Vocabulary, metadata and origin of the input "model", without its weights."""
        from t5_pipeline.modeling.loaded import ModelSource

        source = self.input("model")
        return ModelSource.read(source.path, source.name, source.digest)

    def load_model(self, vocabulary: Vocabulary | None = None) -> LoadedT5:
        """Load the input "model" on the CPU, in fp32, with the dropout and reference ops of a training stage.

        Args:
            vocabulary: of the data that the stage reads; default: the model's own.

        Raises:
            InputError: if the model cannot be read, or the vocabulary does not fit it.
        """
        from t5_pipeline.modeling.loaded import LoadedT5

        source = self.input("model")
        return self._configured(LoadedT5.load(source.path, source.name, source.digest, vocabulary))

    def init_model(self, sizes: T5Sizes, vocabulary: Vocabulary) -> LoadedT5:
        """Initialize a T5 of these sizes from the stage's seed; otherwise like `load_model`."""
        from t5_pipeline.modeling.loaded import LoadedT5

        return self._configured(LoadedT5.init(sizes.model_dump(), vocabulary, self.config.seed))

    def _configured(self, model: LoadedT5) -> LoadedT5:
        if isinstance(self.config, TrainingConfig):
            model.t5.set_dropout(self.config.dropout)
        self.configure_execution(model.t5)
        return model

    def configure_execution(self, t5: T5) -> None:
        """Run a T5 with the implementations that the settings choose; with its defaults if they do not."""
        from t5_pipeline.modeling.execution import configure_execution

        c, device_type = self.config, self.accelerator.device.type
        if isinstance(c, ExecutionConfig):
            configure_execution(
                t5, device_type, compile=c.compile, attention=c.attention, reference_ops=c.reference_ops,
                recompute=c.recompute,
            )  # fmt: skip
        elif isinstance(c, CompileConfig):
            configure_execution(t5, device_type, compile=c.compile, attention=c.attention)

    def model_of(self, prompt: Artifact, name: str, digest: str) -> Artifact:
        """The frozen T5 that a prompt was trained on.

        Args:
            name: name of the T5 in the prompt's own record.
            digest: its digest there.

        Raises:
            InputError: if it is missing, or its digest differs.
        """
        digests = self.run_dir.digests
        if getattr(self.config, "model", None) is not None:
            found = self.input("model")
        else:
            found, run_dir = recorded_model(prompt, name, digest)
            if run_dir is None or run_dir.path.resolve() != self.run_dir.path.resolve():
                found = replace(found, digest=digests.of_artifact("model", found.path))
        if found.digest != digest:
            raise InputError(
                f"{prompt.path}: was not trained on {found.path} (its T5 has digest {short_digest(digest)}, this"
                f" one {short_digest(found.digest)}); give its T5 with --model"
            )
        return found

    def publish(
        self,
        output: str,
        content: Callable[[Path], None] | Path,
        *,
        step: int | None = None,
        cell: CellRun[C] | None = None,
        chosen: str = "",
    ) -> None:
        """Publish an artifact atomically. Every process must call it.

        Args:
            output: kind of the artifact: "model", "tokens", "prompt", …
            content: fills the empty directory that it is given (called on the main process only); or a complete
                directory of this stage, which is moved.
            step: training step of the artifact.
            cell: cell of the artifact; the first one by default.
            chosen: for the log, the step that was chosen and why; default: `step`.
        """
        cell = cell or self.cells[0]
        final = step is None or not isinstance(self.config, TrainingConfig) or step == self.config.steps
        place = output if final else f"steps/{step_name(step or 0)}/{output}"
        if self.is_main:
            (cell.directory / place).parent.mkdir(parents=True, exist_ok=True)
            cell.claim(place)
            if isinstance(content, Path):
                move_directory(content, cell.directory / place)
            else:
                write_directory(cell.directory / place, content)
            if not final:
                working.complete(cell.directory, place)
        self.accelerator.wait_for_everyone()
        if self.is_main:  # which writes the manifest
            record = OutputRecord(path=place, digest=artifact_digest(output, cell.directory / place))
            if final:
                cell.outputs[output] = record
                cell.step = step
            else:
                assert step is not None
                cell.steps[step] = record
        of = chosen or (f"step {step:,}" if step is not None else "")
        log.info("%s: published %s%s", cell.status.cell.label, output, f" of {of}" if of else "")


def _name(cells: list[Cell]) -> str:
    """Name of a job in the log: its only cell, or what its cells have in common: `prompt_tune [model=lm_adapt] × 3`."""
    first = cells[0]
    if len(cells) == 1:
        return first.label
    common = {axis: value for axis, value in first.axes.items() if all(cell.axes.get(axis) == value for cell in cells)}
    return f"{replace(first, axes=common).label} × {len(cells)}"
