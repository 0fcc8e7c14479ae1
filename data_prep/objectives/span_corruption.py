"""Span corruption, what T5 was pretrained on (Raffel et al. 2020, §3.1.4; `span_corruption` of its code).

The random chunks of 128 documents in stored order are joined and cut into segments of T tokens, the last of which may
be shorter. Spans of a segment are hidden: each reads as one sentinel in the inputs; the targets are the hidden spans,
each after its sentinel. T is the largest for which the inputs, EOS counted, fit into L.

    tokens    The quick brown fox jumps over the dog
    inputs    The <0> fox jumps <1> dog EOS
    targets   <0> quick brown <1> over the EOS

Suffixes: B examples asked for, R examples of one length, T tokens of a segment, C places between tokens.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.concatenated import ConcatenatedDocuments
from t5_pipeline.data_prep.objectives.documents import Documents, Example, Ints
from t5_pipeline.data_prep.sampling.counter_rng import bits

Bools = npt.NDArray[np.bool_]


def noise_counts(length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """(hidden tokens n, spans s) of a segment: T' = max(T, 2), n = round(T'ρ) within 1..T'−1, s = max(1, round(n/μ)).

    Both roundings are half to even. More spans than tokens to stand between them cannot be: s is at most T'−n.

    >>> noise_counts(568)
    (85, 28)
    >>> noise_counts(1)
    (1, 1)
    """
    length = max(length, 2)
    noise = min(max(round(length * noise_density), 1), length - 1)
    return noise, min(max(1, round(noise / mean_span_length)), noise, length - noise)


def tokens_length(input_length: int, noise_density: float = 0.15, mean_span_length: float = 3.0) -> tuple[int, int]:
    """(T, target length): the most tokens whose corrupted inputs fit into `input_length`, EOS counted on both sides.

    T−n+s+1 ids of inputs and n+s+1 of targets (T5's random_spans_helper, but with the n and s that the mask will have:
    for inputs of a few tokens the helper counts no span where there is one, and cuts the end off).

    >>> [tokens_length(L) for L in (64, 128, 256, 512, 1024)]
    [(70, 14), (141, 29), (284, 58), (568, 114), (1137, 229)]
    """

    def lengths(tokens: int) -> tuple[int, int]:
        noise, spans = noise_counts(tokens, noise_density, mean_span_length)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = input_length - 1
    while lengths(tokens + 1)[0] <= input_length:
        tokens += 1
    # T5's code: at ρ = 0.5 one token less where the targets would outgrow the inputs' round number.
    if noise_density == 0.5 and lengths(tokens)[1] > input_length:
        tokens -= 1
    return tokens, lengths(tokens)[1]


def part_starts(bits_RC: npt.NDArray[np.uint64], parts: int) -> Bools:
    """C+1 items split at random into `parts` non-empty runs, every composition as likely: where each run starts.

    bits_RC  64 random bits for each of the C places between items; the parts−1 smallest of a row become borders

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
    """Which tokens are hidden, [R, length]: n hidden and T'−n kept tokens, each split at random into s runs, in turn.

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
    # Run lengths in turn: kept, noise, kept, noise, …; a run's parity says what it is.
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


def replace_spans(tokens_RT: npt.NDArray[np.int32], mask_RT: Bools, first_sentinel: int) -> npt.NDArray[np.int32]:
    """Each run of masked tokens reads as one sentinel, the first as `first_sentinel`, then downwards.

    Every row must have as many masked tokens and runs. Inputs are made with the mask, targets with its complement.

    >>> tokens, mask = np.array([[5, 6, 7, 8]], dtype=np.int32), np.array([[False, True, True, False]])
    >>> replace_spans(tokens, mask, 99).tolist(), replace_spans(tokens, ~mask, 99).tolist()
    ([[5, 99, 8]], [[99, 6, 7, 98]])
    """
    starts = mask_RT.copy()
    starts[:, 1:] &= ~mask_RT[:, :-1]
    sentinels = first_sentinel + 1 - np.cumsum(starts, axis=1, dtype=np.int32)
    replaced = np.where(starts, sentinels, tokens_RT).astype(np.int32)
    return replaced[starts | ~mask_RT].reshape(len(tokens_RT), -1)


class SpanCorruption:
    """Span corruption over `tokens`, to inputs of at most `input_length` ids.

    vocabulary_size  pieces and sentinels together (Vocabulary.size): sentinel j is vocabulary_size − 1 − j
    sentinels        how many of these there are; InputError if a segment can have more spans: they would overrun
                     real pieces

    Worked example: a document of 4 tokens has one hidden token (n = round(0.6), s = 1), which is never the first.

    >>> class One:
    ...     lengths_N = np.array([4])
    ...     def document(self, i): return np.array([10, 11, 12, 13])
    >>> objective = SpanCorruption(One(), seed=0, input_length=16, vocabulary_size=100)
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
        vocabulary_size: int,
        sentinels: int = 100,
        eos: int = 1,
    ) -> None:
        self.segment, self.target_length = tokens_length(input_length, noise_density, mean_span_length)
        _, spans = noise_counts(self.segment, noise_density, mean_span_length)
        if spans > sentinels:
            has = f"has {sentinels}" if sentinels else "has none (the `sentinel` stage or `prepare` gives it 100)"
            raise InputError(
                f"input_length {input_length} hides up to {spans} spans in a segment, each needs a sentinel and the"
                f" vocabulary {has}: give a shorter input_length or longer spans"
            )
        self.seed = seed
        self.input_length = input_length
        self.noise_density = noise_density
        self.mean_span_length = mean_span_length
        self.first_sentinel = vocabulary_size - 1
        self.eos = eos
        self.joined = ConcatenatedDocuments(tokens, seed, self.segment)

    def count(self, epoch: int) -> int:
        """Examples of this pass over the documents."""
        return self.joined.count(epoch)

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        """(inputs, targets) of each index in [0, count(epoch)): int32 ids, EOS last."""
        index_B = np.asarray(index_N, dtype=np.int64)
        segments = self.joined.segments(epoch, index_B)
        lengths_B = np.array([len(segment) for segment in segments], dtype=np.int64)
        examples: list[Example | None] = [None] * len(segments)
        for length in np.unique(lengths_B).tolist():
            rows = np.flatnonzero(lengths_B == length)
            tokens_RT = np.stack([segments[row] for row in rows]).astype(np.int32)
            mask_RT = noise_mask(self.seed, epoch, index_B[rows], length, self.noise_density, self.mean_span_length)
            inputs = _append(replace_spans(tokens_RT, mask_RT, self.first_sentinel), self.eos)
            targets = _append(replace_spans(tokens_RT, ~mask_RT, self.first_sentinel), self.eos)
            for row, x, y in zip(rows.tolist(), inputs, targets, strict=True):
                examples[row] = (x, y)
        return [example for example in examples if example is not None]


def _append(ids_RT: npt.NDArray[np.int32], eos: int) -> npt.NDArray[np.int32]:
    return np.concatenate([ids_RT, np.full((len(ids_RT), 1), eos, dtype=np.int32)], axis=1)
