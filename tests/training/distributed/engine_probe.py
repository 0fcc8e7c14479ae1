"""Gradients and moments that one rank stores for a frozen T5 with prompts, then frees. For `accelerate launch`.

engine_probe.py PLACE        writes PLACE/RANK.json
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.execution.devices import free_memory, make_accelerator
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.training.adamw import AdamW
from t5_pipeline.training.distributed import make_engine

SHAPE = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4)
ROWS = 5


def main(place: Path) -> None:
    torch.set_num_threads(1)
    task = {"data": "x", "inputs": "{a}", "targets": "{b}", "labels": ["c", "d"], "name": "t", "metrics": ["accuracy"]}
    settings = PromptTuneConfig.model_validate({"model": "m", "task": task, "optimizer": "adamw"})
    launch = LaunchContext.from_environment()
    accelerator = make_accelerator([settings], launch, place)
    found, large = train(launch, accelerator)
    free_memory(accelerator)
    found["freed"] = [one() is None for one in large]
    (place / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()


def train(launch: LaunchContext, accelerator: Accelerator) -> tuple[dict[str, Any], list[weakref.ref[Any]]]:
    t5 = init_t5(SHAPE, seed=0)
    model = PromptedT5(t5, PromptBank([torch.ones(ROWS, SHAPE.d_model)]))
    engine = make_engine(launch, accelerator, model, lambda trained: AdamW(trained, lr=0.01))
    inputs_BS = torch.arange(1, 13).view(2, 6)

    def loss(model: PromptedT5) -> Tensor:
        return model(torch.zeros(2, dtype=torch.long), inputs_BS, inputs_BS[:, :4]).logsumexp(dim=-1).mean()

    for _ in range(2):
        engine.backward(engine.call(loss), last=True)
        frozen = [p for p in model.parameters() if not p.requires_grad]
        with_gradient = sum(p.grad is not None for p in frozen)
        norm = float(engine.step())
    inner: Any = getattr(engine.optimizer, "optimizer", engine.optimizer)
    states = [value for state in inner.state.values() for value in state.values()]
    moments = sum(value.numel() for value in states if value.dim())
    groups: list[Any] = []
    if engine.group.world > 1:
        for own in (dist.group.WORLD, engine.group._group):
            groups.append(cast(dist.ProcessGroup, own)._get_backend(torch.device("cpu")))
    found = {
        "engine": launch.engine,
        "world": engine.group.world,
        "timeouts_s": [group.options._timeout.total_seconds() for group in groups],
        "frozen": len(frozen),
        "with_gradient": with_gradient,
        "moments": moments,
        "norm": norm,
        "weights": {shard.name: [shard.start, shard.stop] for shard in engine.weights()},
    }
    return found, [weakref.ref(one) for one in (model, engine, engine.optimizer)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
