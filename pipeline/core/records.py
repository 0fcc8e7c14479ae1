"""JSON records on disk: one way to save and load them, and one set of error messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from t5_pipeline.core import bounded
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import message_of


class Record(BaseModel):
    """A JSON file with checked fields, in the order in which the class declares them.

    Attributes:
        file_name: name of the file inside its directory.
        what: what a directory with this file is, for errors: "a prompt".
        repair: what to do about a damaged file, for errors: "run prompt_tune again to rebuild it".
        indent: spaces of indentation in the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file_name: ClassVar[str]
    what: ClassVar[str]
    repair: ClassVar[str]
    indent: ClassVar[int] = 2

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Read the record of a directory.

        Raises:
            InputError: if the file is missing, is not JSON, or has a wrong field.
        """
        path = Path(directory) / cls.file_name
        try:
            return cls.model_validate_json(bounded.read_file(path, bounded.MAX_JSON))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: does not exist, so {directory} is not {cls.what}; check the path") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
        except ValidationError as error:
            raise InputError(f"{path}: {_first_problem(error)}; {cls.repair}") from None

    @classmethod
    def load_or_none(cls, directory: str | Path) -> Self | None:
        """Read the record of a directory; None if the file does not exist. Raises the errors of `load`."""
        return cls.load(directory) if Path(directory, cls.file_name).exists() else None

    def content(self) -> dict[str, Any]:
        """The JSON object of the file."""
        return self.model_dump(mode="json")

    def save(self, directory: str | Path) -> None:
        """Write the file atomically into a directory, which is created if needed."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.content(), indent=self.indent, ensure_ascii=False)
        write_text(Path(directory) / self.file_name, text + "\n")


def read_published(path: Path) -> dict[str, Any]:
    """The JSON object in a file that a stage published.

    Raises:
        InputError: if it cannot be read, or is not a JSON object.
    """
    return bounded.read_object(path, "run its stage again to rebuild it")


def _first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found: `seed: is missing`."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "json_invalid":
        return f"is not valid JSON ({problem['ctx']['error']})"
    key = ".".join(map(str, problem["loc"])) or "the file"
    short = {"missing": "is missing", "extra_forbidden": "unknown key"}
    return f"{key}: {short.get(problem['type']) or message_of(problem)}"
