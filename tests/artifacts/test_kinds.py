from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from t5_pipeline.artifacts.kinds import artifact_digest, check_data, kind_at, locate, locate_one, named_prompts
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.files import COMPRESSIONS, FORMATS


def model(directory: Path, **metadata: str) -> Path:
    directory.mkdir()
    save_file({"a": np.zeros(3, dtype=np.float32)}, directory / "model.safetensors")
    if metadata:
        (directory / "t5_pipeline.json").write_text(json.dumps(metadata))
    return directory


def test_the_sentinel_variant_is_part_of_a_model_digest(tmp_path: Path) -> None:
    plain = artifact_digest("model", model(tmp_path / "plain"))
    assert artifact_digest("model", model(tmp_path / "sentinel", sentinel="targets")) != plain
    assert artifact_digest("model", model(tmp_path / "none", sentinel="none")) == plain


def test_a_model_card_does_not_change_a_model_digest(tmp_path: Path) -> None:
    plain, described = model(tmp_path / "plain"), model(tmp_path / "described")
    (described / "README.md").write_text("a card")
    assert artifact_digest("model", plain) == artifact_digest("model", described)


def test_models_in_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    for name in ("listed", "alone"):
        (tmp_path / name).mkdir()
    (tmp_path / "listed/checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000000"\n')
    (tmp_path / "alone/model.ckpt-1000000.index").write_bytes(b"")
    for name in ("listed", "alone"):
        with pytest.raises(InputError, match=f"model: .*{name} is a Mesh TensorFlow checkpoint, which is not read"):
            locate("model", str(tmp_path / name), "model")
    (tmp_path / "checkpoint_1000").write_bytes(b"\x82")
    with pytest.raises(InputError, match="checkpoint_1000 is a file; give the directory of a model"):
        locate("model", str(tmp_path / "checkpoint_1000"), "model")


@pytest.mark.parametrize(("kind", "location"), [("model", "/dev/null"), ("prompt", "/dev/null"), ("prompt", __file__)])
def test_a_file_in_place_of_a_directory(kind: str, location: str) -> None:
    with pytest.raises(InputError, match=f"^PLACE: {location} is not a directory; give the directory of a {kind}$"):
        locate(kind, location, "PLACE")


def test_a_name_that_no_file_can_have_is_not_an_artifact() -> None:
    """Reading it raises OSError, as a directory does that may not be entered."""
    assert kind_at("x" * 999) is None


@pytest.mark.parametrize("location", ["~/t5", "~/models/t5", "~me/t5"])
def test_a_tilde_is_neither_expanded_nor_a_name_on_the_hub(location: str) -> None:
    for find in (lambda: locate("model", location, "lm_adapt.model"), lambda: check_data(location, "lm_adapt.model")):
        with pytest.raises(InputError, match=rf"^lm_adapt.model: {location} does not exist; write the whole path"):
            find()
    with pytest.raises(InputError, match="write the whole path"):
        RunDir(Path("~/runs"))


@pytest.mark.parametrize("name", [f"{form}{packed}" for form in FORMATS for packed in ("", *COMPRESSIONS)])
def test_a_missing_file_is_not_a_data_set_on_the_hub(name: str) -> None:
    for location in (f"absent/rows{name}", f"rows{name.upper()}"):
        with pytest.raises(InputError, match=rf"^prepare.corpus: {location} does not exist; check the path$"):
            check_data(location, "prepare.corpus")


def test_names_on_the_hub_may_contain_dots() -> None:
    for name in ("lab/rows.v2", "wikitext", "stdlib-docs"):
        check_data(name, "prepare.corpus")
    for name in ("lab/spiece.model", "lab/", "my rows"):
        with pytest.raises(InputError, match="does not exist"):
            check_data(name, "prepare.vocabulary")
    assert locate("model", "google/t5-v1.1", "lm_adapt.model") == [Path("google/t5-v1.1")]
    with pytest.raises(InputError, match="models/ does not exist"):
        locate("model", "models/", "lm_adapt.model")


def test_a_prompt_named_prompt_does_not_hide_the_others(tmp_path: Path) -> None:
    """A stage publishes its only prompt as STAGE/prompt; in a folder of several it is one of them."""
    folder = tmp_path / "mine"
    places = {"prompt": folder / "prompt", "tone": folder / "tone", "kind": folder / "kind/prompt"}
    for name, place in places.items():
        place.mkdir(parents=True)
        (place / "prompt.json").write_text("{}")
        if name == "prompt":
            assert named_prompts(str(folder), "x") == {"mine": place}
            assert locate("prompt", str(folder), "x") == [place]
    assert named_prompts(str(folder), "x") == places
    assert sorted(locate("prompt", str(folder), "x")) == sorted(places.values())
    with pytest.raises(
        InputError,
        match=rf"^x: {re.escape(str(folder))} contains 3 prompts; choose one of .+/kind, .+/prompt, .+/tone$",
    ):
        locate_one("prompt", str(folder), "x")


def test_the_directory_of_a_run_is_not_a_prompt_but_says_where_they_are(tmp_path: Path) -> None:
    for stage in ("prompt_tune", "tune_more"):
        (tmp_path / stage / "seed=0" / "prompt").mkdir(parents=True)
        (tmp_path / stage / "seed=0" / "prompt" / "prompt.json").write_text("{}")
    stages = r".+/prompt_tune or .+/tune_more"
    with pytest.raises(InputError, match=rf"^x: no prompt in .+ \(prompt.json is missing\); give {stages}$"):
        locate("prompt", str(tmp_path), "x")
    with pytest.raises(InputError, match=r"^x: no model in .+ \(config.json is missing\); check the path$"):
        locate("model", str(tmp_path), "x")


@pytest.mark.parametrize("place", ["adapter", "seed=0/adapter", "."])
def test_an_artifact_of_another_kind_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "adapter.json").write_text("{}")
    with pytest.raises(InputError, match=r"^x: no prompt in .+ \(prompt.json is missing, found: adapter\); check the"):
        locate("prompt", str(tmp_path), "x")
