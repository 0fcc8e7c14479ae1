"""One T5 in memory, and the answers of all candidates that use it, in shared batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from t5_pipeline.config.stage import Precision
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.decoding import BROKEN, Continuations, Decoding, NoAnswer, tokens
from t5_pipeline.evaluation.predict import AnswerOptions, Outputs, Query, answer_each, answer_mixture, autocast
from t5_pipeline.methods.base import Candidate, ReadingModel
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import BareT5, PromptBank, PromptedT5


@dataclass(frozen=True)
class Asked(Query):
    """A query with the candidate that answers it; None for the T5 without a prompt."""

    candidate: Candidate | None = None


class Answerer:
    """A T5 and the candidates that answer with it.

    Attributes:
        t5: the T5.
        vocabulary: its vocabulary.
        model: the T5 with the prompts of all candidates in one bank.
    """

    def __init__(
        self,
        path: Path,
        candidates: Sequence[Candidate],
        precision: Precision,
        device: torch.device,
        keep_models: bool = False,
    ) -> None:
        """
        Args:
            path: directory of the T5, or its name on the hub.
            precision: "bf16" or "fp32".
            keep_models: keep models that answer instead of the T5 (adapters) in memory after their first answer.

        Raises:
            InputError: if the T5 cannot be loaded.
        """
        self.path, self.precision, self.device, self.keep_models = path, precision, device, keep_models
        self.t5 = load_t5(path, torch.bfloat16 if precision == "bf16" else torch.float32)
        self.vocabulary = Vocabulary.load(path)
        self._loaded: dict[int, ReadingModel] = {}
        self._use(candidates)

    def _use(self, candidates: Sequence[Candidate]) -> None:
        prompts = [rows_PD for candidate in candidates for rows_PD in candidate.prompts]
        model = PromptedT5(self.t5, PromptBank(prompts)) if prompts else BareT5(self.t5)
        self.model: ReadingModel = model.to(self.device)
        # Each candidate's prompts in the bank.
        self._places: dict[int, range] = {}
        begin = 0
        for candidate in candidates:
            self._places[id(candidate)] = range(begin, begin + len(candidate.prompts))
            begin += len(candidate.prompts)

    def with_candidates(self, candidates: Sequence[Candidate]) -> Answerer:
        """The same T5 with other candidates; answers of this one that are being computed do not change."""
        other = copy.copy(self)
        other._loaded = {id(one): self._loaded[id(one)] for one in candidates if id(one) in self._loaded}
        other._use(candidates)
        return other

    def serving(self, candidates: Sequence[Candidate]) -> Answerer:
        """The same T5 with other candidates, whose own models stay in memory after their first answer."""
        other = self.with_candidates(candidates)
        other.keep_models, other._loaded = True, {}
        return other

    def answer(
        self,
        asked: Sequence[Asked],
        batch_size: int,
        decoding: Decoding | None = None,
        on_batch: Callable[[int], None] = lambda queries: None,
    ) -> Outputs:
        """The answers, in order; each is that of its candidate alone, up to floating-point rounding.

        Single prompts share batches; so do candidates that read the T5 without a prompt.

        Args:
            batch_size, on_batch: as of `AnswerOptions`.
            decoding: the way to decode free text (default: greedily).
        """
        options = AnswerOptions(self.device, self.precision, batch_size, decoding or Decoding(), on_batch)
        outputs = Outputs.none(len(asked))
        groups: dict[object, list[int]] = {}
        for i, one in enumerate(asked):
            groups.setdefault(_group(one.candidate), []).append(i)
        for places in groups.values():
            outputs.put(places, self._answer_group([asked[i] for i in places], options))
        return outputs

    @torch.no_grad()
    def stream(self, asked: Asked, decoding: Decoding, answering: str) -> Iterator[str]:
        """The text of one answer after each of its tokens; only for a single prompt or none, without beams.

        Args:
            answering: what answers, for errors.

        Raises:
            NoAnswer: if logits are not finite.
        """
        model, prompt_B = self.model, None
        candidate = asked.candidate
        if candidate is not None and candidate.load_model is not None:
            model = self._model_of(candidate)
        elif candidate is not None and candidate.prompts:
            prompt_B = torch.tensor([self._places[id(candidate)][0]])
        model.eval()
        ids_BS = torch.from_numpy(asked.ids.astype("int64"))[None].to(self.device)
        # The caller's code runs between two tokens, outside of autocast.
        with autocast(self.device, self.precision):
            texts = Continuations(model, *model.encode(prompt_B, ids_BS))
        following, ids = tokens(texts, asked.form.max_length, decoding.chooser([asked.number])), []
        while True:
            with autocast(self.device, self.precision):
                token_B = next(following, None)
            if token_B is None:
                return
            ids.append(int(token_B))
            if ids[-1] == BROKEN:
                raise NoAnswer(answering)
            yield asked.form.decode(ids)

    def _answer_group(self, asked: Sequence[Asked], options: AnswerOptions) -> Outputs:
        """The answers to queries whose candidates share batches."""
        first = asked[0].candidate
        if first is not None and first.weights:
            return answer_mixture(self.model, self._places[id(first)], first.weights, asked, options)
        if first is not None and first.load_model is not None:
            return answer_each(self._model_of(first), None, asked, options)
        if first is not None and first.prompts:
            places = [self._places[id(one.candidate)][0] for one in asked]
            return answer_each(self.model, places, asked, options)
        return answer_each(self.model, None, asked, options)

    def _model_of(self, candidate: Candidate) -> ReadingModel:
        """The model that answers instead of the T5."""
        assert candidate.load_model is not None
        model = self._loaded.get(id(candidate)) or candidate.load_model(self.path).to(self.device)
        if self.keep_models:
            self._loaded[id(candidate)] = model
        return model


def _group(candidate: Candidate | None) -> object:
    """A key that is equal for candidates whose inputs share batches."""
    if candidate is None or not (candidate.weights or candidate.load_model is not None or candidate.prompts):
        return "no prompt"
    return "prompt" if candidate.is_single_prompt else id(candidate)
