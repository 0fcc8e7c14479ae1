"""Fingerprints: digests of everything that shapes a result.

Included: settings with the role `trajectory`, the seed, digests of inputs and data, the stage's code version.
Excluded: the roles `extent` (`steps`, unless the schedule depends on it) and `runtime`.

Locations of data are included, but a finished cell stays up to date if its data was only moved (see `only_moved`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping
from typing import Any

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.checksums import json_digest
from t5_pipeline.data_prep.tasks.config import TaskConfig


def parts(
    settings: StageConfig,
    inputs: dict[str, Any],
    digests: DigestCache,
    data: Mapping[str, str | TaskConfig] | None = None,
) -> dict[str, Any]:
    """The parts of the fingerprint by name, so that differences can be reported.

    Args:
        inputs: digest of each input.
        data: locations and tasks whose contents count, in addition to the stage's own.
    """
    own: dict[str, str | TaskConfig] = {**settings.data(), **settings.task_sources()}
    of_settings = settings_parts(settings)
    shaping = of_settings["settings"]
    sources = {name: source for name, source in own.items() if name.partition(".")[0] in shaping} | dict(data or {})
    of_data = {"corpus": digests.of_corpus, "vocabulary": digests.of_vocabulary}
    return {
        "kind": settings.kind,
        "code version": settings.code_version,
        **of_settings,
        "inputs": inputs,
        "data": {
            name: digests.of_task(source) if isinstance(source, TaskConfig) else of_data[name](source)
            for name, source in sources.items()
        },
    }


def settings_parts(settings: StageConfig) -> dict[str, Any]:
    """The parts that follow from the settings alone: those that shape the result, and what selects a checkpoint."""
    names = settings.shaping()
    if settings.schedule_depends_on_steps():
        names.append("steps")
    # Metrics are excluded because evaluate has its own setting for them, except those that select a checkpoint.
    dumped = settings.model_dump(mode="json", exclude=_metrics_of_tasks(settings))
    chosen = {"selected by": settings.selects_by()} if settings.selects_by() else {}
    return {"settings": {name: dumped[name] for name in names}, **chosen}


def only_moved(old: dict[str, Any], new: dict[str, Any], settings: StageConfig) -> bool:
    """Whether two sets of parts differ only in the location of data, which has the same contents.

    Not of tasks that the artifact solves: it records where their rows are, and is scored on them.

    Args:
        settings: those of the `new` parts.
    """
    recorded = [name for name, task in settings.task_sources().items() if task in settings.made_for()]
    names = settings.data().keys() - recorded
    return _without(old, names) == _without(new, names)


def _without(described: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Parts without the settings of these dotted names."""
    kept = {**described, "settings": copy.deepcopy(described.get("settings"))}
    for name in names:
        *outer, last = name.split(".")
        place: Any = kept["settings"]
        with contextlib.suppress(KeyError, IndexError, TypeError):  # the other parts may have other settings
            for key in outer:
                place = place[int(key) if isinstance(place, list) else key]
            del place[last]
    return kept


def _metrics_of_tasks(settings: StageConfig) -> dict[str, Any]:
    """Locations of the `metrics` of tasks in a stage's settings, for pydantic's `exclude`."""
    found: dict[str, Any] = {}
    for name, value in settings:
        if isinstance(value, TaskConfig):
            found[name] = {"metrics"}
        elif isinstance(value, list) and value and isinstance(value[0], TaskConfig):
            found[name] = {"__all__": {"metrics"}}
    return found


def fingerprint(described: dict[str, Any]) -> str:
    return json_digest(described)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Differences between two sets of parts, as text.

    >>> old = {"settings": {"seed": 0}, "inputs": {"model": "a"}}
    >>> differences(old, {"settings": {"seed": 1}, "inputs": {"model": "b"}})
    ['seed: 0 → 1', 'input model changed']
    >>> differences({"data": {"corpus": "3f2a"}}, {"data": {"corpus": "hub:data/text.txt"}})
    ['data of corpus changed: data/text.txt is not a path here']
    """
    found = []
    for name in [*new, *(n for n in old if n not in new)]:
        a, b = old.get(name), new.get(name)
        if a == b:
            continue
        if prefix in ("inputs", "data"):
            gone = _absent(b) if _absent(a) is None else None
            what = f"{'input' if prefix == 'inputs' else 'data of'} {name}"
            found.append(f"{what} changed" if gone is None else f"{what} changed: {gone} is not a path here")
        elif isinstance(a, dict) and isinstance(b, dict):
            inner = name if name in ("inputs", "data") else ""
            found += [text if inner or name == "settings" else f"{name}.{text}" for text in differences(a, b, inner)]
        else:
            found.append(f"{name}: {_short(a)} → {_short(b)}")
    return found


def _absent(digest: Any) -> str | None:
    """The location of data or a model that is not on this machine; it may be a name on the hub."""
    return digest.removeprefix("hub:") if isinstance(digest, str) and digest.startswith("hub:") else None


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
