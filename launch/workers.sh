# shellcheck shell=bash
# What tpu_pod.sh and gpu_node.sh do on every worker; they source this file and define
#   name_of I              what messages call worker I
#   remote_of I COMMAND    sets `remote`, the words that run a line of shell in worker I's home
#   copy_of I FILE         sets `remote`, the words that copy FILE to its home, as videorft-tree.tgz
#   processes_of I         sets `process`, the flags that make the command process I of all
#   is_gone I              whether worker I is known to be lost for good
# and set `run` (its name), `num` (of workers), `is_local` (1 where the worker is this machine) and `command` (what follows --). Also runs with the bash 3.2 of a Mac.

set -m # every background job is a group, so that it can be ended as a whole
scratch=$(mktemp -d)
dry_run="" restarts=10 up_s=300 lost_s=300
environment=() command=() process=()
run="" num=1 is_local=""

fail() {
  echo "$(basename "$0"): $2" >&2
  exit "$1"
}

check_numbers() { # a zero in front would make the shell read octal digits
  local number
  for number in "$@"; do
    case $number in
      *[!0-9]* | "") fail 2 "$number is no whole number; ports, counts, seconds are" ;;
      0?*) fail 2 "$number begins with 0; leave that out" ;;
    esac
  done
}

check_environment() {
  local pair
  for pair in ${environment[@]+"${environment[@]}"}; do
    case $pair in
      [A-Za-z_]*=*) ;;
      *) fail 2 "--env=$pair: write --env=NAME=VALUE" ;;
    esac
  done
}

