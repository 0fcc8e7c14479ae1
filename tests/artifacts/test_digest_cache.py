from __future__ import annotations

import os
from pathlib import Path

from t5_pipeline.artifacts.digest_cache import DigestCache


def test_external_data_is_read_again_only_if_it_changed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    (tmp_path / "state").mkdir()
    cache = DigestCache(tmp_path / "state" / "digests.json")
    first = cache.of_data(str(text))
    assert DigestCache(tmp_path / "state" / "digests.json").of_data(str(text)) == first
    text.write_text("two")
    os.utime(text, ns=(1, 1))
    assert cache.of_data(str(text)) != first
