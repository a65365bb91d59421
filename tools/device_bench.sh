#!/usr/bin/env bash
# The speed gates of the GPU, with random weights of the 9B shape, each beside its limit measured in the same run.
#
#   tools/device_bench.sh [BUILD [SCRATCH]]
#
# BUILD is a build folder (build/release). SCRATCH is a folder with 20 GB to spare, where a checkpoint for the loading test is written; without it that and the
# mixed load are left out.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/release} scratch=${2:-}
bench() { "$build/bamba" bench --config bamba-9b --dtype bf16 --device cuda "$@"; }
nvidia-smi --query-gpu=name,driver_version,clocks.sm,memory.total --format=csv,noheader
"$build/limits_cuda" 4096 16768 4096 4096 4096 8192 4096 28672 4096 4096 4096 14336 4096 6144 4096 4096 4096 4096
echo "decode, context 2,048"
bench -n 64 -b 1,8,32,64,128,256 --context 2048 -r 3
echo "prefill"
bench -p 512,4096,32768 -r 3
echo "batch-invariant"
bench -n 64 -b 1,32,128 --context 2048 -r 3 --batch-invariant
bench -p 512,4096 -r 3 --batch-invariant
for program in "$build"/cuda_linear "$build"/cuda_mamba "$build"/cuda_attention; do
  if [ -x "$program" ]; then "$program"; fi
done
if [ -n "$scratch" ]; then
  [ -d "$scratch/random-9b" ] || "$build/random_checkpoint" bamba-9b bf16 "$scratch/random-9b"
  echo "from a cached checkpoint to the first token of 16"
  for _ in 1 2 3; do "$build/bamba" run "$scratch/random-9b" --ids -p "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16" -n 1 --greedy --ignore-eos --device cuda; done
  "$build/mixed_load" "$scratch/random-9b"
fi