check_command() { # VERB
  if [ "$1" = run ]; then
    [ ${#command[@]} -gt 0 ] || fail 2 "no command; write run ... -- sft --config=FILE --workdir=DIR"
  else
    [ ${#command[@]} = 0 ] || fail 2 "$1 takes no command; only run does"
  fi
}

end_jobs() {
  exec 2>/dev/null # the shell reports what it ends
  local job
  for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$scratch"
}
trap end_jobs EXIT

quote() { # the words as a line of shell, also for a reader
  local word line="" end="'\\''"
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_./:=,@%+-]*) line="$line '${word//\'/$end}'" ;;
      *) line="$line $word" ;;
    esac
  done
  echo "${line# }"
}

call() { # runs the words, or prints them
  if [ -n "$dry_run" ]; then quote "$@" >&3; else "$@" 3>&-; fi # nothing that stays behind holds it
}
exec 3>&1

on_worker() { # I COMMAND
  local remote
  remote_of "$1" "$2"
  call "${remote[@]}"
}

folder_of() { echo ".videorft/runs/$run-$1"; }

supervise() { # I VERB [MORE]: a line of shell
  echo ".videorft/tree/launch/supervise.sh $2 $(folder_of "$1")${3:+ $3}"
}

# Calls FUNCTION I for every worker at once; says which fail or take longer than LIMIT seconds.
each() { # LIMIT FUNCTION
  local limit=$1 function=$2 i job began=$SECONDS bad="" jobs=()
  for ((i = 0; i < num; i++)); do
    if [ -n "$dry_run" ]; then # in order
      "$function" "$i"
      continue
    fi
    "$function" "$i" >"$scratch/$i.out" 2>&1 </dev/null &
    jobs[i]=$!
  done
  [ -z "$dry_run" ] || return 0
  for ((i = 0; i < num; i++)); do
    job=${jobs[i]}
    while kill -0 "$job" 2>/dev/null && ((SECONDS - began < limit)); do sleep 0.1; done
    if kill -0 "$job" 2>/dev/null; then
      kill -TERM -- "-$job" 2>/dev/null || true
      wait "$job" 2>/dev/null || true
      echo "$(name_of "$i"): not done within $limit s" >&2
    elif wait "$job"; then
      continue
    else
      echo "$(name_of "$i"): failed" >&2
    fi
    tail -n 5 "$scratch/$i.out" | sed "s/^/$(name_of "$i"): /" >&2
    bad="$bad $(name_of "$i"),"
  done
  [ -z "$bad" ] || bad_workers=${bad# }
  [ -z "$bad" ]
}

show() { # the answers of the last `each`
  local i
  for ((i = 0; i < num; i++)); do sed "s/^/$(name_of "$i"): /" "$scratch/$i.out"; done
}

# ---- setup -----------------------------------------------------------------------------------

pack() { # RELEASE: a tag or commit of this repository; empty: the files as they are
  local root
  root=$(cd "$(dirname "$0")/.." && pwd)
  mkdir "$scratch/tree"
  if [ -n "$1" ]; then
    git -C "$root" archive "$1" | tar -x -C "$scratch/tree" ||
      fail 2 "--release=$1 is no tag or commit of $root; see: git tag"
    git -C "$root" describe --tags --always "$1" >"$scratch/tree/REVISION"
  elif git -C "$root" rev-parse >/dev/null 2>&1; then
    (cd "$root" && git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do [ ! -f "$file" ] || printf '%s\0' "$file"; done |
      tar -c --null -T - | tar -x -C "$scratch/tree")
    git -C "$root" describe --tags --always --dirty >"$scratch/tree/REVISION"
  else # unpacked from an archive
    (cd "$root" && tar -c LICENSE README.md setup.py pyproject.toml requirements.lock configs launch \
      videorft_jax | tar -x -C "$scratch/tree")
  fi
  tar -czf "$scratch/tree.tgz" -C "$scratch/tree" .
}

install_one() { # I
  local remote
  copy_of "$1" "$scratch/tree.tgz"
  call "${remote[@]}"
  # A tree is not changed under a run.
  on_worker "$1" "for lock in .videorft/runs/*/lock; do [ ! -e \$lock ] || flock -n \$lock true || \
{ echo \$lock is held, stop that run first; exit 1; }; done; \
mkdir -p .videorft && cd .videorft && new=\$(mktemp -d new.XXXXXX) && \
tar -xzf ../videorft-tree.tgz -C \$new && \$new/launch/replace_tree.sh && tree/launch/install.sh $kind"
}

install_all() { # KIND RELEASE
  kind=$1
  pack "$2"
  echo "installing $(cat "$scratch/tree/REVISION" 2>/dev/null || echo this tree) on $num workers"
  each 1800 install_one || fail 1 "not installed on ${bad_workers%,}; mend it and run setup again"
  [ -n "$dry_run" ] || show
}

# ---- run -------------------------------------------------------------------------------------

start_one() { # I
  local words=(env)
  [ ${#environment[@]} = 0 ] || words+=("${environment[@]}")
  words+=("$(python_of)" -P -m videorft_jax.cli "${command[@]}")
  processes_of "$1"
  [ ${#process[@]} = 0 ] || words+=("${process[@]}")
  # On this machine paths are those of the caller; elsewhere they are absolute, see check_paths.
  local from=.videorft/tree home=../..
  [ -z "$is_local" ] || { from=$(quote "$PWD") home=$(quote "$HOME"); }
  on_worker "$1" "cd $from && $home/.videorft/tree/launch/supervise.sh start \
$home/.videorft/runs/$run-$1 --restarts=$restarts -- $(quote "${words[@]}")"
}

# The interpreter; it does not import a checkout that the caller happens to stand in.
python_of() {
  local home=../..
  [ -z "$is_local" ] || home=$HOME
  echo "${VIDEORFT_PYTHON:-$home/.videorft/venv/bin/python}"
}

# Paths that only the caller's folder explains are refused where the workers are other machines. A
# flag and its value may be two words.
check_paths() {
  local word flag=""
  for word in ${command[@]+"${command[@]}"}; do
    case $word in
      --*=*) flag="" ;;
      --*)
        flag=$word
        continue
        ;;
      *)
        word=${flag:+$flag=}$word
        flag=""
        ;;
    esac
    check_path "$word"
  done
}

check_path() { # FLAG=VALUE
  case $1 in
    *=/* | *=*://* | *=tfds:* | *= | --config=configs/*) return ;;
    --config=*/* | --config=*.py) ;;
    --config.model.init_from=[A-Za-z0-9_]*/* | --config.grpo.reference=[A-Za-z0-9_]*/*)
      case ${1#*=} in */*/*) ;; *) [ -e "${1#*=}" ] || return 0 ;; esac # a name of the hub
      ;;
    --workdir=* | --checkpoint=* | --out=* | --config.compile_cache=*) ;;
    --config.model.init_from=* | --config.model.adapter=* | --config.grpo.reference=*) ;;
    --config.data.records=* | --config.data.root=* | --config.data.pass_rates=*) ;;
    --config.data.cache=* | --config.data.template_file=* | --config.reward.siglip=*) ;;
    --config.reward.cache=* | --config.evaluate.checkpoint=* | --config.ablate.r*=*) ;;
    --config.validate.records=* | --config.validate.root=*) ;;
    *) return 0 ;;
  esac
  fail 2 "$1: workers do not start in this folder; give an absolute path that all of them see"
}

up_one() { on_worker "$1" "$(supervise "$1" up)"; }
stop_one() { on_worker "$1" "$(supervise "$1" stop)"; }
status_one() { on_worker "$1" "$(supervise "$1" status)"; }
tail_one() { on_worker "$1" "$(supervise "$1" tail)"; }

