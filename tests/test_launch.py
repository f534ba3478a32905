"""The launchers: with stubs of gcloud, ssh and srun that record calls, run workers as local
processes and fail on purpose; and for real, several processes that train and are killed."""

import contextlib
import functools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_run import (
    ROOT,
    environment,
    make_data,
    make_model,
    metrics,
    read_arrays,
    sft_options,
    write_config,
)

LAUNCH = ROOT / "launch"
SUPERVISE = LAUNCH / "supervise.sh"

# A worker is a home folder. What it does instead of answering is in HOST.fails.
REACH = """
reach() { # HOST COMMAND
  mkdir -p "$STUB/$1"
  [ ! -e "$STUB/$1.fails" ] || . "$STUB/$1.fails"
  HOME=$STUB/$1
  cd && exec bash -c "$2"
}
"""
STUBS = {
    "ssh": 'while [[ $1 == -* ]]; do shift; done; reach "$1" "$2"',
    "scp": """while [[ $1 == -* ]]; do shift; done
mkdir -p "$STUB/${2%%:*}"; cp "$1" "$STUB/${2%%:*}/${2#*:}" """,
    "gcloud": """
for word in "$@"; do
  case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac
done
next() { head -n 1 "$STUB/$1"; [ "$(wc -l <"$STUB/$1")" -lt 2 ] || sed -i 1d "$STUB/$1"; }
case "$*" in
  *"queued-resources describe"*) next queue ;;
  *"queued-resources create"*) printf 'WAITING_FOR_RESOURCES\\nACTIVE\\n' >"$STUB/queue"
    echo READY >"$STUB/state"; rm -f "$STUB"/*.fails ;;
  *"queued-resources delete"*) echo >"$STUB/queue"; echo >"$STUB/state" ;;
  *"describe"*"value(state)"*) next state ;;
  *"describe"*) cat "$STUB/workers" ;;
  *" scp "*) mkdir -p "$STUB/${6%%:*}-$worker"; cp "$5" "$STUB/${6%%:*}-$worker/${6#*:}" ;;
  *" ssh "*) reach "$5-$worker" "$command" ;;
esac
""",
    "scontrol": "echo node0; echo node1",
    "srun": """
while [[ $1 == -* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=} ;; esac; shift
done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & jobs[i]=$!; done
worst=0
for job in "${jobs[@]}"; do
  code=0; wait "$job" || code=$?; ((code <= worst)) || worst=$code
done
exit $worst
""",
    "uv": """if [ "$1" = venv ]; then
mkdir -p "${@: -1}/bin"; ln -s "$(command -v python)" "${@: -1}/bin/python"; fi""",
    # The command of a worker, for tests of the launcher alone; $me is its number.
    "python": """
me=${HOME##*-} attempt=$(($(cat "$HOME/attempts" 2>/dev/null || echo 0) + 1))
echo $attempt >"$HOME/attempts"
echo "$*" >"$HOME/arguments"
[ -e "$STUB/late" ] || touch "$VIDEORFT_UP"
echo "worker $me, attempt $attempt"
. "$STUB/program"
""",
}


