"""What a rollout returns."""

from typing import NamedTuple

import numpy as np


class Rollout(NamedTuple):
    """The completions of this process's prompts, in the order of the batch, as NumPy arrays.

    B prompts have R completions of at most C tokens each.
    """

    tokens: np.ndarray  # int32 [B, R, C], the padding token after the end
    lengths: np.ndarray  # int32 [B, R], tokens drawn, the stop token included
    logprobs: np.ndarray  # float32 [B, R, C], under the policy at its temperature; 0 after the end
    truncation: np.ndarray  # float32 [B, R, C], log of the mass drawn from; see sampling.py
    stopped: np.ndarray  # bool [B, R], a stop token ended the completion
    failed: np.ndarray  # bool [B, R], logits that were not finite ended the completion
    counters: dict[str, float]  # token counts, seconds and shares of this rollout, for the log
