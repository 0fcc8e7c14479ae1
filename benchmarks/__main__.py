"""Run benchmarks, write benchmarks/results/NAME.json and print tables for docs/performance.md.

python -m benchmarks [NAME …] [--size full|small] [--data ../shared/data] [--rounds N] [--threads N] [--clock wall|cpu]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks import (
    agreement,
    checkpoints,
    grouped_peers,
    label_scoring,
    lm_adaptation,
    memory,
    overhead,
    prepare,
    prompt_memory,
    prompt_tuning,
    same_batches,
    same_prompts,
    serving,
    sweep,
    vocabulary_export,
)
from benchmarks.machine import Clock, described
from t5_pipeline.execution.malloc import keep_freed_memory

BENCHMARKS = {
    "lm_adaptation": lm_adaptation,
    "prompt_tuning": prompt_tuning,
    "same_batches": same_batches,
    "same_prompts": same_prompts,
    "grouped_peers": grouped_peers,
    "prompt_memory": prompt_memory,
    "label_scoring": label_scoring,
    "overhead": overhead,
    "memory": memory,
    "checkpoints": checkpoints,
    "prepare": prepare,
    "agreement": agreement,
    "vocabulary_export": vocabulary_export,
    "serving": serving,
    "sweep": sweep,
}
SMALL = ("serving",)
"""Benchmarks that have a small size."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks to run: {', '.join(BENCHMARKS)} (default: all)"
    )
    parser.add_argument(
        "--size", choices=("full", "small"), default="full",
        help=f"small: a minute with a tiny T5, to see that it runs; nothing is written ({', '.join(SMALL)})",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="directory with tasks/ and t5/")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each side")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of both sides (0: torch's default)")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu if other work runs on the machine"
    )
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; choose from {', '.join(BENCHMARKS)}")
    small = given.size == "small"
    if small and not set(SMALL).issuperset(given.names or BENCHMARKS):
        parser.error(f"--size small: choose from {', '.join(SMALL)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    Clock.use(given.clock)
    # Applies to both sides, since it is a property of the process.
    keep_freed_memory()
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    for name in given.names or BENCHMARKS:
        measured = BENCHMARKS[name].run(given.rounds, given.data, **({"small": True} if small else {}))
        if measured is None:
            continue
        found = {"name": name, **measured, "machine": described()}
        if not small:
            (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"\n## {name}\n\n{BENCHMARKS[name].table(found)}", flush=True)


if __name__ == "__main__":
    main()
