"""Diagnosis of a T5: its contract, and whether weights, config and vocabulary belong together."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import psutil
import torch

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.config.adaptation import LMAdaptConfig, known_steps
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.layout import UnclearIds
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS, embedding_rows
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.diagnosis.findings import Diagnosis
from t5_pipeline.diagnosis.probes import SENTENCES, TextLoss, first_output, forward_pass, not_finite, text_loss
from t5_pipeline.modeling.config import ARCHITECTURES, T5Config
from t5_pipeline.modeling.load import load_t5, locate_model
from t5_pipeline.modeling.model_metadata import ModelMetadata, read_metadata
from t5_pipeline.modeling.safetensors_dir import read_shape
from t5_pipeline.modeling.t5 import T5

_FREE = 0.8  # of the memory that is available
SPAN_CORRUPTION, ADAPTED = 0.5, 0.1  # p(sentinel) as first output: at least, at most


def diagnose_model(place: Path, location: str) -> Diagnosis:
    """Diagnose a T5.

    Args:
        place: its directory, or a hub name.
        location: the place that was given, for the output.

    Raises:
        InputError: if there is no model.
    """
    d = Diagnosis("T5", location)
    directory = locate_model(place)
    shape = metadata = vocabulary = None
    with d.attempt("config"):
        shape = read_shape(directory)
        _sizes(d, shape)
    with d.attempt("metadata"):
        metadata = read_metadata(directory)
    try:
        vocabulary = Vocabulary.load(place)
        _ids(d, vocabulary, shape)
    except UnclearIds as error:
        d.refused("special ids", error)
    except InputError as error:
        d.refused("vocabulary", error)
    t5 = _weights(d, directory, shape) if shape else None
    if t5 is not None and vocabulary is not None:  # the digest is of both
        with d.attempt("digest"):
            digest = DigestCache(None).of_artifact("model", place)
            d.fact("digest", digest, short_digest(digest))
    if t5 is not None and vocabulary is not None and d.ok:
        vocabulary = vocabulary.with_start(t5.special.start)
        _behavior(d, t5, vocabulary, metadata or ModelMetadata())
    if shape and vocabulary and metadata:
        _uses(d, shape, vocabulary, metadata, str(place))
    return d


# ------------------------------------------------------------------------------------------------------------- contract


def _sizes(d: Diagnosis, shape: T5Config) -> None:
    feed_forward = f"{'gated ' if shape.gated else ''}{shape.activation}"
    name = ARCHITECTURES[shape.model_type].model_class.removesuffix("ForConditionalGeneration")
    version = " 1.1" if shape.model_type == "t5" and shape.gated and not shape.scales_outputs else ""
    sizes = (
        f"{shape.num_layers} + {shape.num_decoder_layers} layers of width {shape.d_model:,},"
        f" {shape.num_heads} heads of {shape.d_kv}, feed-forward {shape.d_ff:,} ({feed_forward})"
    )
    d.fact("architecture", asdict(shape), f"{name}{version}, {sizes}")
    d.fact("parameters", shape.parameters, f"{shape.parameters:,}, {shape.parameters * 4 / 2**20:,.0f} MiB in fp32")
    scaled = shape.scales_outputs
    matrix = "the embedding is the output matrix (tied)" if shape.tied else "separate output matrix (untied)"
    d.fact("output", {"tied": shape.tied, "scaled": scaled},
           f"{matrix}; decoder outputs are {'' if scaled else 'not '}multiplied by d_model^−½")  # fmt: skip


def _ids(d: Diagnosis, vocabulary: Vocabulary, shape: T5Config | None) -> None:
    """Facts about ids; checks of the vocabulary by itself and against the embedding."""
    names = vocabulary.names()
    special = replace(vocabulary.special, start=shape.special.start) if shape else vocabulary.special
    named = {"pad": special.pad, "eos": special.eos, "decoder start": special.start}
    d.fact("special ids", named, ", ".join(f"{key} {i} {names[i]}" for key, i in named.items() if i < len(names)))
    ids = vocabulary.sentinel_ids
    first_last = f"{len(ids)}: <extra_id_0> is id {ids[0]:,}, <extra_id_{len(ids) - 1}> {ids[-1]:,}" if ids else "none"
    found = vocabulary.layout.found
    d.fact("sentinels", {"ids": list(ids), "found": found}, f"{first_last}; {found}" if ids else first_last)
    d.fact("normalizer", vocabulary.text.normalizer)
    pieces = vocabulary.size - len(vocabulary.layout.above)
    d.fact("vocabulary", {"pieces": pieces, "ids": vocabulary.size, "digest": vocabulary.digest},
           f"{pieces:,} pieces, {vocabulary.size:,} ids, digest {short_digest(vocabulary.digest)}")  # fmt: skip
    if shape is not None:
        _rows(d, vocabulary, shape)
    _round_trip(d, vocabulary)


def _rows(d: Diagnosis, vocabulary: Vocabulary, shape: T5Config) -> None:
    rows, size = shape.vocab_size, vocabulary.size
    d.fact("embedding rows", rows, f"{rows:,} ({max(rows - size, 0):,} without an id)")
    if size > rows:
        d.wrong(
            "embedding rows",
            f"the vocabulary has {size:,} ids, but the embedding has {rows:,} rows",
            "use the vocabulary that the model was trained with; for a T5 that never had sentinels, set `extra_ids` in"
            " tokenizer_config.json to 0",
        )
    elif rows > max(embedding_rows(size), size + SENTINELS + 128):
        d.note("embedding rows", f"{rows - size:,} rows have no id; the vocabulary may be another model's")
    else:
        d.passed("embedding rows", f"{rows:,} rows for {size:,} ids")
    if vocabulary.special != replace(shape.special, start=vocabulary.special.start):
        d.wrong(
            "special ids",
            f"config.json pads with {shape.special.pad} and ends texts with {shape.special.eos}, the vocabulary has"
            f" {vocabulary.pad} and {vocabulary.eos}",
            "use the config and the vocabulary that the model was trained with",
        )


def _round_trip(d: Diagnosis, vocabulary: Vocabulary) -> None:
    """Text to ids and back; a vocabulary of another script has unknown pieces."""
    ids = [i for text in SENTENCES for i in vocabulary.encode(text)]
    unknown = ids.count(vocabulary.unk) / max(len(ids), 1)
    changed = [text for text in SENTENCES if vocabulary.decode(vocabulary.encode(text)) != text]
    words = sum(len(text.split()) for text in SENTENCES)
    if unknown:
        d.note(
            "round trip",
            f"{unknown:.0%} of the pieces of English sentences are unknown",
            "do not use this vocabulary for English; the probes of the weights are skipped",
        )
    elif changed:
        d.note("round trip", f"{changed[0]!r} becomes {vocabulary.decode(vocabulary.encode(changed[0]))!r}")
    else:
        d.passed("round trip", f"English sentences return unchanged; {len(ids) / words:.2f} pieces per word")


# -------------------------------------------------------------------------------------------------------------- weights


def _weights(d: Diagnosis, directory: Path, shape: T5Config) -> T5 | None:
    """Load the weights and check that all numbers are finite; None if they cannot be loaded."""
    free = psutil.virtual_memory().available * _FREE
    dtype = torch.float32 if 4 * shape.parameters < free else torch.bfloat16
    if 2 * shape.parameters > free:
        d.note(
            "weights",
            f"not loaded: {shape.parameters * 2 / 1e9:.0f} GB in bf16 do not fit in the free memory",
            "run doctor on a machine with more memory",
        )
        return None
    try:
        t5 = load_t5(directory, dtype).eval()
    except InputError as error:
        d.refused("weights", error)
        return None
    bad = not_finite(t5)
    if bad:
        name, count = next(iter(bad.items()))
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        d.wrong(
            "weights",
            f"{count:,} numbers of {name}{more} are NaN or infinite",
            "fetch the model again, or publish an earlier step of its training",
        )
        return None
    d.passed("weights", f"{len(t5.state_dict())} tensors fit config.json, all numbers are finite")
    return t5


def _behavior(d: Diagnosis, t5: T5, vocabulary: Vocabulary, metadata: ModelMetadata) -> None:
    """Checks by running the T5."""
    if vocabulary.unk in vocabulary.encode(" ".join(SENTENCES)):
        return
    p_sentinel, token, p_token = first_output(t5, vocabulary)
    kind = "span corruption" if p_sentinel >= SPAN_CORRUPTION else "adapted" if p_sentinel <= ADAPTED else "between"
    d.fact("first output", {"p_sentinel": p_sentinel, "token": token, "p_token": p_token, "kind": kind},
           f"a sentinel with p = {p_sentinel:.3f}; likeliest {token} ({p_token:.3f})")  # fmt: skip
    if metadata.tasks:
        d.passed("first output", f"fine-tuned on {', '.join(tuned.task.name for tuned in metadata.tasks)}")
    else:
        text = text_loss(t5, vocabulary, spans=kind == "span corruption")
        _first_output(d, kind, metadata, text.trained)
        _known_text(d, text)
    found = forward_pass(t5, vocabulary)
    d.fact("safe precisions", found.precisions, f"{', '.join(found.precisions) or 'none'}; in bf16 log p differs by up"
           f" to {found.drift:.3f}; activations up to {found.largest:,.0f}, and fp16 ends at 65,504")  # fmt: skip
    if found.finite and found.finite_in_bf16:
        d.passed("forward pass", "logits are finite in fp32 and bf16")
    else:
        d.wrong(
            "forward pass",
            f"logits are not finite in {'bf16' if found.finite else 'fp32'}",
            "set `precision: fp32`" if found.finite else "fetch the model again; its weights overflow",
        )


def _first_output(d: Diagnosis, kind: str, metadata: ModelMetadata, trained: bool) -> None:
    if kind == "span corruption" and metadata.sentinel == "none":
        d.note(
            "first output",
            "it answers plain text with a sentinel: a span-corruption T5 that was not adapted",
            "run lm_adapt before prompt_tune, or `sentinel`, which lets it answer after its own token",
        )
    elif kind == "span corruption":
        d.passed("first output", "it answers with a sentinel, and its targets begin with one")
    elif metadata.sentinel != "none":
        d.note(
            "first output",
            "its targets begin with a sentinel (t5_pipeline.json), but it does not answer with one",
            "use it without `sentinel`; that stage is for span-corruption T5s",
        )
    elif kind == "adapted" and trained:
        d.passed("first output", "it answers plain text with text: adapted or fine-tuned, ready for prompt_tune")
    elif trained:  # of random weights, the first output says nothing
        d.note("first output", "it answers plain text partly with a sentinel", "adapt it for more steps with lm_adapt")


def _known_text(d: Diagnosis, found: TextLoss) -> None:
    """Whether the T5 predicts text of its vocabulary: a vocabulary of another model looks like shuffled pieces."""
    numbers = f"loss {found.loss:.2f} per token, entropy {found.entropy:.2f}, guessing {found.uniform:.2f}"
    exchanged = f"{sum(found.exchanged) / len(found.exchanged):.2f} in exchanged pieces"
    d.fact("text", {"loss": found.loss, "entropy": found.entropy, "exchanged": list(found.exchanged)},
           f"{numbers}; {exchanged}")  # fmt: skip
    if found.misreads_text:
        d.wrong(
            "text",
            f"it is sure of its predictions and wrong ({numbers}; {exchanged}): the vocabulary is another model's, or"
            " the weights are random, or fine-tuned until they forgot text",
            "give it the vocabulary that it was trained with, or trained weights",
        )
    elif found.knows_text:
        d.passed("text", f"it predicts plain text ({numbers}; {exchanged})")
    elif found.trained:
        d.note("text", f"it predicts English badly ({numbers}; {exchanged})", "check the language of its training text")
    else:
        d.note("text", f"the weights look untrained ({numbers})", "train it, or fetch the pretrained weights")


# ----------------------------------------------------------------------------------------------------------------- uses


def _uses(d: Diagnosis, shape: T5Config, vocabulary: Vocabulary, metadata: ModelMetadata, name: str) -> None:
    """Descriptions of the stages' work on the model, at their defaults."""
    steps = known_steps(name)
    step_offset = f"`step_offset` {steps:,}, the steps it was trained for" if steps else "`step_offset` 0"
    objective = LMAdaptConfig.model_fields["objective"].default
    d.uses["lm_adapt"] = f"trains all {shape.parameters:,} weights by `objective: {objective}`, with {step_offset}"
    if vocabulary.sentinels:
        d.uses["sentinel"] = f"begins targets with <extra_id_0> (id {vocabulary.sentinel(0):,}); no training"
    else:
        with_sentinels = vocabulary.with_sentinels()
        rows = max(with_sentinels.rows, shape.vocab_size)
        d.uses["sentinel"] = f"adds {SENTINELS} sentinels: the embedding has {rows:,} rows, now {shape.vocab_size:,}"
    length = PromptTuneConfig.model_fields["prompt_length"].default
    place = {"none": "no sentinel", "targets": "<extra_id_0> before targets", "both": "<extra_id_0> on both sides"}
    d.uses["prompt_tune"] = (
        f"freezes it and learns {length} × {shape.d_model:,} = {length * shape.d_model:,} numbers, with"
        f" {place[metadata.sentinel]}"
    )
