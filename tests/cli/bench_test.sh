#!/usr/bin/env bash
# bamba bench from a shell: rows, fields, refusals, Ctrl-C.  bench_test.sh PROGRAM SOURCE_DIRECTORY
set -u
bamba=$1 tiny=$2/tests/data/tiny-a
source "$(dirname "$0")/checks.sh"

# Runs CODE ARGUMENT…: bamba bench with the arguments ends with that exit code.
Runs() {
  local code=$1
  shift
  "$bamba" bench "$@" >"$dir/out" 2>"$dir/err" </dev/null
  local got=$?
  [ $got = "$code" ] || Fail "bench $*: exit code $got, expected $code"
}

# Refused CODE TEXT ARGUMENT…: that exit code, nothing but one line on standard error with TEXT in it.
Refused() {
  local text=$2
  Runs "$1" "${@:3}"
  if [ "$(wc -l <"$dir/err")" != 1 ] || ! grep -qF -- "$text" "$dir/err" || [ -s "$dir/out" ]; then Fail "bench ${*:3}: expected '$text'"; fi
}

# Count N PATTERN: so many lines of the output match.
Count() { [ "$(grep -cE -- "$2" "$dir/out")" = "$1" ] || Fail "expected $1 lines of $2"; }

Refused 2 "nothing to measure" "$tiny" -p 0 -n 0
Refused 2 "found 'x'" "$tiny" -p 16,x
Refused 2 "found '0'" "$tiny" -b 0
Refused 2 "--prompt: found '', expected a whole number from 0" "$tiny" -p 1,,2
Refused 2 "--threads: found ''" "$tiny" -t 1,
Refused 2 "not both" "$tiny" --config mini
Refused 2 "bamba convert --dtype" "$tiny" --dtype f16
Refused 2 "--dtype" "$tiny" --random --dtype f8
Refused 1 "bamba-9b, mini" --config bamba-9000
Refused 1 "of memory" --config bamba-9b --batch 60000 -n 1
sed 's/"vocab_size": [0-9]*/"vocab_size": 16000000/; s/"hidden_size": [0-9]*/"hidden_size": 8192/; s/"mamba_d_head": [0-9]*/"mamba_d_head": 2048/' "$tiny/config.json" >"$dir/huge.json"
Refused 1 "of memory" --config "$dir/huge.json" --dtype f32
echo '{}' >"$dir/empty.json"
Refused 1 "$dir/empty.json" --config "$dir/empty.json"

# Lists make every combination; a prefill row writes nothing, a generate row reads nothing.
Runs 0 "$tiny" -p 3,40 -n 2 -b 1,3 --context 0,70 -r 1 --json
Count 12 '^\{.*\}$'
Count 8 '"test":"prefill".*"n_gen":0,'
Count 4 '"test":"generate".*"n_prompt":0,"n_gen":2,'
Count 6 '"batch":3,'
Count 6 '"context":70,'
for field in test batch n_prompt n_gen context device dtype tokens_per_second milliseconds limit_tokens_per_second fraction_of_limit threads; do
  Count 12 "\"$field\":"
done

Runs 0 --config "$tiny/config.json" --random --dtype f16 -n 5 -r 2 -t 1,2
Count 1 'f16, random weights'
Count 1 '^generate +5 +1 +0 +1 '
Count 1 '^generate +5 +1 +0 +2 '

Runs 0 --config "$tiny/config.json" --dtype bf16 --precise -p 20 -r 1 --json
Count 1 '"precise":true'
Runs 0 --config "$tiny/config.json" --dtype bf16 -p 20 -r 1 --json
Count 1 '"precise":false'

Runs 0 "$tiny" -p 4 -n 0 -b 513 -r 1
Count 1 '^prefill +4 +513 '

# A row that is done stays when a signal ends the next.
rm "$dir/out"
"$bamba" bench "$tiny" -n 2,10000000 -r 1 --json >"$dir/out" 2>"$dir/err" &
for _ in $(seq 600); do
  [ -s "$dir/out" ] && break
  sleep 0.1
done
kill -TERM $!
wait $!
[ $? = 143 ] || Fail "SIGTERM: expected exit code 143"
Count 1 '"n_gen":2,'
Count 0 '"n_gen":10000000'

[ $failures = 0 ] && echo "bamba bench: as expected"
exit $((failures > 0))
