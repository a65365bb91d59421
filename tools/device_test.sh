#!/usr/bin/env bash
# All that needs a GPU to be tested: its ops and models, the CPU's op tests over its f32 ops, any split giving the same bits; once as this card's own code, once
# as the generic code that older cards run (BAMBA_CUDA_PATH=generic, the driver compiles it from PTX).
#
#   tools/device_test.sh [--sanitize] [BUILD]
#
# BUILD is a build folder, by default build/release; it may have been built on another machine. --sanitize: also compute-sanitizer's memcheck, racecheck and
# initcheck over the op tests, shortened, which takes minutes. racecheck leaves out a kernel of the scan: see docs/performance.md.
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
    echo "ok      $name ($((SECONDS - start)) s)  $(grep -aE '^\[  PASSED|^ERROR SUMMARY|^trials' "$log" | tr '\n' ' ')"
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
if [ $sanitize = 1 ]; then
  export BAMBA_SHORT=1
  for tool in memcheck 'racecheck --kernel-name-exclude kernel_substring=HopperChunks' initcheck; do
    Run "compute-sanitizer $tool" compute-sanitizer --tool $tool --error-exitcode 1 --print-limit 5 "$build/cuda_test" --gtest_filter="${BAMBA_SANITIZE_FILTER:--CudaModel*}"
  done
fi
[ ${#failed[@]} = 0 ] || { echo "${#failed[@]} failed: ${failed[*]}"; exit 1; }
echo "all passed"
