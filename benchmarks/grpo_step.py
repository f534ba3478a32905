"""One GRPO step beside PyTorch's as TRL and Video-R1 do it, same model, prompts and threads.

python benchmarks/grpo_step.py [--rounds 5] [--frames 16 32 64] [--family qwen3_vl] [--json]

Two prompts of 66 text tokens and a clip (512 visual tokens at 16 frames of 224 x 224; of Qwen3-VL
392 and three of time a frame pair), eight completions of 64 tokens each, float32. Rollout: ours
encodes a clip and runs its prompt once; the peer hands each prompt to Hugging Face `generate` eight
times. Rewards: answers and format by the same Python code, and SigLIP on 16 frames of each clip,
once a clip on both sides. Update: log-probs of policy and reference, GRPO loss with KL, backward,
clipping, AdamW; ours with a group in one row, the peer with a row per completion and logits for the
completion only. Each side is a process of its own and they take turns of three steps, one right
after another as in training; medians over the steps of all rounds without the first, which
compiles. A peak is the most memory that a side has held, compiling and loading included.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
import types

import host
import numpy as np
import peer

PROMPTS, ROLLOUTS, NEW, SIDE, TEXT = 2, 8, 64, 224, 66
BETA, LR, CLIP = 0.04, 1e-6, 1.0
TURN = 3  # steps
CONTROL = tuple(range(4080, 4096))  # never drawn: a media token without pixels cannot be scored
PHASES = ("rollout", "rewards", "update")
RECORD = types.SimpleNamespace(problem_type="multiple choice", solution="A", options=())


def make_prompts(frames, model_type):
    clips = peer.make_clips(PROMPTS, frames, SIDE)
    return clips, peer.make_samples(clips, TEXT, 0, values=peer.FAMILIES[model_type])


def read_texts(tokens):
    """Random weights draw random ids; any text will do, as long as both sides score as much."""
    form = "<think>It moves. {}</think>\n<answer>A</answer>"
    groups = np.asarray(tokens).reshape(PROMPTS, ROLLOUTS, NEW)
    return [[form.format(" ".join(map(str, row))) for row in group] for group in groups]


def string_rewards(texts):
    from videorft_jax.rewards.combine import score

    scores = score(texts, [RECORD] * PROMPTS, "strict", ("accuracy", "format"))
    return scores["accuracy"] + scores["format"]


def fake_rewards(step):
    """What the update is given: real ones of random weights are all alike, and teach nothing."""
    return np.random.default_rng(step).random((PROMPTS, ROLLOUTS)).astype(np.float32)


class Clock:
    def __init__(self):
        self.seconds, self._last = {}, time.perf_counter()

    def lap(self, name):
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def run_ours(folder, frames, pipe):
    import jax
    import jax.numpy as jnp

    from videorft_jax import losses
    from videorft_jax.data.batch import layout, patches
    from videorft_jax.grpo.logprobs import Groups, score_completions
    from videorft_jax.models import family
    from videorft_jax.models.family import load_config
    from videorft_jax.models.siglip.hf_folder import load_siglip
    from videorft_jax.parallel import sharding
    from videorft_jax.rewards.semantic import SemanticReward
    from videorft_jax.rollout.engine import RolloutEngine
    from videorft_jax.rollout.sampling import SamplingConfig
    from videorft_jax.training.optimizer import OptimOptions, make_optimizer
    from videorft_jax.training.step import make_step

    config = load_config(folder)
    geometry = family.family_of(config).geometry
    clips, samples = make_prompts(frames, config.model_type)
    windows = patches.num_windows(SIDE, SIDE, geometry)
    rows, length = [[sample] for sample in samples], len(samples[0].tokens)
    batch = layout.pack(rows, length, frames // 2, windows, geometry=geometry)
    sampling = SamplingConfig(num_rollouts=ROLLOUTS, max_new_tokens=NEW, forbidden_ids=CONTROL)
    mesh, reference = peer.place_params(folder, config)
    engine = RolloutEngine(config, sampling, dtype="float32", mesh=mesh)
    siglip = load_siglip(folder / "siglip", "float32")
    siglip.params = jax.device_put(siglip.params, sharding.state_shardings(siglip.params, mesh))
    semantic = SemanticReward(
        siglip, batch_size=PROMPTS, num_rollouts=ROLLOUTS,
        place=functools.partial(sharding.place_batch, mesh=mesh),
    )  # fmt: skip
    grpo = losses.LossOptions("grpo", BETA, "k3", 0.2, 0.2, NEW, 0.0)
    optimizer = make_optimizer(
        OptimOptions("adamw", LR, "constant", 0, 0.9, 0.999, 1e-8, 0.0, CLIP, "float32", 0.0), 1
    )

    def loss(params, rows, totals, reference):
        groups, advantages = rows

        def score(params):
            return score_completions(family.bind(config, params), groups)[0]

        return losses.grpo_loss(
            score(params), advantages, groups.mask, totals, grpo,
            reference=score(jax.lax.stop_gradient(reference)),
        )  # fmt: skip

    state, shardings = peer.fresh_state(reference, optimizer, mesh)
    step = make_step(
        loss, lambda rows: losses.grpo_totals(rows[0].mask), optimizer, dtype=jnp.float32,
        shardings=shardings,
    )  # fmt: skip
    advantages_of = jax.jit(losses.group_advantages)

    def once(number):
        nonlocal state
        clock = Clock()
        params = engine.prepare(state.params)
        out = engine.rollout(params, batch, np.arange(PROMPTS), seed=0, step=number)
        clock.lap("rollout")
        texts = read_texts(out.tokens)
        string_rewards(texts)
        assert np.isfinite(semantic(clips, texts).scores).all()
        clock.lap("rewards")
        valid = np.ones((PROMPTS, ROLLOUTS), bool)
        advantages, _ = advantages_of(fake_rewards(number), valid)
        rows = Groups(batch, out.tokens, out.lengths), np.asarray(advantages)
        state, metrics = step(state, sharding.place_batch(rows, mesh), reference)
        float(metrics["loss"])
        clock.lap("update")
        return clock.seconds, host.peak_bytes()

    peer.serve(once, pipe)


def run_peer(folder, frames, pipe):
    import copy

    import torch
    import transformers

    torch.set_num_threads(multiprocessing.cpu_count())
    model = peer.load_peer(folder).train()
    reference = copy.deepcopy(model).eval()
    siglip = transformers.SiglipModel.from_pretrained(folder / "siglip", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "siglip")
    side = siglip.config.vision_config.image_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    model_type = model.config.model_type
    clips, samples = make_prompts(frames, model_type)
    repeated = ([x for x in part for _ in range(ROLLOUTS)] for part in (clips, samples))
    inputs, _ = peer.peer_inputs(*repeated, values=peer.FAMILIES[model_type])
    prompt = inputs["input_ids"].shape[1]
    thinned = [clip[np.linspace(0, frames - 1, 16).round().astype(int)] for clip in clips]

    def semantic(texts):
        with torch.no_grad():
            pixels = torch.tensor(np.concatenate(thinned)).permute(0, 3, 1, 2).float()
            pixels = torch.nn.functional.interpolate(
                pixels, (side, side), mode="bicubic", antialias=True
            )
            images = siglip.get_image_features(pixel_values=pixels / 127.5 - 1)
            tokens = tokenizer(
                [text for group in texts for text in group], padding="max_length",
                truncation=True, max_length=siglip.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )  # fmt: skip
            words = siglip.get_text_features(input_ids=tokens["input_ids"])
            images, words = (getattr(x, "pooler_output", x) for x in (images, words))
            images = images.reshape(PROMPTS, 16, -1).mean(1)
            words = words.reshape(PROMPTS, ROLLOUTS, -1)
            return torch.cosine_similarity(words, images[:, None], dim=-1)

    def score(model, rows):
        out = model(**rows, logits_to_keep=NEW + 1, use_cache=False)
        logprobs = torch.log_softmax(out.logits[:, :-1], -1)
        return logprobs.gather(-1, rows["input_ids"][:, prompt:, None])[..., 0]

    def once(number):
        clock = Clock()
        torch.manual_seed(number)
        with torch.no_grad():
            out = model.generate(
                **inputs, max_new_tokens=NEW, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                eos_token_id=None, pad_token_id=0, suppress_tokens=list(CONTROL),
            )  # fmt: skip
        assert out.shape[1] == prompt + NEW
        clock.lap("rollout")
        texts = read_texts(out[:, prompt:].numpy())
        string_rewards(texts)
        assert torch.isfinite(semantic(texts)).all()
        clock.lap("rewards")
        rewards = torch.tensor(fake_rewards(number))
        centred = rewards - rewards.mean(1, keepdim=True)
        advantages = (centred / (rewards.std(1, keepdim=True) + 1e-4)).reshape(-1, 1)
        own = torch.zeros(len(out), NEW, dtype=torch.int32)
        rows = inputs | {
            "input_ids": out,
            "attention_mask": torch.ones_like(out),
            "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], own], 1),
        }
        with torch.no_grad():
            before = score(reference, rows)
        logprobs = score(model, rows)
        d = before - logprobs
        value = torch.exp(logprobs - logprobs.detach()) * advantages
        loss = -(value - BETA * (torch.exp(d) - d - 1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        clock.lap("update")
        return clock.seconds, host.peak_bytes()

    peer.serve(once, pipe)


def write_siglip(folder):
    import jax

    from videorft_jax.demo import siglip as siglip_training
    from videorft_jax.models.siglip import hf_folder as siglip

    texts = sum(read_texts(np.arange(PROMPTS * ROLLOUTS * NEW) % 100), [])
    tokenizer = siglip_training.make_tokenizer(texts)
    config = siglip_training.tiny_config(len(tokenizer))
    siglip.save_siglip(folder, siglip.init(config, jax.random.key(0)), config, tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--family", choices=peer.FAMILIES, default="qwen2_5_vl")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = {"ours": {}, "peer": {}, "ratio": {}}
    print(f"on {peer.machine()}", flush=True)
    devices = min(PROMPTS, len(os.sched_getaffinity(0)))  # Each device of the CPU gets prompts.
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        peer.write_model(folder, peer.FAMILIES[options.family])
        write_siglip(folder / "siglip")
        for frames in options.frames:
            seen, peaks = {"ours": [], "peer": []}, {}
            with peer.Sides(folder, frames, devices=devices, ours=run_ours, peer=run_peer) as sides:
                turns = itertools.product(range(options.rounds + 1), seen, range(TURN))
                for number, side, step in turns:
                    seconds, peaks[side] = sides.ask(side, TURN * number + step)
                    seen[side].append(seconds | {"step": sum(seconds.values())})
                    spent = ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items())
                    print(f"{frames} frames, round {number} {side}: {spent}", flush=True)
            suffix = "" if frames == options.frames[0] else f"_{frames}"
            for phase in (*PHASES, "step"):
                middle = {
                    side: statistics.median(row[phase] for row in rows[TURN:])
                    for side, rows in seen.items()
                }
                for side, seconds in middle.items():
                    report[side][f"{phase}{suffix}_s"] = seconds
                ratio = middle["peer"] / middle["ours"]
                report["ratio"][f"{phase}{suffix}"] = ratio
                print(
                    f"{frames} frames, {phase:<8} ours {middle['ours']:.3f} s, "
                    f"peer {middle['peer']:.3f} s: {ratio:.2f}x", flush=True,
                )  # fmt: skip
            for side, peak in peaks.items():
                report[side][f"peak{suffix}_gib"] = peak / 2**30
            report["ratio"][f"memory{suffix}"] = peaks["peer"] / peaks["ours"]
            print(
                f"{frames} frames, peak     ours {peaks['ours'] / 2**30:.2f} GiB, peer "
                f"{peaks['peer'] / 2**30:.2f} GiB: {peaks['peer'] / peaks['ours']:.2f}x less"
            )
    if options.json:
        shape = {
            "prompts": PROMPTS, "rollouts": ROLLOUTS, "new_tokens": NEW, "text_tokens": TEXT,
            "frames": options.frames, "family": options.family,
        }  # fmt: skip
        print(json.dumps({"machine": peer.machine(), "shape": shape, **report}))


if __name__ == "__main__":
    main()
