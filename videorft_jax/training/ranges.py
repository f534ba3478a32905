"""The range of every numeric option, which is checked when a config is read and printed by --help.

One table, so that the two cannot differ. An option of `configs/common.py` that is a number and is
not here fails a test.
"""

import math
from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from `low` to `high`. An end that is `open` is not in the range itself."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: float | None = None  # one more number that is allowed, such as -1

    def holds(self, value: float) -> bool:
        """Whether `value` is in the range; what is not finite never is, since a checkpoint keeps
        every option as JSON."""
        if value != value or abs(value) == math.inf:
            return False
        if self.also is not None and value == self.also:
            return True
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        """The range as the end of a sentence such as "give ...": "at least 1", "from 0 to
        below 1"."""
        if self.high == math.inf:
            text = f"more than {self.low}" if self.open_low else f"at least {self.low}"
        else:
            text = "above" if self.open_low else "from"
            text += f" {self.low} to " + ("below " if self.open_high else "") + f"{self.high}"
        return text if self.also is None else f"{text}, or {self.also}"


_COUNT, _NUMBER, _POSITIVE = Range(1), Range(0), Range(0, open_low=True)
_FRACTION, _MOMENT = Range(0, 1), Range(0, 1, open_high=True)
_PROBABILITY = Range(0, 1, open_low=True)
_AXIS = Range(1, also=-1)

RANGES = {
    "seed": Range(0, 2**32 - 1),
    "lora.rank": _NUMBER,
    "lora.alpha": _POSITIVE,
    "limits.max_bytes": _COUNT,
    "limits.max_source_pixels": _COUNT,
    "limits.max_seconds": _POSITIVE,
    "limits.max_packets": _COUNT,
    "limits.timeout_s": _POSITIVE,
    "limits.memory_bytes": _COUNT,
    "data.rows": _COUNT,
    "data.row_tokens": _COUNT,
    "data.max_buckets": _COUNT,
    "data.multiple": _COUNT,
    "data.epochs": _COUNT,
    "data.max_bad_fraction": _FRACTION,
    "data.threads": Range(-1),
    "data.workers": _NUMBER,
    "data.timeout_s": _POSITIVE,
    "media.fps": _NUMBER,
    "media.min_frames": _NUMBER,
    "media.max_frames": _NUMBER,
    "media.min_pixels": _NUMBER,
    "media.max_pixels": _NUMBER,
    "media.total_pixels": _NUMBER,
    "media.patch_size": _NUMBER,
    "optim.lr": _NUMBER,
    "optim.warmup_steps": Range(0, 2**31 - 1),  # An optimizer counts its steps as int32.
    "optim.b1": _MOMENT,
    "optim.b2": _MOMENT,
    "optim.eps": _NUMBER,
    "optim.weight_decay": _NUMBER,
    "optim.clip": _NUMBER,
    "optim.ema_decay": _MOMENT,
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
    "mesh.slices": _COUNT,
    "train.accumulate": _COUNT,
    "train.max_steps": _NUMBER,
    "train.max_skipped_in_row": _COUNT,
    "rollout.num_rollouts": _COUNT,
    "rollout.max_new_tokens": _COUNT,
    "rollout.temperature": _NUMBER,
    "rollout.top_p": _PROBABILITY,
    "rollout.top_k": _NUMBER,
    "rollout.min_p": _MOMENT,
    "rollout.chunk": _COUNT,
    "rollout.num_buckets": _COUNT,
    "tools.max_turns": _COUNT,
    "tools.max_frames": Range(2),
    "tools.max_tokens": Range(64),
    "tools.timeout_s": _POSITIVE,
    "grpo.beta": _NUMBER,
    "grpo.clip_low": _NUMBER,
    "grpo.clip_high": _NUMBER,
    "grpo.num_updates": _COUNT,
    "grpo.minibatches": _COUNT,
    "grpo.top_entropy": _PROBABILITY,
    "grpo.off_policy_limit": _NUMBER,
    "grpo.num_given": _NUMBER,
    "grpo.sync_every": _NUMBER,
    "grpo.reference_mixup": _PROBABILITY,
    "grpo.given_shaping": _POSITIVE,
    "grpo.sampler_cap": _NUMBER,
    "grpo.sampler_floor": _NUMBER,
    "grpo.dual_clip": _NUMBER,
    "grpo.entropy_bonus": _NUMBER,
    "grpo.max_draws": _COUNT,
    "grpo.length_buckets": _COUNT,
    "alarms.window": Range(2, also=0),
    "alarms.entropy_below": _NUMBER,
    "alarms.kl_above": _NUMBER,
    "alarms.length_below": _NUMBER,
    "reward.timeout_s": _POSITIVE,
    "reward.overlong_tokens": _COUNT,
    "reward.frames": _COUNT,
    "reward.scale": _POSITIVE,
    "evaluate.limit": _NUMBER,
    "evaluate.num_rollouts": _COUNT,
    "evaluate.max_new_tokens": _COUNT,
    "evaluate.temperature": _NUMBER,
    "evaluate.top_p": _PROBABILITY,
    "evaluate.top_k": _NUMBER,
    "evaluate.min_p": _MOMENT,
    "checkpoint.every": _COUNT,
    "checkpoint.keep_last": _COUNT,
    "checkpoint.keep_every": _NUMBER,
    "validate.every": _COUNT,
    "validate.limit": _NUMBER,
    "validate.max_new_tokens": _COUNT,
    "validate.patience": _NUMBER,
    "log.interval_s": _NUMBER,
    "log.profile": _NUMBER,
}
