"""Modules that ranks import, imported once before they are forked (tests/forked_launch.py). None may start a thread."""

# ruff: noqa: F401

from __future__ import annotations

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the launches are on CPUs, and a process that uses a GPU cannot fork

import accelerate
import deepspeed
import torch.distributed.fsdp
import transformers.models.t5.modeling_t5

import t5_pipeline.stages.lm_adapt
import t5_pipeline.stages.model_tune
import t5_pipeline.stages.prompt_tune
