"""Local stand-in directories for token shards on object storage.

The small files are copied into the local cache; tokens.json gains the key `remote`, the URL of the shards, whose files
are fetched when they are first read (remote_array):

    CACHE/tokens/DIGEST/tokens.json, tokenizer/
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from t5_pipeline.core.atomic_files import write_bytes, write_text
from t5_pipeline.core.bounded import MAX_JSON, parse_json
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import cache_directory, read_small
from t5_pipeline.data_prep.tokenizer.sources import PUBLISHED

_MAX_TOKENIZER_FILE = 2**28  # bytes


def local_tokens(url: str, where: str) -> Path:
    """The stand-in directory for the token shards at `url`, or at `url`/tokens as a stage publishes them.

    Args:
        url: a URL that fsspec supports.
        where: the setting to name in errors.

    Raises:
        InputError: if there are no token shards, or they cannot be read.
    """
    url = url.rstrip("/")
    candidates = (url, f"{url}/tokens")
    found = next(
        ((at, text) for at in candidates if (text := read_small(f"{at}/tokens.json", where, MAX_JSON)) is not None),
        None,
    )
    if found is None:
        raise InputError(f"{where}: {url} contains no tokens.json; give the URL of a directory that `prepare` wrote")
    remote, text = found
    try:
        summary: dict[str, Any] = parse_json(text)
        name = hashlib.sha256(f"{remote} {summary['digest']}".encode()).hexdigest()[:16]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}: {remote}/tokens.json is damaged; upload it again") from None
    local = cache_directory() / "tokens" / name
    if not (local / "tokens.json").is_file():
        # File by file, because the processes of a launch do this at the same time, and others of them already read.
        try:
            (local / "tokenizer").mkdir(parents=True, exist_ok=True)
            for file in PUBLISHED:
                content = read_small(f"{remote}/tokenizer/{file}", where, _MAX_TOKENIZER_FILE)
                if content is not None:
                    write_bytes(local / "tokenizer" / file, content)
            write_text(local / "tokens.json", json.dumps({**summary, "remote": remote}))
        except OSError as error:
            raise InputError(
                f"cannot write {local} ({error.strerror}); set T5_PIPELINE_CACHE to a writable directory"
            ) from None
    return local
