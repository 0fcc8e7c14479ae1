"""The T5 that prompts share, before its weights are loaded, and which prompts belong to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import PromptInfo
from t5_pipeline.modeling.load import locate_model
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.safetensors_dir import read_shape


class OtherModel(InputError):
    """A prompt of another T5.

    Attributes:
        of_prompt, of_t5: the digests that differ: of T5s or of vocabularies.
    """

    def __init__(self, message: str, of_prompt: str = "", of_t5: str = "") -> None:
        super().__init__(message)
        self.of_prompt, self.of_t5 = of_prompt, of_t5


@dataclass(frozen=True)
class FrozenT5:
    """A T5 on disk or on the hub.

    Attributes:
        path: its directory, or its name on the hub.
        digest: its digest; for a hub model only that of its name.
    """

    path: Path
    digest: str

    @classmethod
    def find(cls, model: str, where: str = "--model") -> FrozenT5:
        """A model directory, a stage's directory, or a hub model.

        Args:
            where: the setting to name in errors.

        Raises:
            InputError: if there is none.
        """
        path = locate_one("model", model, where)
        return cls(path, DigestCache(None).of_artifact("model", path))

    def load(self, name: str) -> LoadedT5:
        """Its weights, on the CPU.

        Args:
            name: the name that it was given by.
        """
        return LoadedT5.load(self.path, name, self.digest, self.vocabulary)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.load(self.path)

    @cached_property
    def width(self) -> int:
        return read_shape(locate_model(self.path)).d_model

    def check(
        self, what: str, *, model: str, digest: str, vocabulary: str | None = None, widths: Iterable[int] = ()
    ) -> None:
        """Check that this is the T5 of a prompt.

        Args:
            what: the prompt, for errors.
            model: name of the T5 that it was trained on.
            digest: digest of that T5.
            vocabulary: digest of the vocabulary that it was trained with; None if unknown.
            widths: widths of its rows.

        Raises:
            OtherModel: if it is not.
        """
        if digest != self.digest:
            local = f"digest {short_digest(self.digest)}"
            here = local if self.path.is_dir() else "a hub model, as there is no such directory"
            raise OtherModel(
                f"{what} was trained on another T5 ({model}, digest {short_digest(digest)}) than {self.path} ({here});"
                " use the T5 that it was trained on",
                digest,
                self.digest,
            )
        if vocabulary not in (None, self.vocabulary.digest):
            raise OtherModel(
                f"{what} was trained with another vocabulary than that of {self.path}; restore the model's original"
                " spiece.model and tokenizer_config.json",
                str(vocabulary),
                self.vocabulary.digest,
            )
        for width in widths:
            self.check_width(what, width)

    def check_prompt(self, what: str, info: PromptInfo) -> None:
        """`check` for a soft prompt."""
        self.check(
            what,
            model=info.base_model,
            digest=info.base_model_digest,
            vocabulary=info.tokenizer_digest,
            widths=[info.width],
        )

    def check_width(self, what: str, width: int) -> None:
        """Check the width of rows; the digest of a hub model does not tell.

        Raises:
            OtherModel: if the T5 has another width.
        """
        if width != self.width:
            raise OtherModel(
                f"{what} has rows of width {width}, but {self.path} has width {self.width}; use the T5 that it was"
                " trained on"
            )
