"""Chip-seconds per completion of GRPO with LoRA at 7B on one accelerator, beside PyTorch's.

python benchmarks/grpo_lora.py [--prompts 4] [--rounds 2] [--side ours|peer] [--json]

The recipe grpo_7b_lora on random weights: prompts of 128 text tokens and 16 frames (1,024 visual
tokens), 8 completions of 768 tokens, reference policy under the adapters, bfloat16, the update a
group at a time. Rewards are left out: they are strings' and SigLIP's. Ours merges the adapters,
encodes a clip and runs its prompt once and trains a group in one row. The peer is Hugging Face's
model with PEFT as TRL and Video-R1 use them: `generate` on prompts repeated 8 times, gradient
checkpoints, logits of the completions alone, a row per completion. Both sides are processes of
their own, one after the other, as one card does not hold both; nobody draws an end.
"""

import argparse
import json
import multiprocessing
import statistics
import time

import numpy as np
import peer
import published

from videorft_jax.data.batch import layout, patches

FRAMES, TEXT, RECIPE = 16, 128, "grpo_7b_lora"
SMOKE_TOKENS = 8


def load(options):
    config = published.load_recipe(RECIPE)
    config.data.rows = config.train.accumulate = options.prompts
    if options.smoke:
        config.rollout.max_new_tokens = SMOKE_TOKENS
    clips = peer.make_clips(options.prompts, FRAMES, published.SIDE, published.WIDE)
    values = published.model_values(RECIPE, options.smoke)
    return config, values, clips, peer.make_samples(clips, TEXT, 0, values=values)


def fake_rewards(step, prompts, rollouts):
    """Real ones of random weights are all alike, and teach nothing."""
    return np.random.default_rng(step).random((prompts, rollouts)).astype(np.float32)


