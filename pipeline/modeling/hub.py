"""Models by name: the safetensors of a Hugging Face hub repository, never its pickles.

Repositories older than safetensors (`google/t5-v1_1-*` among them) have a pull request with them from the hub's
conversion bot, which is used if the main branch has none.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, scan_cache_dir, snapshot_download
from huggingface_hub.errors import CacheNotFound

from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.core.hub_names import is_hub_name
from t5_pipeline.core.hub_network import network_error
from t5_pipeline.core.suggestions import close_to
from t5_pipeline.modeling.config import INDEX, WEIGHTS
from t5_pipeline.modeling.presets import PRESETS

CONVERSION_BOT = "SFconvertbot"
_MISSING = (401, 403, 404)  # HTTP status: private, gated or unknown
WANTED = ["config.json", "generation_config.json", "*.safetensors", INDEX]


def fetch_model(name: str, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The local snapshot of a hub model's config and safetensors, downloaded if it is not in the cache.

    Args:
        endpoint: another hub (a mirror); default: that of the hub client.
        cache: directory for the files; default: that of the hub client.

    Raises:
        InputError: if the name is neither a directory nor a model on the hub, the model has no safetensors, or the hub
            cannot be reached.
    """
    if not is_hub_name(name):
        raise InputError(f"{name}: does not exist; check the path, or give the name of a hub model (owner/name)")
    try:
        if (no_network := network_error(endpoint)) is not None:
            raise no_network
        revision = _revision_with_safetensors(HfApi(endpoint), name)
        snapshot = snapshot_download(name, revision=revision, allow_patterns=WANTED, endpoint=endpoint, cache_dir=cache)
        return Path(snapshot)
    except InputError:
        raise
    except Exception as error:  # the classes of the hub client's errors differ between its versions
        cached = _cached(name, cache)
        if cached is not None:
            return cached
        missing = getattr(getattr(error, "response", None), "status_code", None) in _MISSING
        why = "the hub has no such model" if missing else "the hub cannot be reached"
        fix = "check the name" if missing else "check the network, and the spelling of the name"
        if name not in PRESETS and (meant := close_to(name, PRESETS, cutoff=0.8)) is not None:
            fix = f"did you mean `{meant}`?" + ("" if missing else " If not, check the network")
        raise InputError(f"{name}: does not exist here, and {why} ({one_line(error)}); {fix}") from error


def _revision_with_safetensors(api: HfApi, name: str) -> str | None:
    """The revision with safetensors: None for the main branch, or the reference of the bot's pull request."""
    if _has_safetensors(api.list_repo_files(name)):
        return None
    for proposal in api.get_repo_discussions(name, author=CONVERSION_BOT, discussion_type="pull_request"):
        reference = proposal.git_reference
        if reference and proposal.status == "open" and _has_safetensors(api.list_repo_files(name, revision=reference)):
            return reference
    raise InputError(
        f"{name}: has no safetensors on the hub, and pickles are never read; convert it once with"
        " transformers (from_pretrained, save_pretrained) and give that directory"
    )


def _has_safetensors(files: list[str]) -> bool:
    return WEIGHTS in files or INDEX in files


def _cached(name: str, cache: Path | None) -> Path | None:
    """An earlier download of any revision, for machines without a network."""
    try:
        repositories = scan_cache_dir(cache).repos
    except CacheNotFound:
        return None
    for repository in repositories:
        if repository.repo_id == name and repository.repo_type == "model":
            for revision in sorted(repository.revisions, key=lambda revision: revision.last_modified, reverse=True):
                files = [file.file_name for file in revision.files]
                if _has_safetensors(files) and "config.json" in files:
                    return Path(revision.snapshot_path)
    return None
