"""The denoisers of UL2's mixture: shares of hidden tokens, lengths of spans, modes, and text that can be restored."""

from __future__ import annotations

import numpy as np
import pytest

from t5_pipeline.config.denoisers import UL2, DenoiserConfig
from t5_pipeline.data_prep.objectives.denoisers import Denoiser, denoiser, mode_ids
from t5_pipeline.data_prep.objectives.span_corruption import fitting_length, noise_counts, tokens_length
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

L, EOS, FIRST = 256, 1, 1000  # sentinel j is FIRST − j; tokens are 2 … 700
MODE = (701, 702)
SENTINELS = [FIRST - j for j in range(100)]


class Text:
    """Long documents, so that hardly any segment is short."""

    lengths_N = np.full(8, 20_000)

    def document(self, i: int) -> np.ndarray:
        return np.random.default_rng(i).integers(2, 700, 20_000).astype(np.int32)


def made(one: DenoiserConfig, seed: int = 0) -> Denoiser:
    numbers = one.model_dump(include={"noise_density", "mean_span_length", "prefix_density"})
    return denoiser(Text(), seed, L, **numbers, mode=MODE, sentinel_ids=SENTINELS, eos=EOS)


def restored(inputs: np.ndarray, targets: np.ndarray) -> tuple[list[int], list[int]]:
    """The segment's tokens, and the lengths of its hidden spans."""
    spans: dict[int, list[int]] = {}
    for i in targets[:-1].tolist():
        if i > 900:
            spans[i] = []
        else:
            list(spans.values())[-1].append(i)
    tokens: list[int] = []
    for i in inputs[:-1].tolist():
        tokens += spans[i] if i > 900 else [i]
    return tokens, [len(span) for span in spans.values()]


def test_the_published_mixture() -> None:
    """Tay et al. 2022, Table 1: (μ, ρ) of R- and X-denoisers, and the S-denoiser with μ = L/4, ρ = 0.25."""
    numbers = [(one.mode, one.mean_span_length, one.noise_density, one.prefix_density, one.rate) for one in UL2]
    assert numbers == [
        ("[NLU]", 3, 0.15, None, 1), ("[NLU]", 8, 0.15, None, 1), ("[S2S]", None, None, 0.25, 1),
        ("[NLG]", 3, 0.5, None, 1), ("[NLG]", 8, 0.5, None, 1), ("[NLG]", 64, 0.15, None, 1), ("[NLG]", 64, 0.5, None, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("one", [one for one in UL2 if one.prefix_density is None], ids=str)
def test_spans_of_a_denoiser(one: DenoiserConfig) -> None:
    density, mean = one.noise_density or 0, one.mean_span_length or 0
    objective = made(one)
    examples = objective.examples(0, np.arange(100))
    segment = tokens_length(fitting_length(L - len(MODE), density, mean, 100), density, mean)[0]
    hidden, spans = noise_counts(segment, density, mean)
    first, lengths = [], []
    for inputs, targets in examples:
        assert tuple(inputs[:2]) == MODE
        assert inputs[-1] == targets[-1] == EOS
        assert len(inputs) <= L
        assert len(targets) <= objective.target_length
        tokens, of_spans = restored(inputs[2:], targets)
        if len(tokens) < segment:
            continue
        assert sum(of_spans) == hidden
        assert len(of_spans) == spans
        lengths += of_spans
        first.append(of_spans[0])
    # The formula: n = round(Tρ) hidden tokens in s = round(n/μ) spans.
    assert hidden / segment == pytest.approx(density, abs=0.5 / segment)
    assert spans == max(1, round(hidden / mean))
    assert np.mean(lengths) == pytest.approx(hidden / spans)
    # The parts of a uniform composition have the same distribution, so the first one has the mean of all.
    assert np.mean(first) == pytest.approx(hidden / spans, rel=0.5)


def test_targets_of_the_prefix_lm() -> None:
    """The S-denoiser's targets are a quarter of a segment on average, and at most half."""
    (one,) = (one for one in UL2 if one.prefix_density is not None)
    shares = []
    for inputs, targets in made(one).examples(0, np.arange(600)):
        assert tuple(inputs[:2]) == MODE
        length = len(inputs) + len(targets) - 4
        if length == L - len(MODE) - 1:
            shares.append((len(targets) - 1) / length)
    assert np.mean(shares) == pytest.approx(0.25, abs=0.015)
    assert max(shares) <= 0.51


def test_modes_that_the_vocabulary_lacks(vocabulary: Vocabulary) -> None:
    ids = mode_ids("[NLU]", vocabulary)
    assert ids in ([], vocabulary.encode("[NLU]"))
    assert mode_ids("", vocabulary) == mode_ids("\u4e2d\u6587", vocabulary) == []
    assert mode_ids("a", vocabulary) == vocabulary.encode("a")
