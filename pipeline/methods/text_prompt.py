"""Prompt design as a method (Brown et al. 2020): a wording of the task, and demonstrations before each input.

    demonstration_1 separator … demonstration_k separator template(input)

`text_prompt.json` contains all that is needed to build the same inputs anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.core.records import Record
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTexts, encode_inputs
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.base import Candidate


class TextPrompt(Record):
    """text_prompt.json."""

    file_name: ClassVar[str] = "text_prompt.json"
    what: ClassVar[str] = "a text prompt"
    repair: ClassVar[str] = "run prompt_design again to rebuild it"

    format: Literal[1] = 1
    base_model: str = Field(description="name or path of the T5 that it was written for")
    base_model_digest: str
    tokenizer_digest: str
    task: TaskConfig
    sentinel: Sentinel
    template: str = Field(description="wording of an input, with {input} for the task's own")
    demonstrations: list[str] = Field(description="training rows shown before each input, as texts")
    separator: str
    seed: int = Field(ge=0, description="seed that the demonstrations were drawn with")
    max_input_length: int = Field(gt=0)
    max_target_length: int = Field(gt=0)
    scores: dict[str, float] = Field(default_factory=dict, description="metric → value on the validation split")

    def word(self, text: str, shown: int | None = None) -> str:
        """An input in this wording, after the last `shown` demonstrations (None: all).

        Braces in the texts are kept.
        """
        demonstrations = (
            self.demonstrations if shown is None else self.demonstrations[len(self.demonstrations) - shown :]
        )
        return self.separator.join([*demonstrations, self.template.replace("{input}", text)])

    def encode(self, texts: Sequence[str], vocabulary: Vocabulary) -> EncodedTexts:
        """Ids of inputs; demonstrations are dropped (first ones first) before an input is truncated."""
        found = encode_inputs([self.word(text) for text in texts], vocabulary, 2**31, self.sentinel).ids
        whole = list(map(len, found))
        for i, text in enumerate(texts):
            shown = len(self.demonstrations)
            while len(found[i]) > self.max_input_length and shown:
                shown -= 1
                (found[i],) = encode_inputs([self.word(text, shown)], vocabulary, 2**31, self.sentinel).ids
            if len(found[i]) > self.max_input_length:
                (found[i],) = encode_inputs([self.word(text, 0)], vocabulary, self.max_input_length, self.sentinel).ids
        return EncodedTexts(found, [before - len(ids) for before, ids in zip(whole, found, strict=True)])


def candidates(artifact: Artifact) -> Iterator[Candidate]:
    prompt = TextPrompt.load(artifact.path)
    shots = len(prompt.demonstrations)
    about = {"seed": prompt.seed, "variant": _shots(shots), "trained": 0}
    yield Candidate.of("prompt design", artifact, prompt, about, encode=prompt.encode)


def _shots(number: int) -> str:
    """A number of demonstrations as text.

    >>> _shots(0), _shots(1), _shots(4)
    ('zero-shot', '1 shot', '4 shots')
    """
    return "zero-shot" if number == 0 else f"{number} shot{'s' if number > 1 else ''}"


def demonstrations(
    rows: Sequence[tuple[str, str]], labels: Sequence[str] | None, shots: int, seed: int, template: str, form: str
) -> list[str]:
    """Training rows as demonstrations, drawn by the seed; if the task has labels, the labels take turns.

    Args:
        rows: input and target of each training row.
        template: wording of an input.
        form: wording of a demonstration: `{input} {target}`.
    """
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    if labels:
        of_label = [[i for i in order if rows[i][1] == label] for label in labels]
        in_turn = [queue[turn] for turn in range(len(order)) for queue in of_label if turn < len(queue)]
    else:
        in_turn = order
    before, _, rest = form.partition("{input}")
    chosen = []
    for i in in_turn[:shots]:
        worded = template.replace("{input}", rows[i][0])
        # Each placeholder is filled once, so that placeholders in a row's own text are kept.
        chosen.append(before.replace("{target}", rows[i][1]) + worded + rest.replace("{target}", rows[i][1]))
    return chosen
