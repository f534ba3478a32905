#!/usr/bin/env bash
# Installs and runs the same command on every worker of a Cloud TPU slice, or of several.
#
#   tpu_pod.sh setup --name=pod --zone=us-east5-a [--type=v5litepod-64 --spot] [--release=v0.1.0]
#   tpu_pod.sh run --name=pod --zone=us-east5-a -- sft --config=configs/sft_7b.py \
#       --workdir=gs://bucket/sft_7b --config.model.init_from=... --config.data.records=...
#   tpu_pod.sh status | logs | stop --name=pod --zone=us-east5-a
#
#   --name --zone --project   of the TPU; also TPU_NAME, TPU_ZONE, TPU_PROJECT
#   --type=TYPE               have it made as a queued resource, and by `run` made anew whenever it
#                             is preempted; with --runtime=VERSION, --spot or --reserved
#   --slices=N                N slices, NAME-0 to NAME-<N-1>; train with --config.mesh.slices=N
#   --release=TAG             install a tag or commit of this repository; else the files as they are
#   --restarts=N              of a worker, in a row (10)    --up_s=S  for a worker to answer (300)
#   --lost_s=S                that a worker may be out of reach (300)
#   --queue_s=S               to wait for a queued resource (86400)
#   --env=NAME=VALUE          set on the workers; repeat it
#   --ssh=FLAG                of gcloud's ssh and scp, such as --internal-ip; repeat it
#   --dry_run                 print every command, run none
#
# `run` streams worker 0. Interrupted, it leaves the run going: `logs` follows it again. Exit code: 0
# done, 1 failed, 2 wrong usage or input, 75 stopped or preempted; the last lines of every worker
# are printed then, and the others stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/workers.sh
. "$here/workers.sh"

name=${TPU_NAME-} zone=${TPU_ZONE-} project=${TPU_PROJECT-}
type="" runtime="" release="" slices=1 queue_s=86400
supply=() ssh_flags=()

verb=${1-}
case $verb in
  setup | run | status | logs | stop) shift ;;
  "" | -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
  *) fail 2 "no verb $verb; choose one of setup run status logs stop" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot | --reserved) supply+=("$1") ;;
    --slices=*) slices=${1#*=} ;;
    --release=*) release=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --up_s=*) up_s=${1#*=} ;;
    --lost_s=*) lost_s=${1#*=} ;;
    --queue_s=*) queue_s=${1#*=} ;;
    --env=*) environment+=("${1#*=}") ;;
    --ssh=*) ssh_flags+=("${1#*=}") ;;
    --dry_run) dry_run=1 ;;
    --)
      shift
      command=("$@")
      break
      ;;
    *) fail 2 "no flag $1; $0 --help lists them, the command to run follows --" ;;
  esac
  shift
done
[ -n "$name" ] || fail 2 "--name missing; give the name of the TPU, or set TPU_NAME"
[ -n "$zone" ] || fail 2 "--zone missing; give the zone of $name, or set TPU_ZONE"
[ "$slices" != 0 ] || fail 2 "--slices is 0; give at least 1"
check_numbers "$slices" "$restarts" "$up_s" "$lost_s" "$queue_s"
check_environment
check_command "$verb"
check_paths
[ -n "$dry_run" ] || command -v gcloud >/dev/null || fail 1 "no gcloud here; install the Google Cloud CLI"

where=("--zone=$zone")
[ -z "$project" ] || where+=("--project=$project")
run=$name per_slice=1
tpu=(gcloud compute tpus)

node_of() { if [ "$slices" = 1 ]; then echo "$name"; else echo "$name-$1"; fi; }

name_of() {
  local text="worker $1"
  [ "$slices" = 1 ] || text="$text ($(node_of $(($1 / per_slice))), worker $(($1 % per_slice)))"
  echo "$text"
}

