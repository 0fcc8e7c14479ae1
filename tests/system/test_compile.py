"""`compile: true` with a real compiler: every kind of stage computes the same as without, alone and on engines.

Without a compiler: tests/modeling/test_compilation.py. One block each of encoder and decoder, and no batch of a single
row: the time is that of the compiler, some ten seconds of CPU for each graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.test_engines import PROMPT, configuration, tune  # noqa: F401 (a fixture)
from tests.tiny_run import Outcome, Tiny, accelerate_launch, metrics, scores, script, stage

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests share compiled kernels, as runs do, and compile in their own process: forks have no workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
        yield


def adapt(finished: Tiny, output: Path, *flags: object) -> list[object]:
    return [
        "--model", finished.run / "pretrain", "--tokens", finished.run / "prepare", "--batch-size", 8,
        "--batch-unit", "rows", "--microbatch-size", 4, "--segment-length", 48, "--precision", "fp32", "--threads", 1,
        "--log-every", 1, "--schedule", "constant", "--learning-rate", 0.003, "--optimizer", "adamw",
        "--warmup-steps", 0, "--validation-batches", 1, "--output-dir", output, *flags,
    ]  # fmt: skip


def compiled(command: list[str], most: int) -> None:
    """Run it in a new process; no block gives up on the compiler, and there are few graphs."""
    said = Outcome.forked(command)
    assert said.code == 0, said.err
    assert "running without" not in said.err, said.err
    assert 2 <= said.err.count("_layers, graph ") <= most, said.err


def same_losses(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    assert len(metrics(one)) == len(metrics(other)) > 2
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert theirs.get("loss", 0) == pytest.approx(mine.get("loss", 0), rel=tolerance)
        assert theirs.get("scores") == mine.get("scores")


@pytest.fixture(scope="module")
def eager(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("eager")
    assert stage("lm_adapt", *adapt(finished, output, "--steps", 3)).code == 0
    return output


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("one", ["--recompute"]),
        ("ddp", []),
        ("zero1", []),
        ("zero2", ["--recompute"]),
        ("fsdp2", ["--recompute"]),
        ("fsdp2", []),
    ],
    ids=lambda of: of if isinstance(of, str) else "".join(of),
)
def test_compiled_steps_equal_eager_ones(
    finished: Tiny,
    eager: Path,
    tmp_path: Path,
    configuration: Callable[[str], Path],  # noqa: F811
    engine: str,
    more: list[str],
) -> None:
    flags = adapt(finished, tmp_path / "out", "--steps", 3, "--compile", "true", *more)
    on_two = engine != "one"
    compiled(
        accelerate_launch(configuration(engine), "lm_adapt", *flags) if on_two else script("lm_adapt", *flags),
        most=16 if on_two else 8,
    )
    same_losses(eager, tmp_path / "out")


def test_fresh_processes_are_bit_identical(finished: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout. The second run resumes, so it compiles at another batch; it compiles its kernels itself."""
    for name, parts in (("once", [4]), ("resumed", [2, 4])):
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"kernels-{name}"))
        for steps in parts:
            compiled(
                script(
                    "lm_adapt",
                    *adapt(finished, tmp_path / name, "--steps", steps, "--compile", "true", "--dropout", 0.1),
                ),
                most=8,
            )
    assert metrics(tmp_path / "once") == metrics(tmp_path / "resumed")
    model = Path("model") / "model.safetensors"
    assert (tmp_path / "once" / model).read_bytes() == (tmp_path / "resumed" / model).read_bytes()


def test_pretraining(finished: Tiny, tmp_path: Path) -> None:
    shape = {"d-model": 32, "d-kv": 8, "d-ff": 48, "num-layers": 1, "num-decoder-layers": 1, "num-heads": 4}
    flags: list[object] = [word for name, of in shape.items() for word in (f"--init.{name}", of)]
    flags += [
        "--tokens", finished.run / "prepare", "--input-length", 48, "--batch-size", 8, "--microbatch-size", 4,
        "--steps", 2, "--dropout", 0, "--precision", "fp32", "--log-every", 1, "--validation-batches", 1,
        "--no-packing", "--threads", 1,
    ]  # fmt: skip
    assert stage("span_corrupt", *flags, "--output-dir", tmp_path / "eager").code == 0
    compiled(script("span_corrupt", *flags, "--output-dir", tmp_path / "out", "--compile", "true"), most=8)
    same_losses(tmp_path / "eager", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "more"), [("prompt_tune", PROMPT), ("model_tune", ("--tasks", "about.yaml", "--learning-rate", 0.001))]
)
def test_tuning_and_its_validation(finished: Tiny, tmp_path: Path, kind: str, more: tuple[object, ...]) -> None:
    task = {"about.yaml": tmp_path / "about.yaml"}
    flags = [task.get(str(word), word) for word in more]
    eager, out = tmp_path / "eager", tmp_path / "out"
    assert stage(kind, *tune(finished, eager, "adamw", 2), *flags, "--validate-every", 2).code == 0
    compiled(
        script(kind, *tune(finished, out, "adamw", 2), *flags, "--validate-every", 2, "--compile", "true"), most=16
    )
    same_losses(eager, out)


def test_scoring(finished: Tiny, tmp_path: Path) -> None:
    flags = [
        "--prompts", finished.run / "prompt_tune" / "model=lm_adapt,seed=0", "--limit", 8, "--precision", "fp32",
        "--threads", 1, "--scoring", "likelihood", "--no-baselines",
    ]  # fmt: skip
    assert stage("evaluate", *flags, "--output-dir", tmp_path / "eager").code == 0
    compiled(script("evaluate", *flags, "--output-dir", tmp_path / "out", "--compile", "true"), most=8)
    assert scores(tmp_path / "eager") == scores(tmp_path / "out")
