"""An artifact that is ready to be read: where it is, where it came from, and the manifest of what made it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.kinds import locate_one
from t5_pipeline.artifacts.manifest import InputRecord, Manifest
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.references import InputRef
from t5_pipeline.core.checksums import json_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import inside


@dataclass(frozen=True)
class Artifact:
    """An input that is ready to be read.

    Attributes:
        origin: the stage, cell and step that made it; no step for its final result. Or the path that was given.
    """

    origin: InputRef
    path: Path
    digest: str
    manifest: Manifest | None = None

    @property
    def name(self) -> str:
        """`lm_adapt@500`, `lm_adapt/objective=lm@500`, or a path."""
        return str(self.origin)

    @property
    def source(self) -> str:
        """The name without the cell, which scores.json has beside it."""
        return str(replace(self.origin, cell=None))

    @property
    def settings_digest(self) -> str | None:
        """Digest of everything that shaped it, except the seed; None without a manifest.

        Artifacts of one kind that have the same digest differ only in their seed.
        """
        if self.manifest is None:
            return None
        parts = self.manifest.parts
        settings = {name: value for name, value in parts.get("settings", {}).items() if name != "seed"}
        steps = self.manifest.settings.get("steps") if self.origin.step is None else self.origin.step
        return json_digest({**parts, "settings": settings, "steps": steps})

    @classmethod
    def at(cls, path: Path, digest: str) -> Artifact:
        """The artifact in a directory outside the run, with the manifest of the cell that published it, if any."""
        manifest = next((m for m in (manifests.read(path), manifests.read(path.parent)) if m), None)
        return cls(InputRef(path=str(path)), path, digest, manifest)

    @classmethod
    def of(cls, record: InputRecord, run_dir: RunDir) -> Artifact:
        """The artifact that a manifest of this run names."""
        if record.stage is None:
            return cls.at(Path(record.path), record.digest)
        cell = inside(run_dir.path, f"{record.stage}/{record.cell or ''}", run_dir.path)
        path = inside(run_dir.path, record.path, run_dir.path)
        return cls(record.ref, path, record.digest, manifests.read(cell))

    def verify(self) -> None:
        """Compare it with the checksums of its manifest, if it has one.

        Raises:
            InputError: if a file is damaged. The file is marked, so that the next run rebuilds it.
        """
        place = next((path for path in self.path.parents if (path / manifests.NAME).is_file()), None)
        if self.manifest is None or place is None:
            return
        below = self.path.relative_to(place).as_posix()
        if damaged := manifests.damaged_files(place, self.manifest, below):
            manifests.mark_damaged(place, damaged)
            name, problem = next(iter(damaged.items()))
            raise InputError(f"{place / name}: {problem}; run {self.manifest.stage} again to rebuild it")


def recorded_model(artifact: Artifact, name: str, digest: str) -> tuple[Artifact, RunDir | None]:
    """The T5 that an artifact was trained on, and the run that made it (None: the T5 has no digest here).

    Args:
        name: name of the T5 in the artifact's own record, which counts if there is no manifest.
        digest: its digest there.

    Raises:
        InputError: if the T5 is missing.
    """
    run_dir = None
    if artifact.manifest is None:
        found = Artifact(InputRef(path=name), locate_one("model", name, f"the T5 of {artifact.path}"), "")
    else:
        # Paths in a manifest are relative to the artifact's own run, which may be another one.
        cell = next(path for path in artifact.path.resolve().parents if (path / manifests.NAME).is_file())
        run_dir = RunDir(cell.parents[1 if artifact.manifest.cell else 0])
        found = Artifact.of(artifact.manifest.inputs["model"][0], run_dir)
    if not found.path.is_dir() and not digest.startswith("hub:"):
        raise InputError(f"{artifact.path}: was trained on {found.path}, which is not here; give its T5 as --model")
    return found, run_dir