target_of() { # VERB I: the words up to what is particular to ssh or scp
  remote=("${tpu[@]}" tpu-vm "$1")
  node=$(node_of $(($2 / per_slice)))
  flags=("${where[@]}" "--worker=$(($2 % per_slice))" --quiet)
  [ ${#ssh_flags[@]} = 0 ] || flags+=("${ssh_flags[@]}")
}

remote_of() {
  local node flags
  target_of ssh "$1"
  remote+=("$node" "${flags[@]}" "--command=$2")
}

copy_of() {
  local node flags
  target_of scp "$1"
  remote+=("$2" "$node:videorft-tree.tgz" "${flags[@]}")
}

processes_of() { process=(); [ "$num" = 1 ] || process=(--distributed); }

state_of() { # NODE: READY, PREEMPTED, ...; nothing where there is none
  call "${tpu[@]}" tpu-vm describe "$1" "${where[@]}" "--format=value(state)"
}

is_gone() {
  case $(state_of "$(node_of $(($1 / per_slice)))" 2>/dev/null) in
    PREEMPTED | TERMINATED | DELETING | STOPPED | STOPPING) return 0 ;;
    *) return 1 ;;
  esac
}

hosts_of_type() { # of one slice, for a dry run; without --type two stand for all
  case $type in
    "") echo 2 ;;
    v5litepod-* | v6e-*) echo $(((${type##*-} + 3) / 4)) ;; # 4 chips a host
    *) echo $(((${type##*-} + 7) / 8)) ;; # 4 chips of 2 cores a host
  esac
}

find_workers() { # sets num
  local count state
  state=$(state_of "$(node_of 0)" 2>"$scratch/describe") ||
    fail 1 "$(node_of 0) in $zone: $(tail -n 1 "$scratch/describe"); setup --type=... makes one"
  [ -n "$dry_run" ] || [ "$state" = READY ] ||
    fail 1 "$(node_of 0) in $zone is ${state:-not there}; setup --type=... makes it anew"
  count=$(call "${tpu[@]}" tpu-vm describe "$(node_of 0)" "${where[@]}" \
    "--format=value(networkEndpoints.len())")
  per_slice=${count:-1}
  [ -z "$dry_run" ] || per_slice=$(hosts_of_type)
  num=$((per_slice * slices))
}

# ---- queued resources ------------------------------------------------------------------------

default_runtime() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail 2 "--type=$type: no runtime is known for it; give --runtime=VERSION" ;;
  esac
}

queue_state() {
  call "${tpu[@]}" queued-resources describe "$name" "${where[@]}" "--format=value(state.state)"
}

create() { # the queued resource, unless it is there; returns when it is active
  local state began=$SECONDS node=(--node-id="$name") told=""
  [ "$slices" = 1 ] || node=("--node-count=$slices" "--node-prefix=$name")
  runtime=${runtime:-$(default_runtime)}
  state=$(queue_state 2>/dev/null) || state=""
  case $state in
    SUSPENDED | SUSPENDING | FAILED) delete && state="" ;;
  esac
  if [ -z "$state" ]; then
    call "${tpu[@]}" queued-resources create "$name" "${node[@]}" "${where[@]}" \
      "--accelerator-type=$type" "--runtime-version=$runtime" \
      ${supply[@]+"${supply[@]}"} --quiet || fail 1 "$name was not queued; see above"
  fi
  while [ -z "$dry_run" ]; do
    state=$(queue_state) || fail 1 "the queued resource $name cannot be seen; see above"
    case $state in
      ACTIVE) break ;;
      FAILED | SUSPENDED) fail 1 "the queued resource $name is $state; try another zone or --type" ;;
    esac
    [ "$state" = "$told" ] || echo "queued resource $name: $state"
    told=$state
    ((SECONDS - began < queue_s)) || fail 1 "the queued resource $name is still $state after $queue_s s"
    sleep "${VIDEORFT_POLL_S:-20}"
  done
}

delete() {
  call "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
}

# ---- verbs -----------------------------------------------------------------------------------

is_ready() { [ "$(state_of "$(node_of 0)" 2>/dev/null)" = READY ]; }

setup() {
  [ -z "$type" ] || is_ready || create
  find_workers
  install_all tpu "$release"
}

case $verb in
  setup) setup ;;
  run)
    again=0
    if [ -z "$type" ] || [ -n "$dry_run" ] || is_ready; then find_workers; else setup; fi
    while true; do
      result=0
      run_all || result=$?
      [ "$result" = 254 ] || exit "$result"
      [ -n "$type" ] || fail 75 "$name was preempted; with --type=... it is made anew and goes on"
      again=$((again + 1))
      ((again <= restarts)) || fail 75 "$name was preempted $again times; run the same command again"
      echo "$name was preempted; making it anew, time $again of $restarts at most" >&2
      delete || true
      setup
    done
    ;;
  *)
    find_workers
    "${verb}_all"
    ;;
esac
