"""The options of a rollout, as a recipe sets them in its sections `rollout` and `tools`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class RolloutOptions:
    """How completions are drawn in training, and how decoding is compiled.

    num_rollouts to min_p are those of `sampling.SamplingConfig`, chunk to int8_cache those of
    `engine.RolloutEngine`. mesh: sizes of data, fsdp and tensor; None is the training's mesh,
    "auto" a choice that is still to be made.
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
    mesh: tuple[int, int, int] | str | None


@dataclasses.dataclass(frozen=True)
class ToolOptions:
    """What a completion may call, and what a call may cost.

    names: "frames", or functions of the user as module:function. max_turns: turns of a completion,
    the first included. max_frames: frames that one call may return. max_tokens: tokens that the
    result of one call may take, its visual tokens included. timeout_s: seconds for one call.
    """

    names: tuple[str, ...]
    max_turns: int
    max_frames: int
    max_tokens: int
    timeout_s: float

    @property
    def num_results(self) -> int:
        """The most results of calls that a completion may read."""
        return self.max_turns - 1
