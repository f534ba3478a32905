"""Fault 1: `setup` deleted runs that `run` had written into the tree it replaces."""

import pytest
from launcher_stubs import Stage, end_all

PROGRAM = """
for word in "$@"; do case $word in --workdir=*) work=${word#*=} ;; esac; done
mkdir -p "$work" && echo weights >"$work/checkpoint"
"""


@pytest.fixture
def stage(tmp_path):
    stage = Stage(tmp_path)
    stage.write(program=PROGRAM)
    yield stage
    end_all(tmp_path)


def test_a_local_run_writes_where_the_caller_stands(stage, tmp_path, monkeypatch):
    caller = tmp_path / "my clips"
    caller.mkdir()
    monkeypatch.chdir(caller)
    stage.run("gpu_node.sh", "setup")
    stage.run("gpu_node.sh", "run", "--", "sft", "--config=sft_7b", "--workdir=runs/x")
    assert (caller / "runs/x/checkpoint").read_text() == "weights\n"
    stage.run("gpu_node.sh", "setup")
    assert (caller / "runs/x/checkpoint").exists()
    assert not list((tmp_path / "laptop/.videorft").glob("before*"))  # nothing was worth keeping


def test_setup_keeps_what_it_did_not_install(stage, tmp_path):
    stage.run("gpu_node.sh", "setup")
    home = tmp_path / "laptop/.videorft"
    own = home / "tree/runs/x/checkpoint"
    own.parent.mkdir(parents=True)
    own.write_text("weights")
    (home / "tree/configs/sft_7b.py").write_text("edited")
    text = stage.run("gpu_node.sh", "setup")
    (kept,) = home.glob("before.*")
    assert f"{kept.name}/tree holds files that setup did not install: kept" in text
    left = sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file())
    assert left == ["tree/configs/sft_7b.py", "tree/runs/x/checkpoint"]
    assert (home / "tree/configs/sft_7b.py").read_text() != "edited"


def test_setup_keeps_the_tree_of_an_older_launcher(stage, tmp_path):
    """One that left no list of what it installed."""
    old = tmp_path / "laptop/.videorft/tree/runs/x/checkpoint"
    old.parent.mkdir(parents=True)
    old.write_text("weights")
    stage.run("gpu_node.sh", "setup")
    (kept,) = (tmp_path / "laptop/.videorft").glob("before.*/tree/runs/x/checkpoint")
    assert kept.read_text() == "weights"


RELATIVE = (
    "--workdir=runs/x",
    "--workdir runs/x",
    "--config.model.init_from=model",
    "--config.model.init_from=../org/model",
    "--config.model.adapter=adapter",
    "--config.data.pass_rates=rates.jsonl",
    "--config.grpo.reference=a/b/c",
    "--config.validate.records eval.jsonl",
)


@pytest.mark.parametrize("flag", RELATIVE)
@pytest.mark.parametrize("script", ["gpu_node.sh", "tpu_pod.sh"])
def test_relative_paths_are_refused_for_other_machines(stage, flag, script):
    where = ["--hosts=a,b"] if script == "gpu_node.sh" else ["--name=pod", "--zone=z"]
    words = ["--", "sft", "--config=sft_7b", *flag.split(" ")]
    text = stage.run(script, "run", *where, *words, code=2)
    flag = flag.replace(" ", "=")
    assert f"{flag}: workers do not start in this folder; give an absolute path" in text
    assert not stage.calls()


@pytest.mark.parametrize(
    "flag",
    [
        "--config.model.init_from=Qwen/Qwen2.5-VL-7B-Instruct",
        "--config.grpo.reference=org/model@main",
        "--config.data.records=tfds:videorft",
        "--workdir /runs/x",
        "--allow_changes",
    ],
)
def test_what_means_the_same_on_every_machine_is_taken(stage, flag):
    words = ["--", "sft", "--config=sft_7b", *flag.split(" ")]
    text = stage.run("gpu_node.sh", "run", "--hosts=a,b", "--dry_run", *words)
    assert text.count(flag) == 2


def test_a_folder_goes_before_a_name_of_the_hub(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/model").mkdir(parents=True)
    words = ["--", "sft", "--config=sft_7b", "--config.model.init_from=org/model"]
    text = stage.run("gpu_node.sh", "run", "--hosts=a,b", *words, code=2)
    assert "org/model: workers do not start in this folder" in text
