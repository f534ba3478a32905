"""Shows whether two commits compute the same: weights, metrics, completions, manifests, to the bit.

python benchmarks/compare_commits.py BASE OTHER --workdir=DIR

Each commit is checked out into a folder of its own and runs the smoke demo and small runs of every
command on one core, with the flags that users are promised. What it wrote is kept in DIR/<commit>,
so that a commit that was recorded before is only compared. Times and figures about the machine are
left out of the comparison. The exit code is 1 when anything differs.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from compare_runs import compare_folders  # noqa: E402
from compiler_flags import QUICK_CPU  # noqa: E402

TINY = (
    "--config.model.init_from={runs}/demo/model",
    "--config.data.template_file={runs}/demo/template.json",
    "--config.data.rows=4",
    "--config.data.row_tokens=256",
    "--config.data.multiple=8",
    "--config.data.max_buckets=2",
    "--config.media.min_frames=2",
    "--config.media.max_frames=4",
    "--config.media.fps=4.0",
    "--config.media.min_pixels=784",
    "--config.media.max_pixels=12544",
)
TRAIN = (
    *TINY,
    "--config.train.accumulate=2",
    "--config.train.max_steps=3",
    "--config.checkpoint.every=2",
    "--config.optim.lr=1e-3",
)
GRPO = (
    *TRAIN,
    "--config.data.records={runs}/demo/clips/rl.jsonl",
    "--config.reward.siglip={runs}/demo/siglip",
    "--config.reward.frames=4",
    "--config.rollout.num_rollouts=4",
    "--config.rollout.max_new_tokens=16",
    "--config.rollout.num_buckets=2",
    "--config.grpo.length_buckets=1",
)
# Name -> arguments of the command line. The runs after the demo use its model and its clips.
RUNS = {
    "demo": ("demo", "--config={source}/configs/demo.py:smoke", "--workdir={runs}/demo"),
    "sft": (
        "sft", "--config={source}/configs/sft_7b.py", "--workdir={runs}/sft", *TRAIN,
        "--config.model.dtype=float32", "--config.data.records={runs}/demo/clips/sft.jsonl",
        "--config.optim.ema_decay=0.9", "--config.optim.mu_dtype=bfloat16",
    ),
    "sft_frozen": (
        "sft", "--config={source}/configs/sft_3b.py", "--workdir={runs}/sft_frozen", *TRAIN,
        "--config.data.records={runs}/demo/clips/sft.jsonl", "--config.train.freeze=('vision',)",
        "--config.model.remat=save_dots",
    ),
    "grpo": (
        "grpo", "--config={source}/configs/grpo_7b.py", "--workdir={runs}/grpo", *GRPO,
        "--config.model.dtype=float32", "--config.grpo.num_updates=2",
    ),
    "grpo_lora": (
        "grpo", "--config={source}/configs/grpo_7b_lora.py", "--workdir={runs}/grpo_lora", *GRPO,
        "--config.train.accumulate=4", "--config.lora.rank=4", "--config.grpo.variant=dr_grpo",
    ),
    "evaluate": (
        "evaluate", "--config={source}/configs/evaluate_7b.py", "--workdir={runs}/evaluate", *TINY,
        "--config.data.records={runs}/demo/clips/eval.jsonl", "--config.evaluate.limit=12",
        "--config.evaluate.checkpoint={runs}/grpo", "--config.evaluate.max_new_tokens=24",
        "--config.evaluate.num_rollouts=2", "--config.evaluate.temperature=0.7",
        "--config.model.dtype=float32", "--config.media.preset=train",
    ),
    "export": ("export", "--checkpoint={runs}/grpo_lora", "--out={runs}/export"),
    "ask": (
        "ask", "--model={runs}/export", "--video={runs}/demo/clips/clips/eval/000001.mp4",
        "--question=What is it?", "--max_new_tokens=32", "--dtype=float32",
    ),
    "validate": (
        "validate", "--data={runs}/demo/clips/rl.jsonl", "--tokenizer={runs}/demo/model",
        "--json={runs}/validate.json", "--answers={runs}/validate_sizes",
    ),
    "cache": ("cache", "--data={runs}/demo/clips/eval.jsonl", "--out={runs}/cache"),
    "plan": (
        "plan", "--config={source}/configs/grpo_7b.py", "--topology=H200:8", "--json", "--search",
    ),
    "plan_sft": (
        "plan", "--config={source}/configs/sft_7b_lora.py", "--topology=H100:1", "--json",
    ),
}  # fmt: skip
# The public API: completions with the log-probabilities of their tokens.
ROLLOUT = """
import sys
import numpy as np
import videorft_jax as vr

