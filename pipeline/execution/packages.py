"""Packages that a stage needs beyond the dependencies: a run checks them before its first stage."""

from __future__ import annotations

import importlib.metadata

from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.errors import InputError


def check_packages(settings: StageConfig) -> None:
    """Check that the packages that settings ask for are installed.

    Raises:
        InputError: if one is not; names the setting.
    """
    for name, extra, setting in settings.packages():
        check_installed(name, extra, settings.where(setting))


def check_installed(name: str, extra: str, where: str) -> None:
    """Check that a package is installed. A folder of its name, such as W&B's, does not count.

    Args:
        extra: the extra of this package that installs it.
        where: the setting that asks for it, for errors.

    Raises:
        InputError: if it is not.
    """
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{where}: {name} is not installed; pip install 't5-pipeline[{extra}]'") from None
