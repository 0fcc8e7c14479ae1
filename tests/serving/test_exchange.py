"""Export and import of prompts."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from tests.tiny_run import CORPUS, documentation, t5_pipeline

TASK = "data: none.jsonl\ninputs: 'say: {text}'\ntargets: '{label}'\nlabels: [files, numbers]\n"
P, D = 5, 32


def write_t5(directory: Path, width: int, metadata: ModelMetadata) -> Vocabulary:
    """A small T5 with a vocabulary of English."""
    vocabulary = Vocabulary.train((text for module in CORPUS[:6] for _, text in documentation(module)), 300)
    shape = T5Config(
        vocab_size=vocabulary.rows, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    directory.mkdir(parents=True)
    write_model(directory, init_t5(shape, seed=5), vocabulary, metadata)
    return vocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_prompts(tmp_path_factory.mktemp("interchange"))


def write_two_prompts(directory: Path) -> Path:
    """Write model/, prompts/{one,two}/ and task.yaml."""
    vocabulary = write_t5(directory / "model", D, ModelMetadata(sentinel="targets"))
    for seed, name in enumerate(("one", "two")):
        info = PromptInfo(
            base_model="model", base_model_digest=artifact_digest("model", directory / "model"),
            tokenizer_digest=vocabulary.digest, sentinel="targets", prompt_length=P, width=D, max_input_length=24,
            max_target_length=6, prompt_init="uniform", seed=seed, step=10, scores={"accuracy": 0.75},
            task=TaskConfig(name=name, data="none.jsonl", inputs="{text}", targets="{label}", labels=["a", "b"]),
        )  # fmt: skip
        rows_PD = torch.randn(P, D, generator=torch.Generator().manual_seed(seed)) * 900
        Prompt(rows_PD, info).save(directory / "prompts" / name)
    (directory / "task.yaml").write_text(TASK)
    return directory


def bring(world: Path, source: Path, form: str, to: Path, *more: object, model: Path | None = None) -> Any:
    given = ["--model", model or world / "model", "--task", world / "task.yaml", "--output", to]
    return t5_pipeline("prompts", "import", source, "--from", form, *given, *more)


INPUTS_BS = torch.tensor([[40, 9, 33, 1, 0, 0], [7, 1, 0, 0, 0, 0], [40, 41, 42, 43, 44, 1]])
TARGETS_BT = torch.tensor([[11, 12, 1], [20, 1, 0], [30, 31, 1]])


@torch.no_grad()
def own_logits(model: Path, rows_PD: Tensor) -> Tensor:
    prompted = PromptedT5(load_t5(model), PromptBank([rows_PD])).eval()
    return prompted(torch.zeros(3, dtype=torch.long), INPUTS_BS, TARGETS_BT)


def peft_model(model: Path, adapter: Path | None) -> Any:
    """The T5 as transformers loads it, with an adapter, or with a new one of PEFT's own making."""
    peft = pytest.importorskip("peft")
    from transformers import T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration.from_pretrained(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if adapter is not None:
            return peft.PeftModel.from_pretrained(t5, adapter).eval()
        config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=P)
        return peft.get_peft_model(t5, config).eval()


@torch.no_grad()
def peft_logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=INPUTS_BS, attention_mask=(INPUTS_BS != 0).long(), labels=TARGETS_BT).logits
    return found


def test_an_exported_prompt_gives_the_same_logits_in_peft(world: Path, tmp_path: Path) -> None:
    said = t5_pipeline("prompts", "export", world / "prompts" / "one", "--to", "peft", "--output", tmp_path / "adapter")
    assert said.code == 0, said.err
    table = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows_PD = Prompt.load(world / "prompts" / "one").rows_PD
    assert list(table) == ["prompt_embeddings"]
    assert torch.equal(table["prompt_embeddings"], rows_PD), "only the p rows that are used"
    loaded = peft_model(world / "model", tmp_path / "adapter")
    assert torch.allclose(peft_logits(loaded), own_logits(world / "model", rows_PD), atol=1e-4, rtol=1e-5)
    assert not torch.allclose(peft_logits(loaded), own_logits(world / "model", rows_PD.flip(0)), atol=1e-2)


