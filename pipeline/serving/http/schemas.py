"""Requests and responses of the HTTP server.

Completions follow OpenAI's API, with two extensions: `fields`, which fills the template of a prompt, and `models`, one
prompt per input. A field that this server does not support is an error that names it, never ignored, unless its value
is OpenAI's default.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from t5_pipeline.core.counts import plural
from t5_pipeline.evaluation.ensemble import voters

Fields = dict[str, Any]
Name = Annotated[str, Field(description="name of the prompt; any name that a directory may have")]
MOST_INPUTS = 1024


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    include_usage: bool = False


class Inputs(Strict):
    """One or more inputs: finished texts (`prompt`), or fields for the template of the prompt.

    Attributes:
        model: name of a prompt; the base model's name means no prompt. For classification, "a+b+c" votes, unless a
            prompt has this name.
        models: one name per input, instead of `model`.
    """

    model: str | None = Field(default=None, description="name of a prompt, or of the base model for none")
    models: list[str] | None = Field(default=None, max_length=MOST_INPUTS, description="one name per input")
    prompt: str | list[str] | None = Field(default=None, description="input text, or a list of them")
    fields: Fields | list[Fields] | None = Field(
        default=None, description="fields for the template of the prompt, or a list of them"
    )
    user: str | None = Field(default=None, description="accepted and not used")

    @model_validator(mode="after")
    def _consistent(self) -> Inputs:
        if (self.prompt is None) == (self.fields is None):
            raise ValueError("give either `prompt` or `fields`")
        if (self.model is None) == (self.models is None):
            raise ValueError("give either `model` or `models`")
        if not 1 <= len(self.items) <= MOST_INPUTS:
            raise ValueError(f"give 1 to {MOST_INPUTS} inputs")
        if self.models is not None and len(self.models) != len(self.items):
            raise ValueError(f"`models` has {plural(len(self.models), 'name')} for {plural(len(self.items), 'input')}")
        return self

    @property
    def items(self) -> list[str | Fields]:
        """The inputs as a list."""
        given = self.prompt if self.prompt is not None else self.fields
        return list(given) if isinstance(given, list) else ["" if given is None else given]

    @property
    def places(self) -> list[str]:
        """Where the request contains each input, for errors: "prompt", or "prompt.0", "prompt.1", …"""
        given, name = (self.fields, "fields") if self.prompt is None else (self.prompt, "prompt")
        return [f"{name}.{i}" for i in range(len(given))] if isinstance(given, list) else [name]

    @property
    def name_places(self) -> list[str]:
        """Where the request names the prompt of each input, for errors: "model", or "models.0", "models.1", …"""
        return [f"models.{i}" for i in range(len(self.items))] if self.models else ["model"] * len(self.items)

    @property
    def names(self) -> list[str]:
        """The prompt of each input."""
        return self.models if self.models is not None else [self.model or ""] * len(self.items)


UNUSED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (),
    "presence_penalty": (0,),
    "stop": ("", []),
    "suffix": ("",),
}
"""Fields of OpenAI's API that this server does not support, and their values that ask for nothing, besides null."""


class CompletionRequest(Inputs):
    """The body of `POST /v1/completions`."""

    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="default: target length in training")
    temperature: float = Field(default=0.0, ge=0, le=100, description="0: greedy decoding")
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(
        default=0, ge=-(2**63), lt=2**63, description="with the place of an input in `prompt`, it decides the draws"
    )
    n: Literal[1] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_unused(cls, body: Any) -> Any:
        """Leave out fields of OpenAI's API that ask for nothing, because many clients send all of them."""
        if not isinstance(body, dict):
            return body
        known = {*cls.model_fields, *UNUSED}
        return {
            name: value
            for name, value in body.items()
            if name not in known or not (value is None or value in UNUSED.get(name, ()))
        }


class ClassifyRequest(Inputs):
    """The body of `POST /v1/classify`; a model can also be a list of prompts that vote."""

    model: str | list[str] | None = None  # type: ignore[assignment]
    models: list[str | list[str]] | None = Field(default=None, max_length=MOST_INPUTS)  # type: ignore[assignment]

    @model_validator(mode="after")
    def _named(self) -> ClassifyRequest:
        if [] in (self.model, *(self.models or ())):
            raise ValueError("a list of prompts is empty; name at least one")
        return self

    def voters(self, known: Container[str]) -> list[list[str]]:
        """The prompts of each input: one, or several that vote.

        Args:
            known: names of all prompts; one that contains "+" is a single prompt.
        """
        if self.models is None:  # one list for all inputs: a short request may name many prompts for many inputs
            return [voters(self.model or "", known)] * len(self.items)
        return [voters(names, known) for names in self.models]


class PromptRequest(Strict):
    """The body of `POST /v1/prompts`."""

    name: Name
    path: str = Field(max_length=1000, description="directory below the server's directory of prompts")


class LoadAdapterRequest(BaseModel):
    """The body of vLLM's `POST /v1/load_lora_adapter`."""

    lora_name: Name
    lora_path: str = Field(max_length=1000)


class UnloadAdapterRequest(BaseModel):
    """The body of vLLM's `POST /v1/unload_lora_adapter`."""

    lora_name: str


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(BaseModel):
    index: int
    text: str
    logprobs: None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class Classification(BaseModel):
    """The answer to one input.

    Attributes:
        probabilities: probability of each label, relative to the other labels; for a vote the mean over the prompts.
        log_likelihoods: log p of each label as the whole output; None for a vote.
        votes: number of prompts with each answer; None for a single prompt.
    """

    label: str
    probabilities: dict[str, float]
    log_likelihoods: dict[str, float] | None = None
    votes: dict[str, int] | None = None


class ClassifyResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Classification]
    usage: Usage


class ModelCard(BaseModel):
    """An entry of `GET /v1/models`.

    Attributes:
        method: "base" for the T5 without a prompt.
        card: description of a prompt; None for the base model.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "t5-pipeline"
    method: Literal["soft prompt", "base"]
    parent: str | None = None
    card: dict[str, Any] | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    digests: dict[str, str] | None = None


class ErrorResponse(BaseModel):
    error: ErrorDetail
