"""Diagnosis of data: a corpus, token shards of prepare, and the file of a task. No torch."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.config.references import load_task
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.counts import plural
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.normal_form import label_of
from t5_pipeline.data_prep.corpora.documents import corpus_chunks, skipped_files
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.data_prep.shards.reader import SPLITS, TokenShards
from t5_pipeline.data_prep.tasks.encode import Reading, encode_task
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.diagnosis.findings import Diagnosis

SAMPLED_CHUNKS, SAMPLED_DOCUMENTS = 8, 200  # documents of each chunk
_REPLACEMENT = "\ufffd"  # in place of bytes that are not text
_MOSTLY = 0.01  # share of a sample from which a problem is worth a note
_WORST_UNKNOWN = 0.005
_MOST_TARGETS = 20  # that are not labels, in a message


def diagnose_corpus(location: str, text_field: str, model: str | None) -> Diagnosis:
    """Diagnose a corpus by documents from all its parts.

    Args:
        text_field: field of a row that contains the text.
        model: a T5, to measure its vocabulary on the corpus.
    """
    d = Diagnosis("corpus", location)
    with d.attempt("documents"):
        chunks = corpus_chunks(location, text_field=text_field)
        if not chunks:
            raise InputError(f"{location}: is empty; give one that contains text")
        chosen = [chunks[i * len(chunks) // SAMPLED_CHUNKS] for i in range(SAMPLED_CHUNKS)]
        texts = [
            document.text
            for chunk in dict.fromkeys(chosen)
            for document in islice(chunk.documents(), SAMPLED_DOCUMENTS)
        ]
        sampled = f"{len(dict.fromkeys(chosen))} of {plural(len(chunks), 'chunk')}"
        d.fact("sample", len(texts), f"{plural(len(texts), 'document')} from {sampled}")
        if not any(text.strip() for text in texts):
            raise InputError(f"{location}: has no text in {text_field!r}; check the field")
        characters = [len(text) for text in texts]
        d.fact("characters per document", statistics.median(characters), f"{statistics.median(characters):,.0f} in the"
               f" median, {max(characters):,} at most")  # fmt: skip
        d.passed("documents", "every sampled document can be read")
        _texts(d, texts)
        if skipped := skipped_files(location):
            d.note("files", f"not read: {plural(len(skipped), 'file')}, such as {skipped[0]}", "convert or remove them")
        if model is not None:
            _in_vocabulary(d, texts, Vocabulary.load(locate_one("model", model, "--model")))
    return d


def _texts(d: Diagnosis, texts: Sequence[str]) -> None:
    empty = sum(not text.strip() for text in texts) / len(texts)
    repeated = 1 - len(set(texts)) / len(texts)
    damaged = sum(_REPLACEMENT in text for text in texts) / len(texts)
    found = [
        (empty, "are empty", "remove them; they give no examples"),
        (repeated, "repeat another one", "remove duplicates"),
        (damaged, "contain replacement characters (U+FFFD)", "convert the text from its own encoding to UTF-8 again"),
    ]
    for share, problem, fix in found:
        if share > _MOSTLY:
            d.note("text", f"{share:.0%} of the documents {problem}", fix)
    if all(share <= _MOSTLY for share, _, _ in found):
        d.passed("text", "hardly any document is empty, repeated or damaged")


def _in_vocabulary(d: Diagnosis, texts: Sequence[str], vocabulary: Vocabulary) -> None:
    """Unknown pieces and characters per piece of a sample."""
    ids = vocabulary.encode_batch([text[:10_000] for text in texts])
    pieces = sum(map(len, ids))
    unknown = sum(found.count(vocabulary.unk) for found in ids) / max(pieces, 1)
    per_piece = sum(len(text[:10_000]) for text in texts) / max(pieces, 1)
    d.fact("characters per piece", per_piece, f"{per_piece:.2f}")
    if unknown > _WORST_UNKNOWN:
        d.note(
            "vocabulary",
            f"{unknown:.1%} of the pieces are unknown in the vocabulary of the T5",
            "use a T5 of the corpus's language, such as mT5",
        )
    else:
        d.passed("vocabulary", f"{unknown:.2%} of the pieces are unknown, {per_piece:.2f} characters per piece")


def diagnose_tokens(path: Path, location: str, model: str | None) -> Diagnosis:
    """Diagnose token shards: read every document once, which verifies all checksums.

    Args:
        path: their directory.
        location: the place that was given, for the output.
        model: a T5 that is to be trained on them.
    """
    d = Diagnosis("token shards", location)
    with d.attempt("shards"):
        shards = [TokenShards.open(path, split) for split in SPLITS]
        for split in shards:
            d.fact(split.split, {"documents": split.documents, "tokens": split.tokens},
                   f"{plural(split.documents, 'document')}, {plural(split.tokens, 'token')}")  # fmt: skip
        d.fact("digest", shards[0].digest, short_digest(shards[0].digest))
        highest = max((int(s.document(i).max(initial=0)) for s in shards for i in range(s.documents)), default=0)
        d.passed("shards", "all documents match their checksums")
        vocabulary = shards[0].vocabulary
        d.fact("vocabulary", vocabulary.digest, f"{vocabulary.size:,} ids, digest {short_digest(vocabulary.digest)}")
        if highest >= vocabulary.size:
            raise InputError(f"{path}: contains id {highest}, not in its vocabulary; run `prepare` again")
        d.passed("vocabulary", "every id is in the vocabulary beside them")
        if not shards[1].documents:
            d.note("validation", "there is no held-out text", "set `validation_fraction` in prepare")
    if model is not None and d.ok:
        with d.attempt("T5"):
            base = locate_one("model", model, "--model")
            if Vocabulary.load(base).digest != vocabulary.digest:
                raise InputError(f"{base}: has another vocabulary; prepare the text with `vocabulary: {base}`")
            d.passed("T5", f"{base} has the same vocabulary")
    return d


def diagnose_task(path: Path, model: str | None) -> Diagnosis:
    """Diagnose the file of a task: its settings, the rows of every split, and their length in a T5's vocabulary.

    Args:
        path: the YAML file.
        model: a T5 that is to learn the task.
    """
    d = Diagnosis("task", str(path))
    with d.attempt("settings"):
        settings = load_task(path)
        task = Task.load(settings)
        d.fact("data", settings.data)
        d.fact("labels", settings.labels, ", ".join(settings.labels) if settings.labels else "none (free text)")
        d.passed("settings", "the keys and templates are valid")
        inputs: dict[str, set[str]] = {}
        for split in settings.splits:
            with d.attempt(split):
                inputs[split] = _split(d, task, split)
        held_out = set().union(*(found for split, found in inputs.items() if split != "train"))
        shared = inputs.get("train", set()) & held_out
        if shared:
            found = f"inputs of `train` that another split has: {len(shared):,}, such as {min(shared)!r:.60}"
            d.note("overlap", found, "remove them from one split")
        if model is not None and d.ok:
            _lengths(d, task, Vocabulary.load(locate_one("model", model, "--model")))
    return d


def _split(d: Diagnosis, task: Task, split: str) -> set[str]:
    """Check the rows of a split and return their inputs."""
    rows = task.rows(split, training=split == "train")
    targets = _targets(task, rows)
    inputs = [task.inputs(row) for row in rows]
    counts, classes = task.counts(split, rows, targets), Counter(targets)
    listed = ", ".join(f"{label} {classes[label] / len(rows):.0%}" for label in task.labels or ())
    shown = f"{plural(len(rows), 'row')}{'; ' if listed else ''}{listed}"
    d.fact(split, {"rows": len(rows), "dropped": counts.dropped}, shown)
    if split == "train":
        d.facts["example"] = ({"inputs": inputs[0], "targets": targets[0]}, f"{inputs[0]!r:.100} → {targets[0]!r:.40}")
    missing = [label for label in task.labels or () if not classes[label]]
    for warning in counts.warnings:
        d.note(split, *_parts(warning))
    if missing and counts.only_target is None:
        d.note(split, f"no row has the label {missing[0]!r}", "add rows, or remove the label")
    elif counts.dropped:
        d.note(split, f"{sum(counts.dropped.values()):,} of {plural(counts.read, 'row')} dropped")
    elif not counts.warnings:
        d.passed(split, "every row can be used")
    return set(inputs)


def _targets(task: Task, rows: Sequence[Row]) -> list[str]:
    """The target of each row. Those that are not labels are refused all at once; training stops at the first one."""
    targets, unknown = [], dict[str, list[str]]()
    for row in rows:
        target = task.target_template.render(row)
        label = target if task.labels is None else label_of(target, task.labels)
        if label is None:
            unknown.setdefault(target, []).append(row.where)
        else:
            targets.append(label)
    if unknown:
        shown = [*unknown.items()][:_MOST_TARGETS]
        found = ", ".join(f"{target!r:.40} ({len(where):,}, first at {where[0]})" for target, where in shown)
        found += f" and {len(unknown) - len(shown)} more" if len(unknown) > len(shown) else ""
        raise InputError(
            f"{sum(map(len, unknown.values())):,} of {len(rows):,} rows have targets that are not labels: {found}; fix"
            " the rows, add the targets to `labels`, or map them with `values`"
        )
    return targets


def _parts(warning: str) -> tuple[str, str]:
    found, _, fix = warning.rpartition("; ")
    return found, fix


def _lengths(d: Diagnosis, task: Task, vocabulary: Vocabulary) -> None:
    """Check labels and lengths in a vocabulary, at the default lengths of prompt_tune."""
    fields = PromptTuneConfig.model_fields
    longest = (fields["max_input_length"].default, fields["max_target_length"].default)
    with d.attempt("lengths"):
        split = "train" if "train" in task.settings.splits else next(iter(task.settings.splits))
        encoded = encode_task(task, split, Reading(vocabulary, *longest), training=True)
        tokens = [len(ids) for ids in encoded.inputs]
        d.fact("tokens per input", statistics.median(tokens), f"{statistics.median(tokens):,.0f} in the median,"
               f" {max(tokens):,} at most, after truncation to {longest[0]:,}")  # fmt: skip
        counts = encoded.counts
        if counts.inputs.texts or counts.targets.texts:
            d.note("lengths", f"truncated: inputs {counts.inputs}, targets {counts.targets}",
                   "raise max_input_length or max_target_length")  # fmt: skip
        else:
            d.passed("lengths", f"no text is truncated at {longest[0]:,} and {longest[1]:,} tokens")
        for kind, unknown in (("inputs", counts.unknown_inputs), ("targets", counts.unknown_targets)):
            if unknown > _MOSTLY * len(tokens):
                d.note("vocabulary", f"{unknown:,} of {len(tokens):,} {kind} have characters that the vocabulary lacks")
