"""A question that needs a second look: frames on demand beside the same training without them.

python benchmarks/look_again.py [--seeds 5] [--workdir DIR] [--json]

Each seed draws its own clips and weights. "Frames" learns the form of a call by SFT on a few chains
and then trains by GRPO with `tools.names = ("frames",)`. "Single" has the same chains without the
call and the same GRPO without tools. Both answer the same held-out questions greedily, with the
code that drew the completions in training. "Drawn" is the accuracy of the completions that GRPO
drew at temperature 1, in its first and in its last five steps. A guess is right in one word of
four. A stage that is done is not run again, and a stage that was stopped goes on.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "configs")]
CLIPS = {"sft": 24, "rl": 60, "eval": 20}
QUESTIONS = 6  # about each clip
MODEL = {
    "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 128, "vision_depth": 1, "vision_hidden_size": 32, "vision_num_heads": 2,
    "vision_intermediate_size": 64,
}  # fmt: skip
VOCABULARY, SFT_STEPS, GRPO_STEPS = 400, 105, 60


def make_recipe(kind, name, seed):
    """A config of SFT or GRPO on the world of moments."""
    import common

    config = common.get_config()
    config.name, config.seed = f"look again, {name}", seed
    config.model.dtype, config.model.remat = "float32", "none"
    config.data.max_buckets, config.data.multiple, config.data.row_tokens = 1, 8, 208
    config.data.epochs, config.data.rows = 1000, 16
    config.media.min_frames = config.media.max_frames = 4
    config.media.min_pixels = config.media.max_pixels = 56 * 56
    config.optim.b2, config.optim.clip, config.checkpoint.keep_last = 0.98, 1.0, 1
    config.checkpoint.every, config.log.interval_s = 1000, 60.0
    if kind == "sft":
        config.optim.lr, config.optim.schedule, config.optim.warmup_steps = 2e-3, "cosine", 30
        config.train.max_steps = SFT_STEPS
        return config
    config.optim.lr, config.optim.schedule, config.optim.warmup_steps = 8e-4, "constant", 5
    config.train.max_steps = GRPO_STEPS
    config.rollout.num_rollouts, config.rollout.max_new_tokens = 8, 32
    config.rollout.num_buckets, config.rollout.chunk = 1, 32
    config.rewards = (("accuracy", 1.0),)
    config.grpo.variant, config.grpo.beta, config.grpo.length_buckets = "dapo", 0.0, 1
    config.grpo.divide_by_std = False
    return config


def with_tools(config):
    """The config with frames on demand."""
    config.tools.names, config.tools.max_turns = ("frames",), 2
    config.tools.max_frames, config.tools.max_tokens = 4, 64
    return config


def write_model(files, folder, seed):
    """A random model and a tokenizer of the words of the chains."""
    from videorft_jax.data.records.prompts import build_messages, build_target
    from videorft_jax.data.records.render import render_text
    from videorft_jax.data.records.source import RecordSource
    from videorft_jax.demo.tiny_models import write_random_model
    from videorft_jax.models.family import find_family

    family, source, texts = find_family("qwen2_5_vl"), RecordSource(files["sft"]), []
    for record in (source[i] for i in range(len(source))):
        texts += [render_text(build_messages(record), family.geometry), build_target(record)]
    make = functools.partial(family.demo_values, vocab_size=VOCABULARY, **MODEL)
    write_random_model(folder, texts, VOCABULARY, make, gain=2.0, seed=seed)


def once(folder, stage):
    """Runs a stage in its folder unless it is done."""
    if not (folder / "done").exists():
        stage()
        (folder / "done").write_text("")


def run(folder, files, seed, calls):
    """Accuracy on held-out questions after SFT and after GRPO, and of what GRPO drew."""
    from videorft_jax.commands.evaluate import evaluate
    from videorft_jax.commands.grpo import grpo
    from videorft_jax.commands.sft import sft
    from videorft_jax.training.export import export

    records = {"sft": files["sft" if calls else "sft_single"], "grpo": files["rl"]}
    start, found = folder.parent / "model", {}
    for kind, train in (("sft", sft), ("grpo", grpo)):
        stage = folder / kind
        config = make_recipe(kind, kind, seed)
        config.model.init_from, config.data.records = str(start), records[kind]
        if calls:
            config = with_tools(config)

        def learn(config=config, stage=stage, train=train):
            train(config, str(stage))
            export(str(stage), str(stage / "hf"))

        once(stage, learn)
        start = stage / "hf"
        asked = make_recipe("grpo", f"answers after {kind}", seed)
        asked.model.init_from, asked.data.records = str(start), files["eval"]
        asked.data.epochs, asked.data.rows = 1, 40
        asked.evaluate.num_rollouts, asked.evaluate.temperature = 1, 0.0
        asked.evaluate.max_new_tokens, asked.train.max_steps = 32, 0
        if calls:
            asked = with_tools(asked)
        found[kind] = evaluate(asked, str(folder / f"answers_{kind}"))
    lines = (folder / "grpo" / "metrics.jsonl").read_text().splitlines()
    drawn = [json.loads(line)["rewards/accuracy/mean"] for line in lines]
    accuracy = {kind: float(results["accuracy"]) for kind, results in found.items()}
    return accuracy | {"first": statistics.mean(drawn[:5]), "last": statistics.mean(drawn[-5:])}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workdir", default="runs/look_again")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{options.workdir}/compiled")
    from videorft_jax.demo.moments import CHANCE, write_moments

    rows = []
    for seed in range(options.first, options.first + options.seeds):
        folder = pathlib.Path(options.workdir) / f"seed_{seed}"
        files = write_moments(folder / "clips", CLIPS, QUESTIONS, seed)
        if not (folder / "model").exists():
            write_model(files, folder / "model", seed)
        ours = run(folder / "frames", files, seed, calls=True)
        control = run(folder / "single", files, seed, calls=False)
        rows.append({"seed": seed, "frames": ours, "single": control})
        print(json.dumps(rows[-1]), flush=True)
    print(f"{'seed':>4} {'':6} {'SFT':>6} {'GRPO':>6} {'drawn first':>12} {'last':>6}")
    for row in rows:
        for name in ("frames", "single"):
            found = row[name]
            print(
                f"{row['seed']:>4} {name} {found['sft']:6.3f} {found['grpo']:6.3f} "
                f"{found['first']:12.3f} {found['last']:6.3f}"
            )
    print(f"a guess: {CHANCE:.3f}")
    if options.json:
        import peer

        ours, peers = (
            {kind: statistics.mean(row[name][kind] for row in rows) for kind in ("sft", "grpo")}
            for name in ("frames", "single")
        )
        ratio = {kind: ours[kind] / peers[kind] for kind in ours}
        shape = {"seeds": len(rows), "clips": CLIPS, "questions": QUESTIONS}
        report = {"ours": ours, "peer": peers, "ratio": ratio}
        print(json.dumps({"machine": peer.machine(), "shape": shape, **report}))


if __name__ == "__main__":
    main()
