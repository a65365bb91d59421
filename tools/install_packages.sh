# Sourced by the scripts that build: InstallPackages installs what a build needs and this machine lacks, with apt.
# "a|b" means: a, or b where the distribution knows no a (Debian 12 names first, then those of newer Debians and of Ubuntu 24.04).

kBuildPackages=(
  g++ cmake ninja-build ccache pkg-config
  libfmt-dev libhwy-dev libcli11-dev libedit-dev libpcre2-dev "libboost-json1.81-dev|libboost-json1.83-dev|libboost-json-dev"
  libgtest-dev libgmock-dev libbenchmark-dev
)
kFuzzPackages=("clang-14|clang" "libclang-rt-14-dev|libclang-rt-dev")

Die() {
  echo "$0: $*" >&2
  exit 1
}

IsInstalled() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# apt-cache show knows names, too, that other packages merely mention.
HasCandidate() { [[ $(LC_ALL=C apt-cache policy "$1" 2>/dev/null) == *"Candidate: "[!\(]* ]]; }

# InstallPackages PACKAGE…: says what it installs; prints nothing where nothing is missing.
InstallPackages() {
  local wanted name missing=() chosen=() root=()
  command -v apt-get dpkg-query >/dev/null || Die "installs its packages with apt, which is not here; install the counterparts of these and use cmake --preset release: $*"
  for wanted in "$@"; do
    for name in ${wanted//|/ }; do IsInstalled "$name" && continue 2; done
    missing+=("$wanted")
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || Die "neither root nor sudo: have an administrator install: ${missing[*]}"
    root=(sudo)
  fi
  echo "Looking for the packages that this build needs and this machine lacks"
  "${root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update || Die "apt-get update failed"
  for wanted in "${missing[@]}"; do
    for name in ${wanted//|/ }; do
      HasCandidate "$name" && chosen+=("$name") && continue 2
    done
    Die "this distribution has no package ${wanted//|/ or }; Debian 12 or later has"
  done
  echo "Installing with apt: ${chosen[*]}"
  # --no-remove: where another version of a library stands in the way, that is for its owner to decide.
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -y --no-install-recommends --no-remove install "${chosen[@]}" >/dev/null ||
    Die "apt-get could not install: ${chosen[*]}"
}
