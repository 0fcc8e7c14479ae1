"""Packing: several examples per row, so that less of a batch is padding.

Packing happens within one global batch. Its examples are a function of the step, and so are its rows. The model keeps
the examples of a row apart by the segment number of each position.

Suffixes: N examples, B rows, in the order in which they are opened.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def first_fit(input_lengths_N: npt.ArrayLike, target_lengths_N: npt.ArrayLike, widths: tuple[int, int]) -> Ints:
    """The row of each example, 0 … B−1, by first-fit decreasing: longest side first, each into the first row with room.

    Args:
        input_lengths_N: ids of each input.
        target_lengths_N: ids of each target.
        widths: (input, target) positions of a row; a longer example gets a row of its own.

    Example: in rows of 8 and 8 positions, the two long examples open rows, and each short one fits into one of them.

    >>> first_fit([7, 2, 1, 5], [2, 6, 5, 1], widths=(8, 8)).tolist()
    [0, 1, 0, 1]
    """
    inputs_N = np.asarray(input_lengths_N, dtype=np.int64)
    targets_N = np.asarray(target_lengths_N, dtype=np.int64)
    longest_side_N = np.maximum(inputs_N / widths[0], targets_N / widths[1])
    input_room_B, target_room_B = (np.full(len(inputs_N), width, dtype=np.int64) for width in widths)
    row_N = np.empty(len(inputs_N), dtype=np.int64)
    rows = 0
    for i in np.argsort(-longest_side_N, kind="stable").tolist():
        fits_B = (input_room_B[:rows] >= inputs_N[i]) & (target_room_B[:rows] >= targets_N[i])
        row = int(fits_B.argmax()) if rows else 0
        if not rows or not fits_B[row]:
            row = rows
            rows += 1
        input_room_B[row] -= inputs_N[i]
        target_room_B[row] -= targets_N[i]
        row_N[i] = row
    return row_N
