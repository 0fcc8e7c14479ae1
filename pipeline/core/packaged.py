"""Files shipped with the package: recipes, launch configurations, stage scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from t5_pipeline.core.printable import say

_PACKAGE = Path(__file__).parents[1]
# A checkout has these folders beside the package, a wheel inside it (pyproject.toml, package-dir).
SHIPPED = _PACKAGE.parent if _PACKAGE.name == "pipeline" else _PACKAGE


def or_packaged(path: Path) -> Path:
    """A recipe or launch configuration; if the path does not exist, the packaged file of that name.

    >>> or_packaged(Path("recipes/none.yaml"))
    PosixPath('recipes/none.yaml')
    """
    shipped = SHIPPED / path
    if path.exists() or path.parent not in (Path("recipes"), Path("accelerate_configs")) or not shipped.is_file():
        return path
    _say(f"{path}: does not exist here; using the packaged {shipped}")
    return shipped


@cache  # a launch configuration is read several times
def _say(text: str) -> None:
    say(text)
