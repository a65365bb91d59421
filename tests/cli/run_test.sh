#!/usr/bin/env bash
# bamba run and the front door from a shell: what comes out where, and with which exit code.  run_test.sh PROGRAM SOURCE_DIRECTORY
set -u
bamba=$1 mini=$2/models/mini tiny=$2/tests/data/tiny-a
source "$(dirname "$0")/checks.sh"

# Refused CODE TEXT ARGUMENT…: that exit code, nothing but one line on standard error, which begins with "bamba: " and has TEXT in it.
Refused() {
  local code=$1 text=$2
  shift 2
  "$bamba" "$@" >"$dir/out" 2>"$dir/err" </dev/null
  local got=$?
  [ $got = "$code" ] || Fail "bamba $*: exit code $got, expected $code"
  [ "$(wc -l <"$dir/err")" = 1 ] && grep -q '^bamba: ' "$dir/err" || Fail "bamba $*: expected one line"
  grep -qF -- "$text" "$dir/err" || Fail "bamba $*: expected '$text'"
  [ ! -s "$dir/out" ] || Fail "bamba $*: expected no output"
}

# Written EXPECTED ARGUMENT…: exit code 0 and exactly that on standard output (and a line feed).
Written() {
  local expected=$1
  shift
  "$bamba" "$@" >"$dir/out" 2>"$dir/err" || Fail "bamba $*: exit code $?"
  [ "$(cat "$dir/out"; echo .)" = "$expected"$'\n.' ] || Fail "bamba $*: expected '$expected'"
}

Refused 2 "no command 'runn'; did you mean 'run'?" runn
Refused 2 "no command given"
Refused 2 "no flag '--tmep'; did you mean '--temp'?" run --tmep 0.5 -p x
Refused 2 "no flag '--frobnicate'" run -p x --frobnicate
Refused 2 "'b' is one argument too many" run a b -p x
Refused 2 "--prompt" run -p
Refused 2 "--typical is 0" run -p x --typical 0
Refused 2 "--presence-penalty is 9" run -p x --presence-penalty 9
Refused 2 "--logit-bias is '5'" run -p x --logit-bias 5
Refused 2 "--stop is empty" run -p x --stop ""
Refused 2 "--min-tokens 5 is more than -n 3" run -p x -n 3 --min-tokens 5
Refused 2 "--batch 2 is less than --completions 3" run -p x --n 3 --batch 2
Refused 1 "logit_bias names token 8192" run "$mini" -p x --logit-bias 8192=1
Refused 1 "stop token 8192" run "$mini" -p x --stop-token 8192
Refused 1 "expected a prompt in each line" run "$mini" --prompts /dev/null
Refused 2 "-5" run -p x -n -5
Refused 2 "abc" run -p x -n abc
Refused 2 "--top-p is 7" run -p x --top-p 7
Refused 2 "--temperature is nan" run -p x --temp nan
Refused 2 "--seed" run -p x --seed -1
Refused 2 "--seed: found ''" run -p x --seed ""
Refused 2 "--seed: found '18446744073709551616'" run -p x --seed 18446744073709551616
Refused 2 "--temperature: found ''" run -p x --temperature ""
Refused 2 "--top-k: found '1.5', expected a whole number" run -p x --top-k 1.5
Refused 2 "--prompt: a value is missing" run -p x -p
Refused 2 "MODEL: is empty" run "" -p x
Refused 2 "--tokens: found '08x'" run -p x -n 08x
Refused 2 "--ids: the prompt is no list of token ids: found '12x'" run "$tiny" --ids -p "1 12x"
Refused 1 "/nonexistent" run /nonexistent -p x
Refused 1 "/nonexistent: cannot be opened" run "$mini" -f /nonexistent
Refused 1 "directory" run "$mini" -f /
Refused 1 "--ids" run "$tiny" -p x
Refused 1 "token id 512, the model knows ids from 0 to 511" run "$tiny" --ids -p "1 512"
grep -q tokenizer "$dir/err" && Fail "--ids: a wrong id is blamed on the tokenizer"
Refused 1 "no tokens" run "$tiny" --ids -p ""
Refused 1 "raise --context" run "$tiny" --ids -p "1 2 3 4" --context 3
Refused 1 "of memory" run "$mini" -p x -n 1000000000
mkdir "$dir/unreadable" && echo '{' >"$dir/unreadable/config.json"
Refused 1 "$dir/unreadable" run "$dir/unreadable" -p x

