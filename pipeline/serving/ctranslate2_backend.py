"""The T5 of a scheduler in CTranslate2, with the rows of all prompts as vocabulary (vocabulary_export.py).

CTranslate2 computes with float32 or int8 weights. Compared with torch_backend.py:

- Prompts are part of the model, so they are those of the start.
- Texts are decoded greedily.
- Texts join between calls of CTranslate2. A call decodes at least `_STRIDE` tokens, and at most doubles the longest
  text, so a text is read again only log2(length) times, and delays others by no more than it has taken itself.
- An input is read once for each label, not once for all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.serving.continuous import Text
from t5_pipeline.serving.jobs import Job
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.vocabulary_export import (
    PromptTokens,
    add_rows,
    assign_ids,
    write_ctranslate2,
    write_row_tokens,
)

_COMPUTE_TYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}
_STRIDE = 32  # tokens
_SCORED = 64  # pairs of input and label in a batch


class CTranslate2Backend:
    """A CTranslate2 model and the texts that it is decoding (a `Backend`).

    Args:
        translator: a `ctranslate2.Translator`.
        pieces: its vocabulary.
        rows: ids of each prompt's rows, by the prompt's name.
        end: a row with the embedding of EOS.
    """

    samples = False

    def __init__(
        self,
        translator: Any,
        pieces: Sequence[str],
        rows: Mapping[str, PromptTokens],
        end: PromptTokens,
        embedding_VD: Tensor,
        eos: int,
    ) -> None:
        self.translator, self.pieces, self.rows, self.end, self.embedding_VD, self.eos = (
            translator, pieces, rows, end, embedding_VD, eos,
        )  # fmt: skip
        self._texts: list[tuple[Text[Job], list[str]]] = []  # with the pieces of their inputs

    @classmethod
    def load(cls, store: PromptStore, precision: str = "fp32") -> CTranslate2Backend:
        """Convert the T5 of a store with its prompts, in a temporary directory that is deleted at the end.

        Raises:
            InputError: if CTranslate2 is not installed, or does not support the precision here.
        """
        try:
            import ctranslate2
        except ImportError:
            raise InputError("ctranslate2 is not installed; pip install 't5-pipeline[export]'") from None
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        kind = _COMPUTE_TYPES[precision]
        if kind not in ctranslate2.get_supported_compute_types(device):
            raise InputError(
                f"--precision: CTranslate2 has no {precision} on this {device.upper()}; choose another precision"
            )
        prompts = store.all()
        # Names may contain anything; numbers are fine as parts of tokens.
        rows_PD = {str(number): prompt.rows_PD for number, prompt in enumerate(prompts.values())}
        t5, eos = load_t5(store.model), store.vocabulary.eos
        embedding_VD = t5.shared.weight.detach()
        rows_PD["end"] = embedding_VD[eos : eos + 1]
        tokens = assign_ids(rows_PD, store.vocabulary.size)
        with tempfile.TemporaryDirectory(prefix="t5-pipeline-ctranslate2-") as scratch:
            directory = Path(scratch, "model")
            directory.mkdir()
            write_row_tokens(directory, store.vocabulary, tokens.values())
            write_ctranslate2(directory, add_rows(t5, rows_PD, tokens), tokens.values(), None)
            pieces = json.loads((directory / "shared_vocabulary.json").read_text(encoding="utf-8"))
            translator = ctranslate2.Translator(
                str(directory), device, compute_type=kind, intra_threads=torch.get_num_threads()
            )
        *of_prompts, end = tokens.values()
        return cls(translator, pieces, dict(zip(prompts, of_prompts, strict=True)), end, embedding_VD, eos)

    @property
    def decoding(self) -> Sequence[Job]:
        return [text.owner for text, _ in self._texts]

    def score(self, jobs: Sequence[Job]) -> list[list[float]]:
        pairs = [(source, label) for job in jobs for source in [self._source(job)] for label in job.label_ids]
        found = self.translator.score_batch(
            [source for source, _ in pairs],
            [self._pieces(label[:-1]) for _, label in pairs],  # CTranslate2 adds EOS
            max_batch_size=_SCORED,
            max_input_length=0,
        )
        left = iter(found)
        return [[sum(next(left).log_probs) for _ in job.label_ids] for job in jobs]

    def join(self, jobs: Sequence[Job]) -> None:
        self._texts += [(Text(job, job.max_length), self._source(job)) for job in jobs]

    def step(self) -> list[tuple[Job, list[int]]]:
        texts = [text for text, _ in self._texts]
        if not texts:
            return []
        begin = [len(text.ids) for text in texts]

        def on_token(step: Any) -> bool:
            """Note a token; True ends the text, at least for this call."""
            text = texts[step.batch_id]
            if step.step < begin[step.batch_id]:  # a token of the prefix
                return False
            text.ids.append(step.token_id)
            if text.owner.on_token is not None:
                text.owner.on_token(list(text.ids))
            return len(text.ids) >= text.max_length or text.owner.cancelled.is_set()

        self.translator.translate_batch(
            [source for _, source in self._texts],
            [self._pieces(text.ids) or None for text in texts],
            beam_size=1,
            max_input_length=0,
            min_decoding_length=0,
            max_decoding_length=max(begin) + max(_STRIDE, *begin),
            callback=on_token,
        )
        ended = [text for text in texts if text.ids[-1] == self.eos or len(text.ids) >= text.max_length]
        self.drop([text.owner for text in ended])
        return [(text.owner, text.ids) for text in ended]

    def drop(self, jobs: Sequence[Job]) -> None:
        dropped = {id(job) for job in jobs}
        self._texts = [(text, source) for text, source in self._texts if id(text.owner) not in dropped]

    def _pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.pieces[i] for i in ids]

    def _source(self, job: Job) -> list[str]:
        """The rows of the prompt and the input."""
        rows = [] if job.prompt is None else self.rows[job.prompt.name].tokens
        source = [*rows, *self._pieces(job.ids)]
        # CTranslate2 answers EOS alone, which is an empty text, with nothing.
        return source if len(source) > 1 else self.end.tokens
