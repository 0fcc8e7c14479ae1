#!/usr/bin/env bash
# Tests and benchmarks on a GPU, in at most ten minutes and without the network: benchmarks/results/gpu.json and gpu.md.
# A part that fails is recorded and does not stop the others. Arguments: see `benchmarks/gpu.sh --help`.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
command -v "$python" > /dev/null || python=python3
exec "$python" -m benchmarks.gpu "$@"
