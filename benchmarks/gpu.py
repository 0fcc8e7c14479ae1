"""The tests marked `gpu`, and benchmarks on one GPU, each part in a process of its own with a time limit.

    benchmarks/gpu.sh             # make gpu
    benchmarks/gpu.sh --dry       # tiny models, also on a CPU, to try the script itself

The tests run side by side, the slowest first, and the benchmarks one after another. Their results, also errors, are in
benchmarks/results/gpu.json, and as tables in gpu.md beside it. Later parts are skipped when the time is up.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

RESULTS = Path(__file__).parent / "results"
TESTS = "tests/system/test_gpu.py"

# Name, seconds at most. A test of kernels has a process of its own, because a fault in one breaks all that follow.
PARTS: dict[str, int] = {
    "device": 60,
    "test_loss_and_gradients_equal_those_of_the_cpu": 60,
    "test_memory_efficient_attention_has_the_gradient_of_the_bias": 60,
    "test_compiled_blocks_equal_eager_ones": 120,
    "test_compiled_flex_attention_equals_the_reference": 180,
    "test_a_frozen_t5_with_flex_attention_has_the_same_gradient": 240,
    "test_nccl_on_one_device": 60,
    "test_engines_on_one_device_take_the_same_steps": 240,
    "test_engines_compile": 240,
    "test_engines_on_two_devices_take_the_same_steps": 180,
    "test_resumed_runs_are_bit_identical": 300,
    "test_cuda_graphs_compute_the_same_bits": 180,
    "test_cuda_graphs_of_prompts_compute_the_same_bits": 180,
    "test_after_a_recording_that_fails_dropout_stream_and_memory_are_as_before": 60,
    "test_released_graphs_free_their_memory": 60,
    "test_answers_equal_those_of_the_cpu": 120,
    "train_base": 60,
    "train_base_compiled": 90,
    "tune_xl": 60,
    "tune_xl_compiled": 90,
    "train_xl": 90,
    "attention": 90,
    "trainer": 120,
    "peft": 120,
    "serving": 60,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PART", help="parts to run (default: all)")
    parser.add_argument("--dry", action="store_true", help="tiny models, also without a GPU; writes to --output only")
    parser.add_argument("--seconds", type=float, default=600, help="time for all parts (default: 600)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory of gpu.json and gpu.md")
    given = parser.parse_args()
    if unknown := set(given.names) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    if given.dry and given.output == RESULTS:
        given.output = Path(tempfile.mkdtemp(prefix="gpu-dry-"))
    given.output.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + given.seconds
    found: dict[str, Any] = {"versions": versions(), "dry": given.dry, "parts": {}}
    chosen = [name for name in PARTS if not given.names or name in given.names]

    def measure(name: str) -> None:
        began = time.monotonic()
        left = until - began
        run = test if name.startswith("test_") else benchmark
        allowed = left if given.dry else min(PARTS[name], left)
        part = run(name, allowed, given.dry) if left > 5 else {"outcome": "no time left"}
        with writing:
            found["parts"][name] = {**part, "seconds": round(time.monotonic() - began, 1)}
            found["parts"] = {name: found["parts"][name] for name in PARTS if name in found["parts"]}
            print(f"{name}: {part['outcome']}", flush=True)
            # After every part, so that nothing is lost if the machine goes.
            (given.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            (given.output / "gpu.md").write_text(tables(found), encoding="utf-8")

    writing = threading.Lock()
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2)) as side_by_side:
        tests = [name for name in chosen if name.startswith("test_")]
        list(side_by_side.map(measure, sorted(tests, key=PARTS.__getitem__, reverse=True)))
    for name in chosen:
        if not name.startswith("test_"):
            measure(name)
    print(f"wrote {given.output / 'gpu.json'} and gpu.md")


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "accelerate", "deepspeed", "peft", "triton")
    installed = {name.lower() for name in importlib.metadata.packages_distributions()}
    return {name: importlib.metadata.version(name) for name in packages if name in installed}


def bounded(command: list[str], seconds: float) -> tuple[str, str, dict[str, Any]]:
    """Outcome ("ok", "failed" or "timed out") and stdout of a command; after a failure also its last lines."""
    paths = [str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile("w+") as errors:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": errors, "text": True}
        with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
            try:
                out, _ = process.communicate(timeout=seconds)
                outcome, said = ("failed" if process.returncode else "ok"), ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # what it started, too
                out, _ = process.communicate()
                outcome, said = "timed out", f"more than {seconds:.0f} s"
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    if outcome == "ok":
        return outcome, out, {}
    return outcome, out, {"error": said or (lines or [""])[-1], "log": [*out.splitlines()[-150:], *lines[-60:]]}


def benchmark(name: str, seconds: float, dry: bool) -> dict[str, Any]:
    """Run a function of gpu_parts.py, which prints JSON as its last line."""
    flags = ["--dry"] if dry else []
    outcome, out, failure = bounded([sys.executable, "-m", "benchmarks.gpu_parts", name, *flags], seconds)
    if failure:
        rows = [json.loads(line)["row"] for line in out.splitlines() if line.startswith('{"row"')]
        return {"outcome": outcome, **({"rows": rows} if rows else {}), **failure}
    measured: dict[str, Any] = json.loads(out.splitlines()[-1])
    return {"outcome": "no CUDA device" if measured.pop("device") == "cpu" else "ok", **measured}


def test(name: str, seconds: float, dry: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        flags = ["-v", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"{TESTS}::{name}", *flags]
        outcome, _, failure = bounded(command, seconds)
        if not report.is_file():
            return {"outcome": outcome, **failure}
        cases = [
            {"case": case.get("name"), "outcome": kind, "error": text.splitlines()[0] if text else ""}
            for case in ElementTree.parse(report).iter("testcase")
            for kind, text in [_result(case)]
        ]
    outcomes = {case["outcome"] for case in cases}
    if outcomes == {"skipped"}:
        return {"outcome": cases[0]["error"]}
    failed = [case for case in cases if case["outcome"] != "passed"]
    outcome = f"{len(failed)} of {len(cases)} failed" if failed else f"{len(cases)} passed"
    return {"outcome": outcome, "cases": failed, **failure}


def _result(case: ElementTree.Element) -> tuple[str, str]:
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return kind if kind == "skipped" else "failed", found.get("message", "")
    return "passed", ""


def tables(found: dict[str, Any]) -> str:
    """Everything as Markdown, for docs/performance.md."""
    parts = found["parts"]
    device = parts.get("device", {})
    about = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{device.get('name', 'unknown device')}; {about}.",
        "",
        "| part | outcome | s | error |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {part['outcome']} | {part['seconds']:.0f} | {_cell(part.get('error', ''))} |"
        for name, part in parts.items()
    ]
    columns: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        ("tokens/s", lambda row: f"{row['tokens_per_second']:,.0f}"),
        ("share of the layer's product", lambda row: f"{row['share']:.0%}"),
        ("peak memory, measured", lambda row: f"{row['peak'] / 2**30:.2f} GiB"),
        ("`plan`", lambda row: f"{row['planned'] / 2**30:.2f} GiB"),
        ("first step", lambda row: f"{row['first_s']:.1f} s"),
    ]
    lines += ["", "| step | " + " | ".join(title for title, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, part in parts.items():
        if "tokens_per_second" in part:
            lines.append(f"| {name} | " + " | ".join(text(part) for _, text in columns) + " |")
    for name in ("attention", "trainer", "peft", "serving"):
        rows = parts.get(name, {}).get("rows", [])
        if rows:
            titles = list(dict.fromkeys(key for row in rows for key in row))
            lines += ["", f"| {name}: " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
            lines += ["| " + " | ".join(_cell(row.get(key, "")) for key in titles) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")[:200]


if __name__ == "__main__":
    main()
