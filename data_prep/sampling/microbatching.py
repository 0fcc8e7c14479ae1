"""Cutting a batch into microbatches with little padding and bounded size.

Suffixes: N rows in the order of their length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Device:
    """Costs of a kind of device, and of what is trained on it.

    Attributes:
        at_once: maximum positions (inputs and targets, with padding) of a microbatch of more than one row: enough for
            large matrix products, few enough for the device's memory.
        per_pass: fixed cost of a microbatch (kernel launches, gradient accumulation), in positions.
    """

    at_once: int
    per_pass: int


CPU = Device(at_once=8192, per_pass=128)
# With instructions for bf16, a position is several times as fast, but casting all weights and accumulating all
# gradients is not. A frozen T5 is not slower with 128.
CPU_BF16_WEIGHTS = Device(at_once=8192, per_pass=512)
# Not measured. Launching the kernels of a pass takes as long as thousands of positions of a small T5.
GPU = Device(at_once=32_768, per_pass=8192)


def device_of(kind: str, precision: str, trains_weights: bool) -> Device:
    """The costs of a kind of device ("cpu", "cuda").

    Args:
        precision: of matrix products ("fp32", "bf16").
        trains_weights: all weights of the T5 are trained, not only a prompt or adapter.
    """
    if kind != "cpu":
        return GPU
    return CPU_BF16_WEIGHTS if precision == "bf16" and trains_weights else CPU


def min_padding_microbatches(
    input_widths_N: npt.ArrayLike, target_widths_N: npt.ArrayLike, device: Device = CPU
) -> list[tuple[int, int]]:
    """The parts (begin, end) of adjacent rows that minimize Σ_parts rows·(widest input + widest target) + per_pass.

    Args:
        input_widths_N: padded input width of each row.
        target_widths_N: padded target width of each row.
        device: costs of the device.

    Example: eight short rows and two long ones. Padding the short ones to 512 would cost 8·496 positions; a second pass
    costs 128.

    >>> min_padding_microbatches([16] * 8 + [512] * 2, [8] * 10)
    [(0, 8), (8, 10)]
    >>> min_padding_microbatches([16, 24, 32], [8, 8, 8])
    [(0, 3)]
    """
    inputs_N, targets_N = (np.asarray(widths, dtype=np.int64) for widths in (input_widths_N, target_widths_N))
    N = len(inputs_N)
    cost = np.zeros(N + 1, dtype=np.int64)  # minimum cost of the first n rows
    begin = np.zeros(N + 1, dtype=np.int64)  # first row of the last part in that case
    most = device.at_once // max(1, int((inputs_N + targets_N).min(initial=device.at_once)))
    for end in range(1, N + 1):
        start = max(0, end - max(1, most))
        # Widths of the parts that begin at end−1, end−2, …, start.
        widest = np.maximum.accumulate(inputs_N[start:end][::-1]) + np.maximum.accumulate(targets_N[start:end][::-1])
        positions = np.arange(1, end - start + 1) * widest
        allowed = max(1, int(np.searchsorted(positions, device.at_once, side="right")))
        total = positions[:allowed] + device.per_pass + cost[end - allowed : end][::-1]
        best = int(total.argmin())
        cost[end], begin[end] = total[best], end - 1 - best
    parts = []
    end = N
    while end > 0:
        parts.append((int(begin[end]), end))
        end = int(begin[end])
    return parts[::-1]
