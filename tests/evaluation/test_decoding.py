"""Decoding with the real T5: against the plain forward pass, and against transformers' `generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.evaluation.decoding import BROKEN, Continuations, Decoding, beam_search, kept, sampled
from t5_pipeline.modeling.load import save_t5
from t5_pipeline.modeling.prompt_bank import PromptedT5
from tests.evaluation.conftest import INPUTS_BS, PROMPT_B


def use(monkeypatch: pytest.MonkeyPatch, model: PromptedT5, special: SpecialTokens) -> None:
    monkeypatch.setattr(model.t5, "shape", replace(model.t5.shape, special=special))


@pytest.mark.parametrize("prompt_B", [PROMPT_B, None], ids=["prompts", "no prompt"])
@pytest.mark.parametrize("start", [0, 5])
def test_greedy_matches_argmax_of_forward_pass(
    model: PromptedT5, prompt_B: Tensor | None, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, model, SpecialTokens(eos=-1, start=start))
    ids_BT = Decoding().decode(Continuations(model, *model.encode(prompt_B, INPUTS_BS)), 7, range(3))
    assert ids_BT.shape == (3, 7)
    with torch.no_grad():
        logits_BTV = model(prompt_B, INPUTS_BS, ids_BT)
    assert torch.equal(logits_BTV.argmax(-1), ids_BT)


def test_rows_end_at_eos(model: PromptedT5, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, mask = model.encode(PROMPT_B, INPUTS_BS)
    use(monkeypatch, model, SpecialTokens(eos=-1))
    free_BT = Decoding().decode(Continuations(model, encoded, mask), 8, range(3))
    eos = int(free_BT[0, 2])
    use(monkeypatch, model, SpecialTokens(pad=7, eos=eos))
    ids_BT = Decoding().decode(Continuations(model, encoded, mask), 8, range(3))
    for free, row in zip(free_BT.tolist(), ids_BT.tolist(), strict=True):
        end = free.index(eos) + 1 if eos in free else 8
        assert row == (free[:end] + [7] * 8)[: len(row)]
    assert Decoding().decode(Continuations(model, encoded, mask), 0, range(3)).shape == (3, 0)


def test_beam_search_is_that_of_transformers(
    model: PromptedT5, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every beam and its score, for several numbers and length penalties, with an end that is generated often."""
    save_t5(model.t5, tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    use(monkeypatch, model, SpecialTokens(eos=-1))
    free_BT = Decoding().decode(Continuations(model, *model.encode(None, INPUTS_BS)), 8, range(3))
    eos, found = int(free_BT[0, 2]), set()
    use(monkeypatch, model, SpecialTokens(eos=eos))
    for beams in (2, 3, 5):
        for length_penalty in (0.0, 1.0, -1.5, 3.0):
            mine, scores = beam_search(Continuations(model, *model.encode(None, INPUTS_BS)), 8, beams, length_penalty)
            expected = theirs.generate(
                INPUTS_BS, attention_mask=INPUTS_BS != 0, max_new_tokens=8, num_beams=beams, do_sample=False,
                length_penalty=length_penalty, eos_token_id=eos, pad_token_id=0, num_return_sequences=beams,
                output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
            torch.testing.assert_close(scores.flatten(), expected.sequences_scores, atol=1e-5, rtol=1e-5)
            others = expected.sequences[:, 1:].tolist()
            for row, other in zip(mine.flatten(0, 1).tolist(), others, strict=True):
                text = other[: other.index(eos) + 1] if eos in other else other  # it pads with eos here
                assert row == (text + [0] * 8)[:8], (beams, length_penalty)
            found |= {tuple(row) for row in mine[:, 0].tolist()}
    assert len(found) > 4, "the texts differ between settings"
    assert any(0 in row for row in found), "some texts end early"


def test_one_row_decodes_as_in_a_batch(model: PromptedT5) -> None:
    """Beams and samples of an input do not depend on the other inputs, nor on its place among them."""
    for way in (Decoding(beams=3), Decoding(temperature=1.5, top_p=0.9, seed=4)):
        together = way.decode(Continuations(model, *model.encode(PROMPT_B, INPUTS_BS)), 6, [5, 0, 11])
        for row, number in ((2, 11), (0, 5)):
            encoded, mask = model.encode(PROMPT_B[row : row + 1], INPUTS_BS[row : row + 1])
            alone = way.decode(Continuations(model, encoded, mask), 6, [number])
            assert together[row, : alone.size(1)].tolist() == alone[0].tolist()


def test_samples_depend_on_seed_and_number(model: PromptedT5) -> None:
    encoded, mask = model.encode(PROMPT_B[:1].repeat(40), INPUTS_BS[:1].repeat(40, 1))
    drawn = {
        seed: Decoding(temperature=1.0, seed=seed).decode(Continuations(model, encoded, mask), 3, range(40)).tolist()
        for seed in (0, 1)
    }
    assert drawn[0] != drawn[1]
    assert len(set(map(tuple, drawn[0]))) > 1
    nearly_greedy, greedy = (
        way.decode(Continuations(model, encoded, mask), 3, range(40))
        for way in (Decoding(temperature=1.0, top_p=1e-6), Decoding())
    )
    assert torch.equal(nearly_greedy, greedy)


def test_tokens_are_sampled_by_their_probabilities() -> None:
    """Numbers spread evenly over [0, 1) give every token its share, as a softmax at the temperature gives it."""
    logits_V = torch.tensor([1.0, -2.0, 0.3, 2.0, 0.3])
    drawn_N = (torch.arange(20_000) + 0.5) / 20_000
    for temperature, top_p in ((1.0, 1.0), (2.0, 1.0), (1.0, 0.7)):
        p_V = (logits_V / temperature).softmax(0)
        if top_p < 1:  # the likeliest two have 0.78 together, the likeliest alone 0.57
            p_V = p_V.where(p_V >= p_V.sort().values[-2], torch.tensor(0.0))
        counts_V = sampled(logits_V.expand(20_000, 5), drawn_N, temperature, top_p).bincount(minlength=5)
        assert torch.allclose(counts_V / 20_000, p_V / p_V.sum(), atol=2e-4)


@torch.no_grad()
def test_samples_have_the_distribution_of_transformers(model: PromptedT5, tmp_path: Path) -> None:
    """At each step of a text that `generate` samples, the probabilities of its filtered scores."""
    save_t5(model.t5, tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    torch.manual_seed(0)
    for temperature, top_p in ((1.0, 1.0), (0.3, 1.0), (2.0, 0.6), (0.5, 0.9)):
        sample = theirs.generate(
            INPUTS_BS, attention_mask=INPUTS_BS != 0, max_new_tokens=6, do_sample=True, temperature=temperature,
            top_p=top_p, top_k=0, eos_token_id=None, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        logits_BTV = model(None, INPUTS_BS, sample.sequences[:, 1:])
        for position, scores_BV in enumerate(sample.scores):
            weights_BV = kept(logits_BTV[:, position], temperature, top_p)
            mine_BV = weights_BV / weights_BV.sum(dim=-1, keepdim=True)
            torch.testing.assert_close(mine_BV.float(), scores_BV.softmax(-1), atol=1e-5, rtol=1e-4)
            assert (mine_BV == 0).any() == (top_p < 1)


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 30.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999999, 1.0])
def test_the_tokens_of_top_p_are_those_of_a_full_sort(spread: float, top_p: float) -> None:
    """Also where many tokens are equally likely: those with the lowest ids stay."""
    generator = torch.Generator().manual_seed(0)
    logits_BV = (torch.randn(3, 997, generator=generator) * spread).round(decimals=1)
    p_BV, token_BV = logits_BV.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    stays_BV = (p_BV.cumsum(-1) - p_BV < top_p) | torch.tensor(top_p == 1)
    plain_BV = torch.zeros_like(p_BV).scatter(1, token_BV, p_BV * stays_BV)
    weights_BV = kept(logits_BV, 1.0, top_p)
    assert torch.equal(weights_BV > 0, plain_BV > 0)
    torch.testing.assert_close(weights_BV, plain_BV)
    of_one = torch.cat([kept(row_1V, 1.0, top_p) for row_1V in logits_BV.split(1)])
    assert torch.equal(of_one > 0, weights_BV > 0)


@torch.no_grad()
def test_a_mixture_decodes_from_the_mixed_probabilities(model: PromptedT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is the likeliest one under Σ_m w_m p_m(tokens so far, token), from plain forward passes."""
    use(monkeypatch, model, SpecialTokens(eos=-1))
    weights = torch.tensor([0.3, 0.7])
    encoded, mask = model.encode(torch.tensor([0, 1]).repeat_interleave(3), INPUTS_BS.repeat(2, 1))
    ids_BT = Decoding().decode(Continuations(model, encoded, mask, weights.log()), 5, range(3))
    assert ids_BT.shape == (3, 5)
    log_p_MBTV = torch.stack([model(torch.full((3,), m), INPUTS_BS, ids_BT) for m in (0, 1)]).log_softmax(-1)
    chosen_MBT = log_p_MBTV.gather(3, ids_BT.expand(2, 3, 5).unsqueeze(3)).squeeze(3)
    before_MBT = chosen_MBT.cumsum(2) - chosen_MBT
    p_BTV = torch.einsum("m,mbtv->btv", weights, (before_MBT.unsqueeze(3) + log_p_MBTV).exp())
    assert torch.equal(p_BTV.argmax(-1), ids_BT)


@torch.no_grad()
def test_a_mixture_with_one_weight_decodes_like_that_prompt(model: PromptedT5) -> None:
    encoded, mask = model.encode(torch.tensor([0, 1]).repeat_interleave(3), INPUTS_BS.repeat(2, 1))
    for way in (Decoding(), Decoding(beams=3), Decoding(temperature=1.5, top_p=0.9, seed=4)):
        mixed = way.decode(Continuations(model, encoded, mask, torch.tensor([0.0, 1.0]).log()), 6, range(3))
        of_one = Continuations(model, *model.encode(torch.ones(3, dtype=torch.long), INPUTS_BS))
        assert torch.equal(mixed, way.decode(of_one, 6, range(3)))


def test_the_smallest_temperature_decodes_greedily() -> None:
    """The logits of other tokens are divided to −inf, and no probability becomes NaN."""
    logits_BV = torch.tensor([[0.5, 3.0, -torch.inf, 2.0]])
    for drawn in (0.0, 0.999):
        assert sampled(logits_BV, torch.tensor([drawn]), temperature=1e-310, top_p=1).tolist() == [1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beams": 0}, "beams: must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature: must be at least 0, not -1.0"),
        ({"length_penalty": 5000.0}, "length_penalty: must be from -20 to 20, not 5000.0"),
        ({"length_penalty": float("nan")}, "length_penalty: must be from -20 to 20, not nan"),
        ({"temperature": float("nan")}, "temperature: must be at least 0, not nan"),
        ({"top_p": 0.0}, "top_p: must be above 0 and at most 1, not 0.0"),
        ({"beams": 2, "temperature": 1.0}, "beams: cannot be combined with temperature"),
    ],
)
def test_impossible_ways_to_decode_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Decoding(**values)  # type: ignore[arg-type]


def test_a_sample_of_nan_is_a_token() -> None:
    """A row that overflows must not end the decoding of the others."""
    logits_BV = torch.tensor([[torch.nan] * 3, [0.0, 9.0, 0.0]])
    drawn = sampled(logits_BV, torch.tensor([0.5, 0.5]), temperature=1.0, top_p=0.9)
    assert (drawn[0] in (0, 1, 2), int(drawn[1])) == (True, 1)


@pytest.mark.parametrize(
    "way", [Decoding(), Decoding(temperature=1.5, seed=4), Decoding(beams=3)], ids=["greedy", "sampled", "beams"]
)
@pytest.mark.parametrize("prompts", [1, 2], ids=["prompt", "mixture"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@torch.no_grad()
def test_a_text_without_finite_logits_is_broken_and_changes_no_other(
    model: PromptedT5, way: Decoding, prompts: int, number: float
) -> None:
    """Also if only one prompt of a mixture is broken."""
    prompt_E = torch.arange(prompts).repeat_interleave(3)
    encoded, mask = model.encode(prompt_E, INPUTS_BS.repeat(prompts, 1))
    log_w_M = None if prompts == 1 else torch.tensor([0.3, 0.7]).log()
    expected_BT = way.decode(Continuations(model, encoded, mask, log_w_M), 6, range(3))
    broken = encoded.index_fill(0, torch.tensor([1]), number)
    found_BT = way.decode(Continuations(model, broken, mask, log_w_M), 6, range(3))
    assert found_BT[1, 0] == BROKEN
    for row in (0, 2):
        assert found_BT[row].tolist() == expected_BT[row, : found_BT.size(1)].tolist()
        assert BROKEN not in found_BT[row]


@torch.no_grad()
def test_a_text_that_breaks_late_is_broken(model: PromptedT5, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam search has finished texts by then."""
    logits, calls = model.logits, []

    def overflowing(hidden_RTD: Tensor) -> Tensor:
        calls.append(1)
        found = logits(hidden_RTD)
        return found if len(calls) < 4 else torch.full_like(found, torch.nan)

    use(monkeypatch, model, SpecialTokens(eos=-1))
    monkeypatch.setattr(model, "logits", overflowing)
    encoded = model.encode(PROMPT_B, INPUTS_BS)
    for way in (Decoding(), Decoding(temperature=1.5), Decoding(beams=2)):
        calls.clear()
        assert (way.decode(Continuations(model, *encoded), 8, range(3)) == BROKEN).any(dim=1).all()
