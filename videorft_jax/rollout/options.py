"""The options of a rollout, as a recipe sets them in its section `rollout`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """How completions are drawn in training, and how decoding is compiled.

    num_rollouts to min_p are those of `sampling.SamplingConfig`, chunk to int8_cache those of
    `engine.RolloutEngine`.
    """

    num_rollouts: int
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    chunk: int
    num_buckets: int
    int8_weights: bool
    int8_cache: bool
