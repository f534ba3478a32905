"""The GRPO loss one token at a time, from the formulas, in PyTorch."""

import itertools

import numpy as np
import torch


def loss(logprobs, old, reference, sampler, mask, advantages, c):
    """Tensors [B, R, C]; mask a NumPy array; None stands for what is not given."""
    per_sequence, total_tokens = [], int(mask.sum())
    for b, r in itertools.product(*map(range, mask.shape[:2])):
        places = np.flatnonzero(mask[b, r])
        if not len(places):
            continue
        lp = logprobs[b, r, places]
        start = lp.detach() if old is None else old[b, r, places]
        advantage = advantages[b, r]
        log_ratio = lp - start
        if c.variant == "gspo":
            log_ratio = log_ratio.mean().repeat(len(places))
        values = []
        for i, place in enumerate(places):
            ratio = torch.exp(log_ratio[i])
            if c.variant == "cispo":
                value = -ratio.detach().clamp(max=1 + c.clip_high) * advantage * lp[i]
            else:
                bounded = ratio.clamp(1 - c.clip_low, 1 + c.clip_high)
                value = -torch.minimum(ratio * advantage, bounded * advantage)
            if c.sampler_cap:
                weight = torch.exp(start[i] - sampler[b, r, place]).clamp(max=c.sampler_cap)
                value = value * weight
            if c.beta:
                d = (reference[b, r, place] - lp[i]).clamp(-10, 10)
                kl = {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - d - 1}[c.kl]
                value = value + c.beta * kl
            values.append(value)
        per_sequence.append(torch.stack(values))
    if c.variant in ("grpo", "gspo"):
        return torch.stack([values.mean() for values in per_sequence]).mean()
    total = torch.cat(per_sequence).sum()
    if c.variant == "dr_grpo":
        return total / (len(per_sequence) * c.max_length)
    return total / total_tokens
