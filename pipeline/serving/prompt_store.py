"""The prompts of a server: loaded from directories, and added, replaced and removed while it serves.

A request refers to an immutable `ServedPrompt`, so replacing a prompt never changes an answer that is being computed. A
watched directory is compared with what was loaded by the names, sizes and times of its files; a prompt that is being
copied, and so cannot be read yet, is read again at the next look. One that is replaced is read once two looks in a row
have found the same files, because rows and templates of two versions would fit together. A URL is mirrored
(prompt_mirror.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from t5_pipeline.artifacts.collection import unusable
from t5_pipeline.artifacts.kinds import artifact_digest, marker, named_prompts
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import is_url
from t5_pipeline.core.printable import say
from t5_pipeline.core.prompt_names import check_prompt_name
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.held_out import answer_form
from t5_pipeline.evaluation.predict import AnswerForm
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.serving.frozen_t5 import FrozenT5
from t5_pipeline.serving.prompt_mirror import Mirror

# Limits of a prompt, which may come from a stranger: each request that names it takes time and memory in proportion.
_MOST_JSON = 2**20
"""Bytes of prompt.json."""
_MOST_ROWS = 2**10
"""Rows, which lengthen each input of the encoder."""
_MOST_FIELDS = 100
"""Places in the template of the input that the fields of a request fill."""
_MOST_LABEL_TOKENS = 2**14
"""Tokens on which an input is scored: the number of labels times the tokens of the longest, with EOS."""


class ReservedName(InputError):
    """A prompt with the name of the T5 without a prompt."""


@dataclass(frozen=True)
class ServedPrompt:
    """A prompt in memory.

    Attributes:
        rows_PD: its rows, in the dtype of the T5's embedding.
        form: the form of its answers.
    """

    name: str
    digest: str
    path: Path
    rows_PD: Tensor
    info: PromptInfo
    task: Task
    form: AnswerForm


@dataclass
class PromptStore:
    """Prompts by name.

    Attributes:
        t5: the T5 that all prompts must have been trained on.
        like: a tensor with the device and dtype of the rows.
        reserved: a name that no prompt may have.
    """

    t5: FrozenT5
    like: Tensor
    reserved: str = ""
    _prompts: dict[str, ServedPrompt] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watched: dict[str, tuple[Path, tuple[object, ...]]] = field(default_factory=dict)  # directories, signatures
    _changing: dict[str, tuple[object, ...]] = field(default_factory=dict)  # replaced files at the last look
    _unreadable: dict[str, tuple[object, ...]] = field(default_factory=dict)
    _warned: dict[str, str] = field(default_factory=dict)
    _mirror: Mirror | None = None
    _unreachable: bool = False
    _unfetched: dict[str, str] = field(default_factory=dict)  # what was said about prompts of the URL

    @classmethod
    def of(cls, model: str, like: Tensor, reserved: str = "") -> PromptStore:
        """An empty store for a T5: a directory, a stage's directory or a hub name."""
        return cls(FrozenT5.find(model), like, reserved)

    @property
    def model(self) -> Path:
        return self.t5.path

    @property
    def vocabulary(self) -> Vocabulary:
        return self.t5.vocabulary

    def __len__(self) -> int:
        return len(self._prompts)

    def get(self, name: str) -> ServedPrompt | None:
        return self._prompts.get(name)

    @property
    def unserved(self) -> list[str]:
        """Prompts at the watched location whose present files cannot be served; of some an earlier version is."""
        return sorted(self._warned.keys() | self._unfetched.keys())

    def all(self) -> Mapping[str, ServedPrompt]:
        """A copy of the present prompts, by name in alphabetical order."""
        return dict(sorted(self._prompts.items()))

    def read(self, name: str, path: Path) -> ServedPrompt:
        """Load a prompt without adding it.

        Raises:
            ReservedName: if the T5 without a prompt has this name.
            OtherModel: if it was trained on another T5 or with another vocabulary.
            InputError: if it is damaged, or too large to be served.
        """
        if name == self.reserved:
            raise _reserved(name)
        check_prompt_name(name, f"prompt {name!r}")
        what = f"prompt `{name}`"
        record = path / marker("prompt")
        if record.is_file() and (size := record.stat().st_size) > _MOST_JSON:
            raise InputError(
                f"{what}: {record} has {size:,} bytes, and at most {_MOST_JSON:,} are served; train it with fewer or"
                " shorter labels"
            )
        prompt = Prompt.load(path)
        info = prompt.info
        self.t5.check_prompt(what, info)
        if info.prompt_length > _MOST_ROWS:
            raise InputError(
                f"{what}: has {info.prompt_length:,} rows, and at most {_MOST_ROWS:,} are served; train it with fewer"
            )
        task = Task.load(info.task)
        if (fields := len(task.input_template.fields)) > _MOST_FIELDS:
            raise InputError(
                f"{what}: the template `inputs` in {record} has {fields:,} fields, and at most {_MOST_FIELDS} are"
                " served; train it with fewer"
            )
        form = answer_form(info.task.labels or [], self.vocabulary, info.sentinel, info.max_target_length)
        longest = max(map(len, form.label_ids), default=0)
        if (tokens := len(form.label_ids) * longest) > _MOST_LABEL_TOKENS:
            raise InputError(
                f"{what}: the {len(form.label_ids):,} labels in {record}, of up to {longest:,} tokens, are"
                f" {tokens:,} tokens to score for each input, and at most {_MOST_LABEL_TOKENS:,} are served; train it"
                " with fewer or shorter labels, or without `labels`"
            )
        return ServedPrompt(
            name=name,
            digest=artifact_digest("prompt", path),
            path=path,
            rows_PD=prompt.rows_PD.to(self.like),
            info=info,
            task=task,
            form=form,
        )

    def add(self, prompt: ServedPrompt) -> ServedPrompt | None:
        """Add a prompt, or replace the one of its name, atomically.

        Returns:
            The replaced prompt.
        """
        with self._lock:
            before = self._prompts.get(prompt.name)
            self._prompts = {**self._prompts, prompt.name: prompt}
            return before

    def remove(self, name: str) -> bool:
        """Remove a prompt; False if there is none of this name."""
        with self._lock:
            if name not in self._prompts:
                return False
            self._prompts = {other: prompt for other, prompt in self._prompts.items() if other != name}
            return True

    def load(self, location: str) -> Path:
        """Add all prompts at a location: a directory, or a URL that fsspec supports.

        A prompt that cannot be read is reported and left to `look`, as if it had arrived later: a server that is
        restarted must not lose all of its prompts because of one.

        Returns:
            The directory to watch: the location, or the local copy of the URL.

        Raises:
            ReservedName: if one of them has the name of the T5, whose answers its clients would get instead.
            InputError: if none of them can be served.
        """
        if is_url(location):
            self._mirror = Mirror(location)
            unfetched = self._mirror.update()
            if not any(self._mirror.directory.glob("[!.]*")):
                nothing = InputError(f"--prompts: {location} contains no prompt.json; check the URL")
                raise next(iter(unfetched.values()), nothing)
            self._warn_unfetched(unfetched)
            location = str(self._mirror.directory)
        problems = {}
        for name, path in named_prompts(location, "--prompts").items():
            if name == self.reserved:
                raise _reserved(name)
            signature = _signature(path)  # before reading, so that `look` finds a change meanwhile
            found = self._read_or_reason(name, path, signature)
            if isinstance(found, str):
                problems[name] = found
            else:
                self._watched[name] = path, signature
                self.add(found)
        if not self._prompts:
            raise unusable(f"--prompts: {location}", problems, len(problems))
        for name, problem in problems.items():
            self._warn(name, problem)
        return Path(location)

    def look(self, directory: str) -> list[str]:
        """Bring the store up to date with a watched directory.

        Prompts that were added otherwise stay. A prompt that cannot be read keeps its previous version and is reported
        once; it is read again when its files change, or at every look if the reason is not in them.

        Returns:
            One line for each change.
        """
        if not self._mirrored():
            return []
        if not Path(directory).is_dir():  # being replaced, or on a file system that is away for a moment
            return []
        try:
            found = named_prompts(directory, "--prompts")
        except InputError:  # no prompt is left
            found = {}
        changes = [self._update(name, path) for name, path in found.items()]
        changes += [self._remove_missing(name) for name in [name for name in self._watched if name not in found]]
        for name in self._warned.keys() - found.keys() - self._watched.keys():  # if it comes back, it is reported again
            self._forget_problems(name)
        return [change for change in changes if change is not None]

    def _update(self, name: str, path: Path) -> str | None:
        """Read a prompt of the watched directory if its files are new or changed; return a line if it is now served."""
        signature = _signature(path)
        if self._watched.get(name) == (path, signature):
            self._warned.pop(name, None)
            return None
        if self._unreadable.get(name) == signature:
            return None
        if name in self._watched and self._mirror is None and self._changing.get(name) != signature:
            self._changing[name] = signature
            return None
        prompt = self._read_or_reason(name, path, signature)
        if isinstance(prompt, str):
            self._warn(name, prompt)
            return None
        if _signature(path) != signature:  # still being written
            return None
        before = self.add(prompt)
        self._watched[name] = path, signature
        self._forget_problems(name)
        return f"{'replaced' if before else 'added'} prompt `{name}` (digest {prompt.digest[:12]})"

    def _read_or_reason(self, name: str, path: Path, signature: tuple[object, ...]) -> ServedPrompt | str:
        """A prompt, or why it cannot be served. A reason that is in its files is remembered until they change."""
        try:
            return self.read(name, path)
        except Exception as error:  # of any library, which must not keep the other prompts from being served
            if isinstance(error, InputError):
                self._unreadable[name] = signature
                return str(error)
            return f"prompt `{name}`: {error!r}"

    def _remove_missing(self, name: str) -> str | None:
        """Remove a prompt that was not found, unless it merely cannot be read; return a line if it was removed."""
        path, _ = self._watched[name]
        if name in self._prompts and not _is_gone(path):  # as while permissions are being changed
            self._warn(name, f"prompt `{name}`: {path} cannot be read")
            return None
        del self._watched[name]
        self._forget_problems(name)
        return f"removed prompt `{name}`" if self.remove(name) else None

    def _forget_problems(self, name: str) -> None:
        """Let the next problem of a prompt be reported, and its files be read, as those of a new one."""
        for known in (self._changing, self._unreadable, self._warned):
            known.pop(name, None)

    def _warn(self, name: str, problem: str) -> None:
        """Report a problem of a prompt, once, and what its clients get."""
        if self._warned.get(name) != problem:
            kept = "its previous version is still served" if name in self._prompts else "this prompt is not served"
            say(f"warning: {problem}; {kept}")
        self._warned[name] = problem

    def _warn_unfetched(self, problems: Mapping[str, InputError]) -> None:
        """Report prompts that could not be fetched from the URL, once."""
        said = {name: f"warning: prompt `{name}`: {error}" for name, error in problems.items()}
        for name, line in sorted(said.items()):
            if self._unfetched.get(name) != line:
                say(f"{line}; its previous version, if any, is still served")
        self._unfetched = said

    def _mirrored(self) -> bool:
        """Update the copy of a URL; False, with one warning, while the URL cannot be read."""
        if self._mirror is None:
            return True
        try:
            problems = self._mirror.update()
        except InputError as error:
            if not self._unreachable:
                say(f"warning: {error}; the prompts in memory are still served")
            self._unreachable = True
            return False
        self._unreachable = False
        self._warn_unfetched(problems)
        return True


def _reserved(name: str) -> ReservedName:
    return ReservedName(f"`{name}` is the name of the T5 without a prompt; choose another name for one of them")


def _signature(path: Path) -> tuple[object, ...]:
    """Names, sizes, times and inodes of the files of a prompt; their ctime also tells of changed permissions."""
    parts: list[object] = []
    try:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            state = entry.stat()
            parts.append((entry.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
    except OSError:
        return ()
    return tuple(parts)


def _is_gone(path: Path) -> bool:
    """Whether there is no prompt in a directory; False if that cannot be determined."""
    try:
        (path / marker("prompt")).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False
