#!/usr/bin/env bash
# Trains the built-in pairs from nothing: scripts/train_pairs.sh OUTPUT_DIR [gemma] [t5]
#
# Both pairs side by side, one core each (target first, then its drafter); on a GPU one after the other. Run it again to
# go on after an interruption: every run resumes bit for bit. Exit code 75: stopped by a signal, everything saved.
# Models go to specjax/pairs/data, or to $EXPORT_DIR. Seen on two 2.6 GHz-class cores with AVX-512,
# busy with other work: 53 minutes for gemma, 33 for t5.
set -euo pipefail

output_dir=${1:?usage: scripts/train_pairs.sh OUTPUT_DIR [gemma] [t5]}
shift
[[ $# -gt 0 ]] || set -- gemma t5
root=$(cd "$(dirname "$0")/.." && pwd)
export_dir=${EXPORT_DIR:-$root/specjax/pairs/data}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

train_pair() {
  python -m specjax.train --gin_file="runs/train_$1_pair.gin" --output_dir="$output_dir" --export_dir="$export_dir"
}

for pair in "$@"; do
  [[ -f $root/gin/runs/train_${pair}_pair.gin ]] || { echo "unknown pair $pair: gemma or t5" >&2; exit 2; }
done
children=()
core=0
on_gpu=$(command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 && echo yes || echo no)
trap 'for child in "${children[@]}"; do pkill -TERM -P "$child" || true; done' TERM INT
for pair in "$@"; do
  if [[ $on_gpu == yes ]]; then
    train_pair "$pair"
  else
    ( taskset -cp "$core" "$BASHPID" >/dev/null; train_pair "$pair" ) &
    children+=($!)
    core=$(( (core + 1) % $(nproc) ))
  fi
done
code=0
for child in "${children[@]}"; do
  while kill -0 "$child" 2>/dev/null; do wait "$child" && result=0 || result=$?; done
  [[ $result -eq 0 ]] || code=$result
done
exit "$code"
