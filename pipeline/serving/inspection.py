"""Inspection of prompts: their metadata, nearest vocabulary tokens and problems."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.collection import read_each
from t5_pipeline.artifacts.kinds import named_prompts
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.printable import printable
from t5_pipeline.evaluation.nearest_tokens import nearest_pieces
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.serving.frozen_t5 import FrozenT5, OtherModel
from t5_pipeline.serving.package import check_package
from t5_pipeline.serving.prompt_card import facts_of


def summary(name: str, path: Path) -> dict[str, Any]:
    """A prompt in `path` as a row of a table."""
    info = Prompt.load(path).info
    return {
        "name": name,
        "task": info.task.name,
        "rows": info.prompt_length,
        "width": info.width,
        "sentinel": info.sentinel,
        "init": info.prompt_init,
        "step": info.step,
        "seed": info.seed,
        "model": info.base_model,
        "digest": short_digest(info.base_model_digest),
        "scores": info.scores,
    }


def description(name: str, path: Path) -> str:
    """The metadata of a prompt and the norms of its rows, as text."""
    prompt = Prompt.load(path)
    norm_P = prompt.rows_PD.norm(dim=1)
    norms = f"mean {norm_P.mean():.4g}, from {norm_P.min():.4g} to {norm_P.max():.4g}"
    facts = {"directory": str(path), **facts_of(prompt), "row norms": norms}
    return "\n".join([printable(name), *(f"  {key:<11}{printable(value)}" for key, value in facts.items())])


def neighbors(location: str, model: str, top: int) -> dict[str, list[list[tuple[str, float]]]]:
    """The vocabulary tokens nearest to each row of each prompt at a location, with their cosines.

    Raises:
        InputError: if prompts are damaged or were trained on another T5; it names every one.
    """
    places, t5 = named_prompts(location, "DIR"), FrozenT5.find(model)
    prompts = read_each(location, places, lambda _, place: load_checked(place, t5)).complete()
    pieces, embedding_VD = t5.vocabulary.names(), load_t5(t5.path).shared.weight
    return {name: nearest_pieces(prompt.rows_PD, embedding_VD, pieces, top) for name, prompt in prompts.items()}


def load_checked(path: Path, t5: FrozenT5) -> Prompt:
    """The prompt in a directory.

    Raises:
        InputError: with the first of its `problems`.
    """
    problem = next(problems(path, t5), None)
    if problem is not None:
        raise InputError(problem)
    return Prompt.load(path)


def problems(path: Path, t5: FrozenT5 | None = None) -> Iterator[str]:
    """Problems of a prompt: unreadable files, wrong checksums, another T5.

    Args:
        path: the prompt's directory.
        t5: the required T5; None for any.
    """
    try:
        info = check_package(path).info
        made = manifests.read(path.parent)
    except InputError as error:
        yield str(error)
        return
    if made is not None:
        damaged = manifests.damaged_files(path.parent, made, path.name)
        yield from (f"{path.parent / name}: {problem}" for name, problem in damaged.items())
    if t5 is not None:
        try:
            t5.check_prompt(f"{path}:", info)
        except OtherModel as error:
            yield str(error)
