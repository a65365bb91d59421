#!/usr/bin/env bash
# bamba chat from a script and from a terminal (a pseudo-terminal of util-linux's script).  chat_test.sh PROGRAM SOURCE_DIRECTORY
set -u
bamba=$1 mini=$2/models/mini
dir=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$dir"' EXIT
export HOME=$dir XDG_STATE_HOME=$dir/state TERM=xterm
failures=0

Fail() {
  echo "FAILED: $1"
  for file in out err screen; do [ ! -s "$dir/$file" ] || { echo "  $file:" && cat -v "$dir/$file" | tail -n 15; }; done
  failures=$((failures + 1))
}

# Piped INPUT ARGUMENT…: a chat of which each line of INPUT is a turn; its exit code in $code.
Piped() {
  local input=$1
  shift
  printf '%s' "$input" | "$bamba" chat "$mini" --greedy -t 2 "$@" >"$dir/out" 2>"$dir/err"
  code=$?
}
Said() { grep -qF -- "$1" "$dir/err" || Fail "expected '$1' on standard error"; }

# By pipe.
Piped $'The lighthouse keeper\n' -n 12
first=$(cat "$dir/out")
[ $code = 0 ] && [ "$first" = "$("$bamba" run "$mini" --greedy -n 12 -p "The lighthouse keeper" -t 1 2>/dev/null | cut -c 22-)" ] || Fail "template none continues as run does"

Piped $'The lighthouse keeper\n/regen\n/undo\nThe lighthouse keeper\n/reset\n\nThe lighthouse keeper' -n 12
[ $code = 0 ] && [ "$(cat "$dir/out")" = "$first"$'\n'"$first"$'\n'"$first"$'\n'"$first" ] || Fail "/regen, /undo and /reset begin where the turn began"
Said "context 0 of 4,096"

Piped $'The lighthouse keeper\n/save '"$dir"$'/kept\nAnd then' -n 12
second=$(tail -n +2 "$dir/out")
Said "4 tok read"
Piped $'/load '"$dir"$'/kept\nAnd then\n' -n 12
[ $code = 0 ] && [ "$(cat "$dir/out")" = "$second" ] || Fail "/load goes on as if the program had never ended"
head -c 1000 "$dir/kept" >"$dir/cut"
Piped $'Hello\n/load '"$dir"$'/cut\n/load '"$dir"$'/none\n/load '"$mini"$'/config.json\nAnd then' -n 5
[ $code = 1 ] && [ "$(grep -c '^bamba: .*/\(cut\|none\|config.json\)' "$dir/err")" = 3 ] || Fail "files that can't be loaded are named"
Said "3 of the inputs could not be obeyed"

# A full chat can be loaded again; what is no session is not written over; a link and the file's permissions stay; a pipe that nobody reads is not waited for.
Piped $'Hello\n/save '"$dir"$'/full\n/load '"$dir"$'/full\n' -n 100 --context 32
[ $code = 0 ] || Fail "a full chat is saved and loaded"
Said "going on with $dir/full · context 32 of 32"
echo notes >"$dir/notes" && chmod 600 "$dir/full" && ln -s full "$dir/link" && mkfifo "$dir/fifo" && before=$(stat -c %i "$dir/full")
Piped $'Hello\n/save '"$dir"$'/notes\n/save '"$dir"$'/fifo\n/load '"$dir"$'/fifo\n/save '"$dir"$'/link\n' -n 2
[ $code = 1 ] && [ "$(cat "$dir/notes")" = notes ] && [ -L "$dir/link" ] && [ "$(stat -c %a "$dir/full")" = 600 ] && [ "$(stat -c %i "$dir/full")" != "$before" ] ||
  Fail "/save to notes, a pipe and a link"
Said "notes: is there already and no saved session"
Said "fifo: cannot be written: nobody reads this pipe"
Said "fifo: is not a regular file"

# The same choices as run's, and refused where run refuses them.
third=$("$bamba" run "$mini" --greedy -n 12 --ids -p "$("$bamba" tokenize "The lighthouse keeper" 2>/dev/null)" -t 1 2>/dev/null | tr ' ' '\n' | tail -n 10 | head -n 1)
Piped $'The lighthouse keeper\n' -n 12 --stop-token "$third"
[ $code = 0 ] && [ "$(wc -c <"$dir/out")" -lt "${#first}" ] || Fail "--stop-token"
Piped Hello --stop-token 8192
[ $code = 1 ] && Said "stop token 8192"
Piped Hello -n 3 --min-tokens 5
[ $code = 2 ] && Said "--min-tokens 5 is more than -n 3"
printf 'Hello\nand\n' | "$bamba" chat "$mini" --greedy -n 3 2>/dev/full >"$dir/out"
[ $? = 0 ] && [ "$(wc -l <"$dir/out")" -ge 2 ] || Fail "standard error that can't be written"

