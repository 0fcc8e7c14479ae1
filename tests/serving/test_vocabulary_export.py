"""Prompts as vocabulary: a plain T5 in transformers, CTranslate2 and ONNX Runtime gives the prompted T5's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.atomic_files import sweep
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import encode_inputs
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.vocabulary_export import INDEX, PromptTokens, add_rows, export, write_row_tokens
from tests.data_prep.tokenizer.kinds import byt5
from tests.tiny_run import CORPUS, documentation, refused, t5_pipeline

LENGTHS = {"short": 2, "model=a,seed=0": 5}
TEXTS = ["returns the sum", "  a  stream of bytes ", "naïve café — ½", "</s> <extra_id_0>", ""]
TARGETS_BT = torch.tensor([[11, 12, 1], [20, 31, 1]])  # two labels of equal length
WIDTH = 32


class World:
    """model/, prompts/, and the answers of the prompted T5."""

    def __init__(self, directory: Path, *, tied: bool, **shape_of: Any) -> None:
        self.directory = directory
        self.vocabulary = Vocabulary.train((text for module in CORPUS[:6] for _, text in documentation(module)), 300)
        shape = T5Config(
            vocab_size=self.vocabulary.rows, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2,
            num_heads=4, tied=tied, gated=not tied, activation="relu" if tied else "gelu_new",
            **shape_of,
        )  # fmt: skip
        (directory / "model").mkdir(parents=True)
        write_model(directory / "model", init_t5(shape, seed=5), self.vocabulary, ModelMetadata())
        for seed, (name, length) in enumerate(LENGTHS.items()):
            rows_PD = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed)) * 30
            Prompt(rows_PD, self.info(name, length, "targets" if seed else "none")).save(directory / "prompts" / name)

    def info(self, name: str, length: int, sentinel: Any, **changes: Any) -> PromptInfo:
        settings: dict[str, Any] = {
            "base_model": "model", "base_model_digest": artifact_digest("model", self.directory / "model"),
            "tokenizer_digest": self.vocabulary.digest, "sentinel": sentinel, "prompt_length": length, "width": WIDTH,
            "max_input_length": 64, "max_target_length": 6, "prompt_init": "uniform", "seed": 0, "step": 10,
            "task": TaskConfig(name="t", data="none.jsonl", inputs="{text}", targets="{label}", labels=["a", "b"]),
        }  # fmt: skip
        return PromptInfo(**{**settings, **changes})

    def export(self, form: str) -> tuple[Path, dict[str, PromptTokens]]:
        to = self.directory / form
        return to, export(str(self.directory / "model"), str(self.directory / "prompts"), form, str(to))

    def inputs(self, name: str, text: str) -> list[int]:
        (ids,) = encode_inputs([text], self.vocabulary, 64, "none").ids
        return list(map(int, ids))

    @torch.no_grad()
    def log_p(self, name: str, text: str) -> list[float]:
        """log p of the two targets by the prompted T5."""
        prompt = Prompt.load(self.directory / "prompts" / name)
        model = PromptedT5(load_t5(self.directory / "model"), PromptBank([prompt.rows_PD])).eval()
        ids_BS = torch.tensor([self.inputs(name, text)] * 2)
        return of_targets(model(torch.zeros(2, dtype=torch.long), ids_BS, TARGETS_BT))


def without_prompts(output_V: Tensor, tokens: dict[str, PromptTokens]) -> Tensor:
    """The outputs of the T5's own rows, also of those without a token, which follow the prompts."""
    prompts = [i for one in tokens.values() for i in range(one.first, one.first + one.length)]
    return output_V[..., [i for i in range(output_V.shape[-1]) if i not in prompts]]


def of_targets(logits_BTV: Tensor) -> list[float]:
    log_p_BT = logits_BTV.log_softmax(-1).gather(-1, TARGETS_BT[..., None]).squeeze(-1)
    return [round(value, 5) for value in log_p_BT.sum(-1).tolist()]


