"""A hundred kills of every stage, and of one of two ranks (`make soak`)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t5_pipeline.execution.launcher import ranks
from tests.system.test_interrupted import KILLED
from tests.tiny_run import RECIPE, ROOT, Outcome, Tiny, command, newest_checkpoint, scores, write_data

pytestmark = pytest.mark.soak

# Every stage kind: those of the tiny recipe, and the methods beside prompt tuning.
METHODS = """\
  model_tune: {model: lm_adapt, tasks: [about], batch_size: 4, LEARN}
  prompt_design: {model: lm_adapt, task: about, shots: 2, max_input_length: 96, precision: fp32, threads: 1}
  prompt_mixture: {model: lm_adapt, task: about, components: 3, prompt_length: 2, batch_size: 4, LEARN}
  prompt_multitask: {model: lm_adapt, tasks: [about, name], prompt_length: 3, batch_size: 4, LEARN}
  peft_tune: {model: lm_adapt, task: about, method: p_tuning, virtual_tokens: 3, batch_size: 4, LEARN}
  evaluate:
    prompts: prompt_tune
    tuned_models: model_tune
    text_prompts: prompt_design
    mixtures: prompt_mixture
    task_prompts: prompt_multitask
    adapters: peft_tune
    limit: 8
    precision: fp32
    threads: 1
""".replace(
    "LEARN",
    "steps: 6, max_input_length: 32, max_target_length: 8, validate_every: 2, validation_limit: 6,"
    " checkpoint_every: 2, precision: fp32, threads: 1",
)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    directory = tmp_path_factory.mktemp("everything")
    write_data(directory)
    text = RECIPE.replace("DATA", str(directory))
    (directory / "everything.yaml").write_text(text[: text.index("  evaluate:")] + METHODS)
    made = Tiny(directory, directory / "everything.yaml", directory / "run")
    done = made.start()
    assert done.code == 0, done.err
    return made


def test_a_hundred_kills_of_every_stage(everything: Tiny, tmp_path: Path) -> None:
    tiny = Tiny(everything.data, everything.recipe, tmp_path / "run")
    ended = Outcome.of([sys.executable, *map(str, (KILLED, tiny.recipe, tiny.run, 100, 7))])
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    told = json.loads((tiny.run / "hits.json").read_text())
    print(told)
    assert min(told["hits"].values()) >= 20
    assert tiny.digests() == everything.digests()
    assert scores(tiny.run / "evaluate") == scores(everything.run / "evaluate")


@pytest.mark.parametrize("configuration", ["cpu_ddp", "cpu_zero2", "cpu_fsdp2"])
def test_one_of_two_ranks_is_killed_repeatedly(everything: Tiny, tmp_path: Path, configuration: str) -> None:
    """Under the runner; the other rank ends, too, and the result equals that of an undisturbed run.

    The first kill occurs during the start, the others soon after a checkpoint of a random step or a later one.
    """
    changes = (
        f"lm_adapt.launch={ROOT / 'accelerate_configs' / f'{configuration}.yaml'}", "lm_adapt.optimizer=adamw",
        "lm_adapt.learning_rate=0.003", "lm_adapt.checkpoint_every=5", "lm_adapt.steps=400",
    )  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    undisturbed, killed = (everything.copy(tmp_path / name) for name in ("undisturbed", "killed"))

    def run(tiny: Tiny) -> list[str]:
        return command("run", tiny.recipe, "--run-dir", tiny.run, *sets, "--until", "lm_adapt")

    assert Outcome.of(run(undisturbed)).code == 0
    moments = random.Random(3)
    for step in (0, *sorted(moments.sample(range(10, 301, 5), 6))):
        running = subprocess.Popen(run(killed), stderr=subprocess.PIPE, text=True)
        while newest_checkpoint(killed) < step or len(ranks(running.pid, "lm_adapt.py")) < 2:
            assert running.poll() is None, running.communicate()
            time.sleep(0.005)
        time.sleep(0.3 * moments.random())
        os.kill(moments.choice(ranks(running.pid, "lm_adapt.py")), signal.SIGKILL)
        _, said = running.communicate(timeout=120)
        assert running.returncode not in (0, 2), said
    assert Outcome.of(run(killed)).code == 0
    assert killed.digests()["lm_adapt/model"] == undisturbed.digests()["lm_adapt/model"]