Piped $'one \\\ntwo' -n 3
[ $code = 0 ] && [ "$(grep -c 'tok read' "$dir/err")" = 1 ] || Fail "a backslash joins lines"
Piped $'/undo\n/rest\n/save\n' -n 3
[ $code = 1 ] && [ ! -s "$dir/out" ] || Fail "what can't be obeyed"
Said "did you mean '/reset'?"
Piped "$(printf 'word %.0s' {1..200})" --context 100 -n 3
[ $code = 1 ] && [ ! -s "$dir/out" ] || Fail "a text longer than the context"
Said "the context of 100 has room for 100"
Piped "$(printf '\377\376 \360\237')" -n 3
[ $code = 0 ] || Fail "ill-formed UTF-8 is read as the bytes it is"
Piped '' && [ $code = 0 ] || Fail "an empty input"

# Templates.
Piped Hello --template llama3
[ $code = 1 ] && [ "$(wc -l <"$dir/err")" = 1 ] || Fail "a template whose tokens the model lacks"
Said "<|start_header_id|>"
mkdir "$dir/model" && cp "$mini"/* "$dir/model"
echo '<|im_start|>{{ messages }}' >"$dir/model/chat_template.jinja"
printf 'Hello' | "$bamba" chat "$dir/model" -n 2 >/dev/null 2>"$dir/err" || Fail "a model with its own template"
Said "model/chat_template.jinja: the model's own chat template is not yet supported; going on with --template none; --template chatml"

# A signal ends the chat in good order, and saves nothing.
rm -rf "$dir/kept" && mkfifo "$dir/pipe"
"$bamba" chat "$mini" -n 100000 --context 200000 -t 1 <"$dir/pipe" >"$dir/out" 2>"$dir/err" &
chat=$!
exec 7>"$dir/pipe"
printf 'Once\n/save %s/kept\n' "$dir" >&7
for _ in {1..100}; do [ -s "$dir/out" ] && break; sleep 0.1; done
kill -TERM $chat
wait $chat
[ $? = 143 ] && [ ! -e "$dir/kept" ] || Fail "SIGTERM in mid-turn"
Said "interrupted"
"$bamba" chat "$mini" <"$dir/pipe" 2>"$dir/err" &
chat=$!
sleep 0.5
kill -TERM $chat
wait $chat
[ $? = 143 ] || Fail "SIGTERM while nobody types"
exec 7>&-
: >"$dir/out"
"$bamba" chat "$mini" -n 100000 --context 200000 -t 1 <"$dir/pipe" >"$dir/out" 2>"$dir/err" &
chat=$!
exec 7>"$dir/pipe"
printf 'Once\n' >&7
for _ in {1..100}; do [ -s "$dir/out" ] && break; sleep 0.1; done
kill -HUP $chat
kill -HUP $chat
wait $chat
[ $? = 129 ] || Fail "SIGHUP in mid-turn"
Said "interrupted"
exec 7>&-

# By terminal. Terminal ARGUMENT…; then Type what is typed, and Shows what must appear on the screen.
Terminal() {
  rm -f "$dir/keys" "$dir/screen" && mkfifo "$dir/keys"
  script -qefc "'$bamba' chat '$mini' $*" "$dir/screen" <"$dir/keys" >/dev/null 2>&1 &
  terminal=$!
  exec 8>"$dir/keys"
  Shows "/help lists"
}
Type() { printf "$1" >&8; }
Shows() {
  for _ in {1..200}; do grep -qaF -- "$1" "$dir/screen" 2>/dev/null && return; sleep 0.1; done
  Fail "expected '$1' on the screen"
}
Ends() {
  exec 8>&-
  wait $terminal
  [ $? = "$1" ] || Fail "exit code of a chat at a terminal"
}

command -v script >/dev/null || { echo "no 'script' here: terminals are not tried"; exit $failures; }
Terminal --greedy -n 12
Type 'lighthouse keeper\001The \005\r'  # Ctrl-A, Ctrl-E
Shows "$first"
Type '\033[200~one\rtwo\033[201~\r'
Shows "context 35 of"
Type 'thrown away\003/undo\r'
Shows "context 18 of"
Type '\033[A\033[A\033[A\r'  # Up
Shows "context 36 of"
Type '\004'
Ends 0
[ "$(tail -n 1 "$dir/state/bamba/chat_history")" = "The lighthouse keeper" ] || Fail "history"

Terminal -n 100000 --context 200000
Type 'Once\r'
sleep 1
Type '\003\003'
Shows "interrupted"
Type '/quit\r'
Ends 0

rm -rf "$dir/state" && : >"$dir/state"
TERM=dumb NO_COLOR=1 Terminal --greedy -n 12
Shows "not kept for the next chat"
[ "$(grep -c "not kept" "$dir/screen")" = 1 ] || Fail "one warning"
Type 'The lighthouse keeper\r'
Shows "$first"
! grep -q $'\033' "$dir/screen" || Fail "a terminal that knows no escape sequences got one"
Type '\004'
Ends 0

[ $failures = 0 ] || exit 1
