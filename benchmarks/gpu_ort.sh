#!/usr/bin/env bash
# The cells of benchmarks/gpu.sh in onnxruntime's CUDA provider: ORT=FOLDER bash benchmarks/gpu_ort.sh [--seconds 300].
# FOLDER is an unpacked onnxruntime-gpu wheel (unzip onnxruntime_gpu-*.whl -d FOLDER). Writes $OUT/gpu_ort.json after every
# cell (./gpu_ort.json).
set -euo pipefail
export OUT="${OUT:-$PWD}"
mkdir -p "$OUT"
OUT="$(cd "$OUT" && pwd)"
if [ -n "${ORT:-}" ]; then ORT="$(cd "$ORT" && pwd)"; fi
cd "$(dirname "$0")/.."
export PYTHONPATH="${ORT:+$ORT:}.${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1

exec "${PYTHON:-python3}" -m benchmarks.gpu --runtime ort "$@"
