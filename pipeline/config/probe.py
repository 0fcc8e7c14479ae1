"""Settings of probes: small prompts tuned on the current weights during LM adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import field_validator

from t5_pipeline.config.launch import REPLICATED
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.config.stage import SplitRead
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import setting
from t5_pipeline.data_prep.tasks.config import TaskConfig

# Without patience, probes change nothing.
_of_probes = partial(setting, role="runtime", only="probe")


class ProbeConfig(TrainingConfig):
    """Group: probes, which show how well the T5 can be prompted so far."""

    probe: list[TaskConfig] = setting(
        [], "tasks on which to tune small prompts at intervals, to measure promptability; none: off", role="runtime"
    )
    probe_every: int = _of_probes(
        1000, "steps between probes; there is also one before the first step", unit="steps", gt=0
    )
    probe_cost: float = _of_probes(0.1, "maximum FLOPs of all probes, as a fraction of the adaptation's", gt=0)
    probe_patience: int = _of_probes(
        0, "stop after this many probes without a better score; 0: never", unit="probes", ge=0
    )
    probe_prompts: int = _of_probes(3, "prompts of a probe for each task, which differ in their seed", gt=0)
    probe_prompt_length: int = _of_probes(20, "length of a probe's prompts", unit="tokens", gt=0)
    probe_steps: int = _of_probes(50, "steps of prompt tuning in a probe", unit="steps", gt=0)
    probe_batch_size: int = _of_probes(16, "examples per step and prompt of a probe", unit="examples", gt=0)
    probe_input_length: int = _of_probes(
        128, "maximum input tokens in a probe, besides the prompt", unit="tokens", gt=0
    )
    probe_rows: int = _of_probes(
        100, "validation rows to score in a probe, spread evenly over the split; 0: all", unit="rows", ge=0
    )

    @field_validator("probe")
    @classmethod
    def tasks_can_be_scored(cls, value: list[TaskConfig]) -> list[TaskConfig]:
        names = [task.name for task in value]
        for task in value:
            if names.count(task.name) > 1:
                raise ValueError(f"names the task {task.name} twice; name each once")
            if "validation" not in task.splits:
                raise ValueError(f"{task.name} has no split `validation` to score the prompts on; add one")
        return value

    def check_engine(self, engine: str) -> None:
        """Also reject probes on sharded weights, because every rank tunes prompts on its own copy."""
        super().check_engine(engine)
        if self.probe and engine not in REPLICATED:
            raise InputError(
                f"{self.where('probe')}: needs whole weights, which {engine} shards; remove it, or launch with DDP"
                " (accelerate_configs/ddp.yaml)"
            )

    def splits_read(self, solved: Sequence[TaskConfig]) -> list[SplitRead]:
        return [SplitRead(task, split) for task in self.probe for split in ("train", "validation")]

    def shaping(self) -> list[str]:
        """With patience, the probes decide when training stops."""
        probes = list(ProbeConfig.model_fields.keys() - TrainingConfig.model_fields.keys() - {"probe_cost"})
        return [*super().shaping(), *(sorted(probes) if self.probe_patience else [])]

    def selects_by(self) -> dict[str, list[str]]:
        """With patience, the metrics whose average decides when training stops."""
        return {task.name: sorted(task.metrics) for task in self.probe} if self.probe_patience else {}

    def may_stop_early(self) -> bool:
        return self.probe_patience > 0 and bool(self.probe)

    def probe_cells(self, model: str) -> list[PromptTuneConfig]:
        """The prompts of a probe, as settings of prompt_tune: `probe_prompts` for each task."""
        return [
            PromptTuneConfig(
                model=model,
                task=task,
                seed=self.seed + number,
                prompt_length=self.probe_prompt_length,
                prompt_init="class_labels" if task.labels else "vocabulary",
                steps=self.probe_steps,
                batch_size=self.probe_batch_size,
                max_input_length=self.probe_input_length,
                validation_limit=self.probe_rows,
                dropout=0.0,
                select="last",
                precision=self.precision,
                microbatch_size=self.microbatch_size,
            )
            for task in self.probe
            for number in range(self.probe_prompts)
        ]
