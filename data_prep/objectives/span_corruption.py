"""Span corruption, T5's pretraining objective.

The random chunks of 128 documents in stored order are concatenated and cut into segments of T tokens; the last one may
be shorter. In the inputs each hidden span is replaced by a sentinel; the targets are the hidden spans, each after its
sentinel. T is the largest length whose inputs, with EOS, fit into L.

    tokens    The quick brown fox jumps over the dog
    inputs    The <0> fox jumps <1> dog EOS
    targets   <0> quick brown <1> over the EOS

Suffixes: B requested examples, R examples of one length, T tokens of a segment, C gaps between tokens.

Source: Raffel et al. 2020, §3.1.4; `span_corruption` of T5's code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.concatenated import ConcatenatedDocuments
from t5_pipeline.data_prep.objectives.documents import Documents, Example, Ints
from t5_pipeline.data_prep.sampling.counter_rng import bits

Bools = npt.NDArray[np.bool_]

_SHORTEST = 8  # tokens of the inputs


def noise_counts(length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """(hidden tokens n, spans s) of a segment: T' = max(T, 2), n = round(T'ρ) within 1..T'−1, s = max(1, round(n/μ)).

    Products and quotients are float32, as in TensorFlow, which decides some halves: 29 of 190 tokens are hidden, since
    0.15 · 190 is slightly more than 28.5. Halves are rounded to even. s is at most T'−n, because spans need kept tokens
    between them.

    >>> noise_counts(568)
    (85, 28)
    >>> noise_counts(1)
    (1, 1)
    """
    length = max(length, 2)
    noise = min(max(_rounded(np.float32(length) * np.float32(noise_density)), 1), length - 1)
    return noise, min(max(1, _rounded(np.float32(noise) / np.float32(mean_span_length))), noise, length - noise)


def _rounded(x: np.float32) -> int:
    return int(np.round(x))


def tokens_length(input_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """(T, target length): the most tokens whose corrupted inputs fit into `input_length`, with EOS on both sides.

    Inputs have T−n+s+1 ids and targets n+s+1. This is T5's random_spans_helper with the n and s of the actual mask; for
    inputs of a few tokens the helper misses a span and truncates the end.

    >>> [tokens_length(L) for L in (64, 128, 256, 512, 1024)]
    [(70, 14), (141, 29), (284, 58), (568, 114), (1137, 229)]
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = noise_counts(tokens, noise_density, mean_span_length)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = input_length - 1
    while lengths(tokens + 1)[0] <= input_length:
        tokens += 1
    # As in T5's code: at ρ = 0.5 one token fewer if the targets would be longer than the inputs.
    if noise_density == 0.5 and lengths(tokens)[1] > input_length:
        tokens -= 1
    return tokens, lengths(tokens)[1]


def fitting_length(input_length: int, noise_density: float, mean_span_length: float, sentinels: int) -> int:
    """The longest inputs of span corruption, at most `input_length`, whose spans do not outnumber the sentinels.

    >>> fitting_length(512, 0.15, 3, sentinels=100), fitting_length(512, 0.5, 3, sentinels=100)
    (512, 403)

    Raises:
        InputError: if there are hardly any sentinels.
    """

    def spans(length: int) -> int:
        tokens, _ = tokens_length(length, noise_density, mean_span_length)
        return noise_counts(tokens, noise_density, mean_span_length)[1]

    lengths = range(_SHORTEST + 1, input_length + 1)
    if fitting := bisect_right(lengths, sentinels, key=spans):
        return lengths[fitting - 1]
    raise InputError(f"mixture: the vocabulary has {sentinels} sentinels, too few; add 100 by the `sentinel` stage")


def part_starts(bits_RC: npt.NDArray[np.uint64], parts: int) -> Bools:
    """Split C+1 items into `parts` non-empty runs, uniformly over compositions.

    Args:
        bits_RC: 64 random bits for each of the C gaps between items; the parts−1 smallest of a row become boundaries.
        parts: number of runs.

    Returns:
        True where a run starts, [R, C+1].

    >>> part_starts(np.array([[5, 1, 9]], dtype=np.uint64), parts=2).tolist()
    [[True, False, True, False]]
    """
    rows, places = bits_RC.shape
    starts = np.zeros((rows, places + 1), dtype=bool)
    starts[:, 0] = True
    if parts > 1:
        borders = np.argpartition(bits_RC, parts - 2, axis=1)[:, : parts - 1] + 1
        np.put_along_axis(starts, borders, True, axis=1)
    return starts


