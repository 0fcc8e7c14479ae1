"""`t5-pipeline plan`: stale cells, reasons and costs; nothing is launched or written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import wikipedia_tasks
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import Recipe, load_recipe
from t5_pipeline.core.errors import InputError
from t5_pipeline.cost.plan import Rate
from t5_pipeline.cost.plan import plan as plan_of
from t5_pipeline.cost.plan_text import as_text
from t5_pipeline.modeling.config import T5Config
from tests.modeling.t5x_files import random_arrays, write_checkpoint
from tests.system.test_wikipedia_tasks import ARTICLES, REVIEWS
from tests.tiny_run import ROOT, Tiny, listing, refused, stage, t5_pipeline


def plan(recipe: Recipe, run_dir: RunDir, rate: Rate | None = None, **more: Any) -> str:
    return as_text(plan_of(recipe, run_dir, rate, **more), rate)


def planned(tiny: Tiny, *overrides: str) -> str:
    return plan(load_recipe(tiny.recipe, map(parse_override, overrides)), RunDir(tiny.run))


def test_finished_run(finished: Tiny) -> None:
    before = listing(finished.run)
    text = planned(finished)
    assert "\nnothing to do\n" in text
    assert text.count("\nup to date  ") == 11
    assert listing(finished.run) == before


def test_a_t5x_checkpoint(finished: Tiny, tmp_path: Path) -> None:
    """Its sizes are those of its arrays, also without a config.json."""
    shape = T5Config(512, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=1, num_heads=2)
    write_checkpoint(tmp_path / "checkpoint_7", random_arrays(shape))
    recipe = load_recipe(finished.recipe, [parse_override(f"lm_adapt.model={tmp_path}")])
    (cost,) = (one for one in plan_of(recipe, RunDir(finished.run)).stages if one.name == "lm_adapt")
    assert cost.parameters == shape.parameters
    assert cost.flops
    assert cost.memory is not None


def test_new_run(finished: Tiny, tmp_path: Path) -> None:
    text = plan(load_recipe(finished.recipe), RunDir(tmp_path / "run"))
    assert "11 of 11 cells to run" in text
    assert text.count("not run yet") == 11
    assert not (tmp_path / "run").exists()


SWEEPS = """\
name: sweeps
tasks:
  tone: {data: ROWS, inputs: "{text}", targets: "{label}", labels: [good, bad]}
stages:
  prepare: {corpus: stdlib-docs, vocabulary_size: 300}
  parts: {uses: prepare, corpus: stdlib-docs, vocabulary_size: 300, matrix: {max_tokens: [10, 30]}}
  small:
    uses: span_corrupt
    init: {d_model: 32, d_kv: 8, d_ff: 48, num_layers: 1, num_decoder_layers: 1, num_heads: 4}
    tokens: prepare
    steps: 2
  large:
    uses: span_corrupt
    init: {d_model: 64, d_kv: 8, d_ff: 48, num_layers: 1, num_decoder_layers: 1, num_heads: 4}
    tokens: prepare
    steps: 2
  sentinel: {matrix: {model: [small, large]}}
  prompt_tune: {task: tone, matrix: {model: [small, large], prompt_length: [9, 2]}}
