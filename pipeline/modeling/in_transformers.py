"""The same T5 as transformers loads it, for libraries that work on its modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.modeling.load import check_untied, locate_model
from t5_pipeline.modeling.safetensors_dir import read_shape


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings of transformers 5, which has one for every T5 with a separate output matrix."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load_in_transformers(location: str | Path, **settings: Any) -> Any:
    """transformers' model of a directory, with the logits of `load_t5`.

    Args:
        settings: passed to `from_pretrained`.

    Raises:
        InputError: if transformers cannot load it.
    """
    from transformers import AutoModelForSeq2SeqLM

    try:
        with quiet():
            t5 = AutoModelForSeq2SeqLM.from_pretrained(str(location), **settings)
    except OSError as error:
        reason = one_line(error)
        raise InputError(f"{location}: cannot be loaded by transformers ({reason}); check the directory") from None
    shape = read_shape(locate_model(location))
    if shape.model_type == "umt5":  # transformers 5 scales the outputs of every umT5, by this flag alone
        t5.config.tie_word_embeddings = shape.scales_outputs
    check_untied(() if shape.tied else ("shared.weight", "lm_head.weight"), t5)
    return t5
