#!/usr/bin/env bash
# Measures on a GPU what folding buys: bash benchmarks/gpu.sh [--seconds 420]; see benchmarks/gpu.py and docs/gpu.md.
# Installs nothing: $PYTHON (python3) has to have torch with CUDA, numpy, onnx, onnx-ir, onnxscript, safetensors, typer, rich.
# Writes $OUT/gpu.json (./gpu.json) after every cell.
set -euo pipefail
export OUT="${OUT:-$PWD}"
mkdir -p "$OUT"
OUT="$(cd "$OUT" && pwd)"
cd "$(dirname "$0")/.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
