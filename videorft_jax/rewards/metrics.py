"""What is logged about the rewards of one step, as a flat dict of finite floats."""

from collections.abc import Sequence

import numpy as np

from videorft_jax.rewards.combine import RewardBatch, RewardConfig
from videorft_jax.rewards.gates import GATES, open_gate


def summarize(
    batch: RewardBatch, problem_types: Sequence[str], config: RewardConfig
) -> dict[str, float]:
    """Statistics of B groups of R completions.

    Keys (a figure without a single sample behind it is left out):
      rewards/NAME/mean, rewards/NAME/std, and the same followed by /TYPE: over the samples that
        have a value; NAME also "total". std is the population's.
      rewards/total/group_std: mean over groups of the unbiased std, what divides the advantage.
      gate/open and gate/open/TYPE: share of samples with accuracy that the gate lets through.
      groups/all_wrong: no sample above its type's gate threshold; groups/all_right: every sample
        at 1 - threshold or above (for a threshold of 0: accuracy 0, accuracy 1); groups/equal: all
        totals the same, no gradient; groups/dropped: no valid sample.
      samples/masked: share of samples that are not valid.
      counts/NAME/REASON: number of samples.

    Args:
      batch: the rewards.
      problem_types: B type names.
      config: the one that made the batch.
    """
    types = np.array(problem_types)
    out: dict[str, float] = {}
    for name, scores in {**batch.scores, "total": batch.total}.items():
        for suffix, rows in _by_type(types):
            values = scores[rows][np.isfinite(scores[rows])]
            if values.size:
                out[f"rewards/{name}/mean{suffix}"] = float(values.mean())
                out[f"rewards/{name}/std{suffix}"] = float(values.std())
    if batch.is_open is not None:
        known = np.isfinite(batch.scores["accuracy"])
        for suffix, rows in _by_type(types):
            if known[rows].any():
                out[f"gate/open{suffix}"] = float(batch.is_open[rows][known[rows]].mean())
    if "accuracy" in batch.scores:
        out |= _count_groups(batch.scores["accuracy"], problem_types, config)
    groups = [total[valid] for total, valid in zip(batch.total, batch.valid, strict=True)]
    stds = [group.std(ddof=1) for group in groups if len(group) > 1]
    if stds:
        out["rewards/total/group_std"] = float(np.mean(stds))
    out["groups/equal"] = float(
        np.mean([len(group) > 0 and np.ptp(group) < 1e-9 for group in groups])
    )
    out["groups/dropped"] = float(np.mean([len(group) == 0 for group in groups]))
    out["samples/masked"] = float(np.mean(~batch.valid))
    return out | {f"counts/{name}": float(number) for name, number in batch.counts.items()}


def _by_type(types: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(suffix, bool [B]) for all rows and for the rows of each type."""
    kinds = [(f"/{kind}", types == kind) for kind in sorted(set(types.tolist()))]
    return [("", np.ones(len(types), bool)), *kinds]


def _count_groups(
    accuracy: np.ndarray, problem_types: Sequence[str], config: RewardConfig
) -> dict[str, float]:
    thresholds = dict(GATES[config.mode] if config.gate is None else config.gate)
    known = np.isfinite(accuracy)
    groups = known.any(axis=1)
    if not groups.any():
        return {}
    limits = np.array([thresholds.get(kind, 0.0) for kind in problem_types])[:, None]
    is_wrong = ~open_gate(accuracy, problem_types, thresholds) | ~known
    is_right = (accuracy >= 1 - limits) | ~known
    return {
        "groups/all_wrong": float(is_wrong.all(axis=1)[groups].mean()),
        "groups/all_right": float(is_right.all(axis=1)[groups].mean()),
    }
