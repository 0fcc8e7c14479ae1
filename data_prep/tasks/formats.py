"""Published text-to-text formats as task settings.

A task with a `format` takes all missing keys from it: `{format: superglue/rte, data: RTE}` is a complete task. The
files are those of the benchmarks; labels may be words or numbers. With a `config`, rows and splits are those of the
hub's `super_glue`, `glue`, `squad`, `xsum`, `cnn_dailymail` and `wmt`. T5's task name before each input is left out, as
in Lester et al. 2021, unless `task_prefix` is true.

Source: Raffel et al. 2020, appendix D, and T5's preprocessors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t5_pipeline.data_prep.tasks.template import fields_of

_JSONL = {"train": "train", "validation": "val"}
_TSV = {"train": "train", "validation": "dev"}
_SAME = {"train": "train", "validation": "validation", "test": "test"}


def _labels(*labels: str, field: str = "label") -> dict[str, Any]:
    """Labels in the order of their numbers; files may contain either."""
    texts = {str(number): label for number, label in enumerate(labels)} | {label: label for label in labels}
    return {"targets": f"{{{field}}}", "values": {field: texts}, "labels": list(labels)}


def _translation(source: str, target: str, field: str = "{%s}") -> dict[str, Any]:
    texts = {"inputs": field % source, "targets": field % target}
    return {**texts, "metrics": ["bleu", "chrf"], "splits": _SAME}


FORMATS: dict[str, dict[str, Any]] = {
    "superglue/boolq": {
        "inputs": "passage: {passage} question: {question}",
        **_labels("False", "True"),
        "metrics": ["accuracy"],
        "splits": _JSONL,
    },
    "superglue/cb": {
        "inputs": "hypothesis: {hypothesis} premise: {premise}",
        **_labels("entailment", "contradiction", "neutral"),
        "metrics": ["macro_f1", "accuracy"],
        "splits": _JSONL,
    },
    "superglue/copa": {
        "inputs": "choice1: {choice1} choice2: {choice2} premise: {premise} question: {question}",
        **_labels("choice1", "choice2"),
        "metrics": ["accuracy"],
        "splits": _JSONL,
    },
    "superglue/multirc": {
        "reader": "multirc",
        "inputs": "question: {question} answer: {answer} paragraph: {paragraph}",
        **_labels("False", "True"),
        "group": "question_id",
        "metrics": ["f1", "group_accuracy"],
        "splits": _JSONL,
    },
    "superglue/record": {
        "reader": "record",
        "inputs": "query: {query} entities: {entities} passage: {passage}",
        "targets": "{answer}",
        "answers": "answers",
        "metrics": ["token_f1", "exact_match"],
        "splits": _JSONL,
    },
    "superglue/rte": {
        "inputs": "hypothesis: {hypothesis} premise: {premise}",
        **_labels("entailment", "not_entailment"),
        "metrics": ["accuracy"],
        "splits": _JSONL,
    },
    "superglue/wic": {
        "inputs": "sentence1: {sentence1} sentence2: {sentence2} word: {word}",
        **_labels("False", "True"),
        "metrics": ["accuracy"],
        "splits": _JSONL,
    },
    "superglue/wsc": {
        "reader": "wsc",
        "inputs": "{text}",
        "targets": "{referent}",
        "holds": "label",
        "metrics": ["referent"],
        "splits": _JSONL,
    },
    "glue/cola": {
        "inputs": "sentence: {3}",
        **_labels("unacceptable", "acceptable", field="1"),
        "metrics": ["mcc"],
        "splits": _TSV,
    },
    "glue/sst2": {
        "inputs": "sentence: {sentence}",
        **_labels("negative", "positive"),
        "metrics": ["accuracy"],
        "splits": _TSV,
    },
    "glue/mrpc": {
        "inputs": "sentence1: {#1 String} sentence2: {#2 String}",
        **_labels("not_equivalent", "equivalent", field="Quality"),
        "metrics": ["f1", "accuracy"],
        "splits": _TSV,
    },
    "glue/qqp": {
        "reader": "qqp",
        "inputs": "question1: {question1} question2: {question2}",
        **_labels("not_duplicate", "duplicate", field="is_duplicate"),
        "metrics": ["f1", "accuracy"],
        "splits": _TSV,
    },
    "glue/stsb": {
        "inputs": "sentence1: {sentence1} sentence2: {sentence2}",
        "targets": "{score}",
        "round_to": {"score": 0.2},
        "metrics": ["pearson", "spearman"],
        "splits": _TSV,
    },
    "glue/mnli": {
        "inputs": "hypothesis: {sentence2} premise: {sentence1}",
        **_labels("entailment", "neutral", "contradiction", field="gold_label"),
        "metrics": ["accuracy"],
        "splits": {"train": "train", "validation": "dev_matched", "validation_mismatched": "dev_mismatched"},
    },
    "glue/qnli": {
        "inputs": "question: {question} sentence: {sentence}",
        **_labels("entailment", "not_entailment"),
        "metrics": ["accuracy"],
        "splits": _TSV,
    },
    "glue/rte": {
        "inputs": "sentence1: {sentence1} sentence2: {sentence2}",
        **_labels("entailment", "not_entailment"),
        "metrics": ["accuracy"],
        "splits": _TSV,
    },
    "glue/wnli": {
        "inputs": "sentence1: {sentence1} sentence2: {sentence2}",
        **_labels("not_entailment", "entailment"),
        "metrics": ["accuracy"],
        "splits": _TSV,
    },
    "squad": {
        "reader": "squad",
        "inputs": "question: {question} context: {context}",
        "targets": "{answer}",
        "answers": "answers",
        "metrics": ["token_f1", "exact_match"],
        "splits": {"train": "train-v1.1", "validation": "dev-v1.1"},
    },
    "xsum": {
        "inputs": "{document}",
        "targets": "{summary}",
        "metrics": ["rouge1", "rouge2", "rougeL"],
        "splits": _SAME,
    },
    "cnn_dailymail": {
        "inputs": "{article}",
        "targets": "{highlights}",
        "metrics": ["rouge1", "rouge2", "rougeLsum"],
        "splits": _SAME,
    },
    "wmt/en-de": _translation("en", "de"),
    "wmt/en-fr": _translation("en", "fr"),
    "wmt/en-ro": _translation("en", "ro"),
}

# Differences of the hub: the label field is always `label`, and columns have proper names.
_ON_THE_HUB: dict[str, dict[str, Any]] = {
    "glue/cola": {"inputs": "sentence: {sentence}", **_labels("unacceptable", "acceptable")},
    "glue/mrpc": {
        "inputs": "sentence1: {sentence1} sentence2: {sentence2}",
        **_labels("not_equivalent", "equivalent"),
    },
    "glue/qqp": _labels("not_duplicate", "duplicate"),
    "glue/stsb": {"targets": "{label}", "round_to": {"label": 0.2}},
    "glue/mnli": {
        "inputs": "hypothesis: {hypothesis} premise: {premise}",
        **_labels("entailment", "neutral", "contradiction"),
        "splits": {
            "train": "train",
            "validation": "validation_matched",
            "validation_mismatched": "validation_mismatched",
        },
    },
    "xsum": {"splits": _SAME},
    "cnn_dailymail": {"splits": _SAME},
    **{f"wmt/en-{target}": _translation("en", target, "{translation.%s}") for target in ("de", "fr", "ro")},
}

# T5's names that are not the last part of the format's, and the names that end in a colon.
_NAMES = {
    "squad": "",  # T5 gives it no name
    "xsum": "summarize",
    "cnn_dailymail": "summarize",
    "wmt/en-de": "translate English to German",
    "wmt/en-fr": "translate English to French",
    "wmt/en-ro": "translate English to Romanian",
}
_WITH_COLON = {"superglue/wsc", *_NAMES} - {"squad"}

SUPERGLUE = tuple(name for name in FORMATS if name.startswith("superglue/"))
GLUE = tuple(name for name in FORMATS if name.startswith("glue/"))


def expanded(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A task's settings, completed from format `name`.

    The format's `values` and `round_to` of fields that no template contains are dropped.

    >>> expanded({"data": "RTE", "inputs": "{premise}"}, "superglue/rte")["inputs"]
    '{premise}'
    >>> expanded({"data": "RTE", "task_prefix": True}, "superglue/rte")["inputs"]
    'rte hypothesis: {hypothesis} premise: {premise}'
    >>> expanded({"data": "glue", "config": "cola"}, "glue/cola")["inputs"]
    'sentence: {sentence}'
    """
    form = FORMATS[name]
    if values.get("config") is not None:
        form = {**form, "splits": {"train": "train", "validation": "validation"}, **_ON_THE_HUB.get(name, {})}
    found = {**form, **values}
    if str(values.get("task_prefix")).lower() == "true" and "inputs" not in values:
        found["inputs"] = f"{task_name(name)}{':' if name in _WITH_COLON else ''} {found['inputs']}".lstrip()
    named = fields_of(str(found["inputs"]), str(found["targets"]))
    for key in ("values", "round_to"):
        if key not in values and key in form:
            found[key] = {field: value for field, value in form[key].items() if field in named}
    return found


def task_name(name: str) -> str:
    """T5's task name of a format: `rte` for superglue/rte, `summarize` for xsum, none for squad."""
    return _NAMES.get(name, name.rpartition("/")[2])
