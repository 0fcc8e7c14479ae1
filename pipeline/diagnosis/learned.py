"""Diagnosis of what was learned on a T5: a soft prompt, another method's artifact, or a PEFT adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from t5_pipeline.artifacts.artifact import Artifact, recorded_model
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.counts import plural
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.encode import encode_inputs, encode_labels
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.diagnosis.findings import Diagnosis
from t5_pipeline.diagnosis.probes import SENTENCES
from t5_pipeline.methods.base import Candidate
from t5_pipeline.methods.registry import METHODS
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.exchange import adapter_base, check_base, read_rows
from t5_pipeline.serving.frozen_t5 import FrozenT5, OtherModel
from t5_pipeline.serving.inspection import problems
from t5_pipeline.serving.prompt_card import facts_of

WHAT = {
    "prompt": "soft prompt", "task_prompts": "prompts of several tasks", "mixture": "mixture of prompts",
    "text_prompt": "text prompt", "adapter": "adapter",
}  # fmt: skip


def diagnose_artifact(kind: str, path: Path, location: str, model: str | None) -> Diagnosis:
    """Diagnose the artifact of a method.

    Args:
        path: its directory.
        location: the place that was given, for the output.
        model: the T5 to compare with (default: the one that the artifact's manifest or record names).
    """
    d = Diagnosis(WHAT[kind], location)
    with d.attempt("files"):
        artifact = Artifact.at(path, artifact_digest(kind, path))
        candidate = next(iter(METHODS[kind](artifact)))
        d.fact("digest", artifact.digest, short_digest(artifact.digest))
        d.fact("task", candidate.task.name)
        d.fact("T5", {"name": candidate.model, "digest": candidate.digest},
               f"{candidate.model} (digest {short_digest(candidate.digest)})")  # fmt: skip
        if kind == "prompt":
            _rows(d, Prompt.load(path))
        found = list(problems(path)) if kind == "prompt" else []
        if found:
            raise InputError(found[0])
        d.passed("files", "complete and intact")
        base = _base(d, candidate, artifact, model)
        if base is not None:
            _fits(d, candidate, base)
    return d


def _rows(d: Diagnosis, prompt: Prompt) -> None:
    d.facts |= {name: (text, text) for name, text in facts_of(prompt).items() if name not in ("task", "model")}
    norm_P = prompt.rows_PD.norm(dim=1)
    d.fact("row norms", norm_P.tolist(), f"{norm_P.min():.4g} to {norm_P.max():.4g}, mean {norm_P.mean():.4g}")
    distinct = len(prompt.rows_PD.unique(dim=0))
    if bool((norm_P == 0).any()) or distinct < len(norm_P):
        d.note("rows", f"{int((norm_P == 0).sum())} rows are zero, {len(norm_P) - distinct} repeat others",
               "train the prompt again, or make it shorter")  # fmt: skip
    else:
        d.passed("rows", f"{len(norm_P)} distinct rows, all numbers are finite")


def _base(d: Diagnosis, candidate: Candidate, artifact: Artifact, model: str | None) -> Path | None:
    """The directory of the T5 it was trained on; None if it is missing or another one."""
    try:
        if model is not None:
            t5 = FrozenT5.find(model)
        else:
            t5 = FrozenT5.find(str(recorded_model(artifact, candidate.model, candidate.digest)[0].path))
        t5.check("it", model=candidate.model, digest=candidate.digest)
    except OtherModel as error:
        d.wrong("T5", str(error).rpartition("; ")[0], "give the T5 that it was trained on as --model")
        return None
    except InputError as error:
        if model is not None:
            raise
        d.note("T5", f"not compared: {str(error).rpartition('; ')[0]}", "give the T5 as --model")
        return None
    d.passed("T5", f"{t5.path} is the T5 that it was trained on")
    return t5.path


def _fits(d: Diagnosis, candidate: Candidate, base: Path) -> None:
    """Check vocabulary and answers against the T5."""
    vocabulary = Vocabulary.load(base)
    if candidate.tokenizer_digest not in (None, vocabulary.digest):
        d.wrong(
            "vocabulary",
            f"it was trained with the vocabulary {short_digest(str(candidate.tokenizer_digest))}, and {base} has"
            f" {short_digest(vocabulary.digest)}",
            "restore the vocabulary of the T5",
        )
    if not candidate.is_single_prompt:
        return
    model = PromptedT5(load_t5(base), PromptBank(candidate.prompts)).eval()
    with_VB, without_VB = (_first_token(model, candidate, vocabulary, prompted) for prompted in (True, False))
    if not bool(with_VB.isfinite().all()):
        d.wrong("forward pass", "logits are not finite with the prompt", "train the prompt again")
        return
    d.passed("forward pass", "logits are finite with the prompt")
    if candidate.task.labels:
        firsts = {int(ids[0]) for ids in encode_labels(candidate.task.labels, vocabulary, candidate.sentinel)}
        legal, before = (float(p_V[list(firsts)].sum()) for p_V in (with_VB, without_VB))
        found = f"the first token of a label has p = {legal:.2f} with the prompt, {before:.2f} without"
        if legal > before:
            d.passed("answers", found)
        else:
            d.note("answers", f"{found}, on sentences that are not of its task")


@torch.no_grad()
def _first_token(model: PromptedT5, candidate: Candidate, vocabulary: Vocabulary, prompted: bool) -> Tensor:
    """Mean probabilities [V] of the first output for plain sentences, with or without the prompt."""
    rows = encode_inputs(SENTENCES, vocabulary, candidate.max_input_length, candidate.sentinel)
    logits = [
        model(torch.zeros(1, dtype=torch.long) if prompted else None, torch.tensor(ids[None]).long(),
              torch.tensor([[vocabulary.eos]]))[0, 0]
        for ids in rows.ids
    ]  # fmt: skip
    return torch.stack(logits).softmax(-1).mean(0)


def diagnose_rows(form: str, path: Path, location: str, model: str | None) -> Diagnosis:
    """Diagnose rows that are not a method's artifact, but that `prompts import` reads.

    Args:
        form: "peft" or "npy".
        path, location, model: as of `diagnose_artifact`.
    """
    d = Diagnosis("PEFT adapter" if form == "peft" else "rows of a prompt", location)
    with d.attempt("files"):
        rows_PD = read_rows(path, form)
        d.fact("prompt", list(rows_PD.shape), f"{plural(rows_PD.size(0), 'row')} × {rows_PD.size(1)}")
        if form == "peft":
            named, digest = adapter_base(path)
            recorded = short_digest(digest or "not recorded")
            d.fact("T5", {"name": named, "digest": digest}, f"{named} (digest {recorded})")
        d.passed("files", f"`prompts import --from {form}` reads them; all numbers are finite")
    if d.ok and model is None:
        d.note("T5", "not compared", "give the T5 as --model")
    elif d.ok and model is not None:
        with d.attempt("T5"):
            t5 = FrozenT5.find(model)
            if form == "peft":
                check_base(path, model, t5)
            t5.check_width(f"{path}:", rows_PD.size(1))
            d.passed("T5", f"the rows fit {t5.path}")
    return d
