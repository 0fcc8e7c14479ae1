"""Sizes of a T5, its config.json, and presets. No torch, so that recipes and plans load fast.

A T5 comes in two variants (Raffel et al. 2020; Shazeer 2020):

    T5 1.1      gated GELU feed-forward; separate output matrix; decoder outputs are not scaled
    original    ReLU feed-forward; the output matrix is the embedding; decoder outputs are scaled by d_model^−½
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.special_tokens import T5_TOKENS, SpecialTokens

ACTIVATIONS = ("relu", "gelu_new", "silu")


@dataclass(frozen=True)
class T5Config:
    """Sizes and variant of a T5. Defaults are T5 1.1 Small.

    >>> f"{T5Config().parameters:,}"
    '76,961,152'
    """

    vocab_size: int = 32128  # embedding rows: 32,000 pieces + 100 sentinels, rounded up to a multiple of 128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 1024
    num_layers: int = 8
    num_decoder_layers: int = 8
    num_heads: int = 6
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    gated: bool = True
    activation: str = "gelu_new"
    tied: bool = False  # tied models also scale decoder outputs by d_model^−½; untied ones do not
    unscaled: bool = False  # tied, but decoder outputs are not scaled: a new T5 1.1 of transformers 5
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    special: SpecialTokens = T5_TOKENS

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        return sum(count * rows * columns for count, rows, columns in self.matrices())

    def matrices(self) -> Iterator[tuple[int, int, int]]:
        """(count, rows, columns) of each kind of weight; norms are matrices of one row."""
        D, E, L, M = self.d_model, self.num_heads * self.d_kv, self.num_layers, self.num_decoder_layers
        yield (1 if self.tied else 2), self.vocab_size, D
        yield 4 * (L + 2 * M), D, E
        yield (3 if self.gated else 2) * (L + M), D, self.d_ff
        yield 2, self.relative_attention_num_buckets, self.num_heads
        yield 2 * L + 3 * M + 2, 1, D

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> T5Config:
        """Read a transformers `config.json`.

        A model is untied if either flag says so: transformers 5 writes `tie_word_embeddings: true` for every T5, and
        only `scale_decoder_outputs` is right; transformers 4 writes only the former.

        Args:
            where: name of the file, for errors.

        Raises:
            InputError: for another model type, a missing size or an unknown activation.

        >>> T5Config.from_config(T5Config().to_config()) == T5Config()
        True
        """
        if config.get("model_type") not in ("t5", None):
            raise InputError(f"{where}: model_type {config['model_type']!r} is not supported; use a T5 model")

        def size(key: str, default: int | None = None) -> int:
            value = config.get(key)
            value = default if value is None else value
            if type(value) is not int or not 0 < value < 2**31:
                raise InputError(
                    f"{where}: {key} is {value!r:.50}; must be a whole number from 1 to 2^31 − 1; fix the file"
                )
            return value

        def number(key: str, default: float) -> float:
            value = config.get(key, default)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise InputError(
                    f"{where}: {key} is {value!r:.50}; must be a number, at least 0 and below 1; fix the file"
                )
            return float(value)

        projection = str(config.get("feed_forward_proj", "relu"))
        gated, activation = projection.startswith("gated-"), projection.removeprefix("gated-")
        if projection == "gated-gelu":  # T5 1.1 means the tanh approximation and calls it gelu
            activation = "gelu_new"
        if activation not in ACTIVATIONS:
            raise InputError(
                f"{where}: feed_forward_proj {projection!r} is not supported; use a model with one of"
                f" {', '.join(ACTIVATIONS)} or gated-…"
            )
        num_layers = size("num_layers")
        return cls(
            vocab_size=size("vocab_size"),
            d_model=size("d_model"),
            d_kv=size("d_kv"),
            d_ff=size("d_ff"),
            num_layers=num_layers,
            num_decoder_layers=size("num_decoder_layers", num_layers),
            num_heads=size("num_heads"),
            relative_attention_num_buckets=size("relative_attention_num_buckets", 32),
            relative_attention_max_distance=size("relative_attention_max_distance", 128),
            gated=gated,
            activation=activation,
            tied=config.get("tie_word_embeddings") is not False and config.get("scale_decoder_outputs") is not False,
            dropout_rate=number("dropout_rate", 0.1),
            layer_norm_epsilon=number("layer_norm_epsilon", 1e-6),
            special=SpecialTokens.of_config(config, where),
        )

    def to_config(self) -> dict[str, Any]:
        """A `config.json` for transformers 4 and 5: both flags say whether the model is tied."""
        activation = "gelu" if self.gated and self.activation == "gelu_new" else self.activation
        return {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "d_ff": self.d_ff,
            "num_layers": self.num_layers,
            "num_decoder_layers": self.num_decoder_layers,
            "num_heads": self.num_heads,
            "relative_attention_num_buckets": self.relative_attention_num_buckets,
            "relative_attention_max_distance": self.relative_attention_max_distance,
            "feed_forward_proj": ("gated-" if self.gated else "") + activation,
            "is_gated_act": self.gated,
            "dense_act_fn": self.activation,
            "tie_word_embeddings": self.tied,
            "scale_decoder_outputs": self.tied and not self.unscaled,
            "dropout_rate": self.dropout_rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_factor": 1.0,
            "is_encoder_decoder": True,
            "use_cache": True,
            **self.special.to_config(),
        }


def _v1_1(d_model: int, d_ff: int, layers: int, heads: int) -> T5Config:
    return T5Config(d_model=d_model, d_ff=d_ff, num_layers=layers, num_decoder_layers=layers, num_heads=heads)


def _original(d_model: int, d_kv: int, d_ff: int, layers: int, heads: int) -> T5Config:
    return T5Config(
        d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_layers=layers, num_decoder_layers=layers, num_heads=heads,
        gated=False, activation="relu", tied=True,
    )  # fmt: skip


SIZES: dict[str, T5Config] = {
    "small": _v1_1(512, 1024, 8, 6),
    "base": _v1_1(768, 2048, 12, 12),
    "large": _v1_1(1024, 2816, 24, 16),
    "xl": _v1_1(2048, 5120, 24, 32),
    "xxl": _v1_1(4096, 10240, 24, 64),
}
"""T5 1.1 in the five sizes of the paper."""

ORIGINAL_SIZES: dict[str, T5Config] = {
    "small": _original(512, 64, 2048, 6, 8),
    "base": _original(768, 64, 3072, 12, 12),
    "large": _original(1024, 64, 4096, 24, 16),
    "3b": _original(1024, 128, 16384, 24, 32),
    "11b": _original(1024, 128, 65536, 24, 128),
}

PRESETS: dict[str, T5Config] = (
    {f"google/t5-v1_1-{size}": shape for size, shape in SIZES.items()}
    | {f"google/t5-{size}-lm-adapt": shape for size, shape in SIZES.items()}
    | {f"t5-{size}": shape for size, shape in ORIGINAL_SIZES.items()}
    | {f"google-t5/t5-{size}": shape for size, shape in ORIGINAL_SIZES.items()}
)
"""Hub name → sizes, so that a plan needs no download."""