stop_all() { each 400 stop_one || fail 1 "could not be stopped: ${bad_workers%,}; look there"; }

watch_one() { # I: leaves its exit code: that of supervise.sh wait, or 255 when it cannot be reached
  local verb=wait code lost="" began
  [ "$1" != 0 ] || verb=follow
  while true; do
    began=$SECONDS
    code=0
    on_worker "$1" "$(supervise "$1" $verb)" || code=$?
    case $code in 0 | 101 | 102 | 175) break ;; esac
    ((SECONDS - began < 60)) || lost="" # it was there in between
    [ -n "$lost" ] || lost=$SECONDS
    if is_gone "$1"; then
      code=254
      break
    fi
    ((SECONDS - lost < lost_s)) || break
    sleep 2
  done
  echo "$code" >"$scratch/$1.part"
  mv "$scratch/$1.part" "$scratch/$1.code"
}

# Streams worker 0 until all are done (0) or one is not: names it, prints the last lines of all and
# stops the others. Sets `result`: 0 done, 1 failed, 2 wrong usage, 75 stopped, 254 preempted.
watch_all() {
  local i code first="" left watchers=()
  rm -f "$scratch"/*.code
  for ((i = 0; i < num; i++)); do
    if [ "$i" = 0 ]; then
      watch_one 0 </dev/null &
    else
      watch_one "$i" >/dev/null 2>&1 </dev/null &
    fi
    watchers[i]=$!
  done
  while [ -z "$first" ]; do
    left=0
    for ((i = 0; i < num; i++)); do
      code=$(cat "$scratch/$i.code" 2>/dev/null || echo none)
      [ "$code" != none ] || left=1
      [ "$code" = none ] || [ "$code" = 0 ] || first=${first:-$i}
    done
    result=0
    [ "$left$first" != 0 ] || return 0
    [ -n "$first" ] || sleep 0.5
  done
  sleep 2 # what worker 0 says last, and who else is at its end
  for i in "${watchers[@]}"; do kill -TERM -- "-$i" 2>/dev/null || true; done
  wait 2>/dev/null || true
  result=0
  for ((i = 0; i < num; i++)); do
    code=$(cat "$scratch/$i.code" 2>/dev/null || echo 0)
    judge "$code"
    [ "$code" = 0 ] || echo "$(name_of "$i"): $told" >&2
  done
  echo "the last lines of all; then those that still run are stopped" >&2
  each 60 tail_one 2>/dev/null || true
  show >&2
  each 400 stop_one >/dev/null 2>&1 || true
}

judge() { # CODE of supervise.sh wait: sets told, and result to the gravest so far
  local grave
  case $1 in
    0) grave=0 told="done" ;;
    102) grave=2 told="wrong usage or input" ;;
    175) grave=75 told="stopped" ;;
    254) grave=254 told="preempted" ;;
    101) grave=1 told="failed" ;;
    *) grave=1 told="cannot be reached (exit code $1)" ;;
  esac
  local one
  for one in 254 2 1 75 0; do # a preempted slice is made anew, whatever else it led to
    case $one in "$grave" | "$result") result=$one && return ;; esac
  done
}

start_all() { # returns when every worker has come up, or some have ended already
  each "$up_s" start_one || give_up "not started" || return
  [ -z "$dry_run" ] || return 0
  # A process that waits for one that never comes is aborted by JAX without a word about which.
  each "$up_s" up_one || give_up "never came up"
}

give_up() { # WHAT: returns 254 when a worker was preempted
  local who=${bad_workers%,} i limit=$((up_s < 60 ? up_s : 60))
  for ((i = 0; i < num; i++)); do is_gone "$i" && return 254; done
  echo "$(basename "$0"): $1: $who; the last lines of all, then they are stopped" >&2
  each "$limit" tail_one 2>/dev/null || true
  show >&2
  each "$limit" stop_one >/dev/null 2>&1 || true
  fail 1 "$1: $who; the others are stopped"
}

run_all() {
  start_all || return
  [ -z "$dry_run" ] || return 0
  # shellcheck disable=SC2154
  trap 'trap - INT; echo "left running: logs follows it, stop ends it" >&2; exit 130' INT
  watch_all
  return "$result"
}

status_all() { # fails when a worker does not answer
  local ok=0
  each "$up_s" status_one || ok=1
  [ -n "$dry_run" ] || show
  return "$ok"
}

logs_all() {
  if [ -n "$dry_run" ]; then
    on_worker 0 "$(supervise 0 follow)"
    return
  fi
  trap 'trap - INT; exit 130' INT
  watch_all
  return "$result"
}
