#!/usr/bin/env bash
# Installs and runs a command on one GPU node, or the same command on several.
#
#   gpu_node.sh setup [--hosts=node1,node2] [--release=v0.1.0]
#   gpu_node.sh run [--hosts=node1,node2] -- sft --config=configs/sft_7b.py --workdir=/shared/sft_7b ...
#   gpu_node.sh status | logs | stop [--hosts=node1,node2]
#
# Without --hosts it is this machine, and paths are those of the folder you stand in; with --hosts give
# absolute ones that all see, or recipes by name. Inside a SLURM allocation `run` starts one process on each node
# with srun and stays in the foreground, as a batch script wants it; the home folder is shared then.
#
#   --hosts=A,B,...      reached by ssh without a password; A is process 0
#   --port=N             of process 0, where the others find it (29400)
#   --run=NAME           of the run, for several on one machine (default)
#   --release=TAG        install a tag or commit of this repository; else the files as they are
#   --restarts=N         of a worker, in a row (10)    --up_s=S  for a worker to answer (300)
#   --lost_s=S           that a worker may be out of reach (300)
#   --env=NAME=VALUE     set on the workers; repeat it
#   --ssh=FLAG           of ssh and scp, such as --ssh=-oPort=2222; repeat it
#   --srun=FLAG          of srun, such as --srun=--gpus-per-node=8; repeat it
#   --dry_run            print every command, run none
#
# `run` streams worker 0. Interrupted, it leaves the run going: `logs` follows it again. Exit code: 0
# done, 1 failed, 2 wrong usage or input, 75 stopped; the last lines of every worker are printed
# then, and the others stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=SCRIPTDIR/workers.sh
. "$here/workers.sh"

host_list="" port=29400 release=""
ssh_flags=() srun_flags=()
run=default

verb=${1-}
case $verb in
  setup | run | status | logs | stop) shift ;;
  "" | -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
  *) fail 2 "no verb $verb; choose one of setup run status logs stop" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    --hosts=*)
      host_list=${1#*=}
      case ,$host_list, in *,,*) fail 2 "$1: a name is empty; leave --hosts out for this machine" ;; esac
      ;;
    --port=*) port=${1#*=} ;;
    --run=*) run=${1#*=} ;;
    --release=*) release=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --up_s=*) up_s=${1#*=} ;;
    --lost_s=*) lost_s=${1#*=} ;;
    --env=*) environment+=("${1#*=}") ;;
    --ssh=*) ssh_flags+=("${1#*=}") ;;
    --srun=*) srun_flags+=("${1#*=}") ;;
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
check_numbers "$port" "$restarts" "$up_s" "$lost_s"
check_environment
check_command "$verb"
case $run in *[!A-Za-z0-9_.-]* | "") fail 2 "--run=$run: letters, digits, _ . and - only" ;; esac

IFS=, read -r -a hosts <<<"$host_list"
num=${#hosts[@]}
[ "$num" != 0 ] || num=1
if [ -z "$host_list" ]; then is_local=1; else check_paths; fi

name_of() { if [ -n "$host_list" ]; then echo "worker $1 (${hosts[$1]})"; else echo "this machine"; fi; }

remote_of() {
  if [ -z "$host_list" ]; then
    remote=(bash -c "cd && $2")
    return
  fi
  remote=(ssh -oBatchMode=yes -oServerAliveInterval=15)
  [ ${#ssh_flags[@]} = 0 ] || remote+=("${ssh_flags[@]}")
  remote+=("${hosts[$1]}" "$2")
}

copy_of() {
  if [ -z "$host_list" ]; then
    remote=(cp "$2" "$HOME/videorft-tree.tgz")
    return
  fi
  remote=(scp -q -oBatchMode=yes)
  [ ${#ssh_flags[@]} = 0 ] || remote+=("${ssh_flags[@]}")
  remote+=("$2" "${hosts[$1]}:videorft-tree.tgz")
}

processes_of() {
  process=()
  [ "$num" = 1 ] || process=("--coordinator=${hosts[0]}:$port" "--num_processes=$num" "--process_id=$1")
}

is_gone() { return 1; }

run_slurm() { # one process a node; JAX by itself would expect one a GPU
  local nodes=${SLURM_JOB_NUM_NODES:-1} first words
  first=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-$(hostname)}")
  first=${first%%$'\n'*} # head would end the pipe before scontrol has written all names
  words=$(quote env ${environment[@]+"${environment[@]}"} "$(python_of)" -P -m videorft_jax.cli \
    "${command[@]}")
  [ "$nodes" = 1 ] || words="$words --coordinator=$first:$((61440 + SLURM_JOB_ID % 4096)) \
--num_processes=$nodes --process_id=\$SLURM_PROCID"
  # When one ends the others have a minute: then all that was wrong is said, and none stays behind.
  call "$HOME/.videorft/tree/launch/supervise.sh" run "$HOME/.videorft/runs/slurm-$SLURM_JOB_ID" "--restarts=$restarts" -- \
    srun "--nodes=$nodes" "--ntasks=$nodes" --ntasks-per-node=1 --wait=60 --kill-on-bad-exit=0 \
    --label ${srun_flags[@]+"${srun_flags[@]}"} bash -c "exec $words"
}

case $verb in
  setup) install_all gpu "$release" ;;
  run)
    if [ -n "${SLURM_JOB_ID-}" ] && [ -z "$host_list" ]; then
      run_slurm
    else
      run_all
    fi
    ;;
  *) "${verb}_all" ;;
esac
