"""Sizes of a T5 and its config.json. No torch, so that recipes and plans load fast.

The members of the T5 family differ in a few fields (docs/models.md). The first two variants (Raffel et al. 2020;
Shazeer 2020), and umT5 (Chung et al. 2023):

    T5 1.1      gated GELU feed-forward; separate output matrix; decoder outputs are not scaled
    original    ReLU feed-forward; the output matrix is the embedding; decoder outputs are scaled by d_model^−½
    umT5        as T5 1.1, with a table of relative position biases in every layer instead of the first of each stack
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t5_pipeline.core.bounded import read_object, tensor_entries
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.special_tokens import T5_TOKENS, SpecialTokens

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
REPAIR = "fetch the model again"

ACTIVATIONS = ("relu", "gelu", "gelu_new", "silu")


@dataclass(frozen=True)
class Architecture:
    """The T5s of one `model_type` of transformers.

    Attributes:
        model_class: the class that loads them.
        bias_per_layer: every layer has its own relative position biases; otherwise the first of a stack has them.
        tied_by: flags of config.json that say whether the output matrix is the embedding: it is unless one is false.
            Without any, the weights alone decide.
        scaled_by: flags that say whether decoder outputs are scaled: they are unless one is false. Without any, never.
    """

    model_class: str
    bias_per_layer: bool
    tied_by: tuple[str, ...]
    scaled_by: tuple[str, ...]


_TIE, _SCALE = "tie_word_embeddings", "scale_decoder_outputs"

ARCHITECTURES = {
    "t5": Architecture("T5ForConditionalGeneration", False, (_TIE, _SCALE), (_TIE, _SCALE)),
    "mt5": Architecture("MT5ForConditionalGeneration", False, (), ()),
    "umt5": Architecture("UMT5ForConditionalGeneration", True, (), (_TIE,)),
}
"""`model_type` of config.json → what it means. transformers 5 writes `tie_word_embeddings: true` for all of them."""

# Relatives that have other layers: what each would need.
_MISSING = {
    "longt5": "local and transient-global attention",
    "switch_transformers": "mixtures of experts",
    "pix2struct": "an image encoder",
    "pop2piano": "an audio encoder",
    "udop": "an image encoder and layout embeddings",
    "t5gemma": "Gemma's layers",
    "t5gemma2": "Gemma's layers",
    "codet5p": "a decoder of another shape than the encoder, with CodeGen's layers",
}


def bucket_problem(buckets: int, farthest: int) -> str | None:
    """Why relative positions cannot be divided into these buckets, half of which are exact; None if they can.

    >>> bucket_problem(32, 16)
    'relative_attention_max_distance is 16; must be more than half of the 32 buckets'
    """
    if buckets < 4:
        return f"relative_attention_num_buckets is {buckets}; must be at least 4"
    if farthest <= buckets // 2:
        return f"relative_attention_max_distance is {farthest}; must be more than half of the {buckets} buckets"
    return None


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
    tied: bool = False  # the output matrix is the embedding
    scaled: bool | None = None  # decoder outputs are scaled by d_model^−½; None: if tied, as in every T5 of Google
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    special: SpecialTokens = T5_TOKENS
    model_type: str = "t5"  # a key of ARCHITECTURES

    @property
    def bias_per_layer(self) -> bool:
        """Whether every layer has its own table of relative position biases."""
        return ARCHITECTURES[self.model_type].bias_per_layer

    @property
    def output_scale(self) -> float:
        """Factor of decoder outputs before the output matrix."""
        return self.d_model**-0.5 if self.scales_outputs else 1.0

    @property
    def scales_outputs(self) -> bool:
        return self.tied if self.scaled is None else self.scaled

    @property
    def tied_unlike_published(self) -> bool:
        """Whether the output matrix is the embedding although published T5s of this kind keep them apart."""
        return self.tied and not (ARCHITECTURES[self.model_type].tied_by and self.scales_outputs)

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
        yield (L + M if self.bias_per_layer else 2), self.relative_attention_num_buckets, self.num_heads
        yield 2 * L + 3 * M + 2, 1, D

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> T5Config:
        """Read a transformers `config.json`.

        A `t5` is untied if either flag says so: transformers 5 writes `tie_word_embeddings: true` for every T5, and
        only `scale_decoder_outputs` is right; transformers 4 writes only the former. For the other model types, the
        weights say whether the model is tied (read_config); here it is not, like all published ones.

        Args:
            where: name of the file, for errors.

        Raises:
            InputError: for another model type, a missing size or an unknown activation.

        >>> T5Config.from_config(T5Config().to_config()) == T5Config()
        True
        """
        model_type = str(config.get("model_type") or _type_of_class(config.get("architectures")))
        if model_type not in ARCHITECTURES:
            raise InputError(f"{where}: model_type {model_type!r:.50} is not supported; {_why_not(model_type, config)}")
        architecture, entries = ARCHITECTURES[model_type], _Entries(config, where)
        gated, activation = entries.feed_forward("relu" if model_type == "t5" else "gated-gelu")
        num_layers = entries.size("num_layers")
        tied, scaled = entries.unless_false(architecture.tied_by), entries.unless_false(architecture.scaled_by)
        buckets, farthest = entries.position_buckets()
        vocab_size, special = entries.vocabulary()
        return cls(
            vocab_size=vocab_size,
            d_model=entries.size("d_model"),
            d_kv=entries.size("d_kv"),
            d_ff=entries.size("d_ff"),
            num_layers=num_layers,
            num_decoder_layers=entries.size("num_decoder_layers", num_layers),
            num_heads=entries.size("num_heads"),
            relative_attention_num_buckets=buckets,
            relative_attention_max_distance=farthest,
            gated=gated,
            activation=activation,
            tied=tied,
            scaled=None if scaled == tied else scaled,
            dropout_rate=entries.share("dropout_rate", 0.1),
            layer_norm_epsilon=entries.share("layer_norm_epsilon", 1e-6),
            special=special,
            model_type=model_type,
        )

    def to_config(self) -> dict[str, Any]:
        """A `config.json` for transformers 4 and 5; the flags say what they mean in this architecture."""
        architecture = ARCHITECTURES[self.model_type]
        means_scaled = _TIE in architecture.scaled_by and _TIE not in architecture.tied_by
        activation = "gelu" if self.gated and self.activation == "gelu_new" else self.activation
        return {
            "architectures": [architecture.model_class],
            "model_type": self.model_type,
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
            "tie_word_embeddings": self.scales_outputs if means_scaled else self.tied,
            "scale_decoder_outputs": self.scales_outputs,
            "dropout_rate": self.dropout_rate,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_factor": 1.0,
            "is_encoder_decoder": True,
            "use_cache": True,
            **self.special.to_config(),
        }


@dataclass(frozen=True)
class _Entries:
    """The entries of a config.json; each is checked when it is read, and an InputError names it and the file."""

    config: Mapping[str, Any]
    where: str

    def size(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 2**31:
            raise InputError(
                f"{self.where}: {key} is {value!r:.50}; must be a whole number from 1 to 2^31 − 1; fix the file"
            )
        return value

    def share(self, key: str, default: float) -> float:
        """A number in [0, 1)."""
        value = self.config.get(key, default)
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise InputError(
                f"{self.where}: {key} is {value!r:.50}; must be a number, at least 0 and below 1; fix the file"
            )
        return float(value)

    def unless_false(self, flags: tuple[str, ...]) -> bool:
        return bool(flags) and all(self.config.get(flag) is not False for flag in flags)

    def feed_forward(self, default: str) -> tuple[bool, str]:
        """Whether the feed-forward is gated, and its activation.

        `is_gated_act` and `dense_act_fn`, which transformers derives from `feed_forward_proj` and writes beside it,
        have precedence if they differ from it, as in transformers.
        """
        projection = str(self.config.get("feed_forward_proj", default))
        gated, activation = projection.startswith("gated-"), projection.removeprefix("gated-")
        if projection == "gated-gelu":  # T5 1.1 means the tanh approximation and calls it gelu
            activation = "gelu_new"
        named = "feed_forward_proj", projection
        if isinstance(derived := self.config.get("dense_act_fn"), str) and derived != activation:
            activation, named = derived, ("dense_act_fn", derived)
        if activation not in ACTIVATIONS:
            key, value = named
            raise InputError(
                f"{self.where}: {key} {value!r} is not supported; use a model with one of {', '.join(ACTIVATIONS)}"
                + (" or gated-…" if key == "feed_forward_proj" else "")
            )
        derived = self.config.get("is_gated_act")
        return derived if isinstance(derived, bool) else gated, activation

    def position_buckets(self) -> tuple[int, int]:
        """The number of buckets of relative positions, and the distance from which all share the last one."""
        buckets = self.size("relative_attention_num_buckets", 32)
        farthest = self.size("relative_attention_max_distance", 128)
        if problem := bucket_problem(buckets, farthest):
            raise InputError(f"{self.where}: {problem}; fix the file")
        return buckets, farthest

    def vocabulary(self) -> tuple[int, SpecialTokens]:
        """The number of embedding rows, and the special ids, which are below it."""
        special = SpecialTokens.of_config(self.config, self.where)
        vocab_size = self.size("vocab_size")
        if max(special.pad, special.eos, special.start) >= vocab_size:
            raise InputError(
                f"{self.where}: pad_token_id, eos_token_id or decoder_start_token_id is not below vocab_size,"
                f" {vocab_size:,}; fix the file"
            )
        return vocab_size, special


def read_config(directory: Path) -> T5Config:
    """Sizes of a model, from its config.json and the names of its weights.

    transformers 5 writes `tie_word_embeddings: true` for every T5 1.1, mT5 and umT5, and for those that it ties. The
    weights decide: without an output matrix the T5 is tied.

    Raises:
        InputError: if config.json is missing or damaged, or is not that of a T5.
    """
    path = directory / "config.json"
    config = read_object(path, REPAIR)
    shape = T5Config.from_config(config, where=str(path))
    if shape.tied or config.get(_TIE) is not True or _has_output_matrix(directory):
        return shape
    return replace(shape, tied=True, scaled=None if shape.scales_outputs else False)


def _has_output_matrix(directory: Path) -> bool:
    """Whether `lm_head.weight` is among the weights; True if they cannot be read, which is reported elsewhere."""
    if (directory / INDEX).is_file() and not (directory / WEIGHTS).is_file():
        return "lm_head.weight" in read_object(directory / INDEX, REPAIR).get("weight_map", {})
    try:
        return "lm_head.weight" in tensor_entries(directory / WEIGHTS)
    except (OSError, InputError):
        return True


def misfits(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
    """The tensors that do not fit a model, by kind of problem; empty if all fit.

    Args:
        expected, found: shapes by name.

    >>> misfits({"a": (2,), "b": (3,)}, {"b": (4,), "c": (1,)})
    {'missing': ['a'], 'unexpected': ['c'], 'of another shape': ['b [4] instead of [3]']}
    """
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{name} {list(found[name])} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ],
    }
    return {kind: names for kind, names in problems.items() if names}


def _type_of_class(names: object) -> str:
    """`model_type` by the class of the model, for the published umT5s, whose config.json names only this; else t5."""
    named = names if isinstance(names, list) else []
    return next((kind for kind, known in ARCHITECTURES.items() if known.model_class in named), "t5")


def _why_not(model_type: str, config: Mapping[str, Any]) -> str:
    """The layers that another architecture would need, and the models that would load."""
    lacks = _MISSING.get(model_type, f"layers of {model_type:.50}")
    paired = model_type in _MISSING or config.get("is_encoder_decoder") is True
    what = f"this pipeline has no {lacks}" if paired else "it is not an encoder-decoder"
    return f"{what}; use an encoder-decoder of the T5 family: model_type {', '.join(ARCHITECTURES)} (docs/models.md)"
