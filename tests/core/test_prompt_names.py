"""Names of prompts."""

from __future__ import annotations

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.prompt_names import check_prompt_name


@pytest.mark.parametrize("name", ["tone of voice", "a+b", "model=lm_adapt,seed=0", "ünï", "x" * 255, ".hidden", "a:b"])
def test_names_of_directories_are_names_of_prompts(name: str) -> None:
    check_prompt_name(name, "name")


@pytest.mark.parametrize("name", ["", "  ", "a/b", "a\\b", "..", ".", "a\nb", "a\x1b[31m", "x" * 256, "a\udcff"])
def test_other_names_are_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(InputError, match=r"^name: .*; (choose another name|name the prompt)$"):
        check_prompt_name(name, "name")
