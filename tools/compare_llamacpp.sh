#!/usr/bin/env bash
# bamba beside llama.cpp, in one session on one machine: models/mini in f32, prefill of 512 tokens, decode of 128, and a whole command that writes 32.
# bamba benches twice: the file with f32 weights that llama.cpp has too, whose numbers bf16 holds as well, so that bamba holds them as such and computes the
# same bits (src/engine/narrow.h); and random f32 weights of the same shape, for what it gives where they don't fit into bf16.
#
#   tools/compare_llamacpp.sh WORK [THREADS [ROUNDS]]
#
# WORK is a folder outside the repository. The first run fetches and builds there what it needs (some GB, an hour on two cores): llama.cpp with all that this
# processor has, from the llama-cpp-python source package of PyPI, and PyTorch and transformers for its converter. Later runs only measure. It takes a C++
# compiler, cmake, ninja, python3 with venv, and a bamba that has been built (./demo.sh). The rounds alternate between the two programs, and the best of each counts: a busy machine slows both, but not at the same moments.
set -euo pipefail
if [ $# -lt 1 ] || [ $# -gt 3 ]; then
  sed -n '2,/^set/s/^#\( \|$\)//p' "$0" >&2
  exit 2
fi
source_dir=$(cd "$(dirname "$0")/.." && pwd)
bamba=$source_dir/build/release/bamba
[ -x "$bamba" ] || { echo "$0: $bamba is not there; ./demo.sh builds it" >&2; exit 1; }
mkdir -p "$1"
work=$(cd "$1" && pwd) threads=${2:-$(nproc)} rounds=${3:-5}
cd "$work"

[ -x python/bin/pip ] || python3 -m venv python
if ! compgen -G 'llama_cpp_python-*/vendor/llama.cpp' >/dev/null; then
  python/bin/pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python
  tar xzf llama_cpp_python-*.tar.gz
fi
llama=$(compgen -G "$work/llama_cpp_python-*/vendor/llama.cpp" | head -n 1)

if [ ! -x llama/bin/llama-bench ] || [ ! -x llama/bin/llama-completion ]; then
  cmake -S "$llama" -B llama -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF
  cmake --build llama --target llama-bench llama-completion
fi

if [ ! -f mini.gguf ]; then
  # Its requirements without their index of packages: pip's own configuration names one that has PyTorch without CUDA, if that is wanted.
  grep -hv '^-' "$llama"/requirements/requirements-convert_{hf_to_gguf,legacy_llama}.txt >requirements.txt
  python/bin/pip install --quiet -r requirements.txt
  # The converter knows pre-tokenizers by a hash of what they do to a text, and not that of the small tokenizer, whose pattern is Llama-3's.
  sed -i 's/^    def get_vocab_base_pre(self, tokenizer) -> str:$/&\n        return "llama-bpe"/' "$llama"/conversion/base.py
  "$bamba" convert "$source_dir/models/mini" mini --dtype f32 --force
  python/bin/python "$llama/convert_hf_to_gguf.py" mini --outtype f32 --outfile mini.part
  mv mini.part mini.gguf
fi

# Milliseconds that a command takes.
Milliseconds() {
  local start
  start=$(date +%s%N)
  "$@" >/dev/null 2>&1 </dev/null
  echo $((($(date +%s%N) - start) / 1000000))
}

rm -f ours.jsonl ours.ms wide.jsonl theirs.jsonl theirs.ms
for _ in $(seq "$rounds"); do
  "$bamba" bench mini -p 512 -n 128 -t "$threads" -r 1 --json >>ours.jsonl
  "$bamba" bench mini --random --dtype f32 -p 512 -n 128 -t "$threads" -r 1 --json >>wide.jsonl
  llama/bin/llama-bench -m mini.gguf -p 512 -n 128 -t "$threads" -r 1 -o jsonl 2>/dev/null >>theirs.jsonl
  Milliseconds "$bamba" run mini -p "The lighthouse keeper" -n 32 --greedy --ignore-eos -t "$threads" >>ours.ms
  Milliseconds llama/bin/llama-completion -m mini.gguf -p "The lighthouse keeper" -n 32 --temp 0 --ignore-eos -t "$threads" -no-cnv --no-warmup >>theirs.ms
done

python/bin/python - <<'PY'
import json
rows = lambda name: [json.loads(line) for line in open(name)]
best = lambda name, key, speed: max(row[speed] for row in rows(name) if row[key] > 0)
least = lambda name: min(int(line) for line in open(name))
print(f'{"f32, best of the rounds":<28} {"llama.cpp":>9} {"bamba":>9} {"ratio":>6} {"any f32":>9} {"ratio":>6}')
for what, key in ("prefill 512, tok/s", "n_prompt"), ("decode 128, tok/s", "n_gen"):
    theirs = best("theirs.jsonl", key, "avg_ts")
    ours, wide = (best(name, key, "best_tokens_per_second") for name in ("ours.jsonl", "wide.jsonl"))
    print(f"{what:<28} {theirs:9.0f} {ours:9.0f} {ours / theirs:6.2f} {wide:9.0f} {wide / theirs:6.2f}")
ours, theirs = least("ours.ms"), least("theirs.ms")
print(f'{"whole command, 32 tokens, ms":<28} {theirs:9} {ours:9} {ours / theirs:6.2f}')
PY
