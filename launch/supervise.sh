#!/usr/bin/env bash
# Runs a command on this machine and starts it again when it fails.
#
#   supervise.sh run DIR [--restarts=N] [--delay=SECONDS] -- COMMAND...   in the foreground
#   supervise.sh start DIR ... -- COMMAND...   in the background, says it in DIR/log
#   supervise.sh follow DIR    prints the log until the run ends, and ends as `wait`
#   supervise.sh wait DIR      exit code 0 done, 101 failed, 102 wrong usage, 175 stopped
#   supervise.sh up DIR        waits until the command has come up, or the run has ended
#   supervise.sh status DIR | tail DIR | stop DIR
#
# The command's exit code 0 (done) or 2 (wrong usage or input) is the end. After any other, and after
# death by a signal, it is started again, N times in a row at most; an attempt that lasted
# VIDEORFT_HEALTHY_S begins a new row, and 75 (stopped by SIGTERM, checkpoint written) is not
# counted. SIGTERM or SIGINT here is handed on and ends both; what ignores it for
# VIDEORFT_GRACE_S is killed. The exit code of `run` is that of the last attempt. The command makes
# the file VIDEORFT_UP once it has come up, before it waits for others.
set -euo pipefail

HEALTHY_S=${VIDEORFT_HEALTHY_S:-900}
GRACE_S=${VIDEORFT_GRACE_S:-180}

fail() {
  echo "supervise: $2" >&2
  exit "$1"
}

say() { echo "supervise: $(date -u +%FT%TZ) $*"; }

is_held() { [ -e "$dir/lock" ] && ! flock -n -s "$dir/lock" true; } # by a supervisor or its command

forward() {
  interrupted=1 stopping=1
  [ -n "$child" ] || return 0
  kill -TERM "$child" 2>/dev/null || true
  if [ -z "$killer" ]; then
    (sleep "$GRACE_S" && kill -KILL -- "-$child") 9>&- >/dev/null 2>&1 &
    killer=$!
  fi
}

attempt() { # sets code; a session of its own, so that nothing it started is left
  rm -f "$dir/up"
  VIDEORFT_UP=$(cd "$dir" && pwd)/up setsid "$@" </dev/null &
  child=$!
  echo "$child" >"$dir/child"
  [ -z "$stopping" ] || forward # the signal came in between
  interrupted=1
  while [ -n "$interrupted" ]; do
    interrupted="" code=0
    wait "$child" || code=$?
  done
  kill -KILL -- "-$child" 2>/dev/null || true
  child=""
}

run() {
  mkdir -p "$dir"
  exec 9>>"$dir/lock"
  flock -w 5 9 || fail 2 "something runs in $dir; stop it first"
  local number=1 used=0 began
  child="" stopping="" killer=""
  trap forward TERM INT
  echo $$ >"$dir/pid"
  while true; do
    echo "running attempt $number" >"$dir/state"
    say "attempt $number: $*"
    began=$SECONDS
    attempt "$@"
    [ -z "$killer" ] || kill "$killer" 2>/dev/null || true
    if [ "$code" = 0 ]; then
      finish "done 0" "done"
    elif [ "$code" = 2 ]; then
      finish "failed 2" "wrong usage or input, not started again"
    elif [ -n "$stopping" ]; then
      finish "stopped $code" "stopped, exit code $code; the same command goes on"
    fi
    ((SECONDS - began < HEALTHY_S)) || used=0
    [ "$code" = 75 ] || used=$((used + 1))
    if ((used > restarts)); then
      finish "failed $code" "exit code $code, after $restarts restarts in a row"
    fi
    say "exit code $code; restart $used of $restarts in $delay s"
    sleep "$delay" & # so that a signal is heard
    wait $! || true
    [ -z "$stopping" ] || finish "stopped $code" "stopped between two attempts"
    number=$((number + 1))
  done
}

finish() { # STATE MESSAGE
  echo "$1" >"$dir/state"
  say "$2"
  exit "$code"
}

start() {
  mkdir -p "$dir"
  is_held && fail 2 "something runs in $dir; stop it first"
  rm -f "$dir/state"
  [ ! -e "$dir/log" ] || mv "$dir/log" "$dir/log.before"
  setsid nohup "$0" run "$dir" "--restarts=$restarts" "--delay=$delay" -- "$@" \
    >>"$dir/log" 2>&1 </dev/null &
  for _ in $(seq 100); do
    [ -s "$dir/state" ] && exit 0
    sleep 0.1
  done
  fail 1 "did not start, see $dir/log"
}

up() {
  until [ -e "$dir/up" ]; do
    case $(cat "$dir/state") in running*) sleep 0.2 ;; *) break ;; esac
  done
}

wait_for_end() {
  [ -e "$dir/state" ] || fail 101 "nothing was started in $dir"
  while is_held; do sleep 0.5; done
  case $(cat "$dir/state") in
    done*) exit 0 ;;
    "failed 2") exit 102 ;;
    stopped*) exit 175 ;;
    *) exit 101 ;; # also one that still says running: the supervisor was killed
  esac
}

follow() {
  tail -n 100 -F "$dir/log" 2>/dev/null &
  # The last lines are printed before it ends.
  trap 'sleep 1.2; kill $! 2>/dev/null' EXIT
  wait_for_end
}

status() {
  local state
  state=$(cat "$dir/state" 2>/dev/null || echo "never started")
  case $state in running*) is_held || state="dead (was $state)" ;; esac
  echo "$state: $(tail -n 1 "$dir/log" 2>/dev/null || true)"
}

stop() { # waits until it is gone
  is_held || return 0
  local whom=child # where the supervisor was killed, and its number may be another's
  ! grep -qs supervise "/proc/$(cat "$dir/pid")/cmdline" || whom=pid
  kill -TERM "$(cat "$dir/$whom")" 2>/dev/null || true
  for _ in $(seq $((GRACE_S * 2 + 10))); do
    is_held || return 0
    sleep 0.5
  done
  kill -KILL -- "-$(cat "$dir/child")" 2>/dev/null || true
}

[ $# -ge 2 ] || fail 2 "write $0 run|start|follow|wait|up|status|tail|stop DIR, see its first lines"
verb=$1 dir=$2 restarts=10 delay=5
shift 2
while [ $# -gt 0 ]; do
  case $1 in
    --restarts=*) restarts=${1#*=} ;;
    --delay=*) delay=${1#*=} ;;
    --)
      shift
      break
      ;;
    *) fail 2 "no flag $1; give --restarts=N, --delay=SECONDS, then -- COMMAND" ;;
  esac
  shift
done
for number in "$restarts" "$delay" "$HEALTHY_S" "$GRACE_S"; do # 08 would be octal digits
  case $number in
    *[!0-9]* | "" | 0?*)
      fail 2 "'$number': --restarts, --delay, VIDEORFT_HEALTHY_S, VIDEORFT_GRACE_S are whole numbers"
      ;;
  esac
done
for tool in flock setsid; do
  command -v $tool >/dev/null || fail 2 "no $tool here; install util-linux"
done
case $verb in
  run | start)
    [ $# -gt 0 ] || fail 2 "no command; write -- COMMAND..."
    "$verb" "$@"
    ;;
  follow | status | stop | up) "$verb" ;;
  wait) wait_for_end ;;
  tail) tail -n 15 "$dir/log" ;;
  *) fail 2 "no verb $verb; choose one of run start follow wait up status tail stop" ;;
esac