class Stage:
    """A folder of stubs, what they recorded, and the launchers run on it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in STUBS.items():
            path = folder / "bin" / name
            record = f'printf "%q " {name} "$@" >>"$STUB/calls"; echo >>"$STUB/calls"\n'
            record = "" if name in ("uv", "python") else record
            path.write_text(f"#!/usr/bin/env bash\n{REACH}{record}{text}\n")
            path.chmod(0o755)
        self.write(workers="2\n", state="READY\n", queue="ACTIVE\n", program="exit 0\n")
        self.environment = os.environ | {
            "STUB": str(folder),
            "HOME": str(folder / "laptop"),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "VIDEORFT_PYTHON": str(folder / "bin" / "python"),
            "VIDEORFT_POLL_S": "0",
            "VIDEORFT_GRACE_S": "5",
        }
        (folder / "laptop").mkdir()

    def write(self, **files):
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def read(self, name):
        return (self.folder / name).read_text()

    def calls(self, part=""):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if part in line]

    def trees(self, *hosts):
        """Workers as `setup` leaves them."""
        for host in hosts:
            tree = self.folder / host / ".videorft" / "tree"
            tree.mkdir(parents=True)
            (tree / "launch").symlink_to(LAUNCH)

    def start(self, script, *words, **more):
        return subprocess.Popen(
            [LAUNCH / script, *map(str, words)],
            env=self.environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell cannot trap what it was started to ignore, as tests in the background are.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script, *words, code=0, **more):
        process = self.start(script, *words, **more)
        text = process.communicate(timeout=200)[0]
        assert process.returncode == code, text
        return text

    def tpu(self, verb, *words, code=0):
        return self.run("tpu_pod.sh", verb, "--name=pod", "--zone=z", *words, code=code)


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    end_all(tmp_path)


def end_all(folder):
    """Ends what a failed test left: supervisors, then their commands."""
    for name in ("pid", "child"):
        for path in folder.glob(f"*/.videorft/runs/*/{name}"):
            if not is_alive(path.parent):
                continue
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(path.read_text()), signal.SIGKILL)


def is_alive(run):
    """Whether the lock of a supervisor is held."""
    return subprocess.run(["flock", "-n", run / "lock", "true"]).returncode != 0


def living(group):
    """Processes of a group; those that nobody has waited for yet are none."""
    found = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True)
    return [line for line in found.stdout.splitlines() if not line.startswith("Z")]


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_shellcheck_has_nothing_to_say():
    tool = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    words = [tool, "-x", *sorted(path.name for path in LAUNCH.glob("*.sh"))]
    done = subprocess.run(words, cwd=LAUNCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# ---- the supervisor --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "ended", "attempts"),
    [
        ("0", 0, 1),
        ("2", 2, 1),  # wrong usage is not tried again
        ("3 1 0", 0, 3),
        ("3 1 4 0", 4, 3),  # two restarts
        ("75 3 75 75 1 75 0", 0, 7),  # stopped with a checkpoint is no failure
        ("kill 2", 2, 2),
    ],
)
def test_supervisor_restarts_what_failed(tmp_path, codes, ended, attempts):
    (tmp_path / "codes").write_text("\n".join([*codes.split(), ""]))
    program = """code=$(head -n 1 codes); sed -i 1d codes
