"""What a rollout is asked for, checked before anything reaches a device. NumPy only."""

import numbers

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.check import check_arrays
from videorft_jax.models.config import ModelConfig
from videorft_jax.rollout.sampling import SamplingConfig


def check_request(
    batch: Batch, uids, limits, config: ModelConfig, sampling: SamplingConfig,
    prompt_lengths: tuple[int, ...], seed: int, step: int,
):  # fmt: skip
    """The arguments of `RolloutEngine.rollout` in the form that the programs read.

    The arguments are those of `RolloutEngine.rollout`; prompt_lengths are the engine's. Returns the
    batch cut or padded to its prompt bucket, uids uint32 [B] and limits int32 [B, R].

    Raises ValueError, which names the prompt and what to change, for what `rollout` refuses.
    """
    check_arrays(batch, config.text.vocab_size, config.vision.patch_dim, "rollout")
    count, shape = len(batch.tokens), (len(batch.tokens), sampling.num_rollouts)
    uids = np.asarray(uids)
    for name, value in (("seed", seed), ("step", step), *(("uid", int(uid)) for uid in uids)):
        if not isinstance(value, numbers.Integral) or not 0 <= value < 2**32:
            shown = str(value) if isinstance(value, numbers.Real) else type(value).__name__
            raise ValueError(f"rollout: {name} {shown} is outside 0 .. 2^32 - 1; give one inside")
    if uids.shape != (count,):
        raise ValueError(f"rollout: uids have shape {uids.shape}; give one to each of {count} rows")
    limits = np.full(shape, sampling.max_new_tokens) if limits is None else np.asarray(limits)
    if limits.shape != shape or limits.min() < 1 or limits.max() > sampling.max_new_tokens:
        raise ValueError(
            f"rollout: limits of shape {limits.shape} from {limits.min()} to {limits.max()}; give "
            f"{shape} numbers from 1 to max_new_tokens, {sampling.max_new_tokens}"
        )
    real = np.asarray(batch.segment_ids) > 0
    lengths = real.sum(1)
    largest = max(prompt_lengths, default=real.shape[1])
    slots = batch.patch_valid.reshape(count, -1, 4)[..., 0]  # four patches make a visual token
    media = np.isin(batch.tokens, [config.token_ids.image, config.token_ids.video]) & real
    for b, uid in enumerate(uids):
        where = f"rollout: prompt {b} (uid {uid})"
        index = batch.visual_index[b][batch.visual_index[b] >= 0]
        if not lengths[b]:
            raise ValueError(f"{where} has no tokens; leave it out")
        if lengths[b] > largest:
            raise ValueError(
                f"{where} has {lengths[b]} tokens, the largest bucket holds {largest}; add a "
                "bucket, or use fewer frames or pixels"
            )
        if not real[b, : lengths[b]].all() or batch.segment_ids[b].max() > 1:
            raise ValueError(f"{where} is not one right-padded sample; do not pack prompts")
        used = slots[b].sum()
        if not used == len(index) == media[b].sum():
            raise ValueError(
                f"{where} has {used} visual tokens, {len(index)} places for them and "
                f"{media[b].sum()} media tokens; build prompt and clips by the same contract"
            )
        if len(index) and (index.max() >= slots.shape[1] or not slots[b, index].all()):
            raise ValueError(f"{where}: visual_index names empty slots; rebuild the batch")
    length = min((n for n in prompt_lengths if n >= lengths.max()), default=real.shape[1])
    return fit(batch, length), uids.astype(np.uint32), limits.astype(np.int32)


def fit(batch: Batch, length: int) -> Batch:
    """Cuts padding off, or adds it at the right, so that the rows of the batch have `length`
    tokens."""

    def resize(name, fill):
        value = np.asarray(getattr(batch, name))[..., :length]
        width = [(0, 0)] * (value.ndim - 1) + [(0, length - value.shape[-1])]
        return np.pad(value, width, constant_values=fill)

    fills = {"tokens": 0, "segment_ids": 0, "positions": 0, "loss_mask": False, "visual_index": -1}
    return batch._replace(**{name: resize(name, fill) for name, fill in fills.items()})
