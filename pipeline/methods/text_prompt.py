"""A prompt in words: a task's wording and the rows that are shown before each input (Brown et al. 2020).

    demonstration_1 separator … demonstration_k separator template(input)

On disk `text_prompt.json`, with all that is needed to build the same inputs anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import encode_inputs
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

NAME = "text_prompt.json"


class TextPrompt(BaseModel):
    """What text_prompt.json says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    base_model: str = Field(description="name or path of the T5 that it was worded for")
    base_model_digest: str
    tokenizer_digest: str
    task: TaskConfig
    sentinel: Literal["none", "targets", "both"]
    template: str = Field(description="wording of an input, with {input} for the task's own")
    demonstrations: list[str] = Field(description="rows that are shown before each input, ready texts")
    separator: str
    seed: int = Field(ge=0, description="seed that the rows were drawn by")
    max_input_length: int = Field(gt=0)
    max_target_length: int = Field(gt=0)
    scores: dict[str, float] = Field(default_factory=dict, description="metric → value on the validation split")

    def word(self, text: str, shown: int | None = None) -> str:
        """An input in this wording, after the last `shown` demonstrations; None shows all.

        Braces in the texts stay as they are.
        """
        demonstrations = (
            self.demonstrations if shown is None else self.demonstrations[len(self.demonstrations) - shown :]
        )
        return self.separator.join([*demonstrations, self.template.replace("{input}", text)])

    def encode(self, texts: Sequence[str], vocabulary: Vocabulary) -> list[npt.NDArray[np.int32]]:
        """Ids of inputs. Where one is too long, demonstrations give way, first ones first; then it is cut."""
        found = encode_inputs([self.word(text) for text in texts], vocabulary, 2**31, self.sentinel)
        for i, text in enumerate(texts):
            shown = len(self.demonstrations)
            while len(found[i]) > self.max_input_length and shown:
                shown -= 1
                (found[i],) = encode_inputs([self.word(text, shown)], vocabulary, 2**31, self.sentinel)
            if len(found[i]) > self.max_input_length:
                (found[i],) = encode_inputs([self.word(text, 0)], vocabulary, self.max_input_length, self.sentinel)
        return found

    def save(self, directory: Path) -> None:
        content = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        write_text(directory / NAME, content + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> TextPrompt:
        """Read it back. Raises InputError that names the file, and the key that is wrong."""
        path = Path(directory) / NAME
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            return cls.model_validate(content)
        except OSError:
            raise InputError(f"{path}: not there; give a directory that prompt_design wrote") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the whole file"
            raise InputError(f"{path}: {key}: {first['msg']}") from None
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON ({error})") from None


def demonstrations(
    rows: Sequence[tuple[str, str]], labels: Sequence[str] | None, shots: int, seed: int, template: str, form: str
) -> list[str]:
    """Training rows as they are shown, drawn by the seed; of a task with labels, the labels in turn.

    Args:
        rows: input and target of each training row.
        template, form: wording of an input, and of a row: `{input} {target}`.
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
        # Each placeholder is filled once, so that one in a row's own text stays text.
        chosen.append(before.replace("{target}", rows[i][1]) + worded + rest.replace("{target}", rows[i][1]))
    return chosen
