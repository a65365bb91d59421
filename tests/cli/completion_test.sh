#!/usr/bin/env bash
# Completion and manual against --help: nothing that one of them knows is missing in another.  completion_test.sh PROGRAM
set -u
bamba=$1 failures=0
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

Fail() {
  echo "FAILED: $*"
  failures=$((failures + 1))
}

"$bamba" completion bash >"$dir/bamba.bash" || Fail "bamba completion bash"
source "$dir/bamba.bash"
compopt() { options="$*"; }  # bash allows its own only while it completes

# Completes WORD…, the last of which is being typed; leaves the words offered, or what readline is told to offer, in `offered`.
Complete() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) options=
  _bamba
  offered="${COMPREPLY[*]}$options"
}

# Offers EXPECTED WORD…
Offers() {
  local expected=$1
  shift
  Complete "$@"
  [ "$offered" = "$expected" ] || Fail "completing '$*' offers '$offered', expected '$expected'"
}

Offers "run" bamba ru
Offers "--tokens" bamba run --tok
Offers "perplexity logits" bamba eval ""
Offers "--max-windows" bamba eval perplexity --m
Offers "" bamba run -n ""
Offers "-o dirnames" bamba run ""
Offers "-o dirnames" bamba run -n 5 --greedy mo
Offers "" bamba run models/mini ""
Offers "-o default" bamba run -f ""
Offers "-o default" bamba run models/mini --file = RE
Offers "keep f32 bf16 f16" bamba convert --dtype ""
Offers "keep f32 bf16 f16" bamba convert --dtype =
Offers "bf16" bamba convert in --dtype = b
Offers "-o dirnames" bamba convert in ""
Offers "-o default" bamba tokenize --count -f a b ""
Offers "--count" bamba tokenize -f a b --cou
Offers "--greedy" bamba run --stop x --gr
Offers "--greedy" bamba run -p "two words" -n 3 --gr
Offers "bash zsh" bamba completion ""
Offers "-o dirnames" bamba run -p eval per

"$bamba" completion zsh >"$dir/_bamba" || Fail "bamba completion zsh"
"$bamba" manual >"$dir/bamba.1" || Fail "bamba manual"
sed 's/\\-/-/g; s/\\&//g; s/\\e/\\/g' "$dir/bamba.1" >"$dir/manual"
if command -v zsh >/dev/null; then zsh -n "$dir/_bamba" || Fail "zsh cannot read its completion"; fi
if command -v man >/dev/null; then
  MANROFFSEQ='' MANWIDTH=100 man --warnings -E UTF-8 -l -Tutf8 -Z "$dir/bamba.1" 2>&1 >/dev/null | grep -v 'MANROFFSEQ' && Fail "the manual is faulty troff"
fi

# Names in the first column of --help, whose lines begin with two blanks: flags or commands.
Flags() { sed -n 's/^  \(-[^ ].*\)$/\1/p' | sed 's/   *[^-].*//' | grep -oE -- '--?[A-Za-z][A-Za-z-]*'; }

# Walks VERB… and the commands below it.
Walk() {
  local help verb flag verbs
  help=$("$bamba" "$@" --help) || Fail "bamba $* --help"
  if [[ $help == *"COMMAND …"* ]]; then
    Complete bamba "$@" ""
    verbs=$offered
    for verb in $verbs; do
      grep -qE "^  $verb  " <<<"$help" || Fail "bamba $* --help: no command $verb"
      Walk "$@" "$verb"
    done
    [ "$(grep -cE '^  [a-z]+  ' <<<"$help")" = "$(wc -w <<<"$verbs")" ] || Fail "bamba $* --help: commands that completion lacks"
  else
    grep -qF ".SS bamba $*" "$dir/manual" || Fail "the manual has no bamba $*"
  fi
  Complete bamba "$@" -
  for flag in $(Flags <<<"$help"); do
    [[ " $offered " == *" $flag "* ]] || Fail "completion lacks bamba $* $flag"
    grep -qF -- "$flag" "$dir/_bamba" || Fail "zsh completion lacks bamba $* $flag"
    sed -n "/^\.SS bamba $*\$/,/^\.SS/p" "$dir/manual" | grep -qE -- "(^| |B)$flag([ ,\\]|\$)" || [ $# = 0 ] || [[ $help == *"COMMAND …"* ]] || Fail "the manual lacks bamba $* $flag"
    flags=$((flags + 1))
  done
  [ "$(sed '/^example/,$d' <<<"$help" | grep '^  ' | LC_ALL=C.UTF-8 wc -L)" -le 100 ] || Fail "bamba $* --help: a line of more than 100 columns"
}

flags=0
Walk
[ $flags -ge 50 ] || Fail "--help shows $flags flags; expected more than 50"
[ $failures = 0 ] && echo "ok: $flags flags"
