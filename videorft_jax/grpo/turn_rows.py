"""The rows of an update whose completions called tools.

A row stays `[prompt | R completions]`. Each completion holds the results of its calls between its
own tokens, and their frame pairs stand behind those of the prompt, so that the clip of the prompt
is still encoded once. No completion sees another one's results.
"""

from typing import Any

import numpy as np

from videorft_jax.grpo.experience import Experience
from videorft_jax.grpo.logprobs import Groups, TurnLayout
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.grpo.update import GroupRows
from videorft_jax.parallel.processes import gather


def make_turn_rows(part: Experience, taking: np.ndarray) -> GroupRows:
    """Returns the groups of one batch, some of whose completions called a tool, as NumPy rows.

    taking: bool [B, R], the completions that are learnt from; the others have length 0.
    """
    turns: Any = part.rollout.turns
    batch = part.batch
    sampler = np.zeros(turns.tokens.shape, np.float32)
    for row, number in np.ndindex(turns.lengths.shape):
        count = part.rollout.lengths[row, number]
        sampler[row, number][turns.is_own[row, number]] = part.rollout.logprobs[row, number, :count]
    joined = {
        name: np.concatenate([getattr(batch, name), getattr(turns, name)], axis=1)
        for name in ("patches", "patch_valid", "patch_hw")
    }
    layout = TurnLayout(turns.is_own, turns.positions, turns.visual_index)
    lengths: Any = np.where(taking, turns.lengths, 0).astype(np.int32)
    groups = Groups(batch._replace(**joined), turns.tokens, lengths, turns=layout)
    advantages: Any = part.advantages
    weights: Any = sampler
    return GroupRows(groups, advantages, weights)


def fit_turns(
    rows: GroupRows, longest: int, num_prompt_pairs: int, options: GrpoOptions
) -> GroupRows:
    """Pads completions and frame pairs to the smallest of `length_buckets` shapes that holds those
    of all processes, which are as many programs for each bucket of the loader.

    longest: tokens of the longest completion of all processes. num_prompt_pairs: frame pairs of a
    row that belong to its prompt.
    """
    tools, count = options.train.tools, options.length_buckets
    turns, batch = rows.groups.turns, rows.groups.batch
    assert tools is not None
    assert turns is not None
    most_tokens = options.rollout.max_new_tokens + tools.num_results * tools.max_tokens
    pairs_of_result = -(-tools.max_frames // options.train.contract.temporal_patch_size)
    most_pairs = options.rollout.num_rollouts * tools.num_results * pairs_of_result
    pairs = max(gather(batch.patches.shape[1] - num_prompt_pairs))
    shapes = [(-(-most_tokens * k // count), -(-most_pairs * k // count)) for k in range(1, count)]
    shapes.append((most_tokens, most_pairs))
    size, pairs = next(shape for shape in shapes if shape[0] >= longest and shape[1] >= pairs)
    made: Any = turns
    layout = TurnLayout(
        _resize(made.is_own, 2, size, False),
        _resize(made.positions, 3, size, 0),
        _resize(made.visual_index, 2, size, -1),
    )
    total = num_prompt_pairs + pairs
    joined = {
        name: _resize(getattr(batch, name), 1, total, 0)
        for name in ("patches", "patch_valid", "patch_hw")
    }
    groups = rows.groups._replace(
        batch=batch._replace(**joined),
        completions=_resize(rows.groups.completions, 2, size, 0),
        turns=layout,
    )
    return rows._replace(groups=groups, sampler=_resize(rows.sampler, 2, size, 0))


def _resize(array: Any, axis: int, size: int, fill: Any) -> Any:
    """Returns the array cut or padded to `size` along an axis."""
    array = np.take(array, range(min(size, array.shape[axis])), axis=axis)
    pad = [(0, 0)] * array.ndim
    pad[axis] = (0, size - array.shape[axis])
    return np.pad(array, pad, constant_values=fill)
