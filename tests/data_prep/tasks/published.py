"""A small file of every published format as distributed, and the same row from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.task import Task


def task_of(format_: str, data: Path | str, **more: Any) -> Task:
    return Task.load(TaskConfig(name="t", format=format_, data=str(data), **more))


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


MULTIRC = {
    "idx": 3,
    "version": 1.1,
    "passage": {
        "text": "<b>Sent 1: </b>The cat sat.<br><b>Sent 2: </b>It slept.",
        "questions": [
            {
                "question": "Who sat?",
                "idx": 7,
                "answers": [{"text": "a cat", "idx": 0, "label": 1}, {"text": "a dog", "idx": 1, "label": 0}],
            },
            {"question": "Who slept?", "idx": 8, "answers": [{"text": "it", "idx": 2, "label": 1}]},
        ],
    },
}
RECORD_TEXT = "Zoe met Charles!\n@highlight\nThey built an engine\n@highlight\nZoe wrote notes"
RECORD = {
    "idx": 0,
    "passage": {
        "text": RECORD_TEXT,
        "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 14}, {"start": 60, "end": 62}],
    },
    "qas": [
        {
            "query": "@placeholder was first.",
            "idx": 0,
            "answers": [
                {"start": 60, "end": 62, "text": "Zoe"},
                {"start": 8, "end": 14, "text": "Charles"},
                {"start": 0, "end": 2, "text": "Zoe"},
            ],
        }
    ],
}
RECORD_INPUT = (
    "record query: @placeholder was first. entities: Charles, Zoe"
    " passage: Zoe met Charles! They built an engine. Zoe wrote notes"
)
WSC = {
    "text": "The pony threw him over, the boy said.",
    "target": {"span2_index": 3, "span1_index": 5, "span1_text": "The boy", "span2_text": "him"},
    "idx": 0,
    "label": True,
}
SQUAD_PARAGRAPH = {
    "context": "Ada Lovelace (1815-1852) wrote notes.",
    "qas": [
        {
            "id": "a",
            "question": "Who wrote?",
            "answers": [
                {"text": "Ada Lovelace", "answer_start": 0},
                {"text": "Ada", "answer_start": 0},
                {"text": "Ada Lovelace", "answer_start": 0},
            ],
        },
        {"id": "b", "question": "Who read?", "answers": [], "is_impossible": True, "plausible_answers": []},
    ],
}

# format → file name, content as distributed, its last row from the hub, and T5's input and target for that row.
READS: dict[str, tuple[str, Any, dict[str, Any], str, str]] = {
    "superglue/boolq": (
        "val.jsonl",
        [{"question": "is it", "passage": "It is.", "idx": 0, "label": True}],
        {"question": "is it", "passage": "It is.", "idx": 0, "label": 1},
        "boolq passage: It is. question: is it",
        "True",
    ),
    "superglue/cb": (
        "val.jsonl",
        [{"premise": "P.", "hypothesis": "H.", "label": "neutral", "idx": 1}],
        {"premise": "P.", "hypothesis": "H.", "label": 2, "idx": 1},
        "cb hypothesis: H. premise: P.",
        "neutral",
    ),
    "superglue/copa": (
        "val.jsonl",
        [{"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 1, "idx": 0}],
        {"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 1, "idx": 0},
        "copa choice1: A. choice2: B. premise: P. question: cause",
        "choice2",
    ),
    "superglue/multirc": (
        "val.jsonl",
        [MULTIRC],
        {
            "paragraph": MULTIRC["passage"]["text"],  # type: ignore[index]
            "question": "Who slept?",
            "answer": "it",
            "idx": {"paragraph": 3, "question": 8, "answer": 2},
            "label": 1,
        },
        "multirc question: Who slept? answer: it paragraph: Sent 1: The cat sat. Sent 2: It slept.",
        "True",
    ),
    "superglue/record": (
        "val.jsonl",
        [RECORD],
        {
            "passage": RECORD_TEXT,
            "query": "@placeholder was first.",
            "entities": ["Zoe", "Charles"],
            "answers": ["Zoe", "Charles"],
            "idx": {"passage": 0, "query": 0},
        },
        RECORD_INPUT,
        "Charles",
    ),
    "superglue/rte": (
        "val.jsonl",
        [{"premise": "P.", "hypothesis": "H.", "label": "not_entailment", "idx": 0}],
        {"premise": "P.", "hypothesis": "H.", "label": 1, "idx": 0},
        "rte hypothesis: H. premise: P.",
        "not_entailment",
    ),
    "superglue/wic": (
        "val.jsonl",
        [{"word": "board", "sentence1": "A.", "sentence2": "B.", "start1": 0, "label": False, "idx": 0}],
        {"word": "board", "sentence1": "A.", "sentence2": "B.", "start1": 0, "label": 0, "idx": 0},
        "wic sentence1: A. sentence2: B. word: board",
        "False",
    ),
    "superglue/wsc": (
        "val.jsonl",
        [WSC],
        {"text": WSC["text"], **WSC["target"], "idx": 0, "label": 1},  # type: ignore[dict-item]
        "wsc: The pony threw *him* over, the boy said.",
        "the boy",
    ),
    "glue/cola": (
        "dev.tsv",
        'gj04\t1\t\tHe ran.\ngj04\t0\t*\tHe "runned.\n',
        {"sentence": 'He "runned.', "label": 0, "idx": 1},
        'cola sentence: He "runned.',
        "unacceptable",
    ),
    "glue/sst2": (
        "dev.tsv",
        "sentence\tlabel\na fine film \t1\n",
        {"sentence": "a fine film ", "label": 1, "idx": 0},
        "sst2 sentence: a fine film ",
        "positive",
    ),
    "glue/mrpc": (
        "dev.tsv",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tA.\tB.\n",
        {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
        "mrpc sentence1: A. sentence2: B.",
        "equivalent",
    ),
    "glue/qqp": (
        "dev.tsv",
        # As in the real files, one question is broken into two lines.
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tBroken\noff?\tWhy?\t1\n6\t3\t4\tA?\tB?\t0\n",
        {"question1": "A?", "question2": "B?", "label": 0, "idx": 6},
        "qqp question1: A? question2: B?",
        "not_duplicate",
    ),
    "glue/stsb": (
        "dev.tsv",
        "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tA.\tB.\t3.75\n",
        {"sentence1": "A.", "sentence2": "B.", "label": 3.75, "idx": 0},
        "stsb sentence1: A. sentence2: B.",
        "3.8",
    ),
    "glue/mnli": (
        "dev_matched.tsv",
        "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tP.\tH.\tneutral\tcontradiction\n",
        {"premise": "P.", "hypothesis": "H.", "label": 2, "idx": 0},
        "mnli hypothesis: H. premise: P.",
        "contradiction",
    ),
    "glue/qnli": (
        "dev.tsv",
        "index\tquestion\tsentence\tlabel\n0\tQ?\tS.\tentailment\n",
        {"question": "Q?", "sentence": "S.", "label": 0, "idx": 0},
        "qnli question: Q? sentence: S.",
        "entailment",
    ),
    "glue/rte": (
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n",
        {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
        "rte sentence1: A. sentence2: B.",
        "not_entailment",
    ),
    "glue/wnli": (
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n",
        {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
        "wnli sentence1: A. sentence2: B.",
        "entailment",
    ),
    "squad": (
        "dev-v1.1.json",
        {"version": "1.1", "data": [{"title": "Ada", "paragraphs": [SQUAD_PARAGRAPH]}]},
        {
            "id": "a",
            "title": "Ada",
            "context": SQUAD_PARAGRAPH["context"],
            "question": "Who wrote?",
            "answers": {"text": ["Ada Lovelace", "Ada", "Ada Lovelace"], "answer_start": [0, 0, 0]},
        },
        "question: Who wrote? context: Ada Lovelace (1815-1852) wrote notes.",
        "Ada Lovelace",
    ),
    "xsum": (
        "validation.jsonl",
        [{"document": "A long text.", "summary": "A text.", "id": "1"}],
        {"document": "A long text.", "summary": "A text.", "id": "1"},
        "summarize: A long text.",
        "A text.",
    ),
    "cnn_dailymail": (
        "validation.jsonl",
        [{"article": "A long text.", "highlights": "A text .\nShort .", "id": "1"}],
        {"article": "A long text.", "highlights": "A text .\nShort .", "id": "1"},
        "summarize: A long text.",
        "A text .\nShort .",
    ),
    "wmt/en-de": (
        "validation.tsv",
        "en\tde\nThat is good.\tDas ist gut.\n",
        {"translation": {"en": "That is good.", "de": "Das ist gut."}},
        "translate English to German: That is good.",
        "Das ist gut.",
    ),
    "wmt/en-fr": (
        "validation.jsonl",
        [{"en": "Yes.", "fr": "Oui."}],
        {"translation": {"en": "Yes.", "fr": "Oui."}},
        "translate English to French: Yes.",
        "Oui.",
    ),
    "wmt/en-ro": (
        "validation.jsonl",
        [{"en": "Yes.", "ro": "Da."}],
        {"translation": {"en": "Yes.", "ro": "Da."}},
        "translate English to Romanian: Yes.",
        "Da.",
    ),
}
