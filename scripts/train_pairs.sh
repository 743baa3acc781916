#!/usr/bin/env bash
# Trains the built-in pairs from nothing: scripts/train_pairs.sh OUTPUT_DIR [gemma] [t5]
#
# Both pairs side by side, one core each (target first, then its drafter); on a GPU one after the other. Run it again to
# go on after an interruption: every run resumes bit for bit. Exit code 75: stopped by a signal, everything saved.
# Models go to specjax/pairs/data, or to $EXPORT_DIR. On two 2.6 GHz-class cores with AVX-512: about 80 minutes.
set -euo pipefail

output_dir=${1:?usage: scripts/train_pairs.sh OUTPUT_DIR [gemma] [t5]}
shift
[[ $# -gt 0 ]] || set -- gemma t5
root=$(cd "$(dirname "$0")/.." && pwd)
export_dir=${EXPORT_DIR:-$root/specjax/pairs/data}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

train() {  # train MODEL PAIR ROLE FLAGS...
  local model=$1 pair=$2 role=$3
  shift 3
  python -m specjax.train --model="$model" --output_dir="$output_dir/$model" \
    --export="$export_dir/$pair/$role.safetensors" --seed=1 --num_examples=400000 --num_validation=2000 \
    --batch_size=16 --encoder_length=128 --warmup_steps=300 --log_every=50 --evaluate_every=250 --save_every=250 "$@"
}

train_pair() {
  case $1 in
    gemma)
      train gemma_target gemma target --steps=3800 --learning_rate=2e-3 --sequence_length=128
      train gemma_drafter gemma drafter --steps=7500 --learning_rate=4e-3 --sequence_length=128
      ;;
    t5)
      train t5_target t5 target --steps=4000 --learning_rate=1.5e-3 --sequence_length=96
      train t5_drafter t5 drafter --steps=6000 --learning_rate=3e-3 --sequence_length=96
      ;;
    *) echo "unknown pair $1: gemma or t5" >&2; exit 2 ;;
  esac
}

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
