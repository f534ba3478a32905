"""The accuracy of a completion, computed once however often the trainer asks for it."""

import functools

from videorft_jax.rewards.accuracy import score_accuracy

NUM_KEPT = 8192  # completions; more than a step of the largest recipe draws

score_once = functools.lru_cache(NUM_KEPT)(score_accuracy)  # `options` must be a tuple.
