"""The launchers on stubs of gcloud, ssh and srun."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from launcher_stubs import LAUNCH, Stage, end_all, is_alive, wait_for


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    yield stage
    end_all(tmp_path)


def test_shellcheck_has_nothing_to_say():
    tool = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    words = [tool, "-x", *sorted(path.name for path in LAUNCH.glob("*.sh"))]
    done = subprocess.run(words, cwd=LAUNCH, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


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
    lines = text.splitlines()[-2:]  # how many workers there are is not known; two stand for all
    for worker, line in enumerate(lines):
        assert line.startswith(f"gcloud compute tpus tpu-vm ssh pod --zone=z --worker={worker} --q")
        assert line.endswith(" --distributed'")
    text = stage.tpu("run", "--dry_run", "--type=v5p-64", "--slices=2", *COMMAND)
    assert text.count("--distributed'") == 16
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
    wanted = "-P -m videorft_jax.cli sft --config=configs/sft_7b.py --workdir=gs://b/it's a run"
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
    assert time.monotonic() - began < 50
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
    text = process.communicate(timeout=600)[0]
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
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 130, text
    assert "left running: logs follows it, stop ends it" in text
    assert "running attempt 1: going" in stage.tpu("status")
    follower = stage.start("tpu_pod.sh", "logs", "--name=pod", "--zone=z")
    stage.tpu("stop")
    assert "going" in follower.communicate(timeout=600)[0]
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
        (["gpu_node.sh", "run", "--up_s=08", "--", "sft"], "08 begins with 0; leave that out"),
        (["gpu_node.sh", "run", "--env=A", "--", "sft"], "--env=A: write --env=NAME=VALUE"),
        (["gpu_node.sh", "run", "--hosts=", "--", "sft"], "--hosts=: a name is empty; leave"),
        (["gpu_node.sh", "run", "--hosts=a,,b", "--", "sft"], "--hosts=a,,b: a name is empty"),
        (
            ["tpu_pod.sh", "run", "--name=p", "--zone=z", "--slices=0", "--", "sft"],
            "--slices is 0; give at least 1",
        ),
    ],
)
def test_wrong_usage_of_a_launcher_is_one_line(stage, words, message):
    text = stage.run(*words, code=2)
    assert message in text
    assert text.count("\n") == 1
    assert stage.calls() == []


def test_a_missing_gcloud_is_named(stage, tmp_path):
    """The stub is out of reach; what the launcher itself calls is not."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "basename", "mktemp", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    where = ["--name=p", "--zone=z"]
    text = stage.run("tpu_pod.sh", "run", *where, "--", "sft", code=1, PATH=str(tools))
    assert text == "tpu_pod.sh: no gcloud here; install the Google Cloud CLI\n"


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
            "-P -m videorft_jax.cli sft --config=configs/sft_7b.py "
            f"--coordinator=node0:61444 --num_processes=2 --process_id={i}"
        )


def test_one_machine_needs_neither_ssh_nor_flags(stage):
    stage.trees("laptop")
    stage.run("gpu_node.sh", "run", *COMMAND)
    assert stage.read("laptop/arguments").endswith("--workdir=gs://b/it's a run\n")
    assert stage.calls() == []
