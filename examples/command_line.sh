#!/usr/bin/env bash
# A trained checkpoint in, a verified ONNX file out. Usage: examples/command_line.sh [FOLDER]
set -euo pipefail
folder=${1:-$(mktemp -d)}
checkpoint=fixtures/vit_un.pt

# Which norms are there, and what would become of each? Nothing is written.
normfold inspect "$checkpoint"

# Fold them, verify the result, keep the report.
normfold fold "$checkpoint" -o "$folder/vit.onnx" --report "$folder/vit.json"

# Later, or on another machine: does the file still compute what its source computes?
normfold verify "$folder/vit.onnx" --against "$checkpoint" --samples 8 --junit "$folder/verify.xml"
