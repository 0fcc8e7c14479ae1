"""Sizes that the code computes by and the cost model predicts memory from; each is defined here only. No torch."""

from __future__ import annotations

LOSS_ROWS = {"cpu": 512, "cuda": 4096}
"""Rows of logits that the loss makes in fp32 at a time: few stay in a CPU's caches, many keep a GPU busy."""

SCORED_LOGITS_ROWS = 2048
"""Rows of logits that label scoring makes at a time."""

SCORED_LABEL_TOKENS = 1 << 14
"""Label tokens that label scoring decodes at a time, unless a single input has more."""

SCORED_EXAMPLES = 64
"""Examples of a validation batch."""

FACTORED_FROM = 128
"""Adafactor factors a matrix whose rows and columns are at least this many."""

UPDATED_ELEMENTS = 1 << 24
"""Elements that an optimizer updates at a time: many small tensors together, a larger one alone."""

REDUCED_ELEMENTS = 1 << 24
"""Elements of the flat bucket in which DDP ranks sum gradients; a larger tensor is summed alone."""

ZERO_BUCKET = 1 << 26
"""Elements of the bucket in which DeepSpeed sums gradients, at most (its default would be 2 GB)."""

REPLICATED_ELEMENTS = 1 << 26
"""Trained elements beside a frozen T5 that FSDP2 replicates, at most: prompts, whose optimizer works by prompt."""


def attends_without_keys(queries: int, d_kv: int) -> bool:
    """Whether cross-attention over encoder states is cheaper without projecting their keys and values.

    For S states of width D and H heads, projecting costs 2·S·D·H·d_kv products and doing without 2·S·D·H·queries. The
    latter run slower, so they must be at most half as many.
    """
    return 2 * queries <= d_kv