[ "$code" != kill ] || kill -KILL $$; exit $code"""
    words = [SUPERVISE, "run", "run", "--restarts=2", "--delay=0", "--", "bash", "-c", program]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == ended
    assert done.stdout.count("supervise:") == 2 * attempts
    state = "done 0" if ended == 0 else f"failed {ended}"
    assert (tmp_path / "run" / "state").read_text().strip() == state


def test_an_attempt_that_lasted_begins_a_new_row(tmp_path):
    program = "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n; sleep 1; [ $n = 3 ] || exit 1"
    words = [SUPERVISE, "run", "run", "--restarts=1", "--delay=0", "--", "bash", "-c", program]
    more = {"VIDEORFT_HEALTHY_S": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | more, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("program", "state"),
    [
        ("trap 'sleep 0.3; exit 75' TERM; sleep 60 & wait", "stopped 75"),
        ("trap '' TERM; sleep 60 & wait; sleep 60", "stopped 137"),  # killed in the end
    ],
)
def test_stop_waits_for_the_command_and_leaves_nothing(tmp_path, program, state):
    run = tmp_path / "run"
    more = {"env": os.environ | {"VIDEORFT_GRACE_S": "1"}, "timeout": 60, "check": True}
    begin = [SUPERVISE, "start", run, "--delay=0", "--", "bash", "-c", program]
    subprocess.run(begin, **more)
    assert subprocess.run(begin, timeout=60, capture_output=True).returncode == 2  # one at a time
    group = int((run / "child").read_text())
    time.sleep(0.3)
    subprocess.run([SUPERVISE, "stop", run], **more)
    assert (run / "state").read_text().strip() == state
    assert not living(group)
    assert subprocess.run([SUPERVISE, "wait", run], timeout=60).returncode == 175


def test_a_supervisor_that_was_killed_is_told(tmp_path):
    words = [SUPERVISE, "start", tmp_path / "run", "--", "sleep", "60"]
    subprocess.run(words, check=True, timeout=60)
    child = int((tmp_path / "run" / "child").read_text())
    os.kill(int((tmp_path / "run" / "pid").read_text()), signal.SIGKILL)
    again = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2  # its command still runs
    subprocess.run([SUPERVISE, "stop", tmp_path / "run"], check=True, timeout=60)
    assert not living(child)
    status = subprocess.run(
        [SUPERVISE, "status", tmp_path / "run"], capture_output=True, text=True, timeout=60
    )
    assert status.stdout.startswith("dead (was running attempt 1)")
    assert subprocess.run([SUPERVISE, "wait", tmp_path / "run"], timeout=60).returncode == 101


# ---- a TPU pod -------------------------------------------------------------------------------

COMMAND = ("--", "sft", "--config=configs/sft_7b.py", "--workdir=gs://b/it's a run")
CREATE = (
    "gcloud compute tpus queued-resources create pod --node-id=pod --zone=z --project=p "
    "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot --quiet"
)


def test_dry_run_prints_every_command_and_runs_none(stage):
    make = ["--type=v5litepod-16", "--spot", "--project=p", "--dry_run"]
    assert CREATE in stage.tpu("setup", *make).splitlines()
    text = stage.tpu("run", "--dry_run", "--env=A=b c", *COMMAND)
    line = text.splitlines()[-1]
    assert line.startswith("gcloud compute tpus tpu-vm ssh pod --zone=z --worker=0 --quiet ")
    stage.run("gpu_node.sh", "setup", "--hosts=a,b", "--dry_run")
    for verb in ("run", "status", "logs", "stop"):
        rest = COMMAND if verb == "run" else ()
        text = stage.run("gpu_node.sh", verb, "--hosts=a,b", "--dry_run", *rest)
        assert "ssh -oBatchMode=yes -oServerAliveInterval=15 a " in text
    assert stage.calls() == []


def test_setup_waits_for_the_queue_and_installs_everywhere(stage):
    stage.write(state="\n", queue="\n")
    stage.tpu("setup", "--type=v5litepod-16", "--spot", "--project=p", "--ssh=--internal-ip")
    assert [line.strip() for line in stage.calls("create")] == [CREATE]
    assert len(stage.calls("queued-resources describe")) == 3  # none, waiting, active
    for worker in range(2):
        home = stage.folder / f"pod-{worker}" / ".videorft"
        own = (LAUNCH / "tpu_pod.sh").read_text()
        assert (home / "tree" / "launch" / "tpu_pod.sh").read_text() == own
        assert (home / "venv" / "bin" / "python").exists()
        assert len(stage.calls(f"--worker={worker} --quiet --internal-ip")) == 2
    stage.write(**{"pod-1.fails": "echo no space left; exit 1"})
    text = stage.tpu("setup", code=1)
    assert "worker 1: no space left" in text
    assert text.splitlines()[-1].startswith("tpu_pod.sh: not installed on worker 1; mend it")


def test_setup_installs_a_release_or_the_tree_as_it_is(stage):
    root = stage.folder / "repository"
    shutil.copytree(LAUNCH, root / "launch")
    git = ["git", "-C", root, "-c", "user.name=n", "-c", "user.email=e"]
    (root / "model.py").write_text("old")
    (root / ".gitignore").write_text("runs\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    (root / "model.py").write_text("changed")
    (root / "new.py").write_text("new")
    (root / "runs").mkdir()
    (root / "runs" / "big").write_text("not sent")
    tree = stage.folder / "a" / ".videorft" / "tree"

    def setup(*flags, code=0):
        words = [root / "launch" / "gpu_node.sh", "setup", "--hosts=a", *flags]
        return stage.run(pathlib.Path(os.path.relpath(words[0], LAUNCH)), *words[1:], code=code)

    setup()
    names = {path.name for path in tree.iterdir()}
    assert names == {"launch", "model.py", "new.py", ".gitignore", "REVISION"}
    assert (tree / "model.py").read_text() == "changed"
    setup("--release=v1")
    assert (tree / "model.py").read_text() == "old"
    assert not (tree / "new.py").exists()
    assert (tree / "REVISION").read_text() == "v1\n"
    assert "--release=v9 is no tag or commit" in setup("--release=v9", code=2)


def test_run_starts_the_same_command_everywhere_and_streams_worker_0(stage):
    stage.write(workers="4\n", program='echo "secret is $SECRET"; sleep 0.5; exit 0\n')
    stage.trees(*(f"pod-{i}" for i in range(4)))
    text = stage.tpu("run", "--env=SECRET=a b", *COMMAND)
    assert "secret is a b" in text
    assert "worker 0, attempt 1" in text
    assert "worker 1, attempt 1" not in text
    wanted = "-m videorft_jax.cli sft --config=configs/sft_7b.py --workdir=gs://b/it's a run"
    for i in range(4):
        assert stage.read(f"pod-{i}/arguments") == f"{wanted} --distributed\n"
    text = stage.tpu("status")
    assert all(f"worker {i}: done 0: supervise: " in text for i in range(4))


def test_slices_are_nodes_of_their_own(stage):
    stage.trees(*(f"pod-{slice}-{i}" for slice in range(2) for i in range(2)))
    text = stage.tpu("run", "--slices=2", "--restarts=0", *COMMAND)
    assert "attempt 1" in text
    started = stage.calls("supervise.sh\\ start")
    where = {(line.split()[5], line.split()[7]) for line in started}
    assert where == {(f"pod-{s}", f"--worker={i}") for s in range(2) for i in range(2)}


def test_a_failure_is_named_and_the_others_are_stopped(stage):
    stage.write(program='[ $me = 1 ] && { echo "disk is full"; exit 3; }; exec sleep 60\n')
    stage.trees("pod-0", "pod-1")
    text = stage.tpu("run", "--restarts=0", *COMMAND, code=1)
    assert "worker 1: failed" in text
    assert "worker 1: disk is full" in text
    assert "worker 0: worker 0, attempt 1" in text
    assert stage.read("pod-0/.videorft/runs/pod-0/state").startswith("stopped")
    assert not is_alive(stage.folder / "pod-0/.videorft/runs/pod-0")


def test_wrong_usage_ends_the_run_at_once(stage):
    stage.write(program='echo "no such option"; exit 2\n')
    stage.trees("pod-0", "pod-1")
    text = stage.tpu("run", *COMMAND, code=2)
    assert "worker 1: wrong usage or input" in text
    assert stage.read("pod-1/attempts") == "1\n"


@pytest.mark.parametrize("how", ["silent", "refused", "stuck"])
def test_a_worker_that_never_comes_up_is_named_in_time(stage, how):
    stage.write(program="exec sleep 60\n")
    if how == "stuck":  # it is reached, and its program does not get on
        stage.write(late="")
        stage.environment["BASH_ENV"] = str(stage.folder / "env")
        stage.write(env='[ "${HOME##*-}" = 1 ] || [ -z "${VIDEORFT_UP-}" ] || touch "$VIDEORFT_UP"')
    else:
        stage.write(**{"pod-1.fails": {"silent": "sleep 60", "refused": "exit 255"}[how]})
    stage.trees("pod-0", "pod-1")
    began = time.monotonic()
    text = stage.tpu("run", "--up_s=4", *COMMAND, code=1)
    assert time.monotonic() - began < 30
    what = "never came up" if how == "stuck" else "not started"
    assert text.splitlines()[-1] == f"tpu_pod.sh: {what}: worker 1; the others are stopped"
    assert not is_alive(stage.folder / "pod-0/.videorft/runs/pod-0")


def test_a_preempted_slice_is_made_anew(stage):
    """It vanishes under the run: the queued resource is replaced and the command goes on."""
    stage.write(program='[ -e "$STUB/again" ] && exit 0; exec sleep 60\n', workers="2\n")
    stage.trees("pod-0", "pod-1")
    run = stage.folder / "pod-1/.videorft/runs/pod-1"
    process = stage.start(
        "tpu_pod.sh", "run", "--name=pod", "--zone=z", "--type=v6e-8", "--spot", *COMMAND
    )
    wait_for(lambda: (run / "up").exists())
    end_all(stage.folder)  # as the machines are gone
    stage.write(state="PREEMPTED\n", again="", **{f"pod-{i}.fails": "exit 255" for i in range(2)})
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 0, text
    assert "pod was preempted; making it anew, time 1 of 10" in text
    made = [line.split()[4] for line in stage.calls("queued-resources") if "describe" not in line]
    assert made == ["delete", "create"]


def test_an_interrupted_launcher_leaves_the_run_and_stop_ends_it(stage):
    stage.write(program="trap 'exit 75' TERM; echo going; sleep 60 & wait\n")
    stage.trees("pod-0", "pod-1")
    process = stage.start("tpu_pod.sh", "run", "--name=pod", "--zone=z", *COMMAND)
    wait_for(lambda: all((stage.folder / f"pod-{i}/attempts").exists() for i in range(2)))
    while (line := process.stdout.readline()) != "going\n":
        assert line, "it ended before"
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 130, text
    assert "left running: logs follows it, stop ends it" in text
    assert "running attempt 1: going" in stage.tpu("status")
    follower = stage.start("tpu_pod.sh", "logs", "--name=pod", "--zone=z")
    stage.tpu("stop")
    assert "going" in follower.communicate(timeout=60)[0]
    assert follower.returncode == 75


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tpu_pod.sh", "start"], "no verb start; choose one of setup run status logs stop"),
        (["tpu_pod.sh", "run", "--zone=z"], "--name missing; give the name of the TPU"),
        (["tpu_pod.sh", "run", "--name=p"], "--zone missing; give the zone of p"),
        (["tpu_pod.sh", "run", "--name=p", "--zone=z"], "no command; write run ... -- sft"),
        (["tpu_pod.sh", "run", "--nam=p"], "no flag --nam=p"),
        (["gpu_node.sh", "run", "--port=x", "--", "sft"], "x is no whole number"),
        (["gpu_node.sh", "stop", "--", "sft"], "stop takes no command"),
    ],
)
def test_wrong_usage_of_a_launcher_is_one_line(stage, words, message):
    text = stage.run(*words, code=2)
    assert message in text
    assert text.count("\n") == 1
    assert stage.calls() == []


# ---- GPU nodes -------------------------------------------------------------------------------


def test_slurm_runs_a_process_on_each_node_and_starts_all_again(stage):
    stage.trees("laptop")
    stage.write(
        program="""own=$STUB/task-$SLURM_PROCID
