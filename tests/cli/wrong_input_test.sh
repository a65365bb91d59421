#!/usr/bin/env bash
# What users get wrong: one line on standard error that says what, exit code 2 for the command line and 1 for the rest.  wrong_input_test.sh PROGRAM SOURCE_DIRECTORY
set -u
bamba=$1 mini=$2/models/mini tiny=$2/tests/data/tiny-a
goldens=$tiny/goldens.safetensors failures=0
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
: >"$dir/empty"
mkdir "$dir/folder"

Fail() {
  echo "FAILED: $1"
  sed 's/^/  stderr: /' "$dir/err" | head -n 5
  failures=$((failures + 1))
}

# Refused CODE TEXT ARGUMENT…: that exit code, and one line on standard error, which begins with "bamba: " and has TEXT in it.
Refused() {
  local code=$1 text=$2 got
  shift 2
  "$bamba" "$@" >"$dir/out" 2>"$dir/err" </dev/null
  got=$?
  [ $got = "$code" ] || Fail "bamba $*: exit code $got, expected $code"
  [ "$(wc -l <"$dir/err")" = 1 ] && grep -q '^bamba: ' "$dir/err" || Fail "bamba $*: expected one line"
  grep -qF -- "$text" "$dir/err" || Fail "bamba $*: expected '$text'"
}

# The command line.
Refused 2 "--window: found '0', expected a whole number from 1" eval perplexity -f x --window 0
Refused 2 "--window: found '1e3'" eval perplexity -f x --window 1e3
Refused 2 "--context: found '99999999999999999999'" info --context 99999999999999999999
Refused 2 "--threads: found '-1'" verify -t -1
Refused 2 "--atol: found 'nan', expected a number from 0" verify --atol nan
Refused 2 "--seed requires --trials" verify "$tiny" --seed 3
Refused 2 "--atol requires --against" verify "$tiny" --atol 1e-3
Refused 2 "--fast requires --against" verify "$tiny" --fast
Refused 2 "--threads: a value is missing" verify --threads
Refused 2 "--threads: given 2 times, expected once" verify -t 1 -t 2
Refused 2 "'-t' stands in front of its command; expected bamba verify -t" -t 1 verify
Refused 2 "'-t' is one argument too many" verify -- "$tiny" -t
Refused 2 "MODEL: is empty" info ""
Refused 2 "--out: is empty" eval logits "$tiny" --ids "$goldens" -o ""
Refused 2 "no command 'perplexty'; did you mean 'perplexity'?" eval perplexty
Refused 2 "IN is required" convert
Refused 2 "--dtype: f64 not in {keep,f32,bf16,f16}" convert "$tiny" "$dir/new" --dtype f64
Refused 2 "--shard-size 5XB: expected a size" convert "$tiny" "$dir/new" --shard-size 5XB
Refused 2 "SHELL: fish not in {bash,zsh}" completion fish

# Files.
Refused 1 "nowhere: does not exist; expected a model's directory" info nowhere
Refused 1 "folder/config.json: does not exist" verify "$dir/folder"
Refused 1 "config.json: is no weights file" info "$mini/config.json"
Refused 1 "empty: has 1 tokens; expected at least 2" eval perplexity "$mini" -f "$dir/empty"
Refused 1 "nowhere: cannot be opened: No such file or directory" verify "$tiny" --against nowhere
[ ! -s "$dir/out" ] || Fail "verify looks at weights before it knows that there is nothing to compare with"
Refused 1 "empty: is 0 bytes long; expected a safetensors file" eval logits "$tiny" --ids "$dir/empty" -o "$dir/new"
Refused 1 "/dev/full: cannot be written: No space left on device" eval logits "$tiny" --ids "$goldens" -o /dev/full
Refused 1 "empty: is a file; expected the name of a new directory" convert "$tiny" "$dir/empty" --force
[ ! -e "$dir/new" ] || Fail "something was left behind"

# A model is not converted onto itself, whatever it is called, and loses nothing by the attempt.
cp -r "$tiny" "$dir/model"
ln -s model "$dir/link"
Refused 2 "OUT is the model to read" convert "$dir/model" "$dir/link" --force
Refused 2 "OUT is the model to read" convert "$dir/model/model.safetensors" "$dir/model/" --force
diff -r "$tiny" "$dir/model" || Fail "a refused conversion changed the model"

# A stream that is closed is not taken for a file that was opened.
"$bamba" tokenize --tokenizer "$mini" <&- >"$dir/out" 2>"$dir/err"
[ $? = 1 ] && [ ! -s "$dir/out" ] && grep -q "standard input: cannot be read" "$dir/err" || Fail "tokenize without a standard input"
"$bamba" eval logits "$tiny" --ids "$goldens" -o "$dir/quiet" >&- 2>&- || Fail "eval logits without streams to write to"
"$bamba" eval logits "$tiny" --ids "$goldens" -o "$dir/usual"
cmp -s "$dir/quiet" "$dir/usual" || Fail "closed streams got into a file"
"$bamba" info "$mini" >/dev/full 2>"$dir/err"
[ $? = 1 ] && grep -q "standard output: cannot be written: No space left on device" "$dir/err" || Fail "info onto a full disk"

[ $failures = 0 ] && echo ok