# Every way to ask for the likeliest text gives the same one.
greedy=$("$bamba" run "$tiny" --ids -p "1 5 9" -n 6 --greedy 2>/dev/null)
Written "$greedy" run "$tiny" --ids -p "1 5 9" -n 6 --temp 0 -t 2 --precise
Written "$greedy" run "$tiny/model.safetensors" --ids -p "1 5 9" -n 6 --top-k 1 --seed 3
fourth=$(cut -d' ' -f7 <<<"$greedy")
Written "$(cut -d' ' -f1-6 <<<"$greedy") " run "$tiny" --ids -p "1 5 9" -n 6 --greedy --stop "$fourth"
Written "$greedy" run "$tiny" --ids -p "1 5 9" -n 6 --greedy --stop "[$fourth,0]"
Written "$(cut -d' ' -f1-5 <<<"$greedy")" run "$tiny" --ids -p "1 5 9" -n 6 --greedy --context 4

seeded=$("$bamba" run "$mini" -p "The sea" -n 12 --seed 4 2>/dev/null)
Written "$seeded" run "$mini" -p "The sea" -n 12 --seed 4 -t 1
# A model may be named by its weights, from any directory: the tokenizer lies beside them.
"$bamba" convert "$mini" "$dir/single" >"$dir/out" 2>"$dir/err" || Fail "convert"
Written "$seeded" run "$dir/single/model.safetensors" -p "The sea" -n 12 --seed 4
(cd "$dir/single" && "$bamba" run model.safetensors -p "The sea" -n 12 --seed 4 2>"$dir/err") | cmp -s - <(printf '%s\n' "$seeded") || Fail "a weights file in the current directory"
printf 'The sea\n' >"$dir/prompt"
Written "$seeded" run "$mini" -f "$dir/prompt" -n 12 --seed 4
Written "$seeded" run "$mini" -n 12 --seed 4 <"$dir/prompt"
grep -qE ' at ([0-9]\.[0-9]{2}|[0-9]{2}\.[0-9]|[0-9]{3}|[0-9.]{4} k) tok/s' "$dir/err" || Fail "three digits of a rate"
Written "-dash" run "$mini" -p -dash -n 0
Written "" run "$mini" -p "" -n 0
Written $'a\xff\xfeb' run "$mini" -p $'a\xff\xfeb' -n 0
"$bamba" run "$mini" -p "" -n 3 --seed 1 --json >"$dir/out" 2>"$dir/err" && grep -q '"prompt_tokens":1,' "$dir/out" || Fail "an empty prompt"
[ "$(wc -l <"$dir/out")" = 1 ] && grep -q '"finish_reason":"length"' "$dir/out" && [ ! -s "$dir/err" ] || Fail "--json"

# Many texts in one call are what each would be alone, in the order of the prompts, whatever is written side by side.
for prompt in "The sea" "A ship" ""; do
  for seed in 4 5; do "$bamba" run "$mini" -p "$prompt" -n 12 --seed $seed 2>/dev/null && echo; done
done | head -n -1 >"$dir/alone"
printf 'A ship\n\n' >"$dir/lines"
for batch in 2 3 6; do
  "$bamba" run "$mini" -p "The sea" --prompts "$dir/lines" --completions 2 --seed 4 -n 12 --batch $batch >"$dir/out" 2>"$dir/err"
  cmp -s "$dir/alone" "$dir/out" || Fail "several texts, --batch $batch"
done
"$bamba" run "$mini" -p "The sea" --prompts "$dir/lines" --n 2 --seed 4 -n 12 --json >"$dir/out" 2>"$dir/err" || Fail "several with --json"
[ "$(grep -o '"index":[0-9],"completion":[0-9]' "$dir/out" | tr -dc '0-9\n' | tr '\n' ' ')" = "00 01 10 11 20 21 " ] || Fail "order of --json"

