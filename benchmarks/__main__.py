"""Run every benchmark, or those named; write benchmarks/results/NAME.json and print tables for docs/performance.md.

python -m benchmarks [steps] [prepare]
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import torch

from benchmarks import prepare, steps
from pipeline.entry import versions


def main() -> None:
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    every = {"steps": steps, "prepare": prepare}
    for benchmark in [every[name] for name in sys.argv[1:] or every]:
        found = benchmark.run()
        if found is None:
            continue
        found["machine"] = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        found["versions"] = versions()
        (results / f"{found['name']}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(benchmark.table(found))


if __name__ == "__main__":
    main()