def run_ours(options, results):
    import jax

    from videorft_jax import losses
    from videorft_jax.commands.grpo import read_options
    from videorft_jax.grpo import update as updating
    from videorft_jax.grpo.logprobs import Groups
    from videorft_jax.parallel import sharding
    from videorft_jax.rollout.engine import RolloutEngine
    from videorft_jax.rollout.sampling import SamplingConfig

    config, values, _, samples = load(options)
    placed = published.Placed(config, values)
    programs = updating.GrpoPrograms(
        read_options(config), placed.weights, placed.optimizer, placed.shardings
    )
    windows = patches.num_windows(published.SIDE, published.WIDE)
    rows = [[sample] for sample in samples]
    batch = layout.pack(rows, len(samples[0].tokens), FRAMES // 2, windows)
    sampled = ("num_rollouts", "max_new_tokens", "temperature", "top_p", "top_k", "min_p")
    sampling = SamplingConfig(**{name: config.rollout[name] for name in sampled})
    engine = RolloutEngine(placed.model, sampling, placed.mesh, chunk=config.rollout.chunk)
    advantages_of = jax.jit(losses.group_advantages)
    shape = options.prompts, sampling.num_rollouts
    state = placed.state
    for number in range(options.rounds + 1):
        start = time.perf_counter()
        prepared = engine.prepare(programs.policy(state.params, state.frozen))
        out = engine.rollout(prepared, batch, np.arange(options.prompts), seed=0, step=number)
        del prepared
        drawn = time.perf_counter()
        advantages, _ = advantages_of(fake_rewards(number, *shape), np.ones(shape, bool))
        groups = Groups(batch, out.tokens, out.lengths)
        rows = updating.GroupRows(groups, np.asarray(advantages), out.logprobs)
        state, metrics = programs.step(state, sharding.place_batch(rows, placed.mesh), None)
        kl, gap = float(metrics["kl"]), float(metrics["sampler_gap"])
        end = time.perf_counter()
        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
        results.put(("ours", drawn - start, end - drawn, memory))
        counters = out.counters
        print(
            f"ours: kl {kl:.2e}, sampler gap {gap:.2e}, prefill {counters['prefill_s']:.2f} s, "
            f"decode {counters['decode_s']:.2f} s, {counters['roofline_fraction']:.0%} of roofline",
            flush=True,
        )


def run_peer(options, results):
    import peft
    import torch
    import transformers

    config, values, clips, samples = load(options)
    cuda = torch.cuda.is_available()
    device, rollouts = "cuda" if cuda else "cpu", config.rollout.num_rollouts
    new, prompt, beta = config.rollout.max_new_tokens, len(samples[0].tokens), config.grpo.beta
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.Qwen2_5_VLForConditionalGeneration._from_config(
            transformers.AutoConfig.for_model(**values), attn_implementation="sdpa"
        )
    torch.set_default_dtype(torch.float32)
    lora = peft.LoraConfig(
        r=config.lora.rank, lora_alpha=config.lora.alpha, lora_dropout=0.0,
        target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
    )  # fmt: skip
    model = peft.get_peft_model(model, lora).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optim.lr, weight_decay=0.0)
    repeated = ([x for x in part for _ in range(rollouts)] for part in (clips, samples))
    inputs, _ = peer.peer_inputs(*repeated, values=values)
    inputs = {name: x.to(device) for name, x in inputs.items()}
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].bfloat16()
    patches = len(inputs["pixel_values_videos"]) // len(inputs["input_ids"])

    def group(out, number):
        """The rows of one group, with all that belongs to them."""
        span = slice(number * rollouts, (number + 1) * rollouts)
        ids, types = out[span], inputs["mm_token_type_ids"][span]
        own = torch.zeros(rollouts, new, dtype=types.dtype, device=device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": torch.cat([types, own], 1),
            "pixel_values_videos": inputs["pixel_values_videos"][
                span.start * patches : span.stop * patches
            ],
            "video_grid_thw": inputs["video_grid_thw"][span],
            "second_per_grid_ts": inputs["second_per_grid_ts"][span],
        }

    def score(rows):
        logits = model(**rows, logits_to_keep=new + 1, use_cache=False).logits[:, :-1]
        targets = rows["input_ids"][:, prompt:]
        # A row at a time, as TRL's selective_log_softmax has it for bfloat16.
        picked = [
            torch.log_softmax(row.float(), -1).gather(-1, ids[:, None])[:, 0]
            for row, ids in zip(logits, targets, strict=True)
        ]
        return torch.stack(picked)

    def update(out, number):
        rewards = torch.tensor(fake_rewards(number, options.prompts, rollouts), device=device)
        centred = rewards - rewards.mean(1, keepdim=True)
        advantages = centred / (rewards.std(1, keepdim=True) + 1e-4)
        for one in range(options.prompts):
            rows = group(out, one)
            with torch.no_grad(), model.disable_adapter():
                before = score(rows)
            logprobs = score(rows)
            d = before - logprobs
            value = torch.exp(logprobs - logprobs.detach()) * advantages[one][:, None]
            loss = -(value - beta * (torch.exp(d) - d - 1)).mean() / options.prompts
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()

    control = list(range(151643, 151657))  # a media token without pixels cannot be run
    for number in range(options.rounds + 1):
        start = time.perf_counter()
        torch.manual_seed(number)
        with torch.no_grad():
            model.eval()
            out = model.generate(
                **inputs, max_new_tokens=new, do_sample=True, temperature=1.0, top_k=0,
                top_p=config.rollout.top_p, eos_token_id=None, pad_token_id=0,
                suppress_tokens=control,
            )  # fmt: skip
            model.train()
        assert out.shape == (options.prompts * rollouts, prompt + new)
        if cuda:
            torch.cuda.synchronize()
        drawn = time.perf_counter()
        update(out, number)
        if cuda:
            torch.cuda.synchronize()
        memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
        results.put(("peer", drawn - start, time.perf_counter() - drawn, memory))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "peer"), help="one of them alone")
    parser.add_argument("--smoke", action="store_true", help="a few narrow layers, few tokens")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sides = {"ours": run_ours, "peer": run_peer}
    spawn, report = multiprocessing.get_context("spawn"), {}
    completions = options.prompts * published.load_recipe(RECIPE).rollout.num_rollouts
    for name in [options.side] if options.side else sides:
        results = spawn.Queue()
        process = spawn.Process(target=sides[name], args=(options, results))
        process.start()
        rows = []
        while len(rows) <= options.rounds:
            rows.append(results.get(timeout=900)[1:])
            print(f"{name}: rollout {rows[-1][0]:.2f} s, update {rows[-1][1]:.2f} s", flush=True)
        process.join()
        rollout, update, memory = (statistics.median(part) for part in zip(*rows[1:], strict=True))
        each = (rollout + update) / completions
        report[name] = {"rollout_s": rollout, "update_s": update, "chip_s_per_rollout": each}
        report[name]["peak_gib"] = memory
        print(
            f"{name}: rollout {rollout:.2f} s, update {update:.2f} s, {each:.3f} chip-seconds per "
            f"completion, peak {memory:.1f} GiB", flush=True,
        )  # fmt: skip
    if len(report) == 2:
        report["ratio"] = {
            name: report["peer"][part] / report["ours"][part]
            for name, part in (
                ("rollout", "rollout_s"), ("update", "update_s"), ("step", "chip_s_per_rollout")
            )
        }  # fmt: skip
        print({name: round(value, 2) for name, value in report["ratio"].items()})
    if options.json:
        shape = {"recipe": RECIPE, "prompts": options.prompts, "completions": completions}
        print(json.dumps({"machine": peer.machine(), "shape": shape, **report}))


if __name__ == "__main__":
    main()
