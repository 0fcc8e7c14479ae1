"""Prompts of one T5 for another (Lester et al. 2022): maps of embeddings, fitted on the vocabulary that both share.

    linear   W = argmin ‖E_A W − E_B‖²,  P_B = P_A W           (v2v-lin)
    mlp      min over θ of ‖f_θ(E_A) − E_B‖²,  P_B = f_θ(P_A)   (v2v-nn): one hidden layer of 4·d units, ReLU

E_A and E_B are the input embeddings of the pieces that both vocabularies contain. No task data is used. Baselines:
`none` keeps the rows, cut or padded with zeros to the width of B; `random` takes rows of E_B.

Shapes: S shared pieces, P prompt rows, A and B the widths of the two T5s

Source: Lester et al. 2022, "Reducing Retraining by Recycling Parameter-Efficient Prompts" (arXiv 2208.05577).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.config.references import load_task
from t5_pipeline.core.atomic_files import write_directory
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import refuse_to_replace
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import check_labels
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.held_out import load_held_out, score_prompts
from t5_pipeline.evaluation.predict import AnswerOptions
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.frozen_t5 import FrozenT5

MapKind = Literal["linear", "mlp"]
_STEPS, _BATCH, _RATE = 500, 256, 3e-3


@dataclass(frozen=True)
class Recycled:
    """A mapped prompt and its scores.

    Attributes:
        prompt: the prompt for T5 B, as it was written.
        shared: number of shared pieces.
        scores: validation metrics by way: `before` (on T5 A), the maps, and the baselines; empty without a task.
    """

    prompt: Prompt
    shared: int
    scores: dict[str, dict[str, float]]


def linear_map(from_SA: Tensor, to_SB: Tensor, rows_PA: Tensor) -> Tensor:
    """The rows [P, B] under the map with the least squared error on the shared pieces."""
    weight_AB = torch.linalg.lstsq(from_SA.double(), to_SB.double(), driver="gelsd").solution
    return (rows_PA.double() @ weight_AB).float()


def mlp_map(from_SA: Tensor, to_SB: Tensor, rows_PA: Tensor) -> Tensor:
    """The rows [P, B] under a network trained on the shared pieces; both sides are scaled to RMS 1."""
    from_scale, to_scale = from_SA.square().mean().sqrt(), to_SB.square().mean().sqrt()
    x_SA, y_SB = from_SA / from_scale, to_SB / to_scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = 4 * x_SA.size(1)
        network = nn.Sequential(nn.Linear(x_SA.size(1), hidden), nn.ReLU(), nn.Linear(hidden, y_SB.size(1)))
        optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
        for _ in range(_STEPS):
            chosen = torch.randint(len(x_SA), (_BATCH,))
            optimizer.zero_grad()
            F.mse_loss(network(x_SA[chosen]), y_SB[chosen]).backward()
            optimizer.step()
    with torch.no_grad():
        mapped: Tensor = network(rows_PA / from_scale) * to_scale
    return mapped


def without_map(to_SB: Tensor, rows_PA: Tensor) -> Tensor:
    """The rows, cut or padded with zeros to width B."""
    width = to_SB.size(1)
    return F.pad(rows_PA[:, :width], (0, max(0, width - rows_PA.size(1))))


def random_rows(to_SB: Tensor, rows_PA: Tensor) -> Tensor:
    """Embeddings of random shared pieces."""
    drawn = torch.randint(len(to_SB), (len(rows_PA),), generator=torch.Generator().manual_seed(0))
    return to_SB[drawn].clone()


def recycle(prompt: str, from_model: str, to_model: str, output: str, mapping: MapKind, task: str | None) -> Recycled:
    """Map a prompt of one T5 to another one and write it.

    Args:
        prompt: prompt or stage.
        from_model: the T5 that it was trained on: directory, stage directory or hub name.
        to_model: the T5 that it is mapped to.
        output: directory of the mapped prompt.
        task: YAML file of a task; the prompt, the maps and the baselines are scored on its validation rows.

    Raises:
        InputError: if the prompt was not trained on `from_model`, or the vocabularies share too few pieces.
    """
    refuse_to_replace(Path(output))
    place = locate_one("prompt", prompt, "PROMPT")
    old = Prompt.load(place)
    source, target = FrozenT5.find(from_model, "--from-model"), FrozenT5.find(to_model, "--to-model")
    source.check_prompt(f"{place}:", old.info)
    a, b = source.load(from_model), target.load(to_model)
    from_SA, to_SB = shared_embeddings(a, b)
    check_labels(old.info.task, b.vocabulary, old.info.max_target_length, b.sentinel)
    ways: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: linear_map(from_SA, to_SB, old.rows_PD),
        "mlp": lambda: mlp_map(from_SA, to_SB, old.rows_PD),
        "none": lambda: without_map(to_SB, old.rows_PD),
        "random": lambda: random_rows(to_SB, old.rows_PD),
    }
    rows = {way: make() for way, make in ways.items() if task or way == mapping}
    scores = {}
    if task is not None:
        settings = load_task(Path(task))
        scores = {"before": _scored(a, [old.rows_PD], old, settings)[0]}
        scores |= dict(zip(rows, _scored(b, list(rows.values()), old, settings), strict=True))
    info = old.info.model_copy(
        update={
            **b.identity,
            "base_model": to_model,
            "width": to_SB.size(1),
            "prompt_init": f"recycled by the {mapping} map from {old.info.base_model}",
            "step": 0,
            "scores": scores.get(mapping, {}),
        }
    )
    mapped = Prompt(rows[mapping], info)
    write_directory(Path(output), mapped.save)
    return Recycled(mapped, len(from_SA), scores)


def shared_embeddings(a: LoadedT5, b: LoadedT5) -> tuple[Tensor, Tensor]:
    """Input embeddings [S, A] and [S, B] of the pieces that both vocabularies contain.

    Raises:
        InputError: if they are fewer than twice the width of A, so that a linear map fits any embeddings.
    """
    of_a, of_b = _text_pieces(a.vocabulary), _text_pieces(b.vocabulary)
    pairs = [(row, of_b[piece]) for piece, row in of_a.items() if piece in of_b]
    need = 2 * a.t5.shape.d_model
    if len(pairs) < need:
        raise InputError(
            f"--to-model: its vocabulary shares only {len(pairs):,} pieces with that of --from-model, and a map needs"
            f" {need:,}; train a prompt on it instead"
        )
    rows_S = torch.tensor(pairs)
    return a.t5.shared.weight.detach()[rows_S[:, 0]].float(), b.t5.shared.weight.detach()[rows_S[:, 1]].float()


def _text_pieces(vocabulary: Vocabulary) -> dict[str, int]:
    """The row of each piece of text; sentinels, padding and EOS are in every vocabulary of a T5."""
    sizes, sentinels = vocabulary.piece_bytes(), set(vocabulary.sentinel_ids)
    return {piece: row for row, piece in enumerate(vocabulary.names()) if sizes[row] and row not in sentinels}


def _scored(t5: LoadedT5, rows: list[Tensor], old: Prompt, task: TaskConfig) -> list[dict[str, float]]:
    """Validation metrics of each prompt on one T5."""
    reading = t5.reading(old.info.max_input_length, old.info.max_target_length)
    split = load_held_out(task, "validation", reading, scoring="decode")
    model, options = PromptedT5(t5.t5, PromptBank(rows)), AnswerOptions(torch.device("cpu"), "fp32")
    found = score_prompts(model, splits=[split] * len(rows), options=options)
    return [measured.scores for measured in found]
