"""Push and pull of prompt packages.

    user/name             a repository on the Hugging Face hub, unless a local path is meant: `./user/name`, or `user`
                          is a directory
    s3://bucket/prompt    any URL that fsspec supports
    path                  a directory

Only the files of a package are transferred, so pickles are never read. A pulled package is checked before it gets its
name. Nothing foreign is overwritten.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from t5_pipeline.core.atomic_files import write_directory
from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.core.file_cache import is_url, remote_errors
from t5_pipeline.core.hub_names import is_hub_name
from t5_pipeline.core.paths import refuse_to_replace
from t5_pipeline.methods.soft_prompt import PromptInfo
from t5_pipeline.serving.package import CARD, FILES, check_package, write_package

_HUB_FILES = frozenset({".gitattributes", CARD})  # of a repository without a prompt


def push(source: Path, to: str, endpoint: str | None = None, *, where: str = "TO") -> str:
    """Send the package of a prompt to the hub, a URL or a directory.

    A new repository is private. In a repository with a prompt, a commit replaces the prompt and keeps the card.

    Args:
        source: directory of a prompt, or a package.
        endpoint: another hub; default: that of the hub client.
        where: what the user calls `to`, for errors.

    Returns:
        The digest of the prompt.

    Raises:
        InputError: if the prompt is damaged, something else is at `to`, or it cannot be written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch)
        digest = write_package(source, package)
        if is_url(to):
            _to_url(package, to, where)
        elif _is_on_hub(to, Path(to).parent):
            _to_hub(package, to, endpoint, where)
        else:
            refuse_to_replace(Path(to), where)
            write_directory(Path(to), lambda directory: _copy(package, directory))
    return digest


def pull(source: str, directory: Path, endpoint: str | None = None) -> str:
    """Fetch the package of a prompt from the hub, a URL or a directory, check it, and move it to a new directory.

    Args:
        endpoint: another hub; default: that of the hub client.

    Returns:
        The digest of the prompt.

    Raises:
        InputError: if there is no prompt, it is damaged, or `directory` exists.
    """
    refuse_to_replace(directory, "DIR")
    with tempfile.TemporaryDirectory() as scratch:
        fetched = Path(scratch)
        if is_url(source):
            _from_url(source, fetched)
        elif _is_on_hub(source, Path(source)):
            _copy(_from_hub(source, endpoint), fetched)
        else:
            _copy(Path(source), fetched)
        if not (fetched / PromptInfo.file_name).is_file():
            raise InputError(f"FROM: no prompt in {source} ({PromptInfo.file_name} is missing); check the path")
        try:
            check_package(fetched)
        except InputError as error:
            raise InputError(f"FROM: {str(error).replace(str(fetched), source.rstrip('/'))}") from None
        found = []
        write_directory(directory, lambda place: found.append(write_package(fetched, place)))
    return found[0]


def _is_on_hub(location: str, local: Path) -> bool:
    """Whether a location is a name on the hub; `local` exists if it is a path."""
    return is_hub_name(location, with_owner=True) and not local.exists()


def _copy(source: Path, directory: Path) -> None:
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


# ------------------------------------------------------------------------------------------------------------- stores


def _to_url(package: Path, url: str, where: str) -> None:
    from fsspec.core import url_to_fs

    with remote_errors(url, where, "write"):
        store, root = url_to_fs(url)
        if store.exists(root) and (store.isfile(root) or store.ls(root)):
            raise InputError(f"{where}: {url} already exists; choose another URL, or remove it")
        store.makedirs(root, exist_ok=True)
        for name in FILES:
            store.put_file(str(package / name), f"{root}/{name}")


def _from_url(url: str, directory: Path) -> None:
    from fsspec.core import url_to_fs

    with remote_errors(url, "FROM"):
        store, root = url_to_fs(url)
        for name in FILES:
            with contextlib.suppress(FileNotFoundError):
                (directory / name).write_bytes(store.cat_file(f"{root}/{name}"))


def _to_hub(package: Path, name: str, endpoint: str | None, where: str) -> None:
    from huggingface_hub import HfApi

    with _hub_errors(name, where, "write"):
        api = HfApi(endpoint)
        api.create_repo(name, private=True, exist_ok=True)
        there = set(api.list_repo_files(name))
        if there - _HUB_FILES and PromptInfo.file_name not in there:
            raise InputError(f"{where}: the repository {name} contains other files than a prompt; choose another name")
        kept = [CARD] if PromptInfo.file_name in there and CARD in there else []
        api.upload_folder(repo_id=name, folder_path=package, ignore_patterns=kept, commit_message="Push a prompt")


def _from_hub(name: str, endpoint: str | None) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(name, "FROM", "read"):
        return Path(snapshot_download(name, allow_patterns=list(FILES), endpoint=endpoint))


@contextlib.contextmanager
def _hub_errors(name: str, where: str, verb: str) -> Iterator[None]:
    """Turn the exceptions of the hub client, whose classes differ between its versions, into InputErrors."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise InputError(
            f"{where}: cannot {verb} {name} on the hub ({reason}); check the name and `hf auth login`, or give a path"
            f" as ./{name}"
        ) from None
