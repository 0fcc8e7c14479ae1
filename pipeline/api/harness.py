"""A T5 with a soft prompt as a model of lm-evaluation-harness (`pip install 't5-pipeline[lm_eval]'`).

    lm_eval.simple_evaluate(model=HarnessLM("runs/adapted", "runs/rte"), tasks=["my-rte"])

The harness must render inputs as the prompt was trained: `doc_to_text` of its task is the task's input template, and a
choice is a label. log p is that of a whole target with its EOS, as in `predict`; spaces around it do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from t5_pipeline.api.parameters import check_at_least, check_paths, check_precision
from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.config.stage import Precision
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.encode import encode_inputs, encode_labels
from t5_pipeline.evaluation.decoding import Decoding, NoAnswer
from t5_pipeline.evaluation.predict import AnswerForm, AnswerOptions, Outputs, Query, answer_each
from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.prompt_bank import BareT5, PromptBank, PromptedT5
from t5_pipeline.serving.frozen_t5 import FrozenT5

try:
    from lm_eval.api.model import LM
except ImportError:
    raise InputError("lm-evaluation-harness is not installed; pip install 't5-pipeline[lm_eval]'") from None

MAX_INPUT_LENGTH, MAX_OUTPUT_LENGTH = 512, 256  # tokens, without a prompt or a limit of the harness's task


class HarnessLM(LM):
    """A T5, with or without a soft prompt, that answers the requests of lm-evaluation-harness."""

    def __init__(
        self,
        model: str | Path,
        prompt: str | Path | None = None,
        precision: Precision = "bf16",
        batch_size: int = 64,
    ) -> None:
        """
        Args:
            model: directory, stage directory or hub name of a T5.
            prompt: prompt or stage that was trained on it; None for the T5 alone.
            precision: "bf16" or "fp32".
            batch_size: requests per batch.

        Raises:
            InputError: if a file cannot be read, the prompt was not trained on this T5, or another parameter is wrong.
        """
        check_paths(model=model, **({} if prompt is None else {"prompt": prompt}))
        check_precision(precision)
        check_at_least(1, batch_size=batch_size)
        super().__init__()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision, self.size = precision, batch_size
        frozen = FrozenT5.find(str(model), "model")
        t5 = frozen.load(str(model))
        self.vocabulary, self.sentinel, self.max_input_length = t5.vocabulary, t5.sentinel, MAX_INPUT_LENGTH
        self.with_prompt, answering = prompt is not None, BareT5(t5.t5)
        if prompt is not None:
            found = Prompt.load(locate_one("prompt", str(prompt), "prompt"))
            frozen.check_prompt(f"{prompt}:", found.info)
            self.sentinel, self.max_input_length = found.info.sentinel, found.info.max_input_length
            answering = PromptedT5(t5.t5, PromptBank([found.rows_PD]))
        self.model: ReadingModel = answering.to(self._device)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """log p of each continuation with its EOS, and whether greedy decoding gives it."""
        targets = [one.args[1].strip() for one in requests]
        target_ids = [ids.tolist() for ids in encode_labels(targets, self.vocabulary, self.sentinel)]
        forms = [AnswerForm(_numbers, [_numbers(ids)], [ids], len(ids)) for ids in target_ids]
        outputs = self._answer([one.args[0] for one in requests], forms)
        return [
            (scores[0], decoded == form.labels[0])
            for scores, decoded, form in zip(outputs.scores, outputs.decoded, forms, strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Not available: an encoder-decoder has no log p of a text that is both input and target."""
        raise InputError("harness: a T5 does not compute the perplexity of whole texts; choose another task")

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Each decoded text up to its first stop string: greedily, with beams, or sampled by `do_sample`."""
        found = [""] * len(requests)
        settings = [one.args[1] for one in requests]
        for same in {repr(given): given for given in settings}.values():
            rows = [i for i, given in enumerate(settings) if given == same]
            temperature = float(same.get("temperature", 1.0)) if same.get("do_sample") else 0.0
            decoding = Decoding(int(same.get("num_beams", 1)), temperature=temperature, top_p=same.get("top_p", 1.0))
            form = AnswerForm(self._text, max_length=int(same.get("max_gen_toks", MAX_OUTPUT_LENGTH)))
            outputs = self._answer([requests[i].args[0] for i in rows], [form] * len(rows), decoding)
            stops = same.get("until") or []
            for i, text in zip(rows, outputs.decoded, strict=True):
                for stop in [stops] if isinstance(stops, str) else stops:
                    text = text.partition(stop)[0] if stop else text
                found[i] = text
        return found

    def _answer(self, texts: list[str], forms: list[AnswerForm], decoding: Decoding | None = None) -> Outputs:
        inputs = encode_inputs(texts, self.vocabulary, self.max_input_length, self.sentinel).ids
        prompts = [0] * len(texts) if self.with_prompt else None
        queries = [Query(ids, form, number) for number, (ids, form) in enumerate(zip(inputs, forms, strict=True))]
        options = AnswerOptions(self._device, self.precision, self.size, decoding or Decoding())
        outputs = answer_each(self.model, prompts, queries, options)
        if any(outputs.broken):
            raise NoAnswer("harness")
        return outputs

    def _text(self, ids: Sequence[int]) -> str:
        return self.vocabulary.decode(self.vocabulary.strip_sentinel(ids, self.sentinel))


def _numbers(ids: Sequence[int]) -> str:
    """Ids as text, to compare them."""
    return " ".join(map(str, ids))
