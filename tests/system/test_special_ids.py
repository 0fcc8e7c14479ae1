"""No module assumes T5's ids: a T5 whose ids are permuted does the same as the original."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from t5_pipeline.data_prep.objectives.documents import Objective
from t5_pipeline.data_prep.objectives.language_model import LM, FullLM
from t5_pipeline.data_prep.objectives.packed_pairs import PackedPairs
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.sampling.batches import LMBatches
from t5_pipeline.data_prep.tasks.batches import TaskBatches
from t5_pipeline.data_prep.tasks.counts import RowCounts
from t5_pipeline.data_prep.tasks.encode import EncodedTask
from t5_pipeline.data_prep.tasks.mixture import MixedTaskBatches
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.evaluation.predict import AnswerForm, AnswerOptions, Query, answer_each
from t5_pipeline.methods.mixture import MixtureModel
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import assemble, init_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.loss import batch_losses, model_loss
from t5_pipeline.training.microbatches import TensorBatch, rank_microbatches

V = 64
TO = np.random.default_rng(0).permutation(V).astype(np.int32)  # new id of each id
SAME = np.arange(V, dtype=np.int32)
SENTINELS = [63, 62, 61, 60]


class Documents:
    def __init__(self, to: np.ndarray) -> None:
        self.lengths_N = np.random.default_rng(1).integers(1, 40, size=50)
        self.texts = [to[np.random.default_rng(i).integers(2, 60, size=n)] for i, n in enumerate(self.lengths_N)]

    def document(self, i: int) -> np.ndarray:
        return self.texts[i]


@pytest.fixture(scope="module")
def models() -> tuple[T5, T5]:
    shape = T5Config(
        vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
        special=SpecialTokens(0, 1, 2),
    )  # fmt: skip
    t5 = init_t5(shape, 0)
    from_id = torch.from_numpy(np.argsort(TO))
    tensors = {k: v[from_id] if k in ("shared.weight", "lm_head.weight") else v for k, v in t5.state_dict().items()}
    special = SpecialTokens(*(int(TO[i]) for i in (0, 1, 2)))
    return t5.eval(), assemble(replace(shape, special=special), tensors, "permuted").eval()


def objective(name: str, to: np.ndarray) -> Objective:
    documents, eos = Documents(to), int(to[1])
    match name:
        case "prefix_lm":
            return PrefixLM(documents, 0, 24, eos=eos)
        case "span_corruption":
            return SpanCorruption(documents, 0, 24, sentinel_ids=[int(to[i]) for i in SENTINELS], eos=eos)
        case "lm":
            return LM(documents, 0, 24, eos)
        case "full_lm":
            return FullLM(documents, 0, 24, eos)
        case _:
            return PackedPairs(documents, 0, 24, eos)


def losses(model: T5, micros: list[TensorBatch], reference: bool) -> tuple[float, torch.Tensor]:
    """The loss of a batch, and its gradient in a matrix that ids do not index."""
    total = torch.zeros(())
    for micro in micros:
        hidden = model.predict(micro.inputs_BS, micro.targets_BT, micro.segments)
        loss_BT = model_loss(model, hidden, micro.targets_BT, 1e-4, "fp32", reference)
        total = total + batch_losses(loss_BT, micro.weights_B, micro.prompt_B).sum()
    (gradient,) = torch.autograd.grad(total, model.encoder.block[0].layer[0].SelfAttention.q.weight)
    return total.item(), gradient


@pytest.mark.parametrize("name", ["prefix_lm", "span_corruption", "lm", "full_lm", "packed_pairs"])
@pytest.mark.parametrize("packed", [False, True])
def test_language_modeling(models: tuple[T5, T5], name: str, packed: bool) -> None:
    rows = (48, 48) if packed else None
    batches = [LMBatches(objective(name, to), 8, 0, rows, pad=int(to[0])).at(3) for to in (SAME, TO)]
    assert (TO[batches[0].inputs_BS] == batches[1].inputs_BS).all()
    assert (TO[batches[0].targets_BT] == batches[1].targets_BT).all()
    assert batches[0].target_tokens == batches[1].target_tokens
    micros = [rank_microbatches(batch, 0, 1, 0) for batch in batches]
    found = [
        losses(model, of, reference) for model, of in zip(models, micros, strict=True) for reference in (False, True)
    ]
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-6)


def task(to: np.ndarray) -> EncodedTask:
    rng = np.random.default_rng(2)
    inputs, targets = ([to[[*rng.integers(3, 60, rng.integers(1, most)), 1]] for _ in range(9)] for most in (20, 5))
    return EncodedTask(
        "t",
        inputs,
        targets,
        [],
        [],
        None,
        None,
        counts=RowCounts(task="t", split="train", read=9, used=9),
        pad=int(to[0]),
    )


def test_prompts_and_answers(models: tuple[T5, T5]) -> None:
    rows = [torch.randn(3, 16), torch.randn(5, 16)]
    found = []
    for model, to in zip(models, (SAME, TO), strict=True):
        back = np.argsort(to)
        prompted = PromptedT5(model, PromptBank(rows)).eval()
        joint = TaskBatches([task(to), task(to)], [4, 3], [0, 1]).at(1)
        batch = TensorBatch.of(joint)
        hidden_BTD = prompted.predict(batch.prompt_B, batch.inputs_BS, batch.targets_BT)
        loss_BT = model_loss(prompted, hidden_BTD, batch.targets_BT, 0.0, "fp32", False)
        mixed = TensorBatch.of(MixedTaskBatches([task(to)], 5, 0).at(0))
        mixture = MixtureModel(prompted, 2, int(to[0]))(mixed.inputs_BS, mixed.targets_BT, mixed.weights_B, 0.0)
        labels = [to[[5, 1]].tolist(), to[[6, 7, 1]].tolist()]
        form = AnswerForm(lambda ids, back=back: " ".join(str(back[i]) for i in ids), ["a", "b"], labels, 6)  # type: ignore[misc]
        queries = [Query(ids, form) for ids in task(to).inputs]
        options = AnswerOptions(torch.device("cpu"), "fp32", batch_size=4)
        outputs = answer_each(prompted, [0, 1, 0, 1, 0, 1, 0, 1, 0], queries, options)
        found.append((loss_BT.sum(1), mixture, torch.tensor(outputs.scores), outputs.decoded))
    for one, other in zip(found[0][:3], found[1][:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert found[0][3] == found[1][3]
