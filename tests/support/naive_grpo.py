"""The GRPO loss one token at a time, from the formulas, in PyTorch."""

import itertools

import numpy as np
import torch


def loss(logprobs, old, reference, sampler, mask, advantages, c, entropy=None):
    """Tensors [B, R, C]; mask a NumPy array; None stands for what is not given."""
    per_sequence, total_tokens = [], int(mask.sum())
    first_given = mask.shape[1] - c.num_given
    drawn = mask & (np.arange(mask.shape[1]) < first_given)[:, None]
    counted = count_tokens(logprobs, sampler, drawn, advantages, c, entropy)
    for b, r in itertools.product(*map(range, mask.shape[:2])):
        places = np.flatnonzero(mask[b, r])
        if not len(places):
            continue
        lp = logprobs[b, r, places]
        start = lp.detach() if old is None else old[b, r, places]
        advantage = advantages[b, r]
        if r >= first_given:
            p = torch.exp(lp)
            taught = -advantage * p / (p + c.given_shaping)
            bonus = c.entropy_bonus * entropy[b, r, places] if c.entropy_bonus else 0.0
            per_sequence.append(taught - bonus)
            continue
        log_ratio = lp - start
        if c.variant == "gspo":
            log_ratio = log_ratio.mean().repeat(len(places))
        values = []
        for i, place in enumerate(places):
            ratio = torch.exp(log_ratio[i])
            if c.variant == "cispo":
                value = -ratio.detach().clamp(max=1 + c.clip_high) * advantage * lp[i]
            elif c.variant == "sapo":
                slope = 1.0 if advantage > 0 else 1.05
                value = -advantage * torch.sigmoid(slope * (ratio - 1)) * 4 / slope
            else:
                bounded = ratio.clamp(1 - c.clip_low, 1 + c.clip_high)
                value = -torch.minimum(ratio * advantage, bounded * advantage)
                if c.dual_clip and advantage < 0:
                    value = torch.minimum(value, -c.dual_clip * advantage)
            value = value * counted[b, r, place]
            if c.sampler_cap:
                gaps = start - sampler[b, r, places]
                gap = gaps.sum() if c.sampler_level == "sequence" else gaps[i]
                weight = torch.exp(gap)
                if c.sampler_rule == "mask":
                    weight = weight if c.sampler_floor <= weight <= c.sampler_cap else 0.0
                else:
                    weight = weight.clamp(c.sampler_floor, c.sampler_cap)
                value = value * weight
            if c.beta:
                d = (reference[b, r, place] - lp[i]).clamp(-10, 10)
                k3 = torch.exp(d) - d - 1
                weighted = torch.exp(lp[i] - start[i]) * k3
                kl = {"k2": d**2 / 2, "k3": k3, "k3_weighted": weighted}[c.kl]
                value = value + c.beta * kl
            if c.entropy_bonus:
                value = value - c.entropy_bonus * entropy[b, r, place]
            values.append(value)
        per_sequence.append(torch.stack(values))
    if c.variant in ("grpo", "gspo", "sapo"):
        return torch.stack([values.mean() for values in per_sequence]).mean()
    total = torch.cat(per_sequence).sum()
    if c.variant == "dr_grpo":
        return total / (len(per_sequence) * c.max_length)
    return total / total_tokens


def count_tokens(logprobs, sampler, mask, advantages, c, entropy):
    """Which tokens have a policy term: those of highest entropy of their group, and none of a bad
    completion that the policy has moved away from."""
    counted = np.array(mask)
    for b in range(len(mask)):
        if c.top_entropy < 1:
            own = np.sort(entropy[b].detach().numpy()[mask[b]])[::-1]
            least = own[int(np.ceil(np.float32(c.top_entropy) * len(own))) - 1]
            counted[b] &= entropy[b].detach().numpy() >= least
        for r in range(mask.shape[1]):
            if c.off_policy_limit and mask[b, r].any() and advantages[b, r] < 0:
                gap = (sampler[b, r] - logprobs[b, r].detach()).numpy()[mask[b, r]]
                counted[b, r] &= gap.mean() <= c.off_policy_limit
    return torch.tensor(counted)


def separate_advantages(rewards, weights, valid):
    """Each reward normalised in its group, summed, and divided by the spread of the batch. Lists
    [K][B][R] of numbers or None; valid [B][R]."""
    rows, rollouts = len(valid), len(valid[0])
    total = torch.zeros(rows, rollouts)
    for reward, weight in zip(rewards, weights, strict=True):
        for b in range(rows):
            places = [r for r in range(rollouts) if valid[b][r] and reward[b][r] is not None]
            own = torch.tensor([reward[b][r] for r in places])
            if len(own) < 2:
                continue
            total[b, places] += weight * (own - own.mean()) / (own.std() + 1e-4)
    return total / (total[torch.tensor(valid)].std() + 1e-4)
