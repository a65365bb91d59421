#!/usr/bin/env bash
# All that needs a GPU to be tested: its ops and models, the CPU's op tests over its f32 ops, any split giving the same bits; once as this card's own code, once
# as the generic code that older cards run (BAMBA_CUDA_PATH=generic, the driver compiles it from PTX).
#
#   tools/device_test.sh [--sanitize] [BUILD]
#
# BUILD is a build folder, by default build/release; it may have been built on another machine. --sanitize: also compute-sanitizer's memcheck, racecheck and
# initcheck over the op tests, shortened and several at a time, which takes minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
sanitize=0
[ "${1:-}" = --sanitize ] && sanitize=1 && shift
build=${1:-build/release}
failed=()
Run() {
  local name=$1 log
  shift
  log=$(mktemp)
  local start=$SECONDS
  if "$@" >"$log" 2>&1; then
    echo "ok      $name ($((SECONDS - start)) s)  $(grep -aE '^\[  PASSED|^=+ (ERROR|RACECHECK) SUMMARY|^trials' "$log" | tr '\n' ' ')"
  else
    echo "FAILED  $name ($((SECONDS - start)) s)"
    grep -aE 'FAILED|Failure|rror|differ|SUMMARY' "$log" | head -n 40
    tail -n 5 "$log"
    failed+=("$name")
  fi
  rm -f "$log"
}
TestFile() { [ -x "$build/$1" ] && echo "$build/$1" || echo "$build/tests/$1"; }

Run "ops and models" "$build/cuda_test"
Run "the CPU's op tests on f32 ops" env BAMBA_TEST_DEVICE=cuda "$(TestFile ops_test)" --gtest_filter='*LinearTest*:*SplitTest*:*SequenceOps*:*Rows*'
Run "generic code: ops and models" env BAMBA_CUDA_PATH=generic CUDA_FORCE_PTX_JIT=1 "$build/cuda_test" --gtest_filter='-*Million*:*ManyTokens*'
for model in tests/data/tiny-a tests/data/tiny-b tests/data/tiny-d; do
  Run "verify $model" "$build/bamba" verify "$model" --device cuda --against "$model/goldens.safetensors" --atol 1e-4 --trials 30
done
Run "verify models/mini, f32" "$build/bamba" verify models/mini --device cuda --trials "${BAMBA_TRIALS:-100}"
Run "verify models/mini, batch-invariant" "$build/bamba" verify models/mini --device cuda --batch-invariant --trials "${BAMBA_TRIALS:-1000}"
# One of compute-sanitizer's tools over the op tests, in as many parts at a time as there are cores, at most eight.
Sanitize() {
  local parts logs i rc=0 running=()
  parts=$(($(nproc) < 8 ? $(nproc) : 8)) logs=$(mktemp -d)
  for ((i = 0; i < parts; i++)); do
    GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$i BAMBA_SHORT=1 compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 5 "$build/cuda_test" \
      --gtest_filter="${BAMBA_SANITIZE_FILTER:--CudaModel*}" >"$logs/$i" 2>&1 &
    running+=($!)
  done
  for i in "${running[@]}"; do wait "$i" || rc=1; done
  cat "$logs"/*
  rm -rf "$logs"
  return $rc
}
if [ $sanitize = 1 ]; then
  for tool in memcheck racecheck initcheck; do Run "compute-sanitizer $tool" Sanitize "$tool"; done
fi
[ ${#failed[@]} = 0 ] || { echo "${#failed[@]} failed: ${failed[*]}"; exit 1; }
echo "all passed"
