#!/usr/bin/env bash
# Better bundled weights in one run: the enlarger, then detail upon it, each going on from the bundled files by the
# recipes configs/enlarger_h200.toml and configs/detail_h200.toml for its share of the minutes.
# Needs python3 (or $PYTHON) with the package's requirements and the extra "train"; nothing is installed or downloaded.
#   benchmarks/gpu/weights.sh [--device cuda] [--minutes 9] [--photos FOLDER] [--set KEY=VALUE ...] [-o FOLDER]
# FOLDER of photos: squares, as configs/photos/README.md makes them; without it the pictures are procedural.
# The output (default: $OUT, else benchmark_output/weights) gets three .safetensors below 16 MiB, and both logs.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu.weights "$@"
