"""Everything that stages, engines and launchers import, also late. tests/forked.py preloads it."""

from __future__ import annotations

import gc
import importlib
import warnings

from t5_pipeline.config.registry import STAGES

LATE = (
    "accelerate.commands.config",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "t5_pipeline.cli.main",
    "t5_pipeline.execution.accelerate_launch",
    "transformers.integrations.deepspeed",
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for name in (*LATE, *(f"t5_pipeline.stages.{kind}" for kind in STAGES)):
        importlib.import_module(name)
gc.freeze()  # else each fork visits, and so copies, all that was imported
