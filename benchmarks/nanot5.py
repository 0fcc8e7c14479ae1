"""nanoT5's T5 as a peer, from a copy of its `nanoT5/utils/t5_model.py` that is not part of this project.

Set `T5_PIPELINE_NANOT5` to that file. nanoT5 was written for transformers 4: it inherits the masks of its stacks from a
mixin that has lost them since, so they are defined here, in the same form (0 where a position is seen, the smallest
number elsewhere).
"""

from __future__ import annotations

import copy
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor, nn


def _hidden(seen: Tensor) -> Tensor:
    """An additive mask: 0 where `seen`, the smallest number of fp32 elsewhere."""
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)


def _key_mask(_: nn.Module, mask_BS: Tensor) -> Tensor:
    """Mask [B, 1, 1, S] of the keys of cross-attention."""
    return _hidden(mask_BS.bool()[:, None, None, :])


def _self_mask(stack: nn.Module, mask_BS: Tensor, _shape: tuple[int, int]) -> Tensor:
    """Mask of self-attention: [B, 1, 1, S] in the encoder, [B, 1, S, S] and causal in the decoder."""
    seen = mask_BS.bool()[:, None, None, :]
    if stack.is_decoder:
        length = mask_BS.shape[1]
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    return _hidden(seen)


def nanot5_model(theirs: Any) -> nn.Module | None:
    """nanoT5 with the weights of a T5 of transformers, without dropout; None without `T5_PIPELINE_NANOT5`."""
    path = os.environ.get("T5_PIPELINE_NANOT5")
    if not path:
        return None
    spec = importlib.util.spec_from_file_location("nanot5_t5_model", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"T5_PIPELINE_NANOT5={path}: not a Python file; name nanoT5's nanoT5/utils/t5_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.T5Stack.get_extended_attention_mask = _self_mask
    module.T5Stack.invert_attention_mask = _key_mask
    config = copy.deepcopy(theirs.config)
    config.dropout_rate, config.tie_word_embeddings = 0.0, False
    model: nn.Module = module.MyT5(config)
    model.load_state_dict(theirs.state_dict())
    return model.train()