"""


def test_every_cell_of_a_sweep_counts(tmp_path: Path) -> None:
    """Tokens and disk are sums over the cells; sizes and savings are those of the largest cell."""
    (tmp_path / "rows").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "rows" / f"{split}.jsonl").write_text('{"text": "Fine.", "label": "good"}\n')
    (tmp_path / "sweeps.yaml").write_text(SWEEPS.replace("ROWS", str(tmp_path / "rows")))
    made = plan_of(load_recipe(tmp_path / "sweeps.yaml"), RunDir(tmp_path / "run"))
    costs = {cost.name: cost for cost in made.stages}
    small, large = costs["small"].parameters, costs["large"].parameters
    assert small is not None
    assert large is not None
    parts, sentinel, prompts = costs["parts × 2"], costs["sentinel × 2"], costs["prompt_tune × 4"]
    assert (parts.tokens, parts.disk) == (10 + 30, 2 * (10 + 30))
    assert (sentinel.parameters, sentinel.disk) == (large, 4 * (small + large))
    assert (prompts.parameters, prompts.trained) == (large, 9 * 64)
    (saving,) = made.savings
    assert (saving.prompt, saving.model) == (4 * 9 * 64, 4 * large)


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("lm_adapt.learning_rate=0.5", ["run       lm_adapt  learning_rate: 0.02 → 0.5"]),
        (
            "prepare.vocabulary_size=400",
            ["run       prepare  vocabulary_size: 300 → 400", "run       pretrain  depends on prepare"],
        ),
        ("lm_adapt.steps=20", ["continue  lm_adapt  has 8 of 20 steps"]),
        ("lm_adapt.schedule=linear", ["run       lm_adapt  schedule: constant → linear"]),
        ("evaluate.limit=4", ["run       evaluate  limit: 8 → 4"]),
        ("seed=4", ["run       prepare  seed: 3 → 4"]),
        (
            "tasks.about.metrics=[accuracy]",
            [
                "run       prompt_tune [model=lm_adapt,seed=0]  selected by.about: ['accuracy', 'macro_f1'] → ['accuracy']"
            ],
        ),
    ],
)
def test_stale_cells_and_reasons(finished: Tiny, override: str, lines: list[str]) -> None:
    text = planned(finished, override)
    printed = [" ".join(line.split()) for line in text.splitlines()]
    for line in lines:
        assert any(found.startswith(" ".join(line.split())) for found in printed), text


def test_schedule_that_depends_on_steps_cannot_be_extended(tiny: Tiny) -> None:
    tiny.edit("    schedule: constant\n", "    schedule: linear\n")
    shutil.rmtree(tiny.run / "lm_adapt")
    assert stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run).code == 0
    text = planned(tiny, "lm_adapt.steps=9")
    assert "steps: 8 → 9 (schedule: linear depends on the number of steps, so it starts from step 0)" in text


def test_a_sweep_starts_again_with_another_number_of_steps(tiny: Tiny) -> None:
    matrix, sweep = "      seed: [0, 1]\n", "    sweep: {learning_rate: [0.1, 0.3]}\n"
    tiny.edit(f"[lm_adapt@4, lm_adapt, sentinel]\n{matrix}", f"[lm_adapt]\n{sweep}")
    shutil.rmtree(tiny.run / "prompt_tune")
    assert stage("prompt_tune", "--recipe", tiny.recipe, "--run-dir", tiny.run).code == 0
    text = planned(tiny, "prompt_tune.steps=9")
    assert "steps: 6 → 9 (sweep depends on the number of steps, so it starts from step 0)" in text


def test_warnings(finished: Tiny) -> None:
    text = planned(finished, "lm_adapt.keep_steps=[6, 30]")
    assert "\nwarning: lm_adapt: `keep_steps` 30 will not be published, because" in text


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """Each table of a plan: first column → header → text."""
    found = []
    for block in text.split("\n\n")[3:-1]:
        header, *rows = [re.split(r"  +", line) for line in block.splitlines()]
        found.append({row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows})
    return found


def test_estimates(finished: Tiny) -> None:
    """Parameters are those of the run; the arithmetic is tested separately."""
    work, memory, saving = tables(planned(finished))
    parameters = finished.manifests()["sentinel"].facts["parameters"]
    assert work["pretrain"]["parameters"] == work["pretrain"]["trained"] == f"{parameters:,}"
    assert work["prompt_tune × 6"]["parameters"] == f"{parameters:,}"
    assert work["prompt_tune × 6"]["trained"] == "128"
    assert work["sentinel"]["trained"] == "0"
    tokens = sum(file.stat().st_size for file in (finished.run / "prepare").rglob("*.tokens")) // 2
    assert work["prepare"]["tokens"] == f"{tokens:,}"
    assert set(memory) == {"pretrain", "lm_adapt", "prompt_tune × 6, 2 at once"}
    assert memory["pretrain"]["devices"] == "1 CPU process"
    assert saving["prompt_tune"]["prompt"] == f"{4 * 128}"
    assert saving["prompt_tune"]["tuned model"] == f"{4 * parameters:,}"


def test_remaining_work(tiny: Tiny) -> None:
    assert {row["left"] for row in tables(planned(tiny))[0].values()} == {"–", "0%"}
    work = tables(planned(tiny, "lm_adapt.steps=16", "prompt_tune.learning_rate=0.1"))[0]
    assert (work["lm_adapt"]["left"], work["prompt_tune × 6"]["left"]) == ("50%", "100%")
    # Steps 2 and 7 were not kept; the checkpoints are those of steps 6 and 8.
    assert tables(planned(tiny, "lm_adapt.keep_steps=[2, 7]"))[0]["lm_adapt"]["left"] == "38%"
    shutil.rmtree(tiny.run / "lm_adapt" / "model")
    (tiny.run / "lm_adapt" / "manifest.json").unlink()
    assert tables(planned(tiny, "lm_adapt.steps=12"))[0]["lm_adapt"]["left"] == "33%"
    saved = tiny.run / "lm_adapt" / "checkpoints"
    shutil.copytree(saved / "step-00000006", saved / "step-00000006.bak")
    # The newest of the checkpoints of steps 6 and 8 that fewer steps can use.
    assert tables(planned(tiny, "lm_adapt.steps=7"))[0]["lm_adapt"]["left"] == "14%"


def test_hours_at_a_rate_and_as_measured(tiny: Tiny) -> None:
    recipe, run_dir = load_recipe(tiny.recipe, [parse_override("lm_adapt.steps=16")]), RunDir(tiny.run)
    flops = float(tables(plan(recipe, run_dir))[0]["lm_adapt"]["FLOPs"])
    stated = tables(plan(recipe, run_dir, Rate(flops / 100)))[0]
    assert stated["lm_adapt"]["hours left"] == "50 s"
    assert stated["pretrain"]["hours left"] == "0 s"
    log = tiny.run / "lm_adapt" / "metrics.jsonl"
    log.write_text('{"step": 8, "loss": 1.0, "elapsed_s": 3600}\n')
    assert tables(plan(recipe, run_dir, Rate()))[0]["lm_adapt"]["hours left"] == "1.0 h"
    log.unlink()
    assert tables(plan(recipe, run_dir, Rate()))[0]["lm_adapt"]["hours left"] == "–"


def test_all_five_sizes_under_an_engine(tmp_path: Path) -> None:
    launch = tmp_path / "zero2.yaml"
    launch.write_text("distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config: {zero_stage: 2}\n")
    sets = [f"lm_adapt.launch={launch}", "lm_adapt.optimizer=adamw"]
    recipe = load_recipe(ROOT / "recipes" / "t5-v1_1-lm100k.yaml", map(parse_override, sets))
    work, memory, saving = tables(plan(recipe, RunDir(tmp_path / "run"), sizes=True))
    assert [row["parameters"] for name, row in work.items() if name.startswith("lm_adapt")] == [
        "76,961,152", "247,577,856", "783,150,080", "2.8 G", "11.1 G",
    ]  # fmt: skip
    assert {row["devices"] for name, row in memory.items() if name.startswith("lm_adapt")} == {"8 GPUs, zero2"}
    assert saving["prompt_tune, xxl"]["prompt"] == f"{4 * 100 * 4096:,}"
    assert saving["prompt_tune, xxl"]["saving"] == "27,186 ×"
    _heading_with_paths, *lines = plan(recipe, RunDir(tmp_path / "run"), Rate(4e14), sizes=True).splitlines()
    assert max(map(len, lines)) <= 120


def test_a_model_at_a_path_is_found_as_run_finds_it(finished: Tiny) -> None:
    work, _, _ = tables(planned(finished, f"prompt_tune.model={finished.run / 'lm_adapt'}"))
    assert work["prompt_tune × 2"]["parameters"] == work["lm_adapt"]["parameters"]


@pytest.mark.parametrize("rows", [None, "384", -1])
def test_a_damaged_number_of_rows_is_named(finished: Tiny, tmp_path: Path, rows: object) -> None:
    summary = json.loads((finished.run / "prepare" / "tokens" / "tokens.json").read_text()) | {"rows": rows}
    (tmp_path / "tokens.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=r"^\S+tokens\.json: is damaged; run `prepare` again to rebuild it$"):
        planned(finished, f"pretrain.tokens={tmp_path}")


def test_whether_a_stage_fits(tmp_path: Path) -> None:
    sets = ["launch=accelerate_configs/gpu.yaml", "lm_adapt.optimizer=adamw"]
    recipe = load_recipe(ROOT / "recipes" / "t5-v1_1-lm100k.yaml", map(parse_override, sets))

    def lines(memory: int) -> list[str]:
        text = plan(recipe, RunDir(tmp_path / "run"), memory=memory)
        return [line for line in text.splitlines() if re.match(r"lm_adapt: |prompt_tune × \d+: ", line)]

    assert [line.split("fits")[1][:2] for line in lines(80 * 2**30)] == [" (", " ("]
    small = lines(8 * 2**30)
    assert re.fullmatch(
        r"lm_adapt: does not fit \([\d.]+ GiB of 8.0 GiB\); would fit with microbatch_size: \d+", small[0]
    )
    assert lines(2**20)[1].endswith("; use a larger device, or a smaller batch or model")


def test_json(finished: Tiny) -> None:
    said = t5_pipeline("plan", finished.recipe, "--run-dir", finished.run, "--json", "--memory", "1T")
    found = json.loads(said.out)
    assert {cell["action"] for cell in found["cells"]} == {"up to date"}
    by_name = {row["name"]: row for row in found["stages"]}
    assert by_name["lm_adapt"]["parameters"] == finished.manifests()["sentinel"].facts["parameters"]
    assert by_name["lm_adapt"]["fit"]["has"] == 2**40
    assert by_name["prepare"]["memory"] is None
    refused(t5_pipeline("plan", finished.recipe, "--memory", "80"), r"--memory 80: means 80 bytes; did you mean 80G\?")


def test_unsupported_launch_configuration(finished: Tiny, tmp_path: Path) -> None:
    (tmp_path / "fsdp1.yaml").write_text("distributed_type: FSDP\nnum_processes: 2\n")
    with pytest.raises(InputError, match="fsdp_version: 1 is not supported"):
        planned(finished, f"lm_adapt.launch={tmp_path / 'fsdp1.yaml'}")
    said = t5_pipeline("plan", finished.recipe, "--run-dir", finished.run, "--rate", "fast")
    refused(said, r"--rate fast: is not a rate; give the FLOP/s of one device, such as 400T, or measured")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_all_recipes_can_be_planned(
    recipe: Path, finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here/runs/official-prompts").mkdir(parents=True)
    (tmp_path / "here/runs/demo").symlink_to(finished.run)
    (tmp_path / "here/runs/official-prompts/prompts").symlink_to(finished.run / "prompt_tune")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here/runs/wikipedia-gpu").mkdir()
    (tmp_path / "here/runs/wikipedia-gpu/lm_s").symlink_to(finished.run / "lm_adapt")
    if "data/tasks/" in recipe.read_text():  # a study of real data in the current directory
        real = ROOT.parent / "shared" / "data"
        if not real.is_dir():
            pytest.skip("../shared/data does not exist")
        made = tmp_path / "here/data/tasks"
        made.mkdir(parents=True)
        (made.parent / "text").symlink_to(real / "text")
        for folder in (real / "tasks").iterdir():
            (made / folder.name).symlink_to(folder)
        monkeypatch.setattr(wikipedia_tasks, "_HELD_OUT", 10)  # so that each split has rows
        monkeypatch.setattr(wikipedia_tasks, "_FIELD_VALIDATION", 5)
        for task, splits in wikipedia_tasks.tasks(ARTICLES[:30], ARTICLES[30:], REVIEWS).items():
            (made / "wikipedia" / task).mkdir(parents=True)
            for split, rows in splits.items():
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (made / "wikipedia" / task / f"{split}.jsonl").write_text(lines)
    text = plan(load_recipe(recipe), RunDir(tmp_path / "run"))
    assert "cells to run" in text
    assert not (tmp_path / "run").exists()
