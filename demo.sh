#!/usr/bin/env bash
# Installs what is missing, builds, and writes a few sentences with the small model that comes along.
set -euo pipefail
cd "$(dirname "$0")"
source tools/install_packages.sh
InstallPackages "${kBuildPackages[@]}"

cmake --preset release
cmake --build build/release --target bamba -j "$(nproc)"

echo
build/release/bamba run -p "The lighthouse keeper" -n 64
cat <<'TEXT'

What to type next:
  build/release/bamba run -p "Once upon a time" -n 200
  build/release/bamba info models/mini
  build/release/bamba --help
  ./test.sh
TEXT