def test_import_of_an_adapter_saved_by_peft(world: Path, tmp_path: Path) -> None:
    made = peft_model(world / "model", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(tmp_path / "adapter")
    table = load_file(tmp_path / "adapter" / "adapter_model.safetensors")["prompt_embeddings"]
    assert len(table) == 2 * P, "PEFT's default writes rows for a decoder too"
    said = bring(world, tmp_path / "adapter", "peft", tmp_path / "prompt")
    assert said.code == 0, said.err
    rows_PD = Prompt.load(tmp_path / "prompt").rows_PD
    assert torch.equal(rows_PD, table[:P])
    assert torch.allclose(peft_logits(made), own_logits(world / "model", rows_PD), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("form", ["peft", "npy"])
def test_export_then_import_restores_the_prompt(world: Path, tmp_path: Path, form: str) -> None:
    said = t5_pipeline("prompts", "export", world / "prompts", "--to", form, "--output", tmp_path / "out")
    assert said.code == 0, said.err
    suffix = ".npy" if form == "npy" else ""
    assert said.out.split() == [str(tmp_path / "out" / f"{name}{suffix}") for name in ("one", "two")]
    for name in ("one", "two"):
        before = Prompt.load(world / "prompts" / name)
        back = bring(world, tmp_path / "out" / f"{name}{suffix}", form, tmp_path / "back" / name)
        assert back.code == 0, back.err
        after = Prompt.load(tmp_path / "back" / name)
        assert torch.equal(after.rows_PD, before.rows_PD)
        assert after.info.base_model_digest == before.info.base_model_digest
        assert after.info.tokenizer_digest == before.info.tokenizer_digest
        assert after.info.sentinel == "targets", "as the model expects"
        assert (after.info.task.name, after.info.task.labels) == ("task", ["files", "numbers"])


def test_an_imported_prompt_predicts(world: Path, tmp_path: Path) -> None:
    t5_pipeline("prompts", "export", world / "prompts" / "one", "--to", "npy", "--output", tmp_path / "one.npy")
    more = ["--sentinel", "both", "--max-input-length", 16, "--max-target-length", 4]
    assert bring(world, tmp_path / "one.npy", "npy", tmp_path / "in" / "mine", *more).code == 0
    info = Prompt.load(tmp_path / "in" / "mine").info
    assert (info.sentinel, info.max_input_length, info.max_target_length) == ("both", 16, 4)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "mine", "text": "Open the file."}\n')
    said = t5_pipeline(
        "predict", "--model", world / "model", "--prompts", tmp_path / "in", "--input", tmp_path / "rows.jsonl"
    )
    assert json.loads(said.out)["output"] in ("files", "numbers")


def test_import_of_an_official_prompt(world: Path, shared: Path, tmp_path: Path) -> None:
    """T5 1.1 Base's width; of the T5 itself only the width is real."""
    source = shared / "data" / "t5" / "official_prompts" / "rte.npy"
    if not source.is_file():
        pytest.skip("../shared/data/t5/official_prompts does not exist")
    write_t5(tmp_path / "base", 768, ModelMetadata())
    said = bring(world, source, "npy", tmp_path / "rte", model=tmp_path / "base")
    assert said.code == 0, said.err
    assert "100 rows of width 768" in said.out
    t5_pipeline("prompts", "export", tmp_path / "rte", "--to", "npy", "--output", tmp_path / "rte.npy")
    out, official = np.load(tmp_path / "rte.npy", allow_pickle=False), np.load(source, allow_pickle=False)
    assert out.dtype == np.float32
    assert np.array_equal(out, official)
    assert bring(world, source, "npy", tmp_path / "small").err.count("has rows of width 768, but") == 1


class Bomb:
    """Creates a file when unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.touch, (Path("unpickled"),)  # type: ignore[return-value]


def _npy(rows: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.save(path, rows, allow_pickle=True)

    return write


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


@pytest.mark.parametrize(("write", "words"), [
    (_npy(np.array([Bomb()], dtype=object)), "pickled objects are not read"),
    (_pickle, "pickled objects are not read"),
    (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "is not a plain .npy array"),
    (lambda path: path.write_bytes(b""), "is not a plain .npy array"),
    (lambda path: None, "does not exist"),
    (_npy(np.ones(D, np.float32)), "contains float32 [32]; give"),
    (_npy(np.ones((P, D), np.int64)), "contains int64 [5, 32]; give"),
    (_npy(np.ones((P, D + 1), np.float32)), "has rows of width 33, but"),
    (_npy(np.full((P, D), np.nan, np.float32)), "non-finite"),
    (_npy(np.full((P, D), 3.4e38, np.float32)), "non-finite"),
])  # fmt: skip
def test_invalid_npy_is_rejected(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.npy")
    said = bring(world, tmp_path / "rows.npy", "npy", tmp_path / "prompt")
    assert said.code == 2
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "prompt").exists()
    assert not (tmp_path / "unpickled").exists()


def _config(**changes: object) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _only_bin(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": torch.ones(P, D)}, adapter / "adapter_model.bin")


def test_an_adapter_of_another_t5(world: Path, tmp_path: Path) -> None:
    """Adapters exported here record the digest of their T5; of others only the name can be compared."""
    shutil.copytree(world / "model", tmp_path / "another")
    table = load_file(tmp_path / "another" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in table.items()}, tmp_path / "another" / "model.safetensors")
    adapter = tmp_path / "adapter"
    t5_pipeline("prompts", "export", world / "prompts" / "one", "--to", "peft", "--output", adapter)
    said = bring(world, adapter, "peft", tmp_path / "a", model=tmp_path / "another")
    assert said.code == 2
    assert re.search(
        r"adapter: was trained on another T5 \(\S+, digest \w{12}\) than \S+another \(digest \w{12}\); use", said.err
    )
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")
    said = bring(world, adapter, "peft", tmp_path / "a", model=tmp_path / "another")
    assert said.code == 0
    assert "was trained on" in said.err


@pytest.mark.parametrize(("change", "words"), [
    (_only_bin, "adapter_model.bin: is a pickle, which is not read"),
    (_config(peft_type="LORA"), "peft_type 'LORA' is not a prompt"),
    (_config(num_virtual_tokens=3), "has 5 rows, but adapter_config.json says num_virtual_tokens 3"),
    (lambda a: (a / "adapter_config.json").unlink(), "contains no adapter_config.json"),
    (lambda a: (a / "adapter_config.json").write_text("["), "is not valid JSON"),
    (lambda a: (a / "adapter_model.safetensors").unlink(), "contains no adapter_model.safetensors"),
    (lambda a: (a / "adapter_model.safetensors").write_bytes(b"x"), "is not a complete safetensors file"),
    (lambda a: save_file({"rows": torch.ones(P, D)}, a / "adapter_model.safetensors"), "contains ['rows']; an adapter"),
])  # fmt: skip
def test_invalid_peft_adapter_is_rejected(
    world: Path, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    adapter = tmp_path / "adapter"
    t5_pipeline("prompts", "export", world / "prompts" / "one", "--to", "peft", "--output", adapter)
    change(adapter)
    said = bring(world, adapter, "peft", tmp_path / "prompt")
    assert said.code == 2
    assert words in said.err
    assert not (tmp_path / "prompt").exists()


def test_existing_files_are_not_overwritten(world: Path, tmp_path: Path) -> None:
    (tmp_path / "one.npy").write_bytes(b"mine")
    export = ["prompts", "export", world / "prompts" / "one", "--to", "npy", "--output"]
    assert "already exists" in t5_pipeline(*export, tmp_path / "one.npy").err
    assert "does not end in .npy" in t5_pipeline(*export, tmp_path / "one").err
    assert t5_pipeline(*export, tmp_path / "new.npy").code == 0
    said = bring(world, tmp_path / "new.npy", "npy", tmp_path)
    assert said.code == 2
    assert "already exists" in said.err
    assert (tmp_path / "one.npy").read_bytes() == b"mine"
    several = t5_pipeline("prompts", "export", world / "prompts", "--to", "npy", "--output", "-")
    assert (several.code, "--output: - takes one prompt" in several.err) == (2, True)
    (tmp_path / "a.npy").touch()
    several = t5_pipeline("prompts", "export", world / "prompts", "--to", "npy", "--output", tmp_path / "a.npy")
    assert (several.code, "a.npy is a file, but " in several.err) == (2, True)
    (tmp_path / "empty").mkdir()
    with contextlib.chdir(tmp_path / "empty"):
        assert t5_pipeline("prompts", "export", world / "prompts" / "one", "--to", "peft", "--output", ".").code == 0
    assert (tmp_path / "empty/adapter_config.json").is_file()


def test_an_import_says_what_it_assumed(world: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", Prompt.load(world / "prompts" / "one").rows_PD.numpy())
    said = bring(world, tmp_path / "rows.npy", "npy", tmp_path / "a")
    assert said.code == 0
    assert re.fullmatch(
        r"\S+/a: assumed at most 512 input tokens \(--max-input-length\), at most 128 target tokens \(--max-target-length\),"
        r" sentinel \w+ as in \S+/model \(--sentinel\), because \S+/rows\.npy does not record it; if the prompt was trained"
        r" otherwise, import it again with these flags\n",
        said.err,
    )
    info = Prompt.load(tmp_path / "a").info
    assert (info.max_input_length, info.max_target_length) == (512, 128)
    said = bring(world, tmp_path / "rows.npy", "npy", tmp_path / "b", "--max-input-length", 256, "--sentinel", "none")
    assert "assumed at most 128 target tokens (--max-target-length), because " in said.err
    lengths = ("--max-input-length", 256, "--max-target-length", 8)
    said = bring(world, tmp_path / "rows.npy", "npy", tmp_path / "c", *lengths, "--sentinel", "none")
    assert (said.code, said.err) == (0, "")
    info = Prompt.load(tmp_path / "c").info
    assert (info.max_input_length, info.max_target_length) == (256, 8)
