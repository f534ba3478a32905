"""Tokens per second of our rollout beside Hugging Face `generate`, same model, same prompts, CPU.

python benchmarks/rollout.py [--rounds 5] [--json]

Two prompts of 578 tokens with a clip of 16 frames of 224 x 224 (512 visual tokens), eight
completions each, sampled at temperature 1 in float32. Both encode the clips, run the prompts and
sample; Hugging Face gets each prompt eight times, clip and all, as TRL hands it over. Each side is
a process of its own and they take turns; medians over the rounds, without the first, which
compiles. "fixed" draws 64 tokens for everyone. "uniform" ends each completion at a length drawn
from 8 to 64, the same on both sides; Hugging Face goes on until the last has ended, ours moves the
live ones to smaller batches: waste is the share of computed tokens that nobody needed. Ratios are
of tokens per second and, for busy machines, of processor time per token.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time

import numpy as np
import peer

PROMPTS, ROLLOUTS, NEW, SHORTEST = 2, 8, 64, 8
FRAMES, SIDE, TEXT = 16, 224, 66


def prompts():
    clips = peer.make_clips(PROMPTS, FRAMES, SIDE)
    return clips, peer.make_samples(clips, TEXT, 0)


def run_ours(folder, pipe):
    from videorft_jax.data.batch import layout, patches
    from videorft_jax.models.family import load_config
    from videorft_jax.models.hf_folder import read_checkpoint
    from videorft_jax.rollout.engine import RolloutEngine
    from videorft_jax.rollout.sampling import SamplingConfig

    config = load_config(folder)
    samples = prompts()[1]
    windows = patches.num_windows(SIDE, SIDE)
    batch = layout.pack([[s] for s in samples], len(samples[0].tokens), FRAMES // 2, windows)
    sampling = SamplingConfig(num_rollouts=ROLLOUTS, max_new_tokens=NEW)
    engine = RolloutEngine(config, sampling, dtype="float32", num_buckets=8)
    params = engine.prepare(read_checkpoint(folder, config))

    def once(limits, step):
        out = engine.rollout(params, batch, np.arange(PROMPTS), seed=0, step=step, limits=limits)
        return int(out.lengths.sum()), out.counters

    serve(once, pipe)


def run_peer(folder, pipe):
    import torch

    torch.set_num_threads(multiprocessing.cpu_count())
    model = peer.load_peer(folder).eval()
    clips, samples = ([x for x in part for _ in range(ROLLOUTS)] for part in prompts())
    inputs, _ = peer.peer_inputs(clips, samples)

    def once(limits, step):
        torch.manual_seed(step)
        out = model.generate(
            **inputs, max_new_tokens=int(limits.max()), do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert out.shape[1] == len(samples[0].tokens) + limits.max()
        return int(limits.sum()), {}

    serve(once, pipe)


def serve(once, pipe):
    """Rolls out when told to; answers with seconds (wall, processor), useful tokens and more."""
    while (request := pipe.recv()) is not None:
        start, used = time.perf_counter(), time.process_time()
        tokens, counters = once(*request)
        spent = time.perf_counter() - start, time.process_time() - used
        pipe.send((*spent, tokens, counters))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (PROMPTS, ROLLOUTS)
    limits = {
        "fixed": [np.full(shape, NEW)] * (options.rounds + 1),
        "uniform": [rng.integers(SHORTEST, NEW + 1, shape) for _ in range(options.rounds + 1)],
    }
    spawn = multiprocessing.get_context("spawn")
    seen = {kind: {"ours": [], "peer": []} for kind in limits}
    with tempfile.TemporaryDirectory() as folder:
        peer.write_model(folder)
        sides = {}
        for name, target in (("ours", run_ours), ("peer", run_peer)):
            here, there = spawn.Pipe()
            process = spawn.Process(target=target, args=(folder, there), daemon=True)
            process.start()
            sides[name] = (here, process)
        for kind, rounds in limits.items():
            sides["ours"][0].send((rounds[-1], 0))  # compiles; buckets differ by lengths
            sides["ours"][0].recv()
            for step, lengths in enumerate(rounds):
                if kind == "uniform":  # every bucket this round needs is compiled before the clock
                    sides["ours"][0].send((lengths, step))
                    sides["ours"][0].recv()
                for name, (pipe, _) in sides.items():
                    pipe.send((lengths, step))
                    seen[kind][name].append(pipe.recv())
                    seconds, used, tokens, _ = seen[kind][name][-1]
                    print(
                        f"{kind} {step} {name}: {tokens} tokens, {seconds:.3f} s, "
                        f"processor {used:.3f} s", flush=True,
                    )  # fmt: skip
        for pipe, process in sides.values():
            pipe.send(None)
            process.join()
    report = {"ours": {}, "peer": {}, "ratio": {}}
    for kind, by_side in seen.items():
        rates, busy = {}, {}
        for name, values in by_side.items():
            rates[name] = statistics.median(tokens / s for s, _, tokens, _ in values[1:])
            busy[name] = statistics.median(used / tokens for _, used, tokens, _ in values[1:])
            report[name][f"{kind}_tokens_per_s"] = rates[name]
        for key in ("prefill_s", "decode_s", "finished_slot_waste"):
            middle = statistics.median(row[-1][key] for row in by_side["ours"][1:])
            report["ours"][f"{kind}_{key}"] = middle
        report["ratio"][kind] = rates["ours"] / rates["peer"]
        report["ratio"][f"{kind}_cpu"] = busy["peer"] / busy["ours"]
        ours = report["ours"]
        print(
            f"{kind}: ours {rates['ours']:.0f} tokens/s (prefill "
            f"{ours[f'{kind}_prefill_s']:.3f} s, "
            f"decode {ours[f'{kind}_decode_s']:.3f} s, "
            f"finished-slot waste {100 * ours[f'{kind}_finished_slot_waste']:.1f} %), "
            f"peer {rates['peer']:.0f}, ratio {report['ratio'][kind]:.2f}x, "
            f"{report['ratio'][f'{kind}_cpu']:.2f}x less processor time"
        )
    if options.json:
        shape = {
            "prompts": PROMPTS, "rollouts": ROLLOUTS, "prompt_tokens": 578, "visual_tokens": 512,
            "new_tokens": {"fixed": NEW, "uniform": [SHORTEST, NEW]}, "frames": FRAMES,
        }  # fmt: skip
        print(json.dumps({"machine": peer.machine(), "shape": shape, **report}))


if __name__ == "__main__":
    main()
