#!/usr/bin/env bash
# The main job on the built-in pairs: quality against latency of speculative decoding, lossy verification and cascades.
#
#   bash scripts/demo.sh [output folder]      leaves report.html there; about 8 minutes on 2 cores after installation
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh "" # without an argument it would see ours
output=${1:-results/demo}
python -m specjax.eval --gin_file=gin/runs/demo.gin --output_path="$output" --resume
echo "open $output/report.html"
