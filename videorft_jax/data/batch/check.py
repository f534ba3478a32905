"""Whether a batch that somebody else may have made is one that a model reads.

On a device nothing is refused: an id beyond the vocabulary, or a place beyond the pixels, reads
what lies at the end.
"""

import numpy as np

from videorft_jax.data.batch.batch import Batch

_KINDS = {"i": "whole numbers", "b": "booleans", "u": "bytes"}


def check_arrays(batch: Batch, vocab_size: int, patch_dim: int, what: str) -> None:
    """Raises ValueError, one line that begins with `what`, for arrays of another shape or kind than
    `Batch` says, and for ids outside the vocabulary."""
    if np.ndim(batch.tokens) != 2:
        shape = np.shape(batch.tokens)
        raise ValueError(f"{what}: tokens is of shape {shape}; give rows of tokens, [B, T]")
    rows, length = np.shape(batch.tokens)
    slots = (rows, *np.shape(batch.patches)[1:4])
    wanted = {
        "tokens": ((rows, length), "i"),
        "segment_ids": ((rows, length), "i"),
        "positions": ((rows, 3, length), "i"),
        "loss_mask": ((rows, length), "b"),
        "visual_index": ((rows, length), "i"),
        "patches": ((*slots, patch_dim), "u"),
        "patch_valid": (slots, "b"),
        "patch_hw": ((*slots, 2), "i"),
    }
    for name, (shape, kind) in wanted.items():
        leaf = getattr(batch, name)
        if np.shape(leaf) != shape or np.dtype(getattr(leaf, "dtype", "O")).kind != kind:
            found = f"{getattr(leaf, 'dtype', type(leaf).__name__)} of shape {np.shape(leaf)}"
            raise ValueError(f"{what}: {name} is {found}; give {_KINDS[kind]} of shape {shape}")
    real = np.asarray(batch.segment_ids) > 0
    ids = np.asarray(batch.tokens)[real]
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(
            f"{what}: token ids from {ids.min()} to {ids.max()}; the model has rows for 0 to "
            f"{vocab_size - 1}"
        )


def check_places(batch: Batch, what: str) -> None:
    """Raises ValueError for visual tokens at whose places in the batch are no pixels."""
    # Four patches make a visual token, and all of them are real or none is.
    used = np.asarray(batch.patch_valid).reshape(len(batch.tokens), -1, 4)[..., 0]
    index = np.where(np.asarray(batch.segment_ids) > 0, np.asarray(batch.visual_index), -1)
    row, token = np.nonzero(index >= 0)
    index = index[row, token]
    if index.size and (index.max() >= used.shape[1] or not used[row, index].all()):
        raise ValueError(f"{what}: visual_index names places without pixels; rebuild the batch")
