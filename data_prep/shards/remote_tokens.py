"""Token shards on object storage, as a local directory that stands for them.

CACHE/tokens/DIGEST/tokens.json, tokenizer/      with `remote`, where the shards lie
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from t5_pipeline.core.atomic_files import write_directory
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import cache_directory, read_small

_TOKENIZER = ("spiece.model", "tokenizer.json", "tokenizer_config.json")


def local_tokens(url: str, where: str) -> Path:
    """The directory that stands for the token shards at `url`, or at `url`/tokens as a stage leaves them.

    Raises:
        InputError: there are none, or they cannot be read; `where` names the setting that asked for them.
    """
    url = url.rstrip("/")
    places = (url, f"{url}/tokens")
    found = next(
        ((place, text) for place in places if (text := read_small(f"{place}/tokens.json", where)) is not None), None
    )
    if found is None:
        raise InputError(
            f"{where}: {url} holds no tokens (no tokens.json in it); give the URL of a directory that does"
        )
    place, text = found
    try:
        summary: dict[str, Any] = json.loads(text)
        name = hashlib.sha256(f"{place} {summary['digest']}".encode()).hexdigest()[:16]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}: {place}/tokens.json is damaged; put it there again") from None
    local = cache_directory() / "tokens" / name
    if not local.is_dir():

        def fill(directory: Path) -> None:
            (directory / "tokenizer").mkdir()
            for file in _TOKENIZER:
                content = read_small(f"{place}/tokenizer/{file}", where)
                if content is not None:
                    (directory / "tokenizer" / file).write_bytes(content)
            (directory / "tokens.json").write_text(json.dumps({**summary, "remote": place}), encoding="utf-8")

        with contextlib.suppress(FileExistsError, OSError):  # another process was faster
            write_directory(local, fill)
    if not (local / "tokens.json").is_file():
        raise InputError(f"{local}: cannot be written; set T5_PIPELINE_CACHE to a directory that can")
    return local
