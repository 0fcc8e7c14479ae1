"""Output and start-up time of the `t5-pipeline` command."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.cli.main import main
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.report import collect as report_collect
from tests.tiny_run import COMMAND, ROOT, Outcome, Tiny, command, listing, t5_pipeline

HEAVY = ("torch", "transformers", "accelerate", "datasets", "sentencepiece", "matplotlib", "pyarrow")


def test_commands_start_without_torch(finished: Tiny) -> None:
    """On a finished run, `run` has nothing to do and imports nothing heavy."""
    commands = [
        ["--help"],
        ["--version"],
        ["run", str(finished.recipe), "--run-dir", str(finished.run)],
        ["plan", str(finished.recipe), "--run-dir", str(finished.run)],
        ["status", str(finished.run), "--json"],
        ["verify", str(finished.run)],
    ]
    look = f"""
import sys
from t5_pipeline.cli.main import main
for arguments in {commands!r}:
    try:
        code = main(arguments)
    except SystemExit as left:
        code = left.code
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert (code, heavy) == (0, []), (arguments, code, heavy)
"""
    done = Outcome.of([sys.executable, "-c", look])
    assert done.code == 0, done.err


_STOPPED = """
import os, signal, sys, time
from pathlib import Path
from t5_pipeline.cli import predict
from t5_pipeline.cli.main import main
from t5_pipeline.core.atomic_files import open_output, write_directory

def write(given):
    with open_output(given.output) as write:
        write(b"a row")
        write_directory(Path("model"), lambda place: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))

predict._predict = write
sys.exit(main(["predict", "--prompts", "p", "--output", "out.jsonl"]))
"""


def test_sigterm_removes_temporary_files(tmp_path: Path) -> None:
    stopped = subprocess.run([sys.executable, "-c", _STOPPED], cwd=tmp_path, timeout=60)
    assert (stopped.returncode, list(tmp_path.iterdir())) == (143, [])


def test_a_second_run_ends_within_three_seconds(finished: Tiny) -> None:
    """CPU time, including the start of Python; a busy machine has three attempts."""
    seconds = [3.0]
    while min(seconds) >= 3 and len(seconds) < 4:
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = Outcome.of(command("run", finished.recipe, "--run-dir", finished.run))
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
        assert (done.code, done.err) == (
            0,
            f"nothing to do: all 6 stages in {finished.run} are up to date\n",
        )
    assert min(seconds) < 3


def test_a_stage_that_finishes_while_a_report_is_written_is_in_the_next_one(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` may finish a stage while someone looks at the report."""
    collect = report_collect.collect

    def collect_and_finish(*arguments: Any, **options: Any) -> Any:
        results = collect(*arguments, **options)
        manifests.read(tiny.run / "lm_adapt").save(tiny.run / "lm_adapt")  # type: ignore[union-attr]
        return results

    with monkeypatch.context() as patch:
        patch.setattr(report_collect, "collect", collect_and_finish)
        assert t5_pipeline("report", tiny.run).code == 0
    for written in (True, False):
        said = t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run)
        assert (said.code, "✓ report" in said.err) == (0, written)


