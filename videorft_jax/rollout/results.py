"""What a rollout returns."""

from typing import Any, NamedTuple

import numpy as np


class Turns(NamedTuple):
    """Completions of which some called a tool, with the results between their turns.

    A completion has at most E tokens, its own and those of results. Results of the completions of a
    prompt show at most X frame pairs, which stand behind the prompt's F pairs in its row.
    """

    tokens: np.ndarray  # int32 [B, R, E]
    lengths: np.ndarray  # int32 [B, R], tokens with those of results
    is_own: np.ndarray  # bool [B, R, E], the model drew the token
    positions: np.ndarray  # int32 [B, 3, R, E], M-RoPE
    visual_index: np.ndarray  # int32 [B, R, E], as in a batch of F + X frame pairs
    patches: np.ndarray  # uint8 [B, X, W, 64, D], the frame pairs of results
    patch_valid: np.ndarray  # bool [B, X, W, 64]
    patch_hw: np.ndarray  # int32 [B, X, W, 64, 2]


class Rollout(NamedTuple):
    """The completions of this process's prompts, in the order of the batch, as NumPy arrays.

    B prompts have R completions of at most C tokens each. Of a completion of several turns these
    are the tokens that the model drew, one turn behind the other; `turns` has the results in
    between.
    """

    tokens: np.ndarray  # int32 [B, R, C], the padding token after the end
    lengths: np.ndarray  # int32 [B, R], tokens drawn, the stop token included
    logprobs: np.ndarray  # float32 [B, R, C], under the policy at its temperature; 0 after the end
    truncation: np.ndarray  # float32 [B, R, C], log of the mass drawn from; see sampling.py
    stopped: np.ndarray  # bool [B, R], a stop token ended the completion
    failed: np.ndarray  # bool [B, R], logits that were not finite ended the completion
    counters: dict[str, float]  # token counts, seconds and shares of this rollout, for the log
    turns: Turns | None = None  # where some completion called a tool
    # The log shows what each completion called.
    calls: list[list[list[dict[str, Any]]]] | None = None
