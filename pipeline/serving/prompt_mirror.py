"""A local copy of the prompts at a URL, for servers that share a store (s3://, gs://, hf://, file://, …).

The store has the layout of a folder of prompts: URL/NAME/prompt.json and prompt.safetensors, or URL/NAME/prompt/… as
stages publish them. Nothing is written to it.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from t5_pipeline.artifacts.kinds import marker
from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.core.file_cache import remote_errors

_SUFFIXES = (".json", ".safetensors")  # the files that a prompt is read from
_DEEPEST = 3  # NAME/prompt/FILE


@dataclass
class _Listed:
    """A prompt in the store: its files, and their sizes, times and ETags as the store reports them."""

    files: dict[str, str] = field(default_factory=dict)  # name → path in the store
    state: list[tuple[str, str]] = field(default_factory=list)


class Mirror:
    """A directory with the prompts of a URL.

    Each prompt is a link to a complete version, so replacing one is atomic. A version is taken once the store has
    listed the same files twice, and again after they were fetched: a prompt that is being uploaded waits.

    Attributes:
        url: a URL that fsspec supports.
        directory: the local copy; deleted when the process ends.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.directory = Path(tempfile.mkdtemp(prefix="t5-pipeline-prompts-"))
        weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        self._taken: dict[str, _Listed] = {}
        self._seen: Mapping[str, _Listed] | None = None

    def update(self) -> dict[str, InputError]:
        """Bring the copy up to date.

        Returns:
            Prompts that could not be fetched, whose copies are unchanged, and why.

        Raises:
            InputError: if the store cannot be read.
        """
        listed = self._list()
        for name, prompt in list(self._taken.items()):
            # Cleaners of temporary directories remove files that were not read for days.
            if not all((self.directory / name / file).is_file() for file in prompt.files):
                del self._taken[name]
        seen = listed if self._seen is None else self._seen  # the first time, all prompts are taken at once
        changed = {name: prompt for name, prompt in listed.items() if self._taken.get(name) != prompt == seen.get(name)}
        fetched: dict[str, Path] = {}
        problems: dict[str, InputError] = {}
        try:
            for name, prompt in changed.items():
                fetched[name] = Path(tempfile.mkdtemp(prefix=".", dir=self.directory))
                try:
                    self._fetch(prompt, fetched[name])
                except InputError as error:  # one prompt must not keep the others from being updated
                    problems[name] = error
                    shutil.rmtree(fetched.pop(name))
            after = self._list() if fetched else {}
            for name in [name for name in fetched if after.get(name) == changed[name]]:
                self._publish(name, fetched.pop(name))
                self._taken[name] = changed[name]
        finally:
            for version in fetched.values():
                shutil.rmtree(version, ignore_errors=True)
        for name in self._taken.keys() - listed.keys():
            self._remove(name)
            del self._taken[name]
        self._seen = listed
        return problems

    def _list(self) -> dict[str, _Listed]:
        import fsspec

        with remote_errors(self.url, "--prompts"):
            store, root = fsspec.url_to_fs(self.url)
            store.invalidate_cache()
            try:
                found = store.find(root, maxdepth=_DEEPEST, detail=True)
            except FileNotFoundError as error:
                if self._seen is not None:  # the hub also answers this if a token has expired
                    raise OSError(one_line(error)) from None
                found = {}
        folders: dict[PurePosixPath, _Listed] = {}
        top = PurePosixPath(root)
        for path, details in sorted(found.items()):
            place = PurePosixPath(path)
            if place.suffix in _SUFFIXES and place.is_relative_to(top):
                prompt = folders.setdefault(place.parent, _Listed())
                prompt.files[place.name] = path
                prompt.state += sorted((f"{place.name} {key}", str(value)) for key, value in details.items())
        marked = {
            folder: prompt
            for folder, prompt in sorted(folders.items(), key=lambda pair: len(pair[0].parts))
            if marker("prompt") in prompt.files
            and not any(part.startswith(".") for part in folder.relative_to(top).parts)
        }
        if top in marked:  # the URL of one prompt
            marked = {top: marked[top]}
        prompts: dict[str, _Listed] = {}
        for folder, prompt in marked.items():
            published = folder.name == "prompt" and not (len(marked) > 1 and folder.parent == top)
            prompts.setdefault(folder.parent.name if published else folder.name, prompt)
        return prompts

    def _fetch(self, prompt: _Listed, version: Path) -> None:
        import fsspec

        with remote_errors(self.url, "--prompts"):
            store, _ = fsspec.url_to_fs(self.url)
            for name, path in prompt.files.items():
                try:
                    store.get_file(path, str(version / name))
                except FileNotFoundError:  # just removed; the second listing says so
                    continue

    def _publish(self, name: str, version: Path) -> None:
        link = self.directory / name
        before = link.resolve() if link.is_symlink() else None
        new = version.with_name(f"{version.name}.link")
        new.symlink_to(version.name)
        new.replace(link)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)

    def _remove(self, name: str) -> None:
        link = self.directory / name
        before = link.resolve()
        link.unlink()
        shutil.rmtree(before)
