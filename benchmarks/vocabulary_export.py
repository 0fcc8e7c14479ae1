"""Prompts as vocabulary in other people's engines: agreement, size and speed of label scoring.

Needs the finished demo (`make demo`). Its adapted T5 with three prompts of 20 rows is exported to each target, and the
450 test pages are scored, prompt by prompt in turn: log p of each label and the likeliest one, in batches of 32 of
similar length, on the threads of `--threads`. The engine here (fp32) is the reference and takes turns with each target.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import paired, seconds
from t5_pipeline.data_prep.sampling.batches import padded
from t5_pipeline.data_prep.tasks.encode import encode_inputs, encode_labels
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.label_scoring import score_labels
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.vocabulary_export import PromptTokens, export

DEMO = Path("runs/demo")
BATCH = 32
Scores = np.ndarray[Any, Any]  # [N, labels]


class Inputs:
    """The test pages with a prompt each, in batches of similar length."""

    def __init__(self, prompts: Sequence[Prompt], vocabulary: Vocabulary) -> None:
        info = prompts[0].info
        task = Task.load(info.task)
        texts = [task.inputs(row) for row in task.rows("test")]
        self.ids = [ids.tolist() for ids in encode_inputs(texts, vocabulary, info.max_input_length, info.sentinel).ids]
        self.prompt = [i % len(prompts) for i in range(len(texts))]
        self.labels = [ids.tolist() for ids in encode_labels(info.task.labels or [], vocabulary, info.sentinel)]

    def batches(self) -> Iterator[list[int]]:
        order = sorted(range(len(self.ids)), key=lambda i: len(self.ids[i]))
        yield from (order[start : start + BATCH] for start in range(0, len(order), BATCH))

    def with_rows(self, i: int, tokens: Sequence[PromptTokens]) -> list[int]:
        """Ids as the exported tokenizer gives them."""
        one = tokens[self.prompt[i]]
        return [*range(one.first, one.first + one.length), *self.ids[i]]


@torch.no_grad()
def here(model: PromptedT5, inputs: Inputs) -> Scores:
    scores = np.zeros((len(inputs.ids), len(inputs.labels)))
    for rows in inputs.batches():
        encoded, mask = model.encode(
            torch.tensor([inputs.prompt[i] for i in rows]),
            torch.tensor(padded([np.array(inputs.ids[i]) for i in rows], 0)),
        )
        scores[rows] = score_labels(model, encoded, mask, inputs.labels).numpy()
    return scores


def in_transformers(directory: Path, inputs: Inputs, tokens: Sequence[PromptTokens]) -> Callable[[], Scores]:
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(directory).eval()

    @torch.no_grad()
    def score() -> Scores:
        scores = np.zeros((len(inputs.ids), len(inputs.labels)))
        for rows in inputs.batches():
            ids_BS = torch.tensor(padded([np.array(inputs.with_rows(i, tokens)) for i in rows], 0)).long()
            encoded = model.get_encoder()(input_ids=ids_BS, attention_mask=(ids_BS != 0).long())
            for column, label in enumerate(inputs.labels):
                decoder_ids_BT = torch.tensor([[0, *label[:-1]]]).expand(len(rows), -1)
                logits_BTV = model(
                    encoder_outputs=encoded, attention_mask=(ids_BS != 0).long(), decoder_input_ids=decoder_ids_BT
                ).logits
                picked = torch.tensor(label)[None, :, None].expand(len(rows), -1, 1)
                scores[rows, column] = logits_BTV.log_softmax(-1).gather(-1, picked).sum((1, 2)).numpy()
        return scores

    return score


def in_ctranslate2(
    directory: Path, inputs: Inputs, tokens: Sequence[PromptTokens], compute_type: str
) -> Callable[[], Scores]:
    import ctranslate2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    translator = ctranslate2.Translator(
        str(directory), compute_type=compute_type, intra_threads=torch.get_num_threads()
    )
    sources = [tokenizer.convert_ids_to_tokens(inputs.with_rows(i, tokens)) for i in range(len(inputs.ids))]
    targets = [tokenizer.convert_ids_to_tokens(label[:-1]) for label in inputs.labels]

    def score() -> Scores:
        pairs = [(source, target) for source in sources for target in targets]
        found = translator.score_batch(
            [source for source, _ in pairs], [target for _, target in pairs], max_batch_size=BATCH * len(targets)
        )
        return np.array([sum(one.log_probs) for one in found]).reshape(len(sources), len(targets))

    return score


def in_onnx(directory: Path, inputs: Inputs, tokens: Sequence[PromptTokens]) -> Callable[[], Scores]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    encoder, decoder = (
        onnxruntime.InferenceSession(directory / f"{part}_model.onnx", options) for part in ("encoder", "decoder")
    )

    def score() -> Scores:
        scores = np.zeros((len(inputs.ids), len(inputs.labels)))
        for rows in inputs.batches():
            ids_BS = padded([np.array(inputs.with_rows(i, tokens)) for i in rows], 0).astype(np.int64)
            mask_BS = (ids_BS != 0).astype(np.int64)
            (encoded,) = encoder.run(None, {"input_ids": ids_BS, "attention_mask": mask_BS})
            for column, label in enumerate(inputs.labels):
                decoder_ids = np.tile(np.array([[0, *label[:-1]]]), (len(rows), 1))
                given = {
                    "input_ids": decoder_ids, "encoder_hidden_states": encoded, "encoder_attention_mask": mask_BS
                }  # fmt: skip
                (logits,) = decoder.run(None, given)
                log_p = torch.from_numpy(logits).log_softmax(-1)
                picked = torch.tensor(label)[None, :, None].expand(len(rows), -1, 1)
                scores[rows, column] = log_p.gather(-1, picked).sum((1, 2)).numpy()
        return scores

    return score


def run(rounds: int, data: Path) -> dict[str, Any] | None:
    model_dir = DEMO / "lm_adapt"
    if not model_dir.is_dir():
        print(f"{DEMO}: does not exist; run `make demo` first", flush=True)
        return None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "prompts"
        folder.mkdir()
        for seed in range(3):
            (folder / f"kind-{seed}").symlink_to((DEMO / f"prompt_tune/model=lm_adapt,seed={seed}").resolve())
        prompts = [Prompt.load(folder / f"kind-{seed}" / "prompt") for seed in range(3)]
        vocabulary = Vocabulary.load(model_dir / "model")
        inputs = Inputs(prompts, vocabulary)
        own = PromptedT5(load_t5(model_dir / "model"), PromptBank([prompt.rows_PD for prompt in prompts])).eval()
        reference = here(own, inputs)
        rows = []
        for form, kind in (
            ("transformers", "fp32"), ("ctranslate2", "float32"), ("ctranslate2", "int8"), ("onnx", "fp32"),
        ):  # fmt: skip
            to = Path(scratch) / f"{form}-{kind}"
            tokens = list(
                export(
                    str(model_dir), str(folder), form, str(to), quantization="int8" if kind == "int8" else None
                ).values()
            )
            if form == "transformers":
                score = in_transformers(to, inputs, tokens)
            elif form == "ctranslate2":
                score = in_ctranslate2(to, inputs, tokens, kind)
            else:
                score = in_onnx(to, inputs, tokens)
            found = score()
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(rounds):
                times["ours"].append(seconds(lambda: here(own, inputs)))
                times["theirs"].append(seconds(score))
            rows.append(
                {
                    "target": f"{form}, {kind}",
                    "bytes": sum(file.stat().st_size for file in to.iterdir()),
                    "largest_difference_nats": float(np.abs(found - reference).max()),
                    "median_difference_nats": statistics.median(np.abs(found - reference).max(1).tolist()),
                    "same_answer": int((found.argmax(1) == reference.argmax(1)).sum()),
                    "inputs": len(reference),
                }
                | paired(form, times["ours"], times["theirs"])
            )
    return {"rows": rows}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| target | size | largest difference of a label's log p | same answer | time relative to `t5-pipeline` |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['target']} | {row['bytes'] / 1e6:.1f} MB | {row['largest_difference_nats']:.2g} nats |"
            f" {row['same_answer']} of {row['inputs']} | {row['times_faster']} × |"
        )
    return "\n".join(lines)