model = vr.load(sys.argv[1] + "/demo/sft/hf", dtype="float32")
clips = [f"{sys.argv[1]}/demo/clips/clips/eval/{index:06d}.mp4" for index in range(2)]
chats = [
    [{"role": "user", "content": [{"type": "video", "video": clip}, {"type": "text", "text": "?"}]}]
    for clip in clips
]
out = model.generate(chats, num_rollouts=3, max_new_tokens=12, seed=1)
logits = model.forward(model.prepare(chats))
np.savez(
    sys.argv[1] + "/rollout.npz", tokens=out.tokens, lengths=out.lengths, logprobs=out.logprobs,
    logits=logits,
)
"""
MORE_SFT_STEPS = 3  # The demo's control trains as long as GRPO took unless this is given.


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="keeps every recording")
    own = parser.parse_args()
    folders = [record(commit, own.workdir.absolute()) for commit in own.commits]
    rows = compare_folders(*folders)
    width = max(len(row.name) for row in rows)
    print(f"{'output':<{width}}  {'compared':>9}  {'differ':>6}  first difference")
    for row in rows:
        print(f"{row.name:<{width}}  {row.compared:9d}  {row.differing:6d}  {row.first}")
    differing = sum(row.differing for row in rows)
    print(f"{own.commits[0]} and {own.commits[1]}: {differing or 'no'} differences")
    return int(differing > 0)


def record(commit: str, workdir: pathlib.Path) -> pathlib.Path:
    """The folder of everything that `commit` writes; it is run unless the folder exists.

    All commits run in folders of the same name, because some outputs hold the names of inputs.
    """
    git = ["git", "-C", str(ROOT)]
    name = subprocess.check_output([*git, "rev-parse", f"{commit}^{{commit}}"], text=True).strip()
    kept = workdir / name
    if kept.exists():
        print(f"{commit}: recorded before in {kept}", flush=True)
        return kept
    source, runs = workdir / "source", workdir / "runs"
    for folder in (source, runs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    archive = subprocess.Popen([*git, "archive", name], stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", str(source)], stdin=archive.stdout, check=True)
    if archive.wait():
        raise SystemExit(f"{commit}: git archive failed")
    (runs / "demo").mkdir()
    (runs / "demo" / "more_sft_steps").write_text(f"{MORE_SFT_STEPS}\n")
    places = {"source": source, "runs": runs}
    for run, arguments in RUNS.items():
        command = ["-m", "videorft_jax.cli", *(text.format(**places) for text in arguments)]
        _run(commit, run, command, source, runs)
    _run(commit, "rollout", ["-c", ROLLOUT, str(runs)], source, runs)
    shutil.rmtree(source)
    runs.rename(kept)
    return kept


def _run(commit, name, command, source, runs):
    """Runs Python on one core; what it prints goes to `<name>.out`, messages to `<name>.log`."""
    core = min(os.sched_getaffinity(0))
    environment = os.environ | {
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        # Both commits share compiled programs: equal programs then take no time to compile twice.
        "JAX_COMPILATION_CACHE_DIR": str(runs.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": QUICK_CPU,
    }
    started = time.perf_counter()
    with (runs / f"{name}.out").open("w") as out, (runs / f"{name}.log").open("w") as log:
        code = subprocess.run(
            ["taskset", "-c", str(core), sys.executable, *command],
            stdout=out, stderr=log, env=environment, cwd=source, check=False,
        ).returncode  # fmt: skip
    print(f"{commit} {name}: {time.perf_counter() - started:.0f} s", flush=True)
    if code:
        tail = "\n".join((runs / f"{name}.log").read_text().splitlines()[-12:])
        raise SystemExit(f"{commit} {name}: exit code {code}\n{tail}")


if __name__ == "__main__":
    sys.exit(main())
