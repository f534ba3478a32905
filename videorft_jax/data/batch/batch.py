"""The batch contract: what the loader hands to the model.

Every leaf starts with B, so that one partition spec shards all of them. Answers and paths stay on
the host, beside the batch.
"""

from typing import Any, NamedTuple

Array = Any  # numpy.ndarray on the host, jax.Array on the device


class Batch(NamedTuple):
    """B rows of T tokens. A row's pixels are F frame pairs of W windows of 64 patches, and X are
    the values of a patch (1176 with patches of 14 pixels, 1536 with 16)."""

    tokens: Array  # int32 [B, T], packed samples or one right-padded prompt
    segment_ids: Array  # int32 [B, T], 0 = padding
    positions: Array  # int32 [B, 3, T], M-RoPE time, height, width
    loss_mask: Array  # bool [B, T], True where the token is a target of the assistant turn
    visual_index: Array  # int32 [B, T], which visual token of this row stands here, -1 = text
    patches: Array  # uint8 [B, F, W, 64, X], the patches of each frame pair
    patch_valid: Array  # bool [B, F, W, 64], whether the slot holds a patch
    patch_hw: Array  # int32 [B, F, W, 64, 2], row and column for 2-D rotary
