"""Settings of mixtures of denoisers, and UL2's (Tay et al. 2022)."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from t5_pipeline.core.schema import Config, setting

_SPANS = {"noise_density": 0.15, "mean_span_length": 3.0}


class DenoiserConfig(Config):
    """One objective of a mixture: span corruption, or a prefix LM if `prefix_density` is given."""

    rate: float = setting(1.0, "share of the examples, relative to the other rates", gt=0)
    noise_density: float | None = setting(None, "fraction of the tokens that is masked (default: 0.15)", gt=0, le=0.99)
    mean_span_length: float | None = setting(None, "mean length of a masked span (default: 3)", unit="tokens", ge=1)
    prefix_density: float | None = setting(
        None,
        "prefix LM: mean share of a segment that is the target (0.5: any prefix length)",
        gt=0,
        le=0.5,
    )
    mode: str = setting("", "text before each input if the vocabulary has it, such as UL2's [NLU]")

    @model_validator(mode="before")
    @classmethod
    def complete(cls, values: Any) -> Any:
        """Span corruption has T5's numbers unless others are given."""
        if isinstance(values, dict) and values.get("prefix_density") is None:
            return {**_SPANS, **{key: value for key, value in values.items() if value is not None}}
        return values

    @model_validator(mode="after")
    def one_kind(self) -> DenoiserConfig:
        if self.prefix_density is not None and (self.noise_density or self.mean_span_length):
            raise ValueError("`prefix_density` is a prefix LM, without spans; remove it, or the settings of spans")
        return self


def _of_spans(mode: str, density: float, length: float) -> DenoiserConfig:
    return DenoiserConfig(noise_density=density, mean_span_length=length, mode=mode)


UL2 = [
    _of_spans("[NLU]", 0.15, 3),
    _of_spans("[NLU]", 0.15, 8),
    DenoiserConfig(prefix_density=0.25, mode="[S2S]"),
    _of_spans("[NLG]", 0.5, 3),
    _of_spans("[NLG]", 0.5, 8),
    _of_spans("[NLG]", 0.15, 64),
    _of_spans("[NLG]", 0.5, 64),
]
"""The published mixture, R, S and X denoisers (Tay et al. 2022, Table 1), each as often as the others."""

MIXTURES = {"ul2": UL2}
