"""t5-pipeline: LM adaptation of T5 and prompt tuning, as stages and as a library.

The Python API is `load` and what it returns: see t5_pipeline.api.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5_pipeline.api import Classification, InputError, PromptedModel, load

__version__ = "0.1.0"
__all__ = ["Classification", "InputError", "PromptedModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # The command line imports this package too, and must not wait for torch.
    if name in __all__:
        from t5_pipeline import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
