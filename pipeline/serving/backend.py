"""The interface between a scheduler and its T5, in torch (torch_backend.py) or CTranslate2 (ctranslate2_backend.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from t5_pipeline.serving.jobs import Job


class Backend(Protocol):
    """Computes the answers of jobs; every method is called by the scheduler's thread.

    Attributes:
        samples: whether texts can be sampled; otherwise they are decoded greedily.
        embedding_VD: the T5's embedding.
    """

    samples: bool
    embedding_VD: Tensor

    @property
    def decoding(self) -> Sequence[Job]:
        """The jobs whose texts are being decoded."""

    def score(self, jobs: Sequence[Job]) -> list[list[float]]:
        """log p of each label of each job."""

    def join(self, jobs: Sequence[Job]) -> None:
        """Add the texts of jobs to those that are being decoded."""

    def step(self) -> list[tuple[Job, list[int]]]:
        """Decode one or more tokens of every text, and pass them to `on_token`.

        Returns:
            The jobs whose texts ended, which leave, and their ids; the last one is BROKEN if logits were not finite.
        """

    def drop(self, jobs: Sequence[Job]) -> None:
        """Stop decoding the texts of jobs."""
