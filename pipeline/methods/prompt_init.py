"""How a prompt starts (Lester et al. 2021, §3.2 "Prompt Initialization"): each function gives rows in fp32, [P, D].

Everything random is a function of the seed alone. Rows of the vocabulary come from T5's embedding table [V, D].

Shapes: P prompt length, D d_model, V vocabulary rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from t5_pipeline.core.errors import InputError

POPULATION = 5000
"""How many of the likeliest pieces rows are drawn from: a SentencePiece vocabulary lists them first."""


def uniform(length: int, width: int, seed: int) -> Tensor:
    """U[−0.5, 0.5], the paper's random initialisation."""
    return torch.rand(length, width, generator=_generator(seed)) - 0.5


def uniform_code(length: int, width: int, seed: int) -> Tensor:
    """U[0, 0.5), which is what the official code's call of JAX's uniform initialiser really gives."""
    return torch.rand(length, width, generator=_generator(seed)) * 0.5


def vocabulary(embedding_VD: Tensor, length: int, seed: int, population: int = POPULATION) -> Tensor:
    """Rows drawn from the first `population` rows of the embedding.

    Without replacement as long as there are enough of them, otherwise with it, as in the official code.

    >>> sorted(vocabulary(torch.arange(4.0)[:, None], length=4, seed=0)[:, 0].tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    population = min(population, len(embedding_VD))
    if length <= population:
        chosen_P = torch.randperm(population, generator=_generator(seed))[:length]
    else:
        chosen_P = torch.randint(population, (length,), generator=_generator(seed))
    return _rows(embedding_VD, chosen_P)


def class_labels(
    embedding_VD: Tensor, label_ids: Sequence[Sequence[int]], length: int, seed: int, population: int = POPULATION
) -> Tensor:
    """One row for each label, the mean embedding of its pieces (no EOS), and vocabulary rows for what remains.

    Warns where there are more labels than rows; the rest of the labels is then dropped.

    >>> table = torch.tensor([[0.0], [2.0], [4.0], [9.0]])
    >>> class_labels(table, [[1, 2], [3]], length=2, seed=0)[:, 0].tolist()
    [3.0, 9.0]
    """
    if not label_ids or not all(label_ids):
        raise InputError("prompt_init: class_labels needs labels, each of at least one piece; check the task's labels")
    if len(label_ids) > length:
        warnings.warn(
            f"{len(label_ids)} labels but only {length} prompt rows: the last {len(label_ids) - length} start no row",
            stacklevel=2,
        )
    means = [_rows(embedding_VD, torch.tensor(list(ids))).mean(0) for ids in label_ids[:length]]
    return _filled(torch.stack(means), embedding_VD, length, seed, population)


def from_ids(embedding_VD: Tensor, ids: Sequence[int], length: int, seed: int, population: int = POPULATION) -> Tensor:
    """The embeddings of a text's pieces in order, cut to `length`; vocabulary rows for what remains.

    >>> from_ids(torch.arange(9.0)[:, None], [7, 5, 3], length=2, seed=0)[:, 0].tolist()
    [7.0, 5.0]
    """
    if not ids:
        raise InputError("prompt_init: text needs an init_text of at least one piece")
    return _filled(_rows(embedding_VD, torch.tensor(list(ids)[:length])), embedding_VD, length, seed, population)


def from_prompt(rows_PD: Tensor, length: int, width: int, where: str = "init_prompt") -> Tensor:
    """The rows of a trained prompt (transfer, §5 of the paper), which must have the length and width asked for."""
    if tuple(rows_PD.shape) != (length, width):
        raise InputError(
            f"{where}: that prompt has {rows_PD.size(0)} rows of width {rows_PD.size(1)}, but {length} rows of width"
            f" {width} are to be trained; set prompt_length to {rows_PD.size(0)} and use the T5 it was trained on"
        )
    return rows_PD.detach().float().cpu().clone()


def _filled(first_rows: Tensor, embedding_VD: Tensor, length: int, seed: int, population: int) -> Tensor:
    rest = length - len(first_rows)
    return first_rows if rest == 0 else torch.cat([first_rows, vocabulary(embedding_VD, rest, seed, population)])


def _rows(embedding_VD: Tensor, ids: Tensor) -> Tensor:
    return embedding_VD.detach()[ids.to(embedding_VD.device)].float().cpu()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