# Choices: never a token, always one, an end at a token and not before its time.
Written "1 5 7 7 7 7" run "$tiny" --ids -p "1 5" -n 4 --greedy --logit-bias 7=100
second=$(cut -d' ' -f5 <<<"$greedy")
Written "$(cut -d' ' -f1-4 <<<"$greedy")" run "$tiny" --ids -p "1 5 9" -n 6 --greedy --stop-token "$second"
"$bamba" run "$tiny" --ids -p "1 5 9" -n 6 --greedy --stop-token "$second" --min-tokens 6 2>/dev/null | grep -qw "$second" && Fail "--min-tokens"
"$bamba" run "$tiny" --ids -p "1 5 9" -n 6 --greedy --logit-bias "$second=-inf" 2>/dev/null | grep -qw "$second" && Fail "--logit-bias -inf"

# Log probabilities: a line a token, an object's members the same, the prompt's with --echo.
"$bamba" run "$tiny" --ids -p "1 5 9" -n 6 --greedy --logprobs 2 >"$dir/out" 2>"$dir/err"
[ "$(wc -l <"$dir/out")" = 7 ] || Fail "--logprobs"
"$bamba" run "$tiny" --ids -p "1 5 9" -n 6 --greedy --logprobs 2 --echo >"$dir/out" 2>"$dir/err"
[ "$(wc -l <"$dir/out")" = 10 ] || Fail "--logprobs --echo"
"$bamba" run "$mini" -p "The sea" -n 2 --greedy --logprobs 1 --echo --json >"$dir/out" 2>"$dir/err"
grep -q '"text":"The sea is' "$dir/out" && grep -q '"prompt_logprobs":\[{"id":0,"logprob":null},{"id":513,' "$dir/out" || Fail "--echo --json"

# A device that is full, a reader that goes away.
"$bamba" run "$mini" -p x -n 3 >/dev/full 2>"$dir/err"
[ $? = 1 ] && [ "$(wc -l <"$dir/err")" = 1 ] || Fail "full device"
"$bamba" run "$mini" -p x -n 400 --ignore-eos --seed 1 2>"$dir/err" | head -c 3 >"$dir/out"
[ "${PIPESTATUS[0]}" = 141 ] && [ ! -s "$dir/err" ] || Fail "closed pipe"

# Ctrl-C ends the text in good order: what is written stays, the closing line comes, the code says what happened.
: >"$dir/out"
"$bamba" run "$mini" -p x -n 1000000 --ignore-eos --seed 1 >"$dir/out" 2>"$dir/err" &
for _ in $(seq 300); do [ "$(wc -c <"$dir/out")" -gt 20 ] && break || sleep 0.1; done
kill -INT $! && wait $!
[ $? = 130 ] && grep -q "interrupted" "$dir/err" && [ -n "$(tail -c 1 "$dir/out" | tr -d -c '\n' | od -c)" ] || Fail "Ctrl-C"

# Where the head is a matrix of its own, the embedding is mapped, but hardly read.
"$bamba" info "$tiny" | grep -q 'of which .*, the embedding, are read row by row' || Fail "info of an untied model"
"$bamba" info "$mini" | grep -q 'row by row' && Fail "info of a tied model"

# f32 whose numbers are bf16 is held as such, and writes what bf16 does in f32 arithmetic.
"$bamba" convert "$mini" "$dir/wide" --dtype f32 >/dev/null 2>&1 || Fail "convert --dtype f32"
"$bamba" info "$dir/wide" | grep -q 'are held as .* of bf16' || Fail "info of f32 that bf16 holds"
Written "$("$bamba" run "$mini" -p "The lighthouse" -n 12 --greedy --precise --device cpu 2>/dev/null)" run "$dir/wide" -p "The lighthouse" -n 12 --greedy --device cpu
grep -q 'f32 held as bf16' "$dir/err" || Fail "run of f32 that bf16 holds: $(cat "$dir/err")"
"$bamba" verify "$dir/wide" --trials 1 --device cpu | grep -q 'f32 held as bf16.* 0 differing bits' || Fail "verify of f32 that bf16 holds"

[ "$("$bamba" --version | wc -l)" = 1 ] || Fail "--version"
"$bamba" --help | grep -q 'bamba run -p' || Fail "--help teaches nothing"
exit $((failures > 0))
