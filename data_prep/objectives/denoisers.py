"""The objectives of a mixture, from the numbers of its denoisers: span corruption or a prefix LM, after a mode token.

Each has inputs of at most `input_length` ids, its mode included. Spans that outnumber the sentinels of the vocabulary
make the segments of a denoiser shorter; T5's code would take ordinary pieces for the missing sentinels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.objectives.documents import Documents, Example, Objective
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption, fitting_length
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Denoiser:
    """An objective of a mixture.

    Attributes:
        objective: without its mode.
        target_length: maximum ids of targets, with EOS.
        mode: ids before each input.

    >>> class One:
    ...     def count(self, epoch): return 1
    ...     def examples(self, epoch, index_N): return [(np.array([5, 1]), np.array([6, 1]))]
    >>> [(inputs, _)] = Denoiser(One(), target_length=2, mode=(7, 8)).examples(0, [0])
    >>> inputs.tolist()
    [7, 8, 5, 1]
    """

    objective: Objective
    target_length: int
    mode: Sequence[int] = ()

    def count(self, epoch: int) -> int:
        return self.objective.count(epoch)

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        mode = np.array(self.mode, dtype=np.int32)
        return [(np.concatenate([mode, x]), y) for x, y in self.objective.examples(epoch, index_N)]


def mode_ids(mode: str, vocabulary: Vocabulary) -> list[int]:
    """The ids of a mode's text; none if the vocabulary lacks one of its characters."""
    ids = vocabulary.encode(mode) if mode else []
    return [] if vocabulary.unk in ids else ids


def denoiser(
    tokens: Documents,
    seed: int,
    input_length: int,
    *,
    noise_density: float | None = None,
    mean_span_length: float | None = None,
    prefix_density: float | None = None,
    mode: Sequence[int] = (),
    sentinel_ids: Sequence[int] = (),
    eos: int = 1,
) -> Denoiser:
    """Span corruption or a prefix LM, as a part of a mixture.

    Args:
        input_length: maximum ids of inputs, with mode and EOS.
        noise_density, mean_span_length: of span corruption.
        prefix_density: instead of the former, of a prefix LM.
        mode: ids before each input.
    """
    room = input_length - len(mode)
    if prefix_density is not None:
        return Denoiser(PrefixLM(tokens, seed, room, prefix_density, eos), room, mode)
    assert noise_density is not None
    assert mean_span_length is not None
    length = fitting_length(room, noise_density, mean_span_length, len(sentinel_ids))
    spans = SpanCorruption(tokens, seed, length, noise_density, mean_span_length, sentinel_ids=sentinel_ids, eos=eos)
    return Denoiser(spans, spans.target_length, mode)
