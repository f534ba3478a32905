"""One optimizer step of supervised fine-tuning beside PyTorch's on the same model and batch.

python benchmarks/sft_step.py [--rounds 5] [--json]

Float32, the same threads; rows of about 1.5k tokens, 1,152 of them from a clip. Both sides are
processes of their own that live through the whole run and take their turns, so that each one's
peak memory is its own. A turn is four steps, one right after another as in training; the figure is
the median step. PyTorch runs the Hugging Face class as its users do: the head on every token,
AdamW, clipping. The environment is the same for both.
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import host
import peer

ROWS, FRAMES, SIDE = 2, 16, 336
TEXT, ANSWER = 128, 256
TURN = 4  # steps


def run_ours(folder, pipe):
    import jax.numpy as jnp

    from videorft_jax import losses
    from videorft_jax.data.batch import layout, patches
    from videorft_jax.models import family
    from videorft_jax.models.compute_plan import choose_plan
    from videorft_jax.models.family import load_config
    from videorft_jax.parallel import sharding
    from videorft_jax.training.optimizer import OptimOptions, make_optimizer
    from videorft_jax.training.step import make_step

    config = load_config(folder)
    samples = peer.make_samples(peer.make_clips(ROWS, FRAMES, SIDE), TEXT, ANSWER)
    length = len(samples[0].tokens)
    windows = patches.num_windows(SIDE, SIDE)
    optimizer = make_optimizer(
        OptimOptions(
            name="adamw",
            lr=1e-5,
            schedule="constant",
            warmup_steps=0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            clip=1.0,
            mu_dtype="float32",
            ema_decay=0.0,
        ),
        1,
    )
    mesh, params = peer.place_params(folder, config)
    state, shardings = peer.fresh_state(params, optimizer, mesh)
    batch = layout.pack([[sample] for sample in samples], length, FRAMES // 2, windows)
    batch = sharding.place_batch(batch, mesh)

    def loss(params, rows, count):
        model = family.bind(config, params)
        _, predicts = losses.shift(rows.tokens, rows.loss_mask)
        hidden = model.hidden_states(rows, needed=predicts)
        head = model.text.output_weight
        chunk = choose_plan().head_chunk
        return losses.sft_loss(hidden, head, rows.tokens, rows.loss_mask, count, chunk=chunk)

    def totals(batch):
        return batch.loss_mask.sum().astype(jnp.float32)

    step = make_step(loss, totals, optimizer, dtype=jnp.float32, shardings=shardings)

    def once():
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    peer.serve(measured(once), pipe)


def run_peer(folder, pipe):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = peer.load_peer(folder).train()
    clips = peer.make_clips(ROWS, FRAMES, SIDE)
    inputs, labels = peer.peer_inputs(clips, peer.make_samples(clips, TEXT, ANSWER))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)

    def once():
        optimizer.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    peer.serve(measured(once), pipe)


def measured(once):
    """A turn of `once`: the first loss, the seconds of each step and the peak resident bytes of the
    process."""

    def run():
        losses, seconds = [], []
        for _ in range(TURN):
            start = time.perf_counter()
            losses.append(once())
            seconds.append(time.perf_counter() - start)
        return losses[0], seconds, host.peak_bytes()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seen = {"ours": [], "peer": []}
    print(f"on {peer.machine()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        peer.write_model(folder)
        devices = min(ROWS, len(os.sched_getaffinity(0)))  # Each device of the CPU gets rows.
        with peer.Sides(folder, devices=devices, ours=run_ours, peer=run_peer) as sides:
            for round_ in range(options.rounds + 1):  # the first compiles
                for name, rows in seen.items():
                    rows.append(sides.ask(name))
                    loss, seconds, _ = rows[-1]
                    took = " ".join(f"{s:.2f}" for s in seconds)
                    print(f"round {round_} {name}: loss {loss:.5f}, {took} s", flush=True)
    tokens = ROWS * (TEXT + ANSWER + (FRAMES // 2) * (SIDE // 28) ** 2)
    rows = {}
    for name, values in seen.items():
        seconds = statistics.median(s for _, steps, _ in values[1:] for s in steps)
        rows[name] = {
            "step_s": seconds,
            "tokens_per_s": tokens / seconds,
            "peak_gib": values[-1][2] / 2**30,
            "first_loss": values[0][0],
        }
        print(
            f"{name:5} {seconds:7.2f} s a step, {tokens / seconds:8.0f} tokens/s, "
            f"peak {values[-1][2] / 2**30:.2f} GiB"
        )
    ratio = {
        "step": rows["peer"]["step_s"] / rows["ours"]["step_s"],
        "memory": rows["peer"]["peak_gib"] / rows["ours"]["peak_gib"],
    }
    print(f"ratio: {ratio['step']:.2f}x tokens per second, {ratio['memory']:.2f}x less memory")
    if options.json:
        shape = {"rows": ROWS, "tokens_per_row": tokens // ROWS, "frames": FRAMES}
        print(json.dumps({"machine": peer.machine(), "shape": shape, **rows, "ratio": ratio}))


if __name__ == "__main__":
    main()
