"""A frozen T5 with prompts, for use in Python."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from t5_pipeline.api.examples import Example, parameter_of, write_examples
from t5_pipeline.api.parameters import (
    check_at_least,
    check_no_table,
    check_numbers,
    check_paths,
    check_precision,
    check_texts,
    device_named,
)
from t5_pipeline.artifacts.collection import unusable
from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.config.stage import Precision
from t5_pipeline.core.atomic_files import write_directory
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import check_file_name, refuse_to_replace
from t5_pipeline.core.prompt_names import check_prompt_name
from t5_pipeline.data_prep.corpora.row import Row, listed
from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.evaluation.ensemble import Classification, classified, voters
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.serving.engine import Answer, Engine
from t5_pipeline.serving.frozen_t5 import FrozenT5
from t5_pipeline.serving.package import write_package
from t5_pipeline.serving.pieces import Pieces
from t5_pipeline.serving.question import Question
from t5_pipeline.serving.transfer import push
from t5_pipeline.tune.run import TuneRun
from t5_pipeline.tune.task import one_task

Input = str | Mapping[str, Any]
"""A finished input text, or the fields for the template of the prompt."""

Names = str | Sequence[str | Sequence[str]] | None
"""The prompt of all inputs ("a"; "a+b+c" votes, unless it is the name of one prompt), or a list with one for each
input; None if there is only one."""


def load(
    model: str | Path,
    prompts: str | Path | None = None,
    *,
    precision: Precision = "fp32",
    device: str | torch.device | None = None,
) -> PromptedModel:
    """Load a frozen T5 and prompts.

    Args:
        model: a model directory, a stage's directory, or the name of a hub model.
        prompts: a prompt, the directory of a stage, or a folder of these; a prompt is named after its directory. Those
            that are damaged or of another T5 are left out, with a warning that names each, and an input that names one
            is an error. None for no prompts yet.
        precision: "fp32" or "bf16", of weights and matrix products.
        device: default: the first GPU if there is one, otherwise the CPU.

    Raises:
        InputError: if the model does not exist, none of the prompts can be used, or another parameter is wrong.
    """
    check_paths(model=model, **({} if prompts is None else {"prompts": prompts}))
    check_precision(precision)
    where = device_named(device)
    if prompts is None:
        t5 = FrozenT5.find(str(model), "model")
        return PromptedModel(Engine(t5, {}, precision=precision, device=where))
    engine = Engine.load(str(model), str(prompts), precision=precision, device=where, named=str)
    if engine.refused:
        total = len(engine.refused) + len(engine.prompts)
        warnings.warn(f"{unusable(f'prompts: {prompts}', engine.refused, total)}; not loaded", stacklevel=2)
    return PromptedModel(engine)


class PromptedModel:
    """A frozen T5 in memory, and its prompts; made by `load`.

    Inputs with different prompts share batches. Answers do not depend on what else is in a batch, up to floating-point
    rounding. Inputs that are longer than in training are cut, with a warning.
    """

    def __init__(self, engine: Engine) -> None:
        assert engine.t5 is not None
        self._engine, self._model = engine, str(engine.t5.path)
        self._tuned: dict[str, Prompt] = {}  # their directories may be temporary

    def __repr__(self) -> str:
        return f"PromptedModel({self._model}, prompts: {', '.join(self.prompts) or 'none'})"

    @property
    def prompts(self) -> list[str]:
        """Names of the prompts."""
        return list(self._engine.prompts)

    # --------------------------------------------------------------------------------------------------------- answers

    def classify(self, inputs: Sequence[Input], prompt: Names = None, *, batch_size: int = 64) -> list[Classification]:
        """Classify inputs by the probability of each label.

        Args:
            inputs: texts, or fields for the template of the prompt.
            prompt: names, as described at `Names`.
            batch_size: inputs per batch.

        Raises:
            InputError: if a prompt is unknown or has no labels, prompts cannot vote, an input lacks fields, or a prompt
                computes numbers that are not finite.
        """
        check_at_least(1, batch_size=batch_size)
        questions = self._questions(inputs, prompt)
        for question in questions:
            if not question.solutions[0].task.labels:
                raise InputError(f"prompt `{question.names[0]}` has no labels; use generate()")
        singles = [
            Question((name,), (text,), (solution,))
            for q in questions
            for name, text, solution in zip(q.names, q.texts, q.solutions, strict=True)
        ]
        alone = _checked(self._engine.answer(singles, batch_size=batch_size))
        each = iter(alone)
        found = []
        for question in questions:
            answers = [next(each) for _ in question.names]
            outputs, scores = [answer.output for answer in answers], [answer.scores or {} for answer in answers]
            found.append(classified(outputs, scores))
        return found

    def generate(
        self,
        inputs: Sequence[Input],
        prompt: Names = None,
        *,
        max_tokens: int = 0,
        beams: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        """Answer inputs with text: decoded for free text, the likeliest label for classification.

        Args:
            inputs: as for `classify`.
            prompt: as for `classify`.
            max_tokens: maximum tokens of free text; 0: the maximum target length in training.
            beams: number of beams; 1 for none.
            temperature: above 0, tokens are sampled from softmax(logits / temperature).
            top_p: sampling: only from the likeliest tokens that together have at least this probability.
            seed: sampling: with the position of an input in `inputs`, it decides the draws.
            batch_size: inputs per batch.

        Raises:
            InputError: if a prompt is unknown, prompts cannot vote, an input lacks fields, or a prompt computes numbers
                that are not finite.
        """
        check_at_least(1, batch_size=batch_size, beams=beams)
        check_at_least(0, max_tokens=max_tokens, seed=seed)
        check_numbers(temperature=temperature, top_p=top_p)
        decoding = Decoding(beams=beams, temperature=temperature, top_p=top_p, seed=seed)
        answers = _checked(
            self._engine.answer(
                self._questions(inputs, prompt), batch_size=batch_size, max_output_length=max_tokens, decoding=decoding
            )
        )
        return [answer.output for answer in answers]

    def stream(
        self,
        input: Input,
        prompt: str | None = None,
        *,
        max_tokens: int = 0,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The text of an answer in pieces, as it is decoded; together they are the text that `generate` returns.

        Raises:
            InputError: as `generate`, and if the prompt has labels.
        """
        check_at_least(0, max_tokens=max_tokens, seed=seed)
        check_numbers(temperature=temperature, top_p=top_p)
        (question,) = self._questions([input], prompt)
        decoding = Decoding(temperature=temperature, top_p=top_p, seed=seed)
        cut, texts = self._engine.stream(question, max_output_length=max_tokens, decoding=decoding)
        _warn_about_cuts([Answer("", cut=cut)])
        return _in_pieces(texts)

    def _questions(self, inputs: Sequence[Input], prompt: Names) -> list[Question]:
        check_no_table(inputs=inputs)
        if isinstance(inputs, (str, Mapping)) or not isinstance(inputs, Collection):
            raise InputError("inputs: must be a list of texts or fields; put a single input in brackets")
        for i, one in enumerate(inputs):
            if not isinstance(one, (str, Mapping)):
                raise InputError(f"inputs[{i}]: must be a text or fields, not {one!r}; pass a string or a dictionary")
        return [
            self._engine.question(names, Row({}, f"inputs[{i}]"), i, text=one)
            if isinstance(one, str)
            else self._engine.question(names, Row(dict(one), f"inputs[{i}]"), i)
            for i, (one, names) in enumerate(zip(inputs, self._names(prompt, len(inputs)), strict=True))
        ]

    def _names(self, prompt: Names, inputs: int) -> list[list[str]]:
        """The voting prompts of each input."""
        if prompt is None:
            if len(self.prompts) != 1 or self._engine.refused:
                raise InputError(f"name a prompt, one of: {listed(self.prompts) or 'none is loaded'}")
            return [self.prompts] * inputs
        if not isinstance(prompt, Collection) or isinstance(prompt, Mapping):
            raise InputError(
                f"prompt: must be a name, or a list with one for each input, not {prompt!r:.60}; change it"
            )
        if isinstance(prompt, str):
            return [voters(prompt, self._engine.prompts)] * inputs
        if len(prompt) != inputs:
            raise InputError(f"prompt: {len(prompt)} for {inputs} inputs; give one name, or one for each input")
        for i, names in enumerate(prompt):
            if not isinstance(names, (str, list, tuple)) or not all(isinstance(name, str) for name in names):
                raise InputError(f"prompt[{i}]: must be a name, or a list of names, not {names!r:.60}; change it")
            if not names:
                raise InputError(f"prompt[{i}]: is empty, but an input needs a prompt; name at least one")
        return [voters(names, self._engine.prompts) for names in prompt]

    # --------------------------------------------------------------------------------------------------------- prompts

    def tune(
        self,
        examples: Sequence[Example],
        *,
        name: str,
        labels: Sequence[str] | None = None,
        validation: Sequence[Example] | None = None,
        inputs: str = "{text}",
        targets: str = "{target}",
        output_dir: str | Path | None = None,
        **settings: Any,
    ) -> Prompt:
        """Learn a task as a soft prompt, in a process of its own, and add it under `name`.

        Args:
            examples: pairs of input and target text, or rows for the two templates.
            name: name of the prompt and its task; a directory gets this name, too.
            labels: all possible targets; None for free text.
            validation: examples to select the checkpoint by; None publishes the last step.
            inputs: template of the input text; pairs have the field `text`.
            targets: template of the target text; pairs have the field `target`.
            output_dir: folder for the run, from which an interrupted call resumes (default: a temporary one).
            settings: settings of prompt_tune, such as `steps`, `prompt_length`, `learning_rate`.

        Returns:
            The prompt; `save` takes its name.

        Raises:
            InputError: if an example or a setting is invalid, or training failed.
        """
        check_texts(name=name, inputs=inputs, targets=targets)
        if output_dir is not None:
            check_paths(output_dir=output_dir)
        if (as_list := getattr(labels, "tolist", None)) is not None:  # NumPy's, as of DataFrame.label.unique()
            labels = as_list()
        check_prompt_name(name, "name")
        check_file_name(name, "name")  # the directories of a run have shorter names
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(output_dir or scratch)
            if place.exists() and not place.is_dir():
                raise InputError(f"output_dir: {place} is a file; name a folder for the run")
            splits = {"train": examples} if validation is None else {"train": examples, "validation": validation}
            files = write_examples(splits, place / "examples" / name)
            task = one_task(name, files, inputs=inputs, targets=targets, labels=labels, named=parameter_of)
            code = TuneRun(task, {"model": self._model, **settings}, place / name, named=parameter_of).run()
            if code != 0:
                raise InputError(f"tune: training of `{name}` failed with exit code {code}; the log above says why")
            self._engine.add(name, place / name / "prompt")
            self._tuned[name] = Prompt.load(place / name / "prompt")
            return self._tuned[name]

    def add(self, name: str, path: str | Path) -> None:
        """Add a prompt from its directory, or replace the one of this name.

        Raises:
            InputError: if it is damaged, or of another T5, or a directory cannot have the name.
        """
        check_texts(name=name)
        check_prompt_name(name, "name")
        check_paths(path=path)
        self._engine.add(name, locate_one("prompt", str(path), "path"))
        self._tuned.pop(name, None)

    def remove(self, name: str) -> None:
        """Remove a prompt from memory; its files stay. Calls that are in progress in other threads still use it.

        Raises:
            InputError: if there is no prompt of this name.
        """
        check_texts(name=name)
        self._engine.remove(name)
        self._tuned.pop(name, None)

    def save(self, name: str, directory: str | Path) -> None:
        """Write a prompt as a package to a new directory, which `load`, `predict`, `serve` and PEFT read.

        Raises:
            InputError: if the prompt is unknown, its files have changed since it was loaded, or the directory exists.
        """
        check_texts(name=name)
        check_paths(directory=directory)
        refuse_to_replace(Path(directory), "directory")
        with self._package(name) as package:
            write_directory(Path(directory), lambda place: write_package(package, place))

    def push(self, name: str, to: str) -> str:
        """Send a prompt as a package to the Hugging Face hub, a URL or a directory.

        Args:
            name: name of the prompt.
            to: `user/name` on the hub, a URL that fsspec supports, or a path.

        Returns:
            The digest of the prompt.

        Raises:
            InputError: if the prompt is unknown, its files have changed since it was loaded, something else is at `to`,
                or it cannot be written.
        """
        check_texts(name=name, to=to)
        with self._package(name) as package:
            return push(package, to, where="to")

    @contextlib.contextmanager
    def _package(self, name: str) -> Iterator[Path]:
        """A directory with the package of a prompt that is in memory."""
        if (one := self._engine.prompts.get(name)) is None:
            raise InputError(f"there is no prompt `{name}`; prompts: {listed(self.prompts) or 'none'}")
        with tempfile.TemporaryDirectory() as scratch:
            source, package = one.artifact.path, Path(scratch) / "package"
            if name in self._tuned:
                source = Path(scratch) / "prompt"
                self._tuned[name].save(source)
            package.mkdir()
            if write_package(source, package) != one.artifact.digest:
                raise InputError(
                    f"{source}: is another prompt now than when `{name}` was loaded; add it again to answer with the"
                    " one that you save"
                )
            yield package


def _checked(answers: Sequence[Answer]) -> Sequence[Answer]:
    """The answers, with a warning about inputs that were cut.

    Raises:
        NoAnswer: if there is no answer to one of the inputs.
    """
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    _warn_about_cuts(answers, stacklevel=4)
    return answers


def _warn_about_cuts(answers: Sequence[Answer], stacklevel: int = 3) -> None:
    cut = [answer.cut for answer in answers if answer.cut]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(answers)} inputs were longer than in training and were cut, by up to"
            f" {max(cut):,} tokens",
            stacklevel=stacklevel,
        )


def _in_pieces(texts: Iterator[str]) -> Iterator[str]:
    """The new part of each text of one that grows."""
    pieces, text = Pieces(), ""
    for text in texts:
        if new := pieces.grown(text):
            yield new
    if new := pieces.rest(text):
        yield new