def test_default_run_dir(finished: Tiny, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(COMMAND), "plan", str(finished.recipe)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{finished.recipe} → runs/tiny\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "t5-pipeline: the following arguments are required: COMMAND"),
        (["rum"], "t5-pipeline: COMMAND: there is no `rum`; did you mean `run`?"),
        (["prompts", "lst"], "t5-pipeline prompts: COMMAND: there is no `lst`; did you mean `list`?"),
        (
            ["plan", "x.yaml", "--rate", "400"],
            "--rate 400: means 400 FLOP/s, slower than any device; did you mean 400T?",
        ),
        (["run"], "t5-pipeline run: the following arguments are required: RECIPE"),
        (["run", "x.yaml", "--runs"], "t5-pipeline run: unknown flag --runs; --help lists the flags"),
        (["run", "x.yaml", "--run", "y"], "t5-pipeline run: unknown flag --run; did you mean `--run-dir`?"),
        (["run", "x.yaml"], "cannot read x.yaml (No such file or directory); give the path of a YAML file"),
        (
            ["status", "nowhere"],
            "nowhere: is not a run directory (no recipe.yaml); create one with `t5-pipeline run RECIPE`",
        ),
        (["report", "nowhere"], "nowhere: is not a run directory"),
        (["verify", "nowhere"], "nowhere: is not a run directory"),
        (["status", ""], "t5-pipeline status: RUN_DIR: is empty; give a path (is a variable of the shell not set?)"),
        (["run", "x.yaml", "--run-dir", ""], "t5-pipeline run: --run-dir: is empty"),
        (["doctor", ""], "t5-pipeline doctor: WHAT: is empty"),
        (["prompts", "push", "p", ""], "t5-pipeline prompts push: TO: is empty"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    ended = t5_pipeline(*arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith("error: " + said)
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_a_flipped_byte(tiny: Tiny) -> None:
    """Even with unchanged size and modification time, which are all that `run` compares."""
    whole = t5_pipeline("verify", tiny.run)
    assert (whole.code, whole.err) == (0, "")
    digest = short_digest(tiny.manifests()["lm_adapt"].outputs["model"].digest)
    assert f"lm_adapt: 16 files, all intact; model {digest}" in whole.out.splitlines()
    assert digest in next(line for line in t5_pipeline("status", tiny.run).out.splitlines() if "lm_adapt " in line)
    assert digest in t5_pipeline("prompts", "list", tiny.run / "prompt_tune").out
    assert f"digest: `{digest}`" in (tiny.run / "lm_adapt" / "model" / "README.md").read_text()

    file = tiny.run / "lm_adapt" / "model" / "model.safetensors"
    times, content = file.stat(), bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "nothing to do" in t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run).err

    found = t5_pipeline("verify", tiny.run)
    assert found.code == 2
    files = sum(len(manifest.files) for manifest in tiny.manifests().values())
    assert found.err == f"error: {tiny.run}: 1 of {files} files are damaged; run `t5-pipeline run` to rebuild them\n"
    assert f"lm_adapt: 16 files; model {digest}\n  model/model.safetensors is damaged (block 0 of 1)\n" in found.out


def test_a_folder_of_several_models(finished: Tiny) -> None:
    ended = t5_pipeline("prompts", "verify", finished.run / "prompt_tune", "--model", finished.run)
    places = ", ".join(str(finished.run / stage) for stage in ("lm_adapt", "pretrain", "sentinel"))
    assert ended.err == f"error: --model: {finished.run} contains 3 models; choose one of {places}\n"


def test_verify_of_an_unfinished_run(tiny: Tiny) -> None:
    (tiny.run / "evaluate" / "manifest.json").unlink()
    said = t5_pipeline("verify", tiny.run)
    assert said.code == 0
    assert said.out.splitlines()[-1] == "evaluate: not finished"


def test_report_writes_only_its_page(finished: Tiny, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    before = listing(finished.run)
    assert t5_pipeline("report", finished.run, "--output", page).out == f"{page}\n"
    assert listing(finished.run) == before
    text = page.read_text()
    assert "<html" in text
    assert not [word for word in ("http://", "https://") if f'src="{word}' in text or f'href="{word}' in text]


def test_status_as_json(finished: Tiny) -> None:
    rows = json.loads(t5_pipeline("status", finished.run, "--json").out)
    assert {row["state"] for row in rows} == {"up to date"}
    assert len(rows) == 11


def test_the_command_is_installed() -> None:
    assert COMMAND.is_file()
    assert Outcome.of(command("--version")).out.startswith("t5-pipeline ")
    assert (ROOT / "stages" / "lm_adapt.py").is_file()


def test_help_of_every_command_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["run", "plan", "status", "report", "verify", "predict", "tune", "doctor", "export", "serve", "prompts"]
    for name in [[name] for name in names] + [["prompts", "list"], ["prompts", "pull"]]:
        with pytest.raises(SystemExit):
            main([*name, "--help"])
        _, purpose, *_ = capsys.readouterr().out.split("\n\n")
        assert purpose.endswith("."), name


def test_a_folder_of_runs(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    ended = t5_pipeline("status", tmp_path)
    assert ended.code == 2
    assert ended.err.endswith(f"(no recipe.yaml); give a run, such as {tmp_path}/first, {tmp_path}/second\n")
