#!/usr/bin/env bash
# Installs what is missing, builds, and runs the tests; the last lines are ctest's summary.
set -euo pipefail
cd "$(dirname "$0")"
source tools/install_packages.sh

Usage() {
  cat >&2 <<'TEXT'
usage: ./test.sh [--full] [--asan | --ubsan | --tsan]   the tests; --full: the long ones too; under a sanitizer
       ./test.sh --fuzz SECONDS                         every fuzz target that long
TEXT
  exit 2
}

preset=release fuzz_seconds=
while [ $# -gt 0 ]; do
  case "$1" in
    --full) export BAMBA_FULL=1 ;;
    --asan | --ubsan | --tsan) preset=${1#--} ;;
    --fuzz)
      [[ "${2-}" =~ ^[1-9][0-9]*$ ]] || Usage
      preset=fuzz fuzz_seconds=$2
      shift
      ;;
    *) Usage ;;
  esac
  shift
done

# Test material that is not ours to publish, where it lies beside the checkout.
if [ -z "${BAMBA_SHARED-}" ] && [ -d ../shared ]; then
  BAMBA_SHARED=$(realpath ../shared)
  export BAMBA_SHARED
fi

InstallPackages "${kBuildPackages[@]}"
[ $preset != fuzz ] || InstallPackages "${kFuzzPackages[@]}"
cmake --preset $preset
cmake --build build/$preset -j "$(nproc)"

if [ $preset != fuzz ]; then
  exec ctest --test-dir build/$preset -j "$(nproc)" --output-on-failure --no-tests=error
fi

# Runs one fuzz target from its seeds; its log and what it found are left in build/fuzz/findings.
RunTarget() {
  local name=$1 seconds=$2 findings=build/fuzz/findings corpora=("build/fuzz/corpus/$1")
  [ ! -d "tests/fuzz/seeds/$name" ] || corpora+=("tests/fuzz/seeds/$name")
  mkdir -p "${corpora[0]}" "$findings"
  if "build/fuzz/fuzz/$name" -max_total_time="$seconds" -timeout=25 -artifact_prefix="$findings/$name-" "${corpora[@]}" >"$findings/$name.log" 2>&1; then
    echo "$name: $(tail -n 1 "$findings/$name.log")"
  else
    tail -n 40 "$findings/$name.log"
    echo "$name: FAILED"
    return 1
  fi
}
export -f RunTarget
find build/fuzz/fuzz -name '*_fuzz' -printf '%f\0' | xargs -0 -P "$(nproc)" -I NAME bash -c "RunTarget NAME $fuzz_seconds"
