#!/usr/bin/env bash
# All that waits for a GPU, the most decisive first, in nine minutes at most; nothing is installed or downloaded.
# Needs python3 (or $PYTHON) with torch, einops, safetensors, numpy and pillow.
#   benchmarks/gpu/run.sh [--device cuda] [--geometry flux] [--minutes 9] [--only STEP ...] [-o FOLDER]
# FOLDER (default: $OUT, else benchmark_output/gpu) gets gpu.md and gpu.json, written again whenever there is more.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.gpu.campaign "$@"
