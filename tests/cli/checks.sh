# Sourced by the tests from a shell: a folder of their own, $dir, and failures that show what the program wrote to $dir/out and $dir/err and are counted.
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failures=0

Fail() {
  echo "FAILED: $1"
  sed 's/^/  stdout: /' "$dir/out" | head -n 5
  sed 's/^/  stderr: /' "$dir/err" | head -n 5
  failures=$((failures + 1))
}
