"""Prompt initialization (Lester et al. 2021, §3.2): rows [P, D] in fp32, a function of the settings and the seed.

Shapes: P prompt length, D d_model, V vocabulary rows
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from t5_pipeline.config.soft_prompt import SoftPromptConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.methods.multitask import SharedPrompt
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.t5 import T5

log = logging.getLogger("t5-pipeline")
POPULATION = range(5000)
"""Ids of the likeliest pieces, to draw rows from: a SentencePiece vocabulary lists them first."""


class Tokenizer(Protocol):
    """A vocabulary of `size` ids."""

    size: int
    sentinel_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]: ...


def initial_rows(t5: T5, tokenizer: Tokenizer, c: SoftPromptConfig, seed: int, trained: Path | None = None) -> Tensor:
    """The rows [P, D] in fp32 that a prompt starts from, as its settings say.

    Args:
        seed: usually the settings' own; differs if a stage starts several prompts from the same settings.
        trained: directory of the prompt or shared prompt to start from (`c.init_input`).
    """
    table_VD, length, population = t5.shared.weight, c.prompt_length, _population(tokenizer, c)
    match c.prompt_init:
        case "uniform":
            return uniform(length, t5.shape.d_model, seed)
        case "uniform_code":
            return uniform_code(length, t5.shape.d_model, seed)
        case "vocabulary":
            return vocabulary(table_VD, length, seed, population)
        case "class_labels":
            labels = [tokenizer.encode(label) for label in c.first_words()]
            return class_labels(table_VD, labels, length, seed, population)
        case "text":
            return from_ids(table_VD, tokenizer.encode(c.init_text or ""), length, seed, population)
        case "prompt":
            assert trained is not None
            return from_prompt(Prompt.load(trained).rows_PD, length, t5.shape.d_model, str(trained))
        case "shared":
            assert trained is not None
            return from_prompt(SharedPrompt.load(trained).rows(), length, t5.shape.d_model, str(trained))


def sampled_rows(t5: T5, tokenizer: Tokenizer, c: SoftPromptConfig, count: int) -> Tensor:
    """Rows of the vocabulary [count, D], drawn like those of `prompt_init: vocabulary`, which are the first of them."""
    return vocabulary(t5.shared.weight, count, c.seed, _population(tokenizer, c))


def _population(tokenizer: Tokenizer, c: SoftPromptConfig) -> list[int]:
    """Ids of the most frequent pieces, without sentinels and padding rows."""
    sentinels = set(tokenizer.sentinel_ids)
    return [i for i in range(tokenizer.size) if i not in sentinels][: c.init_population]


def uniform(length: int, width: int, seed: int) -> Tensor:
    """U[−0.5, 0.5], the paper's random initialization."""
    return torch.rand(length, width, generator=_generator(seed)) - 0.5


def uniform_code(length: int, width: int, seed: int) -> Tensor:
    """U[0, 0.5), the actual result of the official code's call of JAX's uniform initializer."""
    return torch.rand(length, width, generator=_generator(seed)) * 0.5


def vocabulary(embedding_VD: Tensor, length: int, seed: int, population: Sequence[int] = POPULATION) -> Tensor:
    """Rows of the embedding whose ids are drawn from `population`.

    Without replacement if there are enough of them, otherwise with replacement, as in the official code.

    >>> sorted(vocabulary(torch.arange(4.0)[:, None], length=4, seed=0)[:, 0].tolist())
    [0.0, 1.0, 2.0, 3.0]
    """
    ids = torch.tensor([i for i in population if i < len(embedding_VD)])
    if length <= len(ids):
        chosen_P = torch.randperm(len(ids), generator=_generator(seed))[:length]
    else:
        chosen_P = torch.randint(len(ids), (length,), generator=_generator(seed))
    return _rows(embedding_VD, ids[chosen_P])


def class_labels(
    embedding_VD: Tensor,
    label_ids: Sequence[Sequence[int]],
    length: int,
    seed: int,
    population: Sequence[int] = POPULATION,
) -> Tensor:
    """One row per label, the mean embedding of its pieces (without EOS); the remaining rows from the vocabulary.

    Warns in the log if there are more labels than rows, and leaves out the last labels.

    >>> table = torch.tensor([[0.0], [2.0], [4.0], [9.0]])
    >>> class_labels(table, [[1, 2], [3]], length=2, seed=0)[:, 0].tolist()
    [3.0, 9.0]
    """
    if not label_ids or not all(label_ids):
        raise InputError("prompt_init: class_labels needs labels of at least one piece each; check the task's labels")
    if len(label_ids) > length:
        log.warning(
            "prompt_init: %d labels but only %d prompt rows; the last %d labels start no row; raise prompt_length",
            len(label_ids), length, len(label_ids) - length,
        )  # fmt: skip
    means = [_rows(embedding_VD, torch.tensor(list(ids))).mean(0) for ids in label_ids[:length]]
    return _filled(torch.stack(means), embedding_VD, length, seed, population)


def from_ids(
    embedding_VD: Tensor, ids: Sequence[int], length: int, seed: int, population: Sequence[int] = POPULATION
) -> Tensor:
    """The embeddings of a text's pieces in order; the remaining rows from the vocabulary.

    Warns in the log if there are more pieces than rows, and leaves out the last pieces.

    >>> from_ids(torch.arange(9.0)[:, None], [7, 5, 3], length=2, seed=0)[:, 0].tolist()
    [7.0, 5.0]
    """
    if not ids:
        raise InputError("prompt_init: text needs a text of at least one piece; set init_text")
    if len(ids) > length:
        log.warning(
            "prompt_init: init_text has %d pieces but only %d prompt rows; the last %d pieces start no row; raise"
            " prompt_length", len(ids), length, len(ids) - length,
        )  # fmt: skip
    return _filled(_rows(embedding_VD, torch.tensor(list(ids)[:length])), embedding_VD, length, seed, population)


def from_prompt(rows_PD: Tensor, length: int, width: int, where: str = "init_prompt") -> Tensor:
    """A copy of a trained prompt's rows (transfer, §5 of the paper).

    Raises:
        InputError: if its length or width is another one.
    """
    if tuple(rows_PD.shape) != (length, width):
        raise InputError(
            f"{where}: has {rows_PD.size(0)} rows of width {rows_PD.size(1)}, but the new prompt has {length} rows of"
            f" width {width}; set prompt_length to {rows_PD.size(0)} and use the T5 that it was trained on"
        )
    return rows_PD.detach().float().cpu().clone()


def _filled(first_rows: Tensor, embedding_VD: Tensor, length: int, seed: int, population: Sequence[int]) -> Tensor:
    rest = length - len(first_rows)
    return first_rows if rest == 0 else torch.cat([first_rows, vocabulary(embedding_VD, rest, seed, population)])


def _rows(embedding_VD: Tensor, ids: Tensor) -> Tensor:
    return embedding_VD.detach()[ids.to(embedding_VD.device)].float().cpu()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