def noise_mask(
    seed: int, epoch: int, index_R: Ints, length: int, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> Bools:
    """The mask of hidden tokens, [R, length]: n hidden and T'−n kept tokens in s random runs each, alternating.

    A kept run comes first. The mask of an example is a function of (seed, epoch, its index).
    """
    noise, spans = noise_counts(length, noise_density, mean_span_length)
    kept = max(length, 2) - noise
    kept_starts = part_starts(
        bits(seed, "span_corruption/kept", epoch, index_R[:, None], np.arange(kept - 1)[None, :]), spans
    )
    noise_starts = part_starts(
        bits(seed, "span_corruption/noise", epoch, index_R[:, None], np.arange(noise - 1)[None, :]), spans
    )
    # Interleaved run lengths: kept, noise, kept, noise, …; runs of odd index are noise.
    runs = np.stack([_run_lengths(kept_starts, spans), _run_lengths(noise_starts, spans)], axis=2).reshape(
        len(index_R), -1
    )
    run_starts = np.cumsum(runs, axis=1)[:, :-1]
    mask = np.zeros((len(index_R), kept + noise), dtype=np.int8)
    np.put_along_axis(mask, run_starts, 1, axis=1)
    return (np.cumsum(mask, axis=1, dtype=np.int32) % 2 == 1)[:, :length]


def _run_lengths(starts: Bools, parts: int) -> Ints:
    places = np.nonzero(starts)[1].reshape(len(starts), parts)
    return np.diff(places, axis=1, append=starts.shape[1])


def replace_spans(
    tokens_RT: npt.NDArray[np.int32], mask_RT: Bools, sentinel_ids: Sequence[int]
) -> npt.NDArray[np.int32]:
    """Replace run j of masked tokens by the id of sentinel j.

    All rows must have the same numbers of masked tokens and runs. The mask gives inputs, its complement targets.

    >>> tokens, mask = np.array([[5, 6, 7, 8]], dtype=np.int32), np.array([[False, True, True, False]])
    >>> replace_spans(tokens, mask, [99, 98]).tolist(), replace_spans(tokens, ~mask, [99, 98]).tolist()
    ([[5, 99, 8]], [[99, 6, 7, 98]])
    """
    starts = mask_RT.copy()
    starts[:, 1:] &= ~mask_RT[:, :-1]
    run_RT = np.maximum(np.cumsum(starts, axis=1) - 1, 0)
    replaced = np.where(starts, np.asarray(sentinel_ids, dtype=np.int32)[run_RT], tokens_RT).astype(np.int32)
    return replaced[starts | ~mask_RT].reshape(len(tokens_RT), -1)


class SpanCorruption:
    """Span corruption over `tokens`.

    Args:
        tokens: the documents.
        seed: seed of chunks and masks.
        input_length: maximum length of inputs, with EOS.
        noise_density: ρ, fraction of hidden tokens.
        mean_span_length: μ, mean tokens per hidden span.
        sentinel_ids: ids of the sentinels, extra_id_0 first.
        eos: id of EOS.

    Raises:
        InputError: if a segment can have more spans than there are sentinels.

    Example: a document of 4 tokens has one hidden token (n = round(0.6), s = 1), which is never the first.

    >>> class One:
    ...     lengths_N = np.array([4])
    ...     def document(self, i): return np.array([10, 11, 12, 13])
    >>> objective = SpanCorruption(One(), seed=0, input_length=16, sentinel_ids=[99, 98])
    >>> [(inputs, targets)] = objective.examples(epoch=0, index_N=[0])
    >>> inputs.tolist()[0], inputs.tolist()[-2:], targets.tolist()[0], targets.tolist()[-1]
    (10, [99, 1], 99, 1)
    """

    def __init__(
        self,
        tokens: Documents,
        seed: int,
        input_length: int = 512,
        noise_density: float = 0.15,
        mean_span_length: float = 3.0,
        *,
        sentinel_ids: Sequence[int],
        eos: int = 1,
    ) -> None:
        self.segment, self.target_length = tokens_length(input_length, noise_density, mean_span_length)
        _, spans = noise_counts(self.segment, noise_density, mean_span_length)
        if spans > len(sentinel_ids):
            shorter, added = (
                "reduce input_length or increase mean_span_length",
                "add 100 by the `sentinel` stage or `prepare`",
            )
            raise InputError(
                f"input_length: {input_length} needs up to {spans} sentinels, and the vocabulary has"
                f" {len(sentinel_ids)}; {shorter if sentinel_ids else added}"
            )
        self.seed = seed
        self.input_length = input_length
        self.noise_density = noise_density
        self.mean_span_length = mean_span_length
        self.sentinel_ids = sentinel_ids
        self.eos = eos
        self.concatenated = ConcatenatedDocuments(tokens, seed, self.segment)

    def count(self, epoch: int) -> int:
        """Examples of this pass over the documents."""
        return self.concatenated.count(epoch)

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        """(inputs, targets) at each index in [0, count(epoch)): int32 ids, EOS last."""
        index_B = np.asarray(index_N, dtype=np.int64)
        segments = self.concatenated.segments(epoch, index_B)
        lengths_B = np.array([len(segment) for segment in segments], dtype=np.int64)
        examples: list[Example | None] = [None] * len(segments)
        for length in np.unique(lengths_B).tolist():
            rows = np.flatnonzero(lengths_B == length)
            tokens_RT = np.stack([segments[row] for row in rows]).astype(np.int32)
            mask_RT = noise_mask(self.seed, epoch, index_B[rows], length, self.noise_density, self.mean_span_length)
            inputs = _append(replace_spans(tokens_RT, mask_RT, self.sentinel_ids), self.eos)
            targets = _append(replace_spans(tokens_RT, ~mask_RT, self.sentinel_ids), self.eos)
            for row, x, y in zip(rows.tolist(), inputs, targets, strict=True):
                examples[row] = (x, y)
        return [example for example in examples if example is not None]


def _append(ids_RT: npt.NDArray[np.int32], eos: int) -> npt.NDArray[np.int32]:
    return np.concatenate([ids_RT, np.full((len(ids_RT), 1), eos, dtype=np.int32)], axis=1)
