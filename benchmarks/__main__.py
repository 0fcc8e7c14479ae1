"""Run every benchmark; write benchmarks/results/NAME.json and print tables for docs/performance.md."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

from benchmarks import memory, steps
from pipeline.entry import versions


def main() -> None:
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    for benchmark in (steps, memory):
        found = benchmark.run()
        found["machine"] = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        found["versions"] = versions()
        (results / f"{found['name']}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print("\n".join(benchmark.table(found["rows"])), end="\n\n")


if __name__ == "__main__":
    main()