@pytest.fixture(scope="module", params=["untied", "tied"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("vocabulary"), tied=request.param == "tied")


@pytest.fixture(scope="module")
def exported(world: World) -> tuple[Any, Any, dict[str, PromptTokens]]:
    """The tokenizer and model as transformers loads them."""
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    directory, tokens = world.export("transformers")
    model = T5ForConditionalGeneration.from_pretrained(directory).eval()
    return AutoTokenizer.from_pretrained(directory), model, tokens


def test_an_alias_becomes_one_token_per_row_and_the_text_is_encoded_as_in_training(
    world: World, exported: tuple[Any, Any, dict[str, PromptTokens]]
) -> None:
    tokenizer, _, tokens = exported
    assert tokens["model=a,seed=0"].first == world.vocabulary.size
    for name, one in tokens.items():
        rows = list(range(one.first, one.first + one.length))
        assert tokenizer.convert_ids_to_tokens(rows) == one.tokens
        for text in TEXTS:
            for sent in (one.alias + text, f"{one.alias} {text}"):
                assert tokenizer(sent).input_ids == rows + world.inputs(name, text), (name, text)
    plain = [tokenizer(text).input_ids for text in TEXTS]
    assert plain == [world.inputs("", text) for text in TEXTS]


def test_transformers_gives_the_same_scores(world: World, exported: tuple[Any, Any, dict[str, PromptTokens]]) -> None:
    tokenizer, model, tokens = exported
    for name, one in tokens.items():
        for text in TEXTS:
            ids_BS = torch.tensor([tokenizer(one.alias + text).input_ids] * 2)
            with torch.no_grad():
                logits_BTV = without_prompts(model(input_ids=ids_BS, labels=TARGETS_BT).logits, tokens)
            assert of_targets(logits_BTV) == pytest.approx(world.log_p(name, text), abs=1e-4), (name, text)


def test_new_ids_are_never_selected(world: World, exported: tuple[Any, Any, dict[str, PromptTokens]]) -> None:
    _, model, tokens = exported
    hidden_ND = torch.randn(20_000, WIDTH, generator=torch.Generator().manual_seed(0)) * 5
    logits_NV = hidden_ND @ model.lm_head.weight.T
    ids = [i for one in tokens.values() for i in range(one.first, one.first + one.length)]
    assert bool((logits_NV[:, ids].amax(1) < without_prompts(logits_NV, tokens).amax(1)).all())
    torch.manual_seed(0)
    sampled = model.generate(
        input_ids=torch.tensor([[5, 9, 1]] * 64), do_sample=True, max_new_tokens=8, temperature=9.0
    )
    assert not {*ids}.intersection(sampled.flatten().tolist())


def check_ctranslate2(world: World) -> None:
    """Its scores are those of the prompted T5; the new ids take nothing from the probabilities."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    from transformers import AutoTokenizer

    directory, tokens = world.export("ctranslate2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    translator = ctranslate2.Translator(str(directory), compute_type="float32", intra_threads=1)
    for name, one in tokens.items():
        for text in TEXTS:
            source = tokenizer.convert_ids_to_tokens(tokenizer(one.alias + text).input_ids)
            targets = [tokenizer.convert_ids_to_tokens(row[:-1]) for row in TARGETS_BT.tolist()]
            found = translator.score_batch([source] * 2, targets)
            assert [sum(one.log_probs) for one in found] == pytest.approx(world.log_p(name, text), abs=2e-3)


def test_ctranslate2_gives_the_same_scores(world: World) -> None:
    check_ctranslate2(world)


def test_all_that_a_killed_export_leaves_is_swept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ctranslate2")
    left: list[Path] = []

    def killed(*_: Any) -> None:
        left.extend(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("t5_pipeline.serving.vocabulary_export.write_transformers", killed)
    with pytest.raises(KeyboardInterrupt):
        export(str(world.directory / "model"), str(world.directory / "prompts"), "ctranslate2", str(tmp_path / "out"))
    assert len(left) == 2
    for path in left:
        path.mkdir()
    sweep(tmp_path)
    assert not any(tmp_path.iterdir())


def test_ctranslate2_scales_the_outputs_of_umt5(tmp_path: Path) -> None:
    check_ctranslate2(World(tmp_path, tied=False, model_type="umt5", scaled=True))


@pytest.mark.soak  # the exporter needs half a minute even for a T5 of two layers
def test_onnx_gives_the_same_scores(world: World, exported: tuple[Any, Any, dict[str, PromptTokens]]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    directory, tokens = world.export("onnx")
    tokenizer, model, _ = exported
    encoder = onnxruntime.InferenceSession(directory / "encoder_model.onnx")
    decoder = onnxruntime.InferenceSession(directory / "decoder_model.onnx")
    one = tokens["model=a,seed=0"]
    batch = tokenizer([one.alias + "returns the sum", one.alias + "bytes"], padding=True, return_tensors="np")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    (encoded,) = encoder.run(None, inputs)
    decoder_ids = np.array([[0, 11, 12], [0, 20, 31]])
    given = {
        "input_ids": decoder_ids,
        "encoder_hidden_states": encoded,
        "encoder_attention_mask": inputs["attention_mask"],
    }
    (logits,) = decoder.run(None, given)
    with torch.no_grad():
        reference = model(
            **{k: torch.tensor(v) for k, v in inputs.items()}, decoder_input_ids=torch.tensor(decoder_ids)
        )
    np.testing.assert_allclose(logits, reference.logits.numpy(), atol=2e-4)


def test_index_lists_what_a_client_must_know(world: World, exported: tuple[Any, Any, dict[str, PromptTokens]]) -> None:
    index = json.loads((world.directory / "transformers" / INDEX).read_text())
    entry = index["prompts"]["short"]
    assert (entry["alias"], entry["rows"], entry["labels"]) == ("<prompt:short>", 2, ["a", "b"])
    assert index["base_model_digest"] == artifact_digest("model", world.directory / "model")


def test_prompts_that_cannot_be_vocabulary(world: World, tmp_path: Path) -> None:
    rows_PD = torch.ones(2, WIDTH)
    given = ["export", "--model", world.directory / "model", "--to", "transformers", "--output", tmp_path / "out"]
    Prompt(rows_PD, world.info("x", 2, "both")).save(tmp_path / "both" / "x")
    refused(t5_pipeline(*given, "--prompts", tmp_path / "both"), ".*extra_id_0 after its inputs.*")
    Prompt(rows_PD, world.info("x", 2, "none")).save(tmp_path / "name" / "a b")
    refused(t5_pipeline(*given, "--prompts", tmp_path / "name"), ".*'a b' cannot be part of a token.*")
    Prompt(rows_PD, world.info("x", 2, "none", base_model_digest="f" * 64)).save(tmp_path / "other" / "x")
    refused(t5_pipeline(*given, "--prompts", tmp_path / "other"), ".*trained on another T5.*")
    refused(
        t5_pipeline(*given, "--prompts", world.directory / "prompts", "--quantization", "int8"),
        "--quantization: transformers is written in fp32.*",
    )
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="already exists"):
        export(str(world.directory / "model"), str(world.directory / "prompts"), "transformers", str(tmp_path))


def test_bytes_cannot_be_extended(tmp_path: Path) -> None:
    """The remedy is not the command that failed: `serve --engine ctranslate2` also needs the tokens."""
    vocabulary = Vocabulary.load(byt5(tmp_path / "byt5"))
    with pytest.raises(InputError, match=r"bytes have no tokenizer\.json .* `t5-pipeline serve --engine torch`"):
        write_row_tokens(tmp_path, vocabulary, [PromptTokens("a", vocabulary.size, 2)])


def test_the_rows_of_a_tied_t5_keep_its_logits(world: World) -> None:
    t5 = load_t5(world.directory / "model").eval()
    prompt = Prompt.load(world.directory / "prompts" / "short")
    tokens = {"short": PromptTokens("short", world.vocabulary.size, 2)}
    grown = add_rows(t5, {"short": prompt.rows_PD}, tokens).eval()
    ids, targets = torch.tensor([[9, 8, 1]]), torch.tensor([[11, 1]])
    with torch.no_grad():
        torch.testing.assert_close(without_prompts(grown(ids, targets), tokens), t5(ids, targets))
    assert not grown.shape.tied


def test_command_prints_the_aliases(world: World, tmp_path: Path) -> None:
    said = t5_pipeline(
        "export", "--model", world.directory / "model", "--prompts", world.directory / "prompts", "--to", "transformers",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert said.code == 0
    assert f"<prompt:short>  2 rows, ids {world.vocabulary.size + 5} to {world.vocabulary.size + 6}" in said.out