[ ! -e $own-0 ] && number=0 || number=1; echo "$*" >$own-$number
[ $number = 1 ] || [ $SLURM_PROCID = 0 ] || kill -KILL $$; exit 0\n"""
    )
    slurm = {"SLURM_JOB_ID": "4100", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]"}
    flags = ("--srun=--gpus-per-node=8", "--env=SECRET=x")
    text = stage.run("gpu_node.sh", "run", *flags, *COMMAND[:-1], **slurm)
    assert "exit code 137; restart 1 of 10" in text
    calls = stage.calls("srun ")
    assert len(calls) == 2
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1" in calls[0]
    assert "--gpus-per-node=8 bash -c" in calls[0]
    for i in range(2):
        assert stage.read(f"task-{i}-1").strip() == (
            "-m videorft_jax.cli sft --config=configs/sft_7b.py "
            f"--coordinator=node0:61444 --num_processes=2 --process_id={i}"
        )


def test_one_machine_needs_neither_ssh_nor_flags(stage):
    stage.trees("laptop")
    stage.run("gpu_node.sh", "run", *COMMAND)
    assert stage.read("laptop/arguments").endswith("--workdir=gs://b/it's a run\n")
    assert stage.calls() == []


# ---- for real --------------------------------------------------------------------------------

STEPS = 6


class Runs:
    """Training of the tiny model by workers reached through the ssh stub."""

    def __init__(self, folder):
        self.stage, self.folder = Stage(folder), folder
        records = make_data(folder / "data")["sft"]
        make_model(folder / "model", records)
        options = sft_options(
            folder / "model",
            records,
            train__max_steps=STEPS,
            train__freeze=("vision", "merger"),  # half of the compile time
            model__remat="none",
            data__epochs=2,
            checkpoint__every=2,
            checkpoint__keep_last=5,
        )
        write_config(folder / "tiny.py", "sft_7b", options)

    def start(self, name, workers, scheme):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        hosts = ",".join(["127.0.0.1", *(f"host-{i}" for i in range(1, workers))])
        flags = (f"--hosts={hosts}", f"--port={port}", f"--run={name}", "--up_s=120")
        more = environment(self.folder / "compiled", devices=4 // workers)
        more |= self.stage.environment | {"VIDEORFT_PYTHON": sys.executable}
        self.stage.run("gpu_node.sh", "setup", flags[0], **more)
        command = ("--", "sft", f"--config={self.folder / 'tiny.py'}")
        workdir = f"--workdir={scheme}{self.folder / name}"
        return self.stage.start("gpu_node.sh", "run", *flags, *command, workdir, **more)

    def run(self, name, workers, victim=None, scheme=""):
        """The work directory and what was said; `victim` is killed after the first checkpoint."""
        process = self.start(name, workers, scheme)
        if victim is not None:
            kept = self.folder / name / "checkpoints"
            wait_for(lambda: list(kept.glob("*/manifest.json")), 300)
            own = f"host-{victim}" if victim else "127.0.0.1"
            child = self.folder / own / f".videorft/runs/{name}-{victim}/child"
            os.kill(int(child.read_text()), signal.SIGKILL)
        text = process.communicate(timeout=400)[0]
        assert process.returncode == 0, text
        return self.folder / name, text


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("launch"))
    yield runs
    end_all(runs.folder)


@pytest.fixture(scope="module")
def reference(runs):
    workdir, text = runs.run("whole", 2)
    assert f"step {STEPS}/{STEPS}" in text
    return workdir


def curve(workdir):
    return [
        {name: value for name, value in line.items() if "/" not in name}
        for line in metrics(workdir)
    ]


def test_a_killed_worker_restarts_all_from_the_checkpoint(runs, reference):
    workdir, text = runs.run("killed", 2, victim=1)
    assert "checkpoint: restored step" in text
    assert "supervise: " in text
    assert curve(workdir) == curve(reference)
    found, expected = (read_arrays(folder, STEPS) for folder in (workdir, reference))
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].tobytes() == expected[path].tobytes(), path


def test_four_workers_survive_the_loss_of_the_first(runs, reference):
    """Each has a disk of its own, and the work directory is one that nothing is appended to."""
    workdir, text = runs.run("four", 4, victim=0, scheme="file://")
    assert "exit code 137; restart 1 of 10" in text
    assert "checkpoint: restored step" in text
    found, expected = curve(workdir), curve(reference)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    for name in expected[0]:
        values = ([line[name] for line in lines] for lines in (found, expected))
        np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5, err_msg=name)
