"""Model-FLOP utilisation of an SFT step at a published size on one accelerator.

python benchmarks/sft_utilisation.py [--recipe sft_3b] [--rows 4] [--rounds 5] [--json]

Random weights; rows of 4,096 tokens, each two clips of 16 frames (1,024 visual tokens) with 128
tokens of question and 896 of answer. Operations are counted from sizes (flops.py) without what is
computed twice; the peak is that of the card's own 8192 x 8192 bfloat16 product.
"""

import argparse
import json

import jax
import peer
import published

from videorft_jax.data.batch import layout, patches
from videorft_jax.metrics import flops
from videorft_jax.parallel import sharding
from videorft_jax.training.sft_step import make_sft_step

FRAMES, TEXT, ANSWER, SAMPLES = 16, 128, 896, 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="sft_3b")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--remat", default="full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a few narrow layers")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    config = published.load_recipe(options.recipe)
    config.data.rows, config.train.accumulate = options.rows, options.accumulate
    config.model.remat = options.remat
    values = published.model_values(options.recipe, options.smoke)
    peak = published.matmul_peak()
    placed = published.Placed(config, values)
    clips = peer.make_clips(options.rows * SAMPLES, FRAMES, published.SIDE, published.WIDE)
    samples = peer.make_samples(clips, TEXT, ANSWER, values=values)
    rows = [samples[i :: options.rows] for i in range(options.rows)]
    length = SAMPLES * len(samples[0].tokens)
    windows = patches.num_windows(published.SIDE, published.WIDE)
    batch = layout.pack(rows, length, SAMPLES * FRAMES // 2, windows)
    useful, _ = flops.packed_work(batch)
    weights = placed.weights
    cost = flops.train_cost(
        placed.model, useful, remat=config.model.remat, trained=weights.is_trained,
        merged=weights.targets, rank=config.lora.rank,
    )  # fmt: skip
    step = make_sft_step(placed.options, weights, placed.optimizer, placed.shardings)
    state, batch = placed.state, sharding.place_batch(batch, placed.mesh)

    def once():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    seconds = published.median_seconds(once, options.rounds)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
    share = cost.model_flops / seconds / peak
    tokens = options.rows * length
    print(
        f"{options.recipe}, {options.rows} rows of {length}: {seconds:.3f} s a step, "
        f"{tokens / seconds:.0f} tokens/s, {cost.model_flops / seconds / 1e12:.0f} TFLOP/s of "
        f"{peak / 1e12:.0f}, utilisation {share:.1%} (with recomputation "
        f"{cost.hardware_flops / seconds / peak:.1%}), peak {memory:.1f} GiB"
    )
    if options.json:
        shape = {"recipe": options.recipe, "rows": options.rows, "tokens_per_row": length}
        ours = {"step_s": seconds, "flops_per_s": cost.model_flops / seconds, "peak_gib": memory}
        body = {"machine": peer.machine(), "shape": shape, "ours": ours}
        print(json.dumps(body | {"peer": {"flops_per_s": peak}, "ratio": {"utilisation": share}}))


if __name__ == "__main__":
    main()
