"""Sizes of T5s: read from directories, or known by hub name, so that a plan needs no download. No torch.

Those known by name are from each model's config.json on the hub; T5X's gin files have the same for mT5 and ByT5.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.modeling.config import T5Config, read_config


def _gated(
    d_model: int, d_ff: int, layers: int, heads: int, d_kv: int = 64, decoder: int | None = None, rows: int = 32128
) -> T5Config:
    """T5 1.1.

    Args:
        decoder: decoder layers; None: as many as encoder layers.
    """
    return T5Config(
        vocab_size=rows, d_model=d_model, d_kv=d_kv, d_ff=d_ff, num_layers=layers,
        num_decoder_layers=layers if decoder is None else decoder, num_heads=heads,
    )  # fmt: skip


def _original(d_model: int, d_kv: int, d_ff: int, layers: int, heads: int) -> T5Config:
    return replace(_gated(d_model, d_ff, layers, heads, d_kv), gated=False, activation="relu", tied=True)


SIZES: dict[str, T5Config] = {
    "small": _gated(512, 1024, 8, 6),
    "base": _gated(768, 2048, 12, 12),
    "large": _gated(1024, 2816, 24, 16),
    "xl": _gated(2048, 5120, 24, 32),
    "xxl": _gated(4096, 10240, 24, 64),
}
"""T5 1.1 in the five sizes of the paper."""

ORIGINAL_SIZES: dict[str, T5Config] = {
    "small": _original(512, 64, 2048, 6, 8),
    "base": _original(768, 64, 3072, 12, 12),
    "large": _original(1024, 64, 4096, 24, 16),
    "3b": _original(1024, 128, 16384, 24, 32),
    "11b": _original(1024, 128, 65536, 24, 128),
}

_MT5 = {size: replace(shape, vocab_size=250112, model_type="mt5") for size, shape in SIZES.items()}
_UMT5 = {size: replace(shape, vocab_size=256384, model_type="umt5") for size, shape in SIZES.items()}
_PILE = {size: replace(shape, model_type="umt5", special=SpecialTokens(0, 2, 0)) for size, shape in SIZES.items()}
_BYT5 = {
    "small": _gated(1472, 3584, 12, 6, decoder=4, rows=384),
    "base": _gated(1536, 3968, 18, 12, decoder=6, rows=384),
    "large": _gated(1536, 3840, 36, 16, decoder=12, rows=384),
    "xl": _gated(2560, 6720, 36, 32, decoder=12, rows=384),
    "xxl": _gated(4672, 12352, 36, 64, decoder=12, rows=384),
}
_UL2 = replace(_gated(4096, 16384, 32, 16, d_kv=256), activation="silu", tied=True)
_MADLAD = {
    name: replace(shape, special=SpecialTokens(1, 2, 0))
    for name, shape in {
        "3b-mt": _gated(1024, 8192, 32, 16, d_kv=128, rows=256000),
        "7b-mt-bt": _gated(2048, 8192, 48, 16, d_kv=128, rows=256000),
        "10b-mt": _gated(2048, 16384, 32, 32, d_kv=128, rows=256000),
    }.items()
}
_CODET5 = {
    size: replace(ORIGINAL_SIZES[size], vocab_size=32100, special=SpecialTokens(0, 2, 0)) for size in ("base", "large")
}
_PROT = {size: replace(ORIGINAL_SIZES[size], vocab_size=128) for size in ("3b", "11b")}


def _named(pattern: str, shapes: dict[str, T5Config]) -> dict[str, T5Config]:
    """Hub name → sizes, for each size in a pattern such as `google/mt5-{}`."""
    return {pattern.format(size): shape for size, shape in shapes.items()}


PRESETS: dict[str, T5Config] = {
    **_named("google/t5-v1_1-{}", SIZES),
    **_named("google/t5-{}-lm-adapt", SIZES),
    **_named("google/flan-t5-{}", SIZES),
    "bigscience/T0_3B": SIZES["xl"],
    "bigscience/T0p": SIZES["xxl"],
    **_named("t5-{}", ORIGINAL_SIZES),
    **_named("google-t5/t5-{}", ORIGINAL_SIZES),
    "google/ul2": _UL2,
    "google/flan-ul2": _UL2,
    **_named("google/mt5-{}", _MT5),
    **_named("bigscience/mt0-{}", _MT5),
    "bigscience/mt0-xxl-mt": _MT5["xxl"],
    **_named("google/umt5-{}", {size: shape for size, shape in _UMT5.items() if size != "large"}),
    **_named("EleutherAI/pile-t5-{}", {size: shape for size, shape in _PILE.items() if size != "small"}),
    **_named("google/byt5-{}", _BYT5),
    **_named("google/madlad400-{}", _MADLAD),
    "Salesforce/codet5-base": _CODET5["base"],
    "Salesforce/codet5p-220m": _CODET5["base"],
    "Salesforce/codet5p-770m": _CODET5["large"],
    "Rostlab/prot_t5_xl_bfd": _PROT["3b"],
    "Rostlab/prot_t5_xl_uniref50": _PROT["3b"],
    "Rostlab/prot_t5_xxl_bfd": _PROT["11b"],
    "Rostlab/prot_t5_xxl_uniref50": _PROT["11b"],
}
"""Hub name → sizes."""


def shape_at(place: Path) -> T5Config | None:
    """Sizes of the T5 in a directory, or of a published T5 by its hub name; None if unknown.

    Raises:
        InputError: if the model is damaged.
    """
    from t5_pipeline.modeling.t5x_layout import find_t5x, t5x_shape  # imports NumPy

    if (place / "config.json").is_file():
        return read_config(place)
    checkpoint = find_t5x(place)
    return PRESETS.get(str(place)) if checkpoint is None else t5x_shape(checkpoint)
