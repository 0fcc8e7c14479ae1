"""Models by name, from a hub on localhost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import constants

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.hub import fetch_model
from t5_pipeline.modeling.load import init_t5, load_t5, save_t5
from tests.local_hub import local_hub, without_network
from tests.modeling.conftest import SHAPES, model_digest

Fetch = Callable[[str], Path]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetch]:
    save_t5(init_t5(SHAPES["gated_untied"], seed=0), tmp_path / "model")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    before = {"config.json": whole["config.json"], "pytorch_model.bin": b"a pickle"}
    repositories = {
        "lab/t5-today": {"main": whole},
        "lab/t5-before": {"main": before, "refs/pr/3": whole | before},
        "lab/t5-pickled": {"main": before},
    }
    with local_hub(repositories, monkeypatch) as endpoint:
        yield partial(fetch_model, endpoint=endpoint, cache=tmp_path / "cache")


@pytest.mark.parametrize("name", ["lab/t5-today", "lab/t5-before"])
def test_safetensors_come_from_the_main_branch_or_the_conversion(name: str, hub: Fetch, tmp_path: Path) -> None:
    directory = hub(name)
    assert not list(directory.glob("*.bin"))
    assert model_digest(directory) == model_digest(tmp_path / "model")
    assert load_t5(directory).shape == SHAPES["gated_untied"]


def test_cached_models_need_no_hub(hub: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = hub("lab/t5-before")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub("lab/t5-before") == fetched
    with pytest.raises(InputError, match="lab/t5-today: does not exist here, and the hub cannot be reached"):
        hub("lab/t5-today")


def test_a_machine_without_a_network_does_not_wait(hub: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = hub("lab/t5-today")
    without_network(monkeypatch)
    assert hub("lab/t5-today") == fetched
    with pytest.raises(InputError, match=r"cannot be reached \(.*not known\); check the network, and the spelling"):
        hub("lab/t5-before")
    with pytest.raises(
        InputError, match=r"not known\); did you mean `google/t5-v1_1-base`\? If not, check the network"
    ):
        hub("google/t5-v1_1-bas")


def test_a_network_that_fails_once_is_tried_again(hub: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a missing network ends the download at once; the hub client repeats the requests of a slow one."""
    monkeypatch.setattr(huggingface_hub, "get_session", Mock(side_effect=TimeoutError("slow")))
    assert hub("lab/t5-today").is_dir()


def test_fetch_errors_are_one_line(hub: Fetch) -> None:
    with pytest.raises(InputError, match="lab/t5-pickled: has no safetensors on the hub"):
        hub("lab/t5-pickled")
    with pytest.raises(
        InputError, match="lab/t5-nowhere: does not exist here, and the hub has no such model"
    ) as raised:
        hub("lab/t5-nowhere")
    assert "\n" not in str(raised.value)
    for path in ("/no/such/place", "../model", "runs/demo/lm_adapt/model"):
        with pytest.raises(InputError, match="does not exist; check the path"):
            hub(path)
